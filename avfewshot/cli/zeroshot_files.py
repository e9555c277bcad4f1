"""`avfs zeroshot` on files: load, classify, hand every result to the writers, and finish them whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Generator
from typing import Any

from avfewshot.cli.destinations import DRAWN, Target
from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.loading import chosen, left_to_adapter, load_classifier, model_arguments, on_ray, open_store
from avfewshot.cli.logs import library_messages
from avfewshot.cli.outputs import OpenWriter, open_writer
from avfewshot.cli.terminal import paused_progress, progress_bar, say, say_warning
from avfewshot.cli.zeroshot_request import Work
from avfewshot.config import ZeroshotConfig, settings_of
from avfewshot.inference.results import Failure, RunInfo
from avfewshot.reports.tables import footer
from avfewshot.reports.text import reject_text
from avfewshot.reports.timelines import OverlayWriter
from avfewshot.reports.writers import Summary, is_finite

_LOG = logging.getLogger(__name__)


def classify(work: Work, command: str) -> int:
    """Load, classify, hand every result to the writers, and finish them whatever happens; gives the exit status."""
    if work.earlier:
        rest = f"{len(work.files):,} are left" if work.files else "none is left"
        held = f"{work.settings['output']} holds {len(work.earlier):,} files already"
        say_warning(f"{held}, {rest} (--overwrite begins anew).")
        if not work.files:
            return 1 if work.earlier.failed else 0
    loaded = chosen(work.settings, "backbone") or work.settings["adapter"]
    bar = progress_bar(len(work.files), "clip", f"loading {loaded}")
    with library_messages() as notices, Interrupts() as interrupts, bar:
        try:
            run, results = _start(work)
        except KeyboardInterrupt:
            return interrupts.status
        for warning in run.warnings:
            notices.warn(warning)
        bar.set_description("clips")
        bar.reset()
        writers = _open_writers(work, run, command)
        failed, cut_short = _write(work, run, writers, results, interrupts, bar)
    if cut_short:
        return interrupts.status
    return 1 if failed or (work.earlier and work.earlier.failed) else 0


def _start(work: Work) -> tuple[RunInfo, Generator[Any, None, None]]:
    settings = work.settings
    model = settings.config.model
    classifier = load_classifier(settings, open_store(settings["store"]))
    answers = {key: True for key in ("reject", "multi_label") if settings[key]}
    run = classifier.info(work.labels, fusion=chosen(settings, "fusion"), pool=chosen(settings, "pool"), **answers)
    own = []
    if model.weights == "random":
        own.append("The weights are random (--weights random): the scores mean nothing.")
    if len(work.labels) == 1:
        own.append("There is only one label, so every clip gets it with a score of 1.")
    if run.reject is not None:
        own.append(f"`unknown`: {reject_text(run.reject)}.")
    options: dict[str, Any] = {
        "labels": work.labels,
        "modality": model.modality,
        "fusion": run.fusion,
        "pool": run.pool,
        "batch_size": model.batch_size,
        "frame_backend": model.frame_backend,
        # The page and timelines draw them in any case.
        "segments": settings["segments"]
        or work.page is not None
        or settings["overlay"] is not None
        or any(t.form in DRAWN for t in work.targets),
        **answers,
    }
    classify = functools.partial(type(classifier).iter_classify, **options)
    if settings["engine"] == "ray":
        classify = on_ray(settings.config.distribution, model_arguments(settings), classify)
    results = classify(classifier, work.files)
    return dataclasses.replace(run, warnings=[*own, *run.warnings]), results


def _open_writers(work: Work, run: RunInfo, command: str) -> list[OpenWriter]:
    settings = work.settings
    shown = {"topk": settings["topk"], "segments": settings["segments"]}
    resumed = {"run_id": work.run_id, "resume": work.earlier is not None}
    writers = [open_writer(target, run, **shown, **resumed) for target in work.targets]
    if (folder := settings["overlay"]) is not None:
        writers.append(OpenWriter(OverlayWriter(folder, run), folder))
    if work.page is not None:
        from avfewshot.media.thumbnails import Thumbnail, thumbnails
        from avfewshot.reports.html import HtmlWriter

        rows = [
            (name, getattr(run, name, "the adapter's"), "the adapter")
            if left_to_adapter(settings, name)
            else (name, value, source)
            for name, value, source in settings.rows()
            if settings_of(ZeroshotConfig)[name if name != "list_file" else "list"].saved
        ]
        store = open_store(settings["store"])

        def pictures(path: str, count: int) -> list[Thumbnail]:
            kept = [] if store is None else store.pictures(path, count)
            return kept or thumbnails(path, count, frame_backend=settings["frame_backend"])

        about = {"total": len(work.files), "command": command, "settings": rows, "pictures": pictures}
        writers.append(OpenWriter(HtmlWriter(work.page, run, topk=settings["topk"], **about), work.page))
    return writers


def _write(
    work: Work, run: RunInfo, writers: list[OpenWriter], results: Generator[Any, None, None], interrupts: Any, bar: Any
) -> tuple[int, bool]:
    """Write results up to a signal or an error, finish in any case: how many clips failed, whether it was cut short."""
    started, clips, failed = time.perf_counter(), 0, 0
    error: BaseException | None = None
    try:
        with contextlib.closing(results):
            for result in results:
                with interrupts.put_off():
                    if not isinstance(result, Failure) and not is_finite(result):
                        problem = "the model gave scores that are not finite; --precision fp32 may help."
                        result = Failure(result.path, problem)
                    if isinstance(result, Failure):
                        failed += 1
                        _LOG.info("%s: failed: %s", result.path, result.error)
                    else:
                        clips += 1
                        _LOG.debug("%s: %s", result.path, result.label)
                    with paused_progress() if sys.stdout.isatty() else contextlib.nullcontext():
                        for writer in writers:
                            writer.add(result)
                    bar.update()
                    bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
    except BaseException as caught:
        error = caught
    bar.close()
    summary = Summary(clips, failed, len(work.files), time.perf_counter() - started)
    try:
        with interrupts.put_off():
            for writer in writers:
                try:
                    writer.finish(summary)
                except Exception as late:  # noqa: PERF203 - one that cannot be completed does not take others along
                    error = error or late
    except KeyboardInterrupt as late:
        error = error or late
    # `avfs ... | head`: whoever asked has had enough. (rich turns a broken pipe into an exit.)
    if not isinstance(error, (BrokenPipeError, SystemExit)):
        if Target("table", None) not in work.targets:  # which ends with it
            say(footer(run, summary, plain=not (sys.stderr.encoding or "").lower().startswith("utf")))
        for writer in writers:
            if writer.path is not None and writer.finished:
                say(f"written: {writer.path}")
    if error is not None and not isinstance(error, KeyboardInterrupt):
        raise error
    return failed, error is not None
