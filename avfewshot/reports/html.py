"""One HTML page for a run: clips as JSON, shown by the script that `avfs serve` shows them by, under a strict CSP."""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import json
import os
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from avfewshot.evaluation.results import finite
from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.io import atomic_path, write_bytes
from avfewshot.media.discover import VIDEO_SUFFIXES
from avfewshot.media.thumbnails import Thumbnail
from avfewshot.reports import figures
from avfewshot.reports.text import percent, quantity, rate, reason, reject_text
from avfewshot.reports.writers import Summary, Writer
from avfewshot.text import printable
from avfewshot.version import __version__

MOST_IN_FULL = 500
"""Clips of a page that holds its pictures; those of more lie in a folder beside it, one for each clip."""

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_STYLE, _HASH = Markup("\0style"), Markup("\0hash")  # no text that is shown holds such a sign
_AHEAD = 8  # clips whose pictures may be read at the same time as the next ones are classified


@functools.cache
def environment() -> jinja2.Environment:
    """Templates that escape whatever they show, and in which a name that is missing is an error.

    Text that is no markup is made printable too: ids and labels come from others and may hold anything.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        auto_reload=False,
    )
    own = (figures.points, figures.share, figures.cell, figures.headline, figures.signed, figures.interval)
    shown = (*own, figures.metric_title, figures.metric_description, percent, quantity)
    made.filters |= {form.__name__: form for form in shown}
    made.filters |= {"finite": finite, "d1": "{:.1f}".format, "place": lambda value: 100 * min(max(value, 0.0), 1.0)}
    return made


def render(template: str, *, script: str = "", **context: Any) -> str:
    """The page of a training or a comparison; style and script go by their hashes in its Content-Security-Policy.

    There is no hash of a style attribute: each becomes a rule of the style sheet, as strong as it was.
    """
    sheet, script_hash = component("report.css") + component("run.css"), content_hash(script) if script else ""
    about = {"version": __version__, "style": _STYLE, "style_hash": _HASH, "script": Markup(script)}
    text = environment().get_template(template).render(about | {"script_hash": script_hash} | context)
    rules: dict[str, int] = {}
    text = re.sub(r' style="([^"]*)"', lambda found: f' data-s="{rules.setdefault(found[1], len(rules))}"', text)
    for rule, number in rules.items():  # as strong as an id
        sheet += f':is([data-s="{number}"], #s) {{ {rule} }}\n'
    return text.replace(_HASH, content_hash(f"\n{sheet}"), 1).replace(_STYLE, sheet, 1)


def component(name: str) -> str:
    """A script or style sheet that the reports share with the page of `avfs serve`."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def content_hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline script or style."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def clip_data(result: ClipResult, *, topk: int) -> dict[str, Any]:
    """A clip for ``clips.js``: small enough for ten thousand of them in one page.

    Shares are in thousandths, labels are positions among those of the run (-1: background).
    """
    labels = list(result.scores)
    place = {label: index for index, label in enumerate(labels)}
    best = sorted(range(len(labels)), key=[*result.scores.values()].__getitem__, reverse=True)[:topk]

    def share(value: float) -> int:
        return round(1000 * value)

    def alone(scores: list[list[float] | None]) -> list[int] | None:
        if not scores or None in scores:
            return None
        tops = ((max(range(len(row)), key=row.__getitem__), row) for row in scores if row is not None)
        return [number for index, row in tops for number in (index, share(row[index]))]

    order = [*sorted(result.scores.values(), reverse=True), 0.0]
    pair = result.visual, result.audio
    apart = sum(abs(pair[0][label] - pair[1][label]) for label in labels) / 2 if pair[0] and pair[1] else None
    columns = [result.scores, *pair]
    return {
        "duration": round(result.duration, 2),
        "label": printable(result.label),
        **({"labels": [printable(label) for label in result.labels]} if result.labels else {}),
        "score": share(result.score),
        "margin": share(order[0] - order[1]),
        "apart": None if apart is None else share(apart),
        "best": [
            [index, *(None if column is None else share(column[labels[index]]) for column in columns)] for index in best
        ],
        "weights": [share(result.weights["visual"]), share(result.weights["audio"])],
        "both": [n for s in result.segments for n in (place.get(s.label, -1), share(s.score))],
        "sight": alone([segment.visual for segment in result.segments]),
        "sound": alone([segment.audio for segment in result.segments]),
        "warnings": [printable(warning) for warning in result.warnings],
    }


def picture_count(clips: int) -> int:
    """Pictures for each clip: a page of hundreds of clips must still open."""
    return 10 if clips <= 200 else 5 if clips <= MOST_IN_FULL else 1


class HtmlWriter(Writer):
    """Collects the clips of a run and writes the page at the end.

    Finished clips wait in a temporary file, so memory does not grow with their number. Pictures of more than
    :data:`MOST_IN_FULL` clips go into the folder ``NAME-files`` beside the page; `pictures` reads the frames of a file:
    ``(path, count) -> list[Thumbnail]``. `settings` are (name, value, source), as text.
    """

    def __init__(
        self,
        path: Path,
        run: RunInfo,
        *,
        topk: int,
        total: int,
        command: str,
        settings: Sequence[tuple[str, str, str]],
        pictures: Callable[[str, int], list[Thumbnail]],
    ) -> None:
        self._path, self._run, self._topk, self._count = path, run, topk, picture_count(total)
        self._folder = path.with_name(f"{path.stem}-files") if total > MOST_IN_FULL else None
        self._command, self._settings, self._pictures = command, settings, pictures
        self._number = 0
        self._labels: Counter[str] = Counter()
        self._failures: list[Failure] = []
        self._lengths: list[int] = []
        self._pending: deque[Future[bytes]] = deque()
        self._closing = contextlib.ExitStack()
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)
            for old in self._folder.iterdir():  # of an earlier page
                if re.fullmatch(r"\d{6,}\.jpg", old.name):
                    old.unlink()
        spool = tempfile.TemporaryFile(prefix="avfs-report-")  # noqa: SIM115 - closed by the stack
        self._spool: BinaryIO = self._closing.enter_context(spool)
        self._thread = self._closing.enter_context(ThreadPoolExecutor(1, thread_name_prefix="avfs-report"))

    def clip(self, result: ClipResult) -> None:
        """Take a result; its pictures are read while the next clips are classified."""
        self._number += 1
        self._labels[result.label] += 1
        self._pending.append(self._thread.submit(self._fragment, self._number, result))
        while len(self._pending) > _AHEAD:
            self._store()

    def failed(self, failure: Failure) -> None:
        """Take a failure."""
        self._failures.append(failure)

    def end(self, summary: Summary) -> None:
        """Write the page."""
        with self._closing:
            while self._pending:
                self._store()
            template = environment().get_template("page.html.j2")
            with atomic_path(self._path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(template.generate(**self._context(summary)))

    def _fragment(self, number: int, result: ClipResult) -> bytes:
        clip = {"path": printable(result.path), **clip_data(result, topk=self._topk)}
        path = Path(os.path.abspath(result.path))
        clip["video"] = path.suffix.lower() in VIDEO_SUFFIXES
        with contextlib.suppress(ValueError):  # it lies elsewhere: the page cannot name it
            clip["file"] = quote(path.relative_to(self._path.parent.absolute()).as_posix(), errors="surrogateescape")
        pictures = self._pictures(result.path, self._count)
        if self._folder is None:
            clip["pictures"] = [[picture.second, picture.source] for picture in pictures]
        elif pictures:
            write_bytes(self._folder / f"{number:06d}.jpg", base64.b64decode(pictures[0].source.partition(",")[2]))
            clip["thumb"] = f"{quote(self._folder.name)}/{number:06d}.jpg"
        return (("," if number > 1 else "") + embedded(clip)).encode("utf-8")

    def _store(self) -> None:
        fragment = self._pending.popleft().result()
        self._spool.write(fragment)
        self._lengths.append(len(fragment))

    def _fragments(self) -> Iterator[Markup]:
        self._spool.seek(0)
        for length in self._lengths:
            yield Markup(self._spool.read(length).decode("utf-8"))

    def _context(self, summary: Summary) -> dict[str, object]:
        run, sheet = self._run, component("clips.css")
        script = component("clips.js") + component("report.js")
        plural = "" if summary.clips == 1 else "s"
        title = f"{summary.clips} clip{plural} classified by sight and sound"
        if not summary.complete:
            title += f" (stopped after {summary.clips + summary.failed} of {summary.total} files)"
        return {
            "version": __version__,
            "title": title,
            "when": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "command": self._command,
            "settings": self._settings,
            "folder": self._folder and self._folder.name,
            "facts": [
                ("clips", summary.clips),
                ("failed", summary.failed),
                ("labels", len(run.labels)),
                ("backbone", run.backbone),
                *([("adapter", run.adapter)] if run.adapter else []),
                ("device", run.device),
                ("precision", run.precision),
                ("fusion", run.fusion),
                ("pooling", run.pool),
                *([("unknown", reject_text(run.reject))] if run.reject else []),
                *([("speed", f"{rate(summary.rate)} clips/s")] if summary.clips else []),
            ],
            "warnings": run.warnings,
            "labels": list(zip(run.labels, run.wordings, strict=True)),
            "names": Markup(embedded([printable(label) for label in run.labels])),
            "counts": self._labels.most_common(),
            "most": max(self._labels.values(), default=1),
            "failures": [(failure.path, reason(failure.path, failure.error)) for failure in self._failures],
            "fragments": self._fragments(),
            "style": Markup(sheet),
            "style_hash": content_hash(f"\n{sheet}"),
            "script": Markup(script),
            "script_hash": content_hash(script),
        }
