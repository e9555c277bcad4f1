"""What `avfs zeroshot` is asked for, checked before anything heavy is loaded, and all faults told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfewshot.cli.destinations import (
    Earlier,
    Target,
    check_file,
    check_folder,
    check_overwrite,
    earlier_results,
    plan_targets,
    run_id,
)
from avfewshot.cli.loading import chosen, data_root, open_store
from avfewshot.cli.options import adapter_folder, asked_labels, backbone_faults
from avfewshot.config import Resolved, ZeroshotConfig
from avfewshot.engine import check_engine
from avfewshot.errors import DataError, UsageError, collect, did_you_mean, flatten, raise_faults
from avfewshot.io import read_json, user_path
from avfewshot.labels import LabelSet
from avfewshot.media.discover import find_media

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


@dataclass(frozen=True)
class Work:
    """What is to be classified, and where results go."""

    settings: Resolved
    labels: LabelSet
    files: list[Path | str]
    targets: list[Target]
    page: Path | None
    earlier: Earlier | None  # what a .jsonl file that is gone on with holds
    run_id: str


def check_files(settings: Resolved, flags: Mapping[str, Any], paths: Sequence[str]) -> Work:
    """Check what can be checked before torch is imported; one :class:`UsageError` tells all that is wrong."""
    if given := [key for key in _TASK_OPTIONS if flags[key]]:
        raise UsageError(f"--{given[0]} needs --task.", hint="avfs zeroshot --task llp_cls --root DIR")
    faults, asked = settings.faults, settings.config.output
    page, labels = None, collect(faults, lambda: asked_labels(settings))
    if not (asked.label or asked.labels):
        run, known = settings["adapter"], len(faults)
        labels = None if run is None else collect(faults, lambda: _labels_of_run(run))
        if labels is None and len(faults) == known and settings.sources["labels"] == "default":
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
    given = settings.sources["format"] != "default"
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
    return Work(settings, labels, files, targets, page, earlier, run_id)


def _labels_of_run(path: Path) -> LabelSet | None:
    """The classes that a run was trained on; None where its files do not tell, a UsageError where they cannot be."""
    path = adapter_folder(path)
    for pattern in ("config.json", "scorer/config.json", "seed-*/*/config.json", "checkpoints/*/config.json",
                    "seed-*/checkpoints/*/config.json"):  # fmt: skip
        for file in sorted(path.glob(pattern)):
            try:
                found = read_json(file)
                wordings = dict(zip(found["labels"], found["wordings"], strict=True))
            except (DataError, ValueError, KeyError, TypeError):
                continue
            try:
                return LabelSet.from_wordings(wordings)
            except UsageError as error:
                fault, hint = flatten(error)[0], "Copy the whole folder again, or give labels with --labels."
                raise UsageError(f"{file}: {fault.message}", hint=hint) from None
    return None


def _run_id(settings: Resolved, labels: LabelSet) -> str:
    """What shapes results: a file is gone on with only by a run that agrees in it."""
    keys = (
        *("backbone", "adapter", "weights", "seed", "precision", "clip_weights", "clap_weights", "roberta"),
        *("templates", "fusion", "pool", "modality", "frame_backend", "segments"),
    )
    values = {key: chosen(settings, key) for key in keys}
    values |= {key: True for key in ("multi_label", "reject") if settings[key]}
    values |= {"audio_context": "clip"} if chosen(settings, "audio_context") == "clip" else {}
    return run_id(labels=labels.names, wordings=labels.wordings, **values)


def check_task(settings: Resolved, flags: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Check everything that can be checked without reading data or weights, and tell all that is wrong at once."""
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
