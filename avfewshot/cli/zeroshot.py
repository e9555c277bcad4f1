"""`avfs zeroshot`: classify clips with nothing but a list of labels, or evaluate on a data set without training."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.loading import (
    chosen,
    left_to_adapter,
    load_backbone,
    load_classifier,
    model_arguments,
    on_ray,
    open_store,
)
from avfewshot.cli.options import adapter_folder, argument, asked_labels, backbone_faults, with_options
from avfewshot.cli.outputs import DRAWN
from avfewshot.cli.runs import command_line, session
from avfewshot.cli.terminal import Interrupts, library_messages, paused_progress, progress_bar, say, say_warning
from avfewshot.config import Resolved, ZeroshotConfig, resolve, settings_of
from avfewshot.engine import check_engine
from avfewshot.errors import UsageError, collect, did_you_mean, raise_faults
from avfewshot.io import user_path, write_text

if TYPE_CHECKING:
    from avfewshot.cli.outputs import Earlier, OpenWriter, Target
    from avfewshot.evaluation.evaluator import EvalReport, Evaluator
    from avfewshot.inference.results import RunInfo
    from avfewshot.labels import LabelSet

_LOG = logging.getLogger(__name__)


_TASK_OPTIONS = ("root", "media", "list", "vggsounder", "background")
_TASKS = ("ave", "ave_cls", "llp_cls", "vggsound_cls")
_SUFFIXES = (".json", ".csv", ".md")
_WITHOUT_MEANING = {  # beside --task
    "report": "The task says which clips.",
    "overlay": "Clips are judged, not shown.",
    "labels": "The task has labels of its own.",
    "modality": "All of them are evaluated.",
    "topk": "Clips are judged, not listed.",
    "segments": "Clips are judged, not listed.",
    "multi_label": "Clips are judged, not listed.",
    "reject": "Clips are judged, not listed.",
    "format": f"The suffix of --output says it: {', '.join(_SUFFIXES)}.",
    "recursive": "The task says which clips.",
    "engine": "A task is evaluated in this process.",
    "address": "A task is evaluated in this process.",
    "resume": "A task is evaluated anew each time.",
}


@with_options("zeroshot")
def zeroshot(
    context: typer.Context,
    paths: Annotated[list[str] | None, argument("PATH", "Media files, folders, globs or addresses.")] = None,
    **flags: Any,
) -> None:
    """Classify clips by what is seen and heard, with nothing but a list of labels.

    Each PATH is a media file, a folder, a glob, or an address (http://, https://, s3://);
    without any, every media file below the current folder is taken. A file that cannot be
    read is reported, and the others go on.

    [bold]Examples[/bold]

      avfs zeroshot --labels labels.txt
      avfs zeroshot --labels labels.txt clips/ --segments --report report.html
      avfs zeroshot --labels labels.txt a.mp4 b.wav --output results.json
      avfs zeroshot --labels labels.txt 'day-*/*.mp4' --format jsonl | jq .label
      avfs zeroshot --labels labels.txt --backbone large --device cuda:0
      avfs zeroshot --labels labels.txt --adapter runs/llp_cls/RUN
      avfs zeroshot --adapter runs/folder/RUN --reject clips/  `unknown` for what is like nothing learnt
      avfs zeroshot --labels labels.txt --multi-label clips/   all labels that a clip carries
      avfs zeroshot --task llp_cls --root DATA                 evaluate on a test split, without training
      avfs zeroshot --task ave --adapter runs/pretrain/RUN     with what pretraining learnt beside it

    [bold]The label file[/bold] has one label a line; `#` begins a comment.

      dog barking
      violin: a person playing the violin   # what the text branches read

    [bold]Exit status:[/bold] 0 all done, 1 some clips failed, 2 misuse, 130 interrupted; results so far are kept.
    """
    settings = resolve("zeroshot", flags)
    if flags["task"] is not None:
        _check_task(settings, flags, paths or [])
        with session() as (display, _):
            from avfewshot.evaluation.evaluator import evaluate_task

            evaluator, model, options = _load_task(settings, display)
            report = evaluate_task(evaluator, model, **options)
        _print_task(settings, evaluator, report)
    else:
        given = [key for key in _TASK_OPTIONS if flags[key]]
        if given:
            raise UsageError(f"--{given[0]} needs --task.", hint="avfs zeroshot --task llp_cls --root DIR")
        if status := _classify(_checked(settings, paths or []), command_line(context)):
            raise typer.Exit(status)


# ---------------------------------------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is to be classified, and where results go."""

    settings: Resolved
    labels: LabelSet
    files: list[Path | str]
    targets: list[Target]
    page: Path | None
    earlier: Earlier | None  # what a .jsonl file that is gone on with holds
    run_id: str


def _checked(settings: Resolved, paths: Sequence[str]) -> _Work:
    """Check everything that can be checked before torch is imported, and tell all that is wrong at once."""
    from avfewshot.cli.outputs import check_file, check_folder, check_overwrite, earlier_results, plan_targets
    from avfewshot.media.discover import find_media

    faults, asked = settings.faults, settings.config.output
    page, labels = None, collect(faults, lambda: asked_labels(settings))
    if not (asked.label or asked.labels):
        labels = None if settings["adapter"] is None else _labels_of_run(settings["adapter"])
        if labels is None and settings.source("labels") == "default":
            hint = "Write one label a line into a file and add `--labels labels.txt`, or say `--label 'dog barking'`."
            faults.append(UsageError("No label file is given.", hint=hint))
    if asked.reject and settings["adapter"] is None:
        faults.append(UsageError("--reject: only a few-shot run can tell unknown clips.", hint="Add --adapter RUN."))
    distribution = settings.config.distribution
    collect(faults, lambda: check_engine(distribution.engine, distribution.address))
    if distribution.engine == "ray" and asked.store is not None:
        faults.append(UsageError("--engine ray decodes clips, --store has them decoded.", hint="Leave one out."))
    store = collect(faults, lambda: open_store(asked.store))
    if store is not None and not paths:
        files: list[Path | str] | None = [clip.source for clip in store.embedded]
    else:
        files = collect(faults, lambda: find_media(paths or ["."], recursive=asked.recursive))
    faults += backbone_faults(settings)
    given = settings.source("format") != "default"
    targets, wrong = plan_targets(asked.format, asked.output, form_given=given, clips=len(files or ()))
    faults += wrong
    if asked.report is not None:
        page = user_path(asked.report)
        if page.suffix.lower() in {".html", ".htm"}:
            faults += check_file(page, "--report")
        else:
            hint = f"Write `--report {Path(asked.report or 'report').with_suffix('.html')}`."
            faults.append(UsageError(f"--report {asked.report}: the page's name must end in .html.", hint=hint))
    wrong = [] if asked.overlay is None else check_folder(asked.overlay, "--overlay")
    faults += wrong
    folder = asked.overlay.resolve() if asked.overlay is not None and not wrong else None
    if folder is not None and any(Path(file).parent.resolve() == folder for file in files or ()):
        hint = "Name another folder: its videos are called as the clips are."
        faults.append(UsageError(f"--overlay {asked.overlay}: clips lie there.", hint=hint))
    written = [("--output", target.path) for target in targets if target.path is not None]
    written += [("--report", page)] if page is not None else []
    faults += check_overwrite(written, [*(files or []), *([asked.labels] if asked.labels else [])])
    raise_faults(faults)
    assert labels is not None
    assert files is not None
    run_id, earlier = _run_id(settings, labels), None
    place = targets[0].path if [target.form for target in targets] == ["jsonl"] else None
    alone = place is not None and page is None and asked.overlay is None and (place.is_file() or not place.exists())
    if place is not None and alone and asked.resume:
        earlier = earlier_results(place, run_id)
        files = [file for file in files if str(file) not in earlier.paths]
    return _Work(settings, labels, files, targets, page, earlier, run_id)


def _run_id(settings: Resolved, labels: LabelSet) -> str:
    """What shapes results: a file is gone on with only by a run that agrees in it."""
    from avfewshot.cli.outputs import run_id

    keys = (
        *("backbone", "adapter", "weights", "seed", "precision", "clip_weights", "clap_weights", "roberta"),
        *("templates", "fusion", "pool", "modality", "frame_backend", "segments"),
    )
    values = {key: chosen(settings, key) for key in keys}
    values |= {key: True for key in ("multi_label", "reject") if settings[key]}
    values |= {"audio_context": "clip"} if chosen(settings, "audio_context") == "clip" else {}
    return run_id(labels=labels.names, wordings=labels.wordings, **values)


_MOST_CONFIG = 64 << 20  # bytes, as `models.checkpoint` reads at most


def _labels_of_run(path: Path) -> LabelSet | None:
    """The classes that a run was trained on; None where its files do not tell."""
    from avfewshot.labels import LabelSet

    path = adapter_folder(path)
    for pattern in ("config.json", "scorer/config.json", "seed-*/*/config.json", "checkpoints/*/config.json",
                    "seed-*/checkpoints/*/config.json"):  # fmt: skip
        for file in sorted(path.glob(pattern)):
            try:
                if not file.is_file() or file.stat().st_size > _MOST_CONFIG:  # a pipe would be waited for
                    continue
                found = json.loads(file.read_text(encoding="utf-8"))
                return LabelSet.from_wordings(dict(zip(found["labels"], found["wordings"], strict=True)))
            except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError):
                continue
    return None


def _classify(work: _Work, command: str) -> int:
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
        failed, cut_short = _write(run, writers, results, len(work.files), interrupts, bar)
    if cut_short:
        return interrupts.status
    return 1 if failed or (work.earlier and work.earlier.failed) else 0


def _start(work: _Work) -> tuple[RunInfo, Generator[Any, None, None]]:
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
        from avfewshot.reports.text import reject_text

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


def _open_writers(work: _Work, run: RunInfo, command: str) -> list[OpenWriter]:
    from avfewshot.cli.outputs import OpenWriter, open_writer

    settings = work.settings
    shown = {"topk": settings["topk"], "segments": settings["segments"]}
    resumed = {"run_id": work.run_id, "resume": work.earlier is not None}
    writers = [open_writer(target, run, **shown, **resumed) for target in work.targets]
    if (folder := settings["overlay"]) is not None:
        from avfewshot.reports.timelines import OverlayWriter

        writers.append(OpenWriter(OverlayWriter(folder), folder, run))
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
        page = HtmlWriter(work.page, topk=settings["topk"], **about)
        writers.append(OpenWriter(page, work.page, run))
    return writers


def _write(
    run: RunInfo, writers: list[OpenWriter], results: Generator[Any, None, None], total: int, interrupts: Any, bar: Any
) -> tuple[int, bool]:
    """Hand results to the writers, up to a signal or an error, and finish these in any case.

    Gives how many clips failed, and whether a signal cut it short.
    """
    from avfewshot.inference.results import Failure
    from avfewshot.reports.tables import footer
    from avfewshot.reports.writers import Summary, is_finite

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
    summary = Summary(clips, failed, total, time.perf_counter() - started)
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
        if not any(writer.shows_footer for writer in writers):
            say(footer(run, summary, plain=not (sys.stderr.encoding or "").lower().startswith("utf")))
        for writer in writers:
            if writer.path is not None and writer.finished:
                say(f"written: {writer.path}")
    if error is not None and not isinstance(error, KeyboardInterrupt):
        raise error
    return failed, error is not None


# ---------------------------------------------------------------------------------------------- a task


def _check_task(settings: Resolved, flags: dict[str, Any], paths: Sequence[str]) -> None:
    """Check everything that can be checked without reading data or weights, and tell all that is wrong at once."""
    from avfewshot.cli.data import data_root
    from avfewshot.cli.outputs import check_file

    faults = settings.faults
    config: ZeroshotConfig = settings.config
    task, root, output = config.task.task, config.task.root, config.output.output
    if task not in _TASKS:
        guess = did_you_mean(str(task), _TASKS)
        faults.append(UsageError(f"There is no task {task!r}.{guess}", hint=f"Tasks: {', '.join(_TASKS)}."))
    if paths:
        faults.append(UsageError("PATH cannot be given with --task.", hint="The task says which clips."))
    for key, hint in _WITHOUT_MEANING.items():
        if flags[key] is not None:
            faults.append(UsageError(f"--{key.replace('_', '-')} cannot be given with --task.", hint=hint))
    if output is not None:
        path = user_path(output)
        if path.suffix.lower() not in _SUFFIXES:
            faults.append(UsageError(f"--output {path}: its name must end in {', '.join(_SUFFIXES)}."))
        else:
            faults += check_file(path, "--output")
    if task in _TASKS:
        root = collect(faults, lambda: data_root(str(task), root))
    raise_faults(faults)
    settings.config = config.replace(task=config.task.replace(root=root))


def _load_task(settings: Resolved, display: Any) -> tuple[Evaluator, Any, dict[str, Any]]:
    """The evaluator, the trained model if any, and what :func:`evaluate_task` has to know of it."""
    from avfewshot.data.load import load_dataset, require_media
    from avfewshot.encoders.presets import load_preset
    from avfewshot.evaluation.evaluator import Evaluator
    from avfewshot.evaluation.predictions import PredictionConfig
    from avfewshot.inference.devices import resolve_device, resolve_precision
    from avfewshot.inference.loading import decision_of, recalled
    from avfewshot.media.clip_cache import ClipCache
    from avfewshot.models.build import load_model
    from avfewshot.models.checkpoint import load_adapter
    from avfewshot.prompts import load_templates
    from avfewshot.training.distributed import single_device

    asked, task = settings.config.model, settings.config.task
    display.begin("reading annotations, looking for clips", 0)
    dataset = load_dataset(task.task, task.root, media=task.media, list_file=task.list_file)
    require_media(dataset, task.media or (task.root,))
    if task.vggsounder is not None:
        from avfewshot.data.vggsound import with_vggsounder

        dataset = with_vggsounder(dataset, task.vggsounder)
    device = resolve_device(asked.device)
    precision = resolve_precision(asked.precision, device)
    preset, fusion, pool = asked.backbone, asked.fusion, asked.pool
    templates = None if asked.templates is None else load_templates(asked.templates)
    window, options, checkpoint, context = 10, {}, None, asked.audio_context
    if asked.adapter is not None:
        if context == "clip":
            display.say(f"{asked.adapter} was trained on single seconds of sound; --audio-context stays second.")
        context = "second"
        checkpoint = load_adapter(asked.adapter)
        decision, about = decision_of(checkpoint), checkpoint.config
        window = decision.window
        options = {"share": decision.blend, "trained_labels": (*about.labels, *about.wordings)}
        # What nobody sets is as it was trained.
        templates = templates or recalled(checkpoint, "templates", load_templates)
        if left_to_adapter(settings, "backbone"):
            preset = recalled(checkpoint, "backbone", load_preset)
        fusion = decision.fusion if left_to_adapter(settings, "fusion") else fusion
        pool = decision.pool if left_to_adapter(settings, "pool") else pool
    display.begin("loading the backbone", 0)
    backbone = load_backbone(asked, preset, seed=asked.seed)
    model = None if checkpoint is None else load_model(checkpoint, backbone)[0].to(device)
    clips, size = ClipCache(), backbone.visual.image_size
    evaluator = Evaluator(
        dataset,
        PredictionConfig(task.task, fusion, pool, task.background or "threshold", dataset.num_segments),
        backbone,
        templates or load_templates(backbone.templates),
        device,
        precision,
        lambda path: clips.get(path, frame_size=size, frame_backend=asked.frame_backend),
        autocast=single_device(device, precision).autocast,
        frame_backend=asked.frame_backend,
        window=window,
        batch_size=None if asked.batch_size == "auto" else asked.batch_size,
        observer=display,
        look_up=None if (store := open_store(settings["store"])) is None else store.cache,
        audio_context=context,
    )
    return evaluator, model, options


def _print_task(settings: Resolved, evaluator: Evaluator, report: EvalReport) -> None:
    from rich.console import Console

    from avfewshot.evaluation.references import distinct
    from avfewshot.reports.methods import comparison_csv, comparison_markdown, comparison_table

    results, comparison = report.results, report.comparison
    console = Console(highlight=False)
    console.print(comparison_table(comparison))
    for name, part in report.parts.items():
        console.print(f"{part.num_clips:,} clips of {name}:")
        console.print(comparison_table(part))
    last = list(results.values())[-1]
    for reference in distinct((*last.baselines, *last.ceilings)):
        values = ", ".join(f"{metric} {100 * value:.1f} %" for metric, value in reference.values.items())
        console.print(f"{reference.title}: {values}", markup=False, soft_wrap=True)
    for split, listed, used, left in evaluator.usage.counts(evaluator.dataset):
        if left:
            say(f"{split}: {used:,} of {listed:,} clips used, {left:,} cannot be.")
    if settings["output"] is None:
        return
    path = user_path(settings["output"])
    if path.suffix.lower() == ".json":
        document = {
            "task": settings["task"],
            "comparison": comparison.model_dump(mode="json"),
            "parts": {name: part.model_dump(mode="json") for name, part in report.parts.items()},
            "results": {name: result.model_dump(mode="json") for name, result in results.items()},
            "unusable": [list(entry) for entry in evaluator.usage.left],
        }
        write_text(path, json.dumps(document, indent=1))
    else:
        write_text(path, (comparison_csv if path.suffix.lower() == ".csv" else comparison_markdown)(comparison))
    say(f"written: {path}")
