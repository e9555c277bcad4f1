"""`avfs fewshot`: train adapters between frozen towers on a handful of clips a class, and evaluate them."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from avfewshot.cli.options import setting_option, training_option

app = typer.Typer(add_completion=False)

HELP = """
Train DG-SCT adapters on a handful of clips of each class, choose on validation clips, evaluate once on test clips.

The run folder holds settings, checkpoints, metrics and a report. Beside the trained model stand CLIP only, CLAP only
and their fusion without training, on the same clips.

[bold]Examples[/bold]

  avfs fewshot --shots 16 --task llp_cls
  avfs fewshot --shots 4 --data my_clips             folders of clips, one for each class
  avfs fewshot --shots 8 --task ave --seeds 1,2,3    mean and 95 % interval over seeds
  avfs fewshot --shots 16 --task llp_cls --dry-run   what it would take
  avfs fewshot --resume runs/llp_cls/20260101-120000-16-shot

Tasks: ave (seconds of AVE clips, with background), ave_cls, llp_cls, vggsound_cls (clips), folder (your own).

[bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted; --resume goes on.
"""

_DATA = "Data"
_ADAPTER = "Adapters"
_METHOD = "Method"
_TRAINING = "Training"
_MODEL = "Model"
_COST = "Memory and speed"
_FILES = "Weights by path"


@app.command(help=HELP)
def fewshot(
    context: typer.Context,
    shots: Annotated[str | None, training_option("shots")] = None,
    task: Annotated[str | None, training_option("task")] = None,
    seeds: Annotated[str | None, training_option("seeds")] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="INTEGER", help="The same for one seed.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done and what it would take, and stop.")
    ] = False,
    config: Annotated[str | None, setting_option("config", table="fewshot")] = None,
    runs: Annotated[str | None, setting_option("runs", table="fewshot")] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="What the run folder is called.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            rich_help_panel=_DATA,
            show_default=False,
            help="Clips of your own: DIR/CLASS/*.mp4, or DIR/train/CLASS/*.mp4 with val and test.",
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root", metavar="DIR", rich_help_panel=_DATA, show_default=False, help="Folder of the task's data set."
        ),
    ] = None,
    media: Annotated[
        list[str] | None,
        typer.Option(
            "--media",
            metavar="DIR",
            rich_help_panel=_DATA,
            show_default=False,
            help="Folder of its clips, if elsewhere; may be repeated.",
        ),
    ] = None,
    list_file: Annotated[
        str | None,
        typer.Option("--list", metavar="FILE", rich_help_panel=_DATA, show_default=False, help="For vggsound_cls."),
    ] = None,
    sampler: Annotated[str | None, training_option("sampler", _DATA)] = None,
    multi_label: Annotated[bool | None, training_option("multi_label", _DATA)] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="RUN",
            rich_help_panel=_ADAPTER,
            show_default=False,
            help="Run or checkpoint to begin with, such as a pretrained one.",
        ),
    ] = None,
    adapter_kind: Annotated[
        str | None,
        typer.Option(
            "--adapter-kind",
            metavar="dgsct|none",
            rich_help_panel=_ADAPTER,
            show_default=False,
            help="What connects the towers; none: only projectors are trained. [dim](default: dgsct)[/dim]",
        ),
    ] = None,
    alpha: Annotated[str | None, training_option("alpha", _ADAPTER)] = None,
    beta: Annotated[str | None, training_option("beta", _ADAPTER)] = None,
    gamma: Annotated[str | None, training_option("gamma", _ADAPTER)] = None,
    channel: Annotated[bool | None, training_option("channel", _ADAPTER)] = None,
    spatial: Annotated[bool | None, training_option("spatial", _ADAPTER)] = None,
    temporal: Annotated[bool | None, training_option("temporal", _ADAPTER)] = None,
    a2v: Annotated[bool | None, training_option("a2v", _ADAPTER)] = None,
    v2a: Annotated[bool | None, training_option("v2a", _ADAPTER)] = None,
    variant: Annotated[str | None, training_option("variant", _ADAPTER)] = None,
    hidden: Annotated[str | None, training_option("hidden", _ADAPTER)] = None,
    output: Annotated[str | None, training_option("output", _ADAPTER)] = None,
    bottleneck: Annotated[str | None, training_option("bottleneck", _ADAPTER)] = None,
    projector: Annotated[str | None, training_option("projector", _ADAPTER)] = None,
    objective: Annotated[str | None, training_option("objective", _METHOD)] = None,
    matching: Annotated[str | None, training_option("matching", _METHOD)] = None,
    fusion: Annotated[str | None, training_option("fusion", _METHOD)] = None,
    pool: Annotated[str | None, training_option("pool", _METHOD)] = None,
    background: Annotated[str | None, training_option("background", _METHOD)] = None,
    blend: Annotated[str | None, training_option("blend", _METHOD)] = None,
    window: Annotated[str | None, training_option("window", _METHOD)] = None,
    templates: Annotated[str | None, setting_option("templates", _METHOD, table="fewshot")] = None,
    epochs: Annotated[str | None, training_option("epochs", _TRAINING)] = None,
    patience: Annotated[str | None, training_option("patience", _TRAINING)] = None,
    validate_every: Annotated[str | None, training_option("validate_every", _TRAINING)] = None,
    batch_size: Annotated[str | None, training_option("batch_size", _TRAINING)] = None,
    accumulation: Annotated[str | None, training_option("accumulation", _TRAINING)] = None,
    optimizer: Annotated[str | None, training_option("optimizer", _TRAINING)] = None,
    lr: Annotated[str | None, training_option("lr", _TRAINING)] = None,
    weight_decay: Annotated[str | None, training_option("weight_decay", _TRAINING)] = None,
    clip_norm: Annotated[str | None, training_option("clip_norm", _TRAINING)] = None,
    schedule: Annotated[str | None, training_option("schedule", _TRAINING)] = None,
    warmup: Annotated[str | None, training_option("warmup", _TRAINING)] = None,
    step_epochs: Annotated[str | None, training_option("step_epochs", _TRAINING)] = None,
    step_factor: Annotated[str | None, training_option("step_factor", _TRAINING)] = None,
    backbone: Annotated[str | None, setting_option("backbone", _MODEL, table="fewshot")] = None,
    weights: Annotated[str | None, setting_option("weights", _MODEL, table="fewshot")] = None,
    device: Annotated[str | None, setting_option("device", _MODEL, table="fewshot")] = None,
    precision: Annotated[str | None, setting_option("precision", _MODEL, table="fewshot")] = None,
    frame_backend: Annotated[str | None, setting_option("frame_backend", _MODEL, table="fewshot")] = None,
    checkpointing: Annotated[bool | None, training_option("checkpointing", _COST)] = None,
    cuda_graphs: Annotated[bool | None, training_option("cuda_graphs", _COST)] = None,
    micro_batch: Annotated[str | None, training_option("micro_batch", _COST)] = None,
    cache_size: Annotated[str | None, training_option("cache_size", _COST)] = None,
    workers: Annotated[str | None, training_option("workers", _COST)] = None,
    clip_weights: Annotated[str | None, setting_option("clip_weights", _FILES, table="fewshot")] = None,
    clap_weights: Annotated[str | None, setting_option("clap_weights", _FILES, table="fewshot")] = None,
    roberta: Annotated[str | None, setting_option("roberta", _FILES, table="fewshot")] = None,
) -> None:
    """Parse, check, run; `context.params` holds the options by the names of their settings."""
    from avfewshot.cli.fewshot_request import build_request, resume_request

    command = shlex.join(["avfs", *(context.obj or ())])
    request = resume_request(context.params) if resume is not None else build_request(context.params, command)

    from avfewshot.cli.fewshot_run import execute, show_plan

    if dry_run:
        show_plan(request)
        return
    status = execute(request)
    if status:
        raise typer.Exit(status)
