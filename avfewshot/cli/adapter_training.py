"""What trainings of adapters, few-shot and pretraining, begin with; and what a dry run of them prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from rich.console import Console

from avfewshot.cli.loading import load_backbone
from avfewshot.cli.runs import Run
from avfewshot.config import SHAPING, read_training, settings_of
from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.presets import load_preset
from avfewshot.errors import UsageError
from avfewshot.inference.loading import recalled
from avfewshot.models.checkpoint import AdapterCheckpoint, load_adapter
from avfewshot.reports.listings import components_table
from avfewshot.training.plan import Plan


def load_parts(run: Run, training: Any, observer: Any) -> tuple[Any, Backbone, AdapterCheckpoint | None]:
    """Training settings in the shape of the checkpoint to begin with; the backbone, on the CPU; the checkpoint.

    A :class:`UsageError` where settings of that shape were given otherwise than the checkpoint has them.
    """
    model, initial, name = run.config.model, None, run.config.model.backbone
    if run.config.run.adapter is not None:
        # Read before the weights, so that what does not fit is told at once.
        initial = load_adapter(run.config.run.adapter)
        settings = settings_of(type(run.config))
        overrides = [key for key, source in run.sources.items() if not source.startswith("default")]
        given = {settings[key].name for key in overrides if settings[key].section == "training"}
        before = read_training(initial.config.training, where=str(initial.path / "config.json"))
        kept = {name: getattr(before, name) for name in SHAPING}
        if wrong := [name for name in SHAPING if name in given and getattr(training, name) != kept[name]]:
            shown = ", ".join(f"{name} {getattr(training, name)} instead of {kept[name]}" for name in wrong)
            hint = "Leave them out, or begin without --adapter."
            raise UsageError(f"{initial.path}: was trained with other settings: {shown}.", hint=hint)
        training = training.replace(**kept)
        name = name if "backbone" in overrides else recalled(initial, "backbone", load_preset)
    observer.begin(f"loading {getattr(name, 'name', name)}", 0)
    backbone = load_backbone(model, name)
    if initial is not None:
        initial.config.check_backbone(backbone, where=initial.path)
    return training, backbone, initial


def say_without_graphs(training: Any, device: torch.device, observer: Any, *, ranks: int = 1) -> None:
    """Say so where ``cuda_graphs`` is asked for and cannot be had: everything is computed all the same."""
    if training.cuda_graphs and (device.type != "cuda" or ranks > 1):
        where = f"{ranks} devices" if ranks > 1 else str(device)
        observer.say(f"--cuda-graphs is for a single CUDA device and does nothing on {where}.")


def print_dry_run(rows: Iterable[tuple[str, str]], plan: Plan | None) -> None:
    """Print what a training would do and take."""
    console = Console(highlight=False)
    for name, text in rows:
        console.print(f"[bold]{name:<11}[/bold]", end="")
        console.print(text, markup=False, soft_wrap=True)
    if plan is not None:
        console.print(components_table(plan.parameters))
    console.print("Nothing was trained: this was a dry run.")
