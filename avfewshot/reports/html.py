"""One self-contained HTML page for a run: no request leaves it, and it reads on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from markupsafe import Markup

from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.io import atomic_path
from avfewshot.reports.pages import TEMPLATES, environment, style
from avfewshot.reports.strip import marks
from avfewshot.reports.text import printable, rate, reason
from avfewshot.reports.thumbnails import Thumbnail
from avfewshot.reports.views import clip_view
from avfewshot.reports.writers import Summary
from avfewshot.version import __version__

_AHEAD = 8
"""Clips whose pictures may be read at the same time as the next ones are classified."""


@dataclass(frozen=True)
class Provenance:
    """How the run was asked for.

    Attributes:
        command: The command line.
        settings: Name, value and source of every setting, as text.
    """

    command: str
    settings: Sequence[tuple[str, str, str]]


def picture_count(clips: int) -> int:
    """Pictures for each clip: a page of thousands of clips must still open."""
    return 10 if clips <= 200 else 5 if clips <= 1000 else 2


class HtmlWriter:
    """Collects the clips of a run and writes the page at the end.

    Finished clips wait in a temporary file, so memory does not grow with their number.

    Args:
        path: The page.
        topk: Rows in a clip's table of scores.
        total: Files of the run; decides how many pictures each clip gets.
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
        self._provenance = provenance
        self._pictures = pictures
        self._environment = environment()
        self._clip_template = self._environment.get_template("clip.html.j2")
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
        view = clip_view(number, result, self._run, pictures, topk=self._topk)
        return self._clip_template.render(clip=view).encode("utf-8", "backslashreplace")

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
        script = (TEMPLATES / "filter.js").read_text(encoding="utf-8")
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
            "command": printable(self._provenance.command),
            "settings": [tuple(map(printable, row)) for row in self._provenance.settings],
            "facts": [
                ("clips", summary.clips),
                ("failed", summary.failed),
                ("labels", len(run.labels)),
                ("backbone", printable(run.backbone)),
                *([("adapter", printable(run.adapter))] if run.adapter else []),
                ("device", run.device),
                ("precision", run.precision),
                ("fusion", run.fusion),
                ("pooling", run.pool),
                *([("speed", f"{rate(summary.rate)} clips/s")] if summary.clips else []),
            ],
            "warnings": [printable(warning) for warning in run.warnings],
            "labels": list(zip(run.labels, run.wordings, strict=True)),
            "counts": [(label, count, table[label]) for label, count in counts],
            "most": max(self._labels.values(), default=1),
            "failures": [(printable(failure.path), reason(failure.path, failure.error)) for failure in self._failures],
            "fragments": self._fragments(),
            "style": style("report.css"),
            "script": Markup(script),
            "script_hash": base64.b64encode(digest).decode("ascii"),
        }
