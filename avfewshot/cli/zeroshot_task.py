"""`avfs zeroshot --task`: evaluate on the test clips of a data set, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.errors import UsageError, flatten, raise_faults
from avfewshot.io import write_text
from avfewshot.settings import TABLES, Resolved, resolve

if TYPE_CHECKING:
    from avfewshot.evaluation.evaluator import EvalReport, TaskBench

TASKS = ("ave", "ave_cls", "llp_cls", "vggsound_cls")
BACKGROUNDS = ("threshold", "prompt", "none")
_SUFFIXES = (".json", ".csv", ".md")
_SUFFIX_DECIDES = f"The suffix of --output says it: {', '.join(_SUFFIXES)}."
_WITHOUT_MEANING = {
    "modality": "All of them are evaluated.",
    "topk": "Clips are judged, not listed.",
    "segments": "Clips are judged, not listed.",
    "format": _SUFFIX_DECIDES,
    "recursive": "The task says which clips.",
}


@dataclass(frozen=True)
class TaskRequest:
    """A checked request.

    Attributes:
        task: Name of the task.
        settings: Values and their sources.
        root: Folder of the data set.
        media: Folders of its clips; empty: below `root`.
        list_file: For VGG-Sound: the list, or None.
        vggsounder: A VGGSounder annotation file, or None.
        background: How seconds without an event are told.
        output: Where results go beside the terminal, or None.
    """

    task: str
    settings: Resolved
    root: Path
    media: tuple[Path, ...]
    list_file: Path | None
    vggsounder: Path | None
    background: str
    output: Path | None


def build_task_request(params: Mapping[str, Any], flags: Mapping[str, Any]) -> TaskRequest:
    """Check everything that can be checked without reading data or weights.

    Args:
        params: The command's own options: task, root, media, list_file, vggsounder, background, output, paths, report.
        flags: Values of the options that are settings.

    Raises:
        UsageError: All that is wrong, at once.
    """
    from avfewshot.cli.datacheck import data_root
    from avfewshot.cli.outputs import check_file

    faults: list[UsageError] = []
    settings = resolve("zeroshot", flags)
    faults += settings.faults
    task = params["task"]
    if task not in TASKS:
        faults.append(UsageError(f"There is no task {task!r}.", hint=f"Tasks: {', '.join(TASKS)}."))
    for name, shown in (("paths", "PATH"), ("report", "--report")):
        if params.get(name):
            faults.append(UsageError(f"{shown} cannot be given with --task.", hint="The task says which clips."))
    if flags.get("labels") is not None:
        faults.append(UsageError("--labels cannot be given with --task.", hint="The task has labels of its own."))
    for name in _WITHOUT_MEANING:
        if flags.get(name) is not None:
            shown = TABLES["zeroshot"][name].flag
            faults.append(UsageError(f"{shown} cannot be given with --task.", hint=_WITHOUT_MEANING[name]))
    background = params.get("background") or "threshold"
    if background not in BACKGROUNDS:
        faults.append(UsageError(f"--background: {background!r} is not one of {', '.join(BACKGROUNDS)}."))
    output = None if params.get("output") is None else Path(params["output"]).expanduser()
    if output is not None and output.suffix.lower() not in _SUFFIXES:
        faults.append(UsageError(f"--output {output}: its name must end in {', '.join(_SUFFIXES)}."))
    elif output is not None:
        faults += check_file(output, "--output")
    root = Path()
    if task in TASKS:
        try:
            root = data_root(task, None if params.get("root") is None else Path(params["root"]).expanduser())
        except UsageError as error:
            faults += flatten(error)
    raise_faults(faults)
    return TaskRequest(
        task,
        settings,
        root,
        tuple(Path(folder).expanduser() for folder in params.get("media") or ()),
        _path(params.get("list_file")),
        _path(params.get("vggsounder")),
        background,
        output,
    )


def execute_task(request: TaskRequest) -> int:
    """Evaluate.

    Args:
        request: Checked.

    Returns:
        The exit status: 0 done, 130 or 143 cut short.

    Raises:
        AvfsError: It cannot be done.
    """
    from avfewshot.cli.console import Notices, library_messages
    from avfewshot.cli.interrupts import Interrupts
    from avfewshot.cli.lifecycle import debugging

    with library_messages(Notices(), debug=debugging()), Interrupts() as interrupts:
        from avfewshot.cli.fewshot_progress import Display
        from avfewshot.training.assess import assess

        try:
            with Display() as display:
                bench, model, options = _prepare(request, display)
                assessment = assess(bench, model, **options)
        except KeyboardInterrupt:
            return interrupts.status
    _print(request, bench, assessment)
    return 0


def _prepare(request: TaskRequest, display: Any) -> tuple[TaskBench, Any, dict[str, Any]]:
    """The bench, the trained model if any, and what :func:`~avfewshot.training.assess.assess` has to know of it."""
    from avfewshot.data.load import load_dataset
    from avfewshot.data.media_index import require_media
    from avfewshot.encoders.backbone import build_backbone
    from avfewshot.encoders.presets import load_preset
    from avfewshot.evaluation.evaluator import TaskBench
    from avfewshot.evaluation.predictions import Decision
    from avfewshot.inference.devices import resolve_device, resolve_precision
    from avfewshot.inference.loading import decision_of, recalled
    from avfewshot.media.clip_cache import ClipCache
    from avfewshot.models.build import load_model
    from avfewshot.models.checkpoint import load_adapter
    from avfewshot.prompts import load_templates
    from avfewshot.training.fabric import single_device

    settings = request.settings
    display.begin("reading annotations, looking for clips", 0)
    dataset = load_dataset(request.task, request.root, media=request.media, list_file=request.list_file)
    require_media(dataset, request.media or (request.root,))
    if request.vggsounder is not None:
        from avfewshot.data.vggsounder import with_vggsounder

        dataset = with_vggsounder(dataset, request.vggsounder)
    device = resolve_device(settings["device"])
    precision = resolve_precision(settings["precision"], device)
    preset, fusion, pool = settings["backbone"], settings["fusion"], settings["pool"]
    templates = None if settings["templates"] is None else load_templates(settings["templates"])
    window, options, checkpoint = 10, {}, None
    if settings["adapter"] is not None:
        checkpoint = load_adapter(settings["adapter"])
        decision, about = decision_of(checkpoint), checkpoint.config
        window = decision.window
        options = {"share": decision.blend, "trained_labels": (*about.labels, *about.wordings)}
        # What nobody sets is as it was trained.
        templates = templates or recalled(checkpoint, "templates", load_templates)
        preset = recalled(checkpoint, "backbone", load_preset) if settings.source("backbone") == "default" else preset
        fusion = decision.fusion if settings.source("fusion") == "default" else fusion
        pool = decision.pool if settings.source("pool") == "default" else pool
    display.begin("loading the backbone", 0)
    backbone = build_backbone(
        preset,
        weights=settings["weights"],
        seed=settings["seed"],
        clip_weights=settings["clip_weights"],
        clap_weights=settings["clap_weights"],
        roberta=settings["roberta"],
    )
    model = None if checkpoint is None else load_model(checkpoint, backbone)[0].to(device)
    clips, size = ClipCache(), backbone.visual.image_size
    bench = TaskBench(
        dataset,
        Decision(request.task, fusion, pool, request.background, dataset.num_segments),
        backbone,
        templates or load_templates(backbone.templates),
        device,
        precision,
        lambda path: clips.get(path, frame_size=size, frame_backend=settings["frame_backend"]),
        autocast=single_device(device, precision).autocast,
        frame_backend=settings["frame_backend"],
        window=window,
        batch_size=None if settings["batch_size"] == "auto" else settings["batch_size"],
        observer=display,
    )
    return bench, model, options


def _print(request: TaskRequest, bench: TaskBench, assessment: EvalReport) -> None:
    from rich.console import Console

    from avfewshot.evaluation.references import distinct
    from avfewshot.reports.run_tables import comparison_csv, comparison_markdown, comparison_table

    results, comparison = assessment.results, assessment.comparison
    console = Console(highlight=False)
    console.print(comparison_table(comparison))
    for name, part in assessment.parts.items():
        console.print(f"{part.num_clips:,} clips of {name}:")
        console.print(comparison_table(part))
    last = list(results.values())[-1]
    for reference in distinct((*last.baselines, *last.ceilings)):
        values = ", ".join(f"{metric} {100 * value:.1f} %" for metric, value in reference.values.items())
        console.print(f"{reference.title}: {values}", markup=False, soft_wrap=True)
    notes = Console(stderr=True, highlight=False)
    for split, listed, used, left in bench.usage.counts(bench.dataset):
        if left:
            notes.print(f"{split}: {used:,} of {listed:,} clips used, {left:,} cannot be.", markup=False)
    if request.output is None:
        return
    if request.output.suffix.lower() == ".json":
        document = {
            "task": request.task,
            "comparison": comparison.model_dump(mode="json"),
            "parts": {name: part.model_dump(mode="json") for name, part in assessment.parts.items()},
            "results": {name: result.model_dump(mode="json") for name, result in results.items()},
            "unusable": [list(entry) for entry in bench.usage.left],
        }
        write_text(request.output, json.dumps(document, indent=1))
    else:
        form = comparison_csv if request.output.suffix.lower() == ".csv" else comparison_markdown
        write_text(request.output, form(comparison))
    notes.print(f"written: {request.output}", soft_wrap=True, markup=False)


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value).expanduser()
