"""What a few-shot run leaves behind: its files, and its figures on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.cli.fewshot_request import FewShotRequest
from avfewshot.io import write_text
from avfewshot.settings import TABLES
from avfewshot.training.config import training_settings

if TYPE_CHECKING:
    from avfewshot.evaluation.results import Comparison
    from avfewshot.training.fewshot import FewShot, SeedResult
    from avfewshot.training.plan import Plan

_ROLES = {"train": "support", "val": "selection", "test": "evaluation"}


def write_outputs(
    request: FewShotRequest, run: FewShot, plan: Plan, results: Sequence[SeedResult], display: Any
) -> list[Path]:
    """Write results, tables, the lists of clips and the report into the run folder.

    Args:
        request: What was asked for.
        run: The run.
        plan: What it took.
        results: Of each seed.
        display: Shows progress.

    Returns:
        The files that a person may want to open, the most interesting first.
    """
    from avfewshot.reports.run_collect import collect
    from avfewshot.reports.run_html import write_run_page
    from avfewshot.reports.run_tables import classes_csv, comparison_csv, comparison_markdown
    from avfewshot.version import __version__

    folder = request.folder
    comparison = averaged(results)
    display.begin("report", 0)
    # First, since it looks at the clips: a run that was done before has not looked at any yet.
    record = collect(
        run,
        plan,
        results,
        comparison,
        command=request.command,
        settings=_settings(request, run),
        roles=_ROLES,
    )
    document = {
        "version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": request.command,
        "config": run.config.to_dict(),
        "clips": {
            split: {"listed": listed, "used": used, "unusable": left}
            for split, listed, used, left in run.bench.usage.counts(run.dataset)
        },
        "parameters": {
            count.component: {"trainable": count.trainable, "total": count.total} for count in plan.parameters
        },
        "flops_per_clip": plan.flops,
        "comparison": comparison.model_dump(mode="json"),
        "seeds": [result.to_dict() for result in results],
    }
    write_text(folder / "results.json", json.dumps(document, indent=1))
    write_text(folder / "results.csv", comparison_csv(comparison))
    write_text(folder / "results.md", comparison_markdown(comparison))
    write_text(folder / "config.yaml", run.config.to_yaml())
    for result in results:
        for name, judged in result.results.items():
            write_text(result.folder / f"classes-{name.replace(' ', '-').lower()}.csv", classes_csv(judged))
    run.bench.usage.write(folder / "clips.csv")
    _write_tensorboard(results, folder, display)
    write_run_page(folder / "report.html", record)
    return [folder / "report.html", folder / "results.json"]


def _settings(request: FewShotRequest, run: FewShot) -> list[tuple[str, str, str]]:
    """The settings as asked for, with what the checkpoint that was begun with decided instead."""
    from avfewshot.training.transfer import SHAPING

    if run.initial is None:
        return list(request.settings)
    decided = {name: getattr(run.config, name) for name in SHAPING} | {"backbone": run.backbone.name}
    kinds = {setting.name: setting.kind for setting in (*training_settings(), TABLES["fewshot"]["backbone"])}
    rows = []
    for name, shown, source in request.settings:
        known = kinds[name].show(decided[name]) if name in decided else shown
        rows.append((name, known, source if known == shown else "the checkpoint begun with"))
    return rows


def averaged(results: Sequence[SeedResult]) -> Comparison:
    """The comparison of the systems, over seeds."""
    from avfewshot.evaluation.evaluate import average_comparisons

    return average_comparisons([result.comparison for result in results])


def print_results(run: FewShot, results: Sequence[SeedResult], written: Sequence[Path]) -> None:
    """Print the comparison on stdout, and where files are on stderr."""
    from rich.console import Console

    from avfewshot.reports.run_tables import comparison_table

    Console(highlight=False).print(comparison_table(averaged(results)))
    notes = Console(stderr=True, highlight=False)
    for split, listed, used, left in run.bench.usage.counts(run.dataset):
        if left:
            notes.print(f"{split}: {used:,} of {listed:,} clips used, {left:,} cannot be: see clips.csv.", markup=False)
    for path in written:
        notes.print(f"written: {path}", soft_wrap=True, markup=False)


def print_plan(request: FewShotRequest, run: FewShot, plan: Plan) -> None:
    """Print what a run would take, for ``--dry-run``."""
    from rich.console import Console

    from avfewshot.reports.run_collect import components
    from avfewshot.reports.run_tables import components_table

    console = Console(highlight=False)
    config = run.config
    rows = [
        ("data", f"{run.dataset.description.title}, {run.dataset.root}"),
        *(
            (split, f"{len(run.dataset.available(split)):,} of {size:,} clips have media")
            for split, size in run.dataset.split_sizes.items()
        ),
        ("support", f"{plan.clips:,} clips ({config.shots} a class, sampler {config.sampler})"),
        ("seeds", ", ".join(map(str, config.seeds))),
        ("steps", f"up to {plan.steps:,} a seed: {plan.batches:,} batches of {config.batch_size} an epoch, "
                  f"{config.epochs} epochs"),
        ("device", f"{run.device}, {config.precision}"),
        ("memory", f"about {plan.memory / 1e9:.1f} GB: weights {plan.weights_bytes / 1e9:.1f}, gradients and optimizer "
                   f"{plan.training_bytes / 1e9:.1f}, activations of {plan.micro_batch} clips "
                   f"{plan.activation_bytes / 1e9:.1f}"),
        ("run folder", str(request.folder)),
    ]  # fmt: skip
    for name, text in rows:
        console.print(f"[bold]{name:<11}[/bold]", end="")
        console.print(text, markup=False, soft_wrap=True)
    console.print(components_table(components(plan)))
    console.print("Nothing was trained: this was a dry run.")


def _write_tensorboard(results: Sequence[SeedResult], folder: Path, display: Any) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    from avfewshot.training.journal import Journal

    for result in results:
        target = folder / "tensorboard" / f"seed-{result.seed}"
        if target.exists():
            continue
        with SummaryWriter(str(target)) as writer:
            for entry in Journal(result.folder / "metrics.jsonl").entries():
                if entry["kind"] == "step":
                    for key in ("loss", "visual_loss", "audio_loss", "visual_weight", "lr"):
                        writer.add_scalar(f"train/{key}", entry[key], entry["step"])
                elif entry["kind"] == "epoch":
                    for key in ("figure", "loss", "blend"):
                        writer.add_scalar(f"validation/{key}", entry[key], entry["step"])
            for name, judged in result.results.items():
                for metric, figure in judged.metrics.items():
                    if figure.value is not None:
                        writer.add_scalar(f"test/{metric}/{name}", figure.value, result.progress.step)
