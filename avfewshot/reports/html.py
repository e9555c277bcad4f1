"""One self-contained HTML page for a run: no request leaves it, and it reads on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from avfewshot.inference.results import ClipResult, Failure, RunInfo, SegmentResult
from avfewshot.io import atomic_path, write_bytes
from avfewshot.media.thumbnails import Thumbnail
from avfewshot.reports.records import distribution
from avfewshot.reports.strip import MOST_BINS, Mark, Span, cells, marks, runs, step_path, time_ticks
from avfewshot.reports.text import percent, printable, rate, reason, reject_text, seconds
from avfewshot.reports.writers import Summary
from avfewshot.version import __version__

MOST_IN_FULL = 500
"""Clips of a page with tables and timelines; of more, each has a line, and pictures lie in a folder beside the page."""

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_AHEAD = 8
"""Clips whose pictures may be read at the same time as the next ones are classified."""
_MOST_TRACKS = 4
_MOST_RUNS = 6
"""Changes of label that the line of a clip tells."""


@dataclass(frozen=True)
class Provenance:
    """How the run was asked for."""

    command: str  # the command line
    settings: Sequence[tuple[str, str, str]]  # name, value and source, as text


def environment() -> jinja2.Environment:
    """Templates that escape whatever they show, and in which a name that is missing is an error.

    Text that is no markup is made printable too: ids and labels come from others and may hold anything.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        auto_reload=False,
    )


def style(*names: str) -> Markup:
    """Style sheets of the package, one after the other, to be put into a page."""
    return Markup("".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def component(name: str) -> str:
    """A script or style sheet that the reports share with the page of `avfs serve`."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


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

    columns = [result.scores, result.visual, result.audio]
    return {
        "duration": round(result.duration, 2),
        "label": result.label,
        "score": share(result.score),
        "best": [
            [index, *(None if column is None else share(column[labels[index]]) for column in columns)] for index in best
        ],
        "weights": [share(result.weights["visual"]), share(result.weights["audio"])],
        "both": [n for s in result.segments for n in (place.get(s.label, -1), share(s.score))],
        "sight": alone([segment.visual for segment in result.segments]),
        "sound": alone([segment.audio for segment in result.segments]),
        "warnings": list(result.warnings),
    }


def picture_count(clips: int) -> int:
    """Pictures for each clip: a page of hundreds of clips must still open."""
    return 10 if clips <= 200 else 5 if clips <= MOST_IN_FULL else 1


class HtmlWriter:
    """Collects the clips of a run and writes the page at the end.

    Finished clips wait in a temporary file, so memory does not grow with their number.

    Args:
        path: The page. Pictures of more than :data:`MOST_IN_FULL` clips go into the folder ``NAME-files`` beside it.
        topk: Rows in a clip's table of scores.
        total: Files of the run; decides how much is told of each clip.
        provenance: How the run was asked for.
        pictures: Reads the frames of a file: ``(path, count) -> list[Thumbnail]``.
    """

    def __init__(
        self,
        path: Path,
        *,
        topk: int,
        total: int,
        provenance: Provenance,
        pictures: Callable[[str, int], list[Thumbnail]],
    ) -> None:
        self._path = path
        self._topk = topk
        self._count = picture_count(total)
        self._folder = path.with_name(f"{path.stem}-files") if total > MOST_IN_FULL else None
        self._provenance = provenance
        self._pictures = pictures
        self._environment = environment()
        self._clip_template = self._environment.get_template("line.html.j2" if self._folder else "clip.html.j2")
        self._run: RunInfo | None = None
        self._number = 0
        self._labels: Counter[str] = Counter()
        self._failures: list[Failure] = []
        self._lengths: list[int] = []
        self._pending: deque[Future[bytes]] = deque()
        self._closing = contextlib.ExitStack()

    def begin(self, run: RunInfo) -> None:
        """Open the temporary file and the thread that reads pictures."""
        self._run = run
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)
            for old in self._folder.iterdir():  # of an earlier page
                if re.fullmatch(r"\d{6,}\.jpg", old.name):
                    old.unlink()
        spool = tempfile.TemporaryFile(prefix="avfs-report-")  # noqa: SIM115 - closed by the stack
        self._spool: BinaryIO = self._closing.enter_context(spool)
        self._thread = self._closing.enter_context(ThreadPoolExecutor(1, thread_name_prefix="avfs-report"))

    def add(self, result: ClipResult | Failure) -> None:
        """Take a result; its pictures are read while the next clips are classified."""
        if isinstance(result, Failure):
            self._failures.append(result)
            return
        self._number += 1
        self._labels[result.label] += 1
        self._pending.append(self._thread.submit(self._fragment, self._number, result))
        while len(self._pending) > _AHEAD:
            self._store()

    def end(self, summary: Summary) -> None:
        """Write the page."""
        with self._closing:
            while self._pending:
                self._store()
            page = self._environment.get_template("page.html.j2")
            with atomic_path(self._path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(page.generate(**self._context(summary)))

    def _fragment(self, number: int, result: ClipResult) -> bytes:
        assert self._run is not None
        pictures = self._pictures(result.path, self._count)
        if self._folder is None:
            clip = clip_view(result, self._run, topk=self._topk)
            text = self._clip_template.render(clip=clip, number=number, pictures=pictures)
        else:
            picture = ""
            if pictures:
                write_bytes(self._folder / f"{number:06d}.jpg", base64.b64decode(pictures[0].source.partition(",")[2]))
                picture = f"{quote(self._folder.name)}/{number:06d}.jpg"
            parts = [f"{seconds(run.start)}-{seconds(run.end)} s {run.label}" for run in runs(result.segments)]
            told = ", ".join(parts[:_MOST_RUNS]) + (", ..." if len(parts) > _MOST_RUNS else "")
            text = self._clip_template.render(
                clip=result,
                picture=picture,
                told=told if len(parts) > 1 else "",
                mark=marks(self._run.labels, [result.label])[result.label],
            )
        return text.encode("utf-8", "backslashreplace")

    def _store(self) -> None:
        fragment = self._pending.popleft().result()
        self._spool.write(fragment)
        self._lengths.append(len(fragment))

    def _fragments(self) -> Iterator[Markup]:
        self._spool.seek(0)
        for length in self._lengths:
            yield Markup(self._spool.read(length).decode("utf-8"))

    def _context(self, summary: Summary) -> dict[str, object]:
        run = self._run
        assert run is not None
        script = (_TEMPLATES / "filter.js").read_text(encoding="utf-8")
        digest = hashlib.sha256(script.encode("utf-8")).digest()
        counts = self._labels.most_common()
        table = marks(run.labels, [label for label, _ in counts])
        plural = "" if summary.clips == 1 else "s"
        title = f"{summary.clips} clip{plural} classified by sight and sound"
        if not summary.complete:
            title += f" (stopped after {summary.clips + summary.failed} of {summary.total} files)"
        return {
            "version": __version__,
            "title": title,
            "when": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "command": self._provenance.command,
            "settings": self._provenance.settings,
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
            "counts": [(label, count, table[label]) for label, count in counts],
            "most": max(self._labels.values(), default=1),
            "failures": [(failure.path, reason(failure.path, failure.error)) for failure in self._failures],
            "fragments": self._fragments(),
            "style": style("report.css"),
            "script": Markup(script),
            "script_hash": base64.b64encode(digest).decode("ascii"),
        }


def clip_view(result: ClipResult, run: RunInfo, *, topk: int) -> dict[str, Any]:
    """A clip for its template: the result, its best labels, marks, and a timeline (None without segments)."""
    table = marks(run.labels, [result.label, *(segment.label for segment in result.segments)])
    fused = distribution(result.scores)
    return {
        "result": result,
        "fused": fused,
        "best": sorted(fused, key=fused.__getitem__, reverse=True)[:topk],
        "mark": table[result.label],
        "duration": f"{seconds(result.duration)} s",
        "columns": max(1, min(len(result.segments), 10)),
        "timeline": _timeline(result, run, table) if result.segments else None,
    }


def _timeline(result: ClipResult, run: RunInfo, table: dict[str, Mark]) -> dict[str, Any]:
    segments = result.segments
    origin = segments[0].start
    length = segments[-1].start + 1 - origin  # the last one may be cut off by the end of the file
    parts = runs(_thinned(segments))
    starts = [100 * (part.start - origin) / length for part in parts]
    spans = [
        Span(left, right - left, table[part.label], f"{seconds(part.start)}-{seconds(part.end)} s: {part.label}")
        for part, left, right in zip(parts, starts, [*starts[1:], 100.0], strict=True)
    ]
    balance = None
    if result.visual is not None and result.audio is not None:
        shares = [segment.weights["visual"] for segment in segments]
        title = (
            f"Share of the visual scores over the seconds, {percent(sum(shares) / len(shares))} on average; "
            "the rest is audio."
        )
        balance = _track("visual share", table[result.label], shares, title)
    return {
        "spans": spans,
        "tracks": _tracks(segments, run.labels, table),
        "balance": balance,
        "ticks": time_ticks(origin, length),
        "described": ", ".join(f"{seconds(p.start)}-{seconds(p.end)} s {p.label}" for p in runs(segments)[:50]),
    }


def _thinned(segments: Sequence[SegmentResult]) -> list[SegmentResult]:
    """Segments of a very long clip, joined so that the page stays small."""
    labels, span = cells(segments, MOST_BINS)
    if span == 1:
        return list(segments)
    ends = [segments[min((index + 1) * span, len(segments)) - 1].end for index in range(len(labels))]
    return [
        SegmentResult(segments[index * span].start, ends[index], label, 0.0, {}, [])
        for index, label in enumerate(labels)
    ]


def _tracks(segments: Sequence[SegmentResult], labels: Sequence[str], table: dict[str, Mark]) -> list[dict[str, Any]]:
    """Curves of the labels that win seconds, those that win most first, then in the order of their highest moment."""
    won = Counter(segment.label for segment in segments)
    peaks = {label: max(segment.scores[index] for segment in segments) for index, label in enumerate(labels)}
    order = sorted(labels, key=lambda label: (won[label], peaks[label]), reverse=True)
    tracks = []
    for label in [label for label in order if label in table and (won[label] or peaks[label] >= 0.05)][:_MOST_TRACKS]:
        index = labels.index(label)
        when = max(segments, key=lambda segment: segment.scores[index])
        title = f"{label}: highest at {seconds(when.start)}-{seconds(when.end)} s with {percent(peaks[label])}"
        tracks.append(_track(label, table[label], [segment.scores[index] for segment in segments], title))
    return tracks


def _track(name: str, mark: Mark, values: Sequence[float], title: str) -> dict[str, Any]:
    """A curve over the seconds: an SVG path in a box of `bins` x 1."""
    span = max(1, -(-len(values) // MOST_BINS))
    parts = [values[begin : begin + span] for begin in range(0, len(values), span)]
    path = step_path([sum(part) / len(part) for part in parts])
    return {"name": name, "mark": mark, "path": path, "bins": len(parts), "title": title}
