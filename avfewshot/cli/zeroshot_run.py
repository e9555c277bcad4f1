"""The work of `avfs zeroshot`: load, classify, hand every result to the writers, and finish them whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

from avfewshot.cli.console import Notices, library_messages, paused_progress, progress_bar
from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.lifecycle import debugging
from avfewshot.cli.outputs import OpenWriter, open_page, open_writer
from avfewshot.cli.zeroshot_request import ZeroshotRequest
from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.reports.records import is_finite
from avfewshot.reports.writers import Summary


def execute(request: ZeroshotRequest, command: str) -> int:
    """Classify what was asked for.

    Args:
        request: Checked.
        command: The command line, for the report.

    Returns:
        The exit status: 0 all done, 1 some files failed, 130 or 143 cut short.

    Raises:
        AvfsError: The model cannot be loaded, or does not fit; results so far are kept.
    """
    notices = Notices()
    loaded = request.chosen("backbone") or request.settings["adapter"]
    bar = progress_bar(len(request.files), "clip", f"loading {loaded}")
    with library_messages(notices, debug=debugging()), Interrupts() as interrupts, bar:
        try:
            classifier = _load(request)
            run, results = _start(classifier, request)
        except KeyboardInterrupt:
            return interrupts.status
        for warning in run.warnings:
            notices.warn(warning)
        bar.set_description("clips")
        bar.reset()
        session = _Session(request, run, _open_writers(request, run, command))
        cut_short = session.take(results, interrupts, bar)
    if cut_short:
        return interrupts.status
    return 1 if session.failed else 0


def _load(request: ZeroshotRequest) -> Any:
    from avfewshot.inference.loading import load

    settings = request.settings
    return load(
        request.chosen("backbone"),
        device=settings["device"],
        weights=settings["weights"],
        seed=settings["seed"],
        precision=settings["precision"],
        clip_weights=settings["clip_weights"],
        clap_weights=settings["clap_weights"],
        roberta=settings["roberta"],
        templates=request.chosen("templates"),
        adapter=settings["adapter"],
    )


def _start(classifier: Any, request: ZeroshotRequest) -> tuple[RunInfo, Iterator[ClipResult | Failure]]:
    settings = request.settings
    run = classifier.info(request.labels, fusion=request.chosen("fusion"), pool=request.chosen("pool"))
    run = dataclasses.replace(run, warnings=[*_own_warnings(request), *run.warnings])
    results = classifier.iter_classify(
        request.files,
        request.labels,
        modality=settings["modality"],
        fusion=run.fusion,
        pool=run.pool,
        batch_size=settings["batch_size"],
        frame_backend=settings["frame_backend"],
        segments=settings["segments"] or request.report is not None,  # the page draws them in any case
    )
    return run, results


def _own_warnings(request: ZeroshotRequest) -> list[str]:
    warnings = []
    if request.settings["weights"] == "random":
        warnings.append("The weights are random (--weights random): the scores mean nothing.")
    if len(request.labels) == 1:
        warnings.append("There is only one label, so every clip gets it with a score of 1.")
    return warnings


def _open_writers(request: ZeroshotRequest, run: RunInfo, command: str) -> list[OpenWriter]:
    settings = request.settings
    writers = [
        open_writer(target, run, topk=settings["topk"], segments=settings["segments"]) for target in request.targets
    ]
    if request.report is not None:
        from avfewshot.reports.html import Provenance

        provenance = Provenance(command, request.shown_settings(run))
        writers.append(
            open_page(
                request.report,
                run,
                topk=settings["topk"],
                total=len(request.files),
                provenance=provenance,
                decoder=settings["frame_backend"],
            )
        )
    return writers


class _Session:
    """Hands results to the writers and counts them."""

    def __init__(self, request: ZeroshotRequest, run: RunInfo, writers: list[OpenWriter]) -> None:
        self._run = run
        self._writers = writers
        self._total = len(request.files)
        self.clips = 0
        self.failed = 0

    def take(self, results: Iterator[ClipResult | Failure], interrupts: Interrupts, bar: Any) -> bool:
        """Take all results, or those that come before a signal or an error, and finish the writers in any case.

        Returns:
            Whether a signal cut it short.
        """
        started = time.perf_counter()
        error: BaseException | None = None
        try:
            with contextlib.closing(results):
                for result in results:
                    with interrupts.put_off():
                        self._add(_checked(result))
                        bar.update()
                        bar.set_postfix_str(f"{self.failed} failed" if self.failed else "", refresh=False)
        except BaseException as caught:
            error = caught
        bar.close()
        summary = Summary(self.clips, self.failed, self._total, time.perf_counter() - started)
        try:
            with interrupts.put_off():
                for writer in self._writers:
                    late = _finish(writer, summary)
                    error = error or late
        except KeyboardInterrupt as late:
            error = error or late
        # `avfs ... | head`: whoever asked has had enough. (rich turns a broken pipe into an exit.)
        if not isinstance(error, (BrokenPipeError, SystemExit)):
            self._say_footer(summary)
        if error is not None and not isinstance(error, KeyboardInterrupt):
            raise error
        return error is not None

    def _add(self, result: ClipResult | Failure) -> None:
        if isinstance(result, Failure):
            self.failed += 1
        else:
            self.clips += 1
        with paused_progress() if sys.stdout.isatty() else contextlib.nullcontext():
            for writer in self._writers:
                writer.add(result)

    def _say_footer(self, summary: Summary) -> None:
        from rich.console import Console

        from avfewshot.reports.tables import footer
        from avfewshot.reports.text import printable

        console = Console(stderr=True, highlight=False)
        if not any(writer.shows_footer for writer in self._writers):
            console.print(footer(self._run, summary, plain=console.options.ascii_only), soft_wrap=True)
        for writer in self._writers:
            if writer.path is not None and writer.finished:
                console.print(f"written: {printable(str(writer.path))}", soft_wrap=True, markup=False)


def _finish(writer: OpenWriter, summary: Summary) -> Exception | None:
    # One output that cannot be completed does not take the others along.
    try:
        writer.finish(summary)
    except Exception as error:
        return error
    return None


def _checked(result: ClipResult | Failure) -> ClipResult | Failure:
    if isinstance(result, ClipResult) and not is_finite(result):
        return Failure(result.path, "the model gave scores that are not finite; --precision fp32 may help.")
    return result
