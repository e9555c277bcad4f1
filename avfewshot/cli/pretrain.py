"""`avfs pretrain`: pretrain adapters and projectors on a large list of clips."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from avfewshot.cli.options import setting_option, training_option

app = typer.Typer(add_completion=False)

HELP = """
Pretrain adapters and projectors on VGG-Sound(40K), or on another list of VGG-Sound clips.

Clips come from videos (--root) or from prepared shards (--shards, see `avfs data prepare`). Clips whose videos are in
the evaluation splits of AVE and LLP are left out where their annotation files are found.

[bold]Examples[/bold]

  avfs pretrain vggsound40k
  avfs pretrain vggsound40k --shards SHARDS --devices 8 --batch-size 64
  torchrun --nnodes 4 --nproc-per-node 8 -m avfewshot pretrain vggsound40k --shards SHARDS
  avfs pretrain --resume runs/pretrain/20260101-120000-vggsound40k
  avfs zeroshot --task ave --adapter runs/pretrain/20260101-120000-vggsound40k

[bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted; --resume goes on.
"""

_DATA = "Data"
_RANKS = "Devices"
_ADAPTER = "Adapters"
_TRAINING = "Training"
_MODEL = "Model"
_FILES = "Weights by path"


def _option(flag: str, metavar: str, panel: str | None, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, rich_help_panel=panel, show_default=False, help=text)


@app.command(help=HELP)
def pretrain(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="vggsound40k, vggsound or ovave.", show_default=False)
    ] = None,
    resume: Annotated[str | None, _option("--resume", "RUN", None, "Go on with an interrupted run.")] = None,
    config: Annotated[str | None, setting_option("config", table="pretrain")] = None,
    runs: Annotated[str | None, setting_option("runs", table="pretrain")] = None,
    name: Annotated[str | None, _option("--name", "TEXT", None, "What the run folder is called.")] = None,
    seed: Annotated[
        str | None, _option("--seed", "INTEGER", None, "Of weights and order. [dim](default: 1)[/dim]")
    ] = None,
    root: Annotated[str | None, _option("--root", "DIR", _DATA, "Folder with the list and the videos.")] = None,
    media: Annotated[
        list[str] | None, _option("--media", "DIR", _DATA, "Folder of the videos, if elsewhere; may be repeated.")
    ] = None,
    list_file: Annotated[str | None, _option("--list", "FILE", _DATA, "The list to read.")] = None,
    shards: Annotated[str | None, _option("--shards", "DIR", _DATA, "Prepared shards instead of videos.")] = None,
    against: Annotated[
        list[str] | None,
        _option("--against", "DIR", _DATA, "Folder of a data set that will be evaluated on; may be repeated."),
    ] = None,
    keep_leaks: Annotated[
        bool, typer.Option("--keep-leaks", rich_help_panel=_DATA, help="Also train on videos of their test splits.")
    ] = False,
    val_clips: Annotated[
        int | None,
        typer.Option(
            "--val-clips",
            min=0,
            rich_help_panel=_DATA,
            show_default=False,
            help="Validation clips at most. [dim](default: 1000)[/dim]",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        _option("--devices", "INTEGER|auto", _RANKS, "GPUs (or processes) a machine. [dim](default: 1)[/dim]"),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, rich_help_panel=_RANKS, help="Machines.")] = 1,
    strategy: Annotated[
        str | None, _option("--strategy", "auto|ddp", _RANKS, "How ranks work together. [dim](default: auto)[/dim]")
    ] = None,
    device: Annotated[str | None, setting_option("device", _RANKS, table="pretrain")] = None,
    precision: Annotated[str | None, setting_option("precision", _RANKS, table="pretrain")] = None,
    adapter: Annotated[str | None, _option("--adapter", "RUN", _ADAPTER, "Run or checkpoint to begin with.")] = None,
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
    objective: Annotated[str | None, training_option("objective", _TRAINING)] = None,
    matching: Annotated[str | None, training_option("matching", _TRAINING)] = None,
    fusion: Annotated[str | None, training_option("fusion", _TRAINING)] = None,
    pool: Annotated[str | None, training_option("pool", _TRAINING)] = None,
    blend: Annotated[str | None, training_option("blend", _TRAINING)] = None,
    window: Annotated[str | None, training_option("window", _TRAINING)] = None,
    epochs: Annotated[str | None, training_option("epochs", _TRAINING)] = None,
    validate_every: Annotated[str | None, training_option("validate_every", _TRAINING)] = None,
    batch_size: Annotated[str | None, training_option("batch_size", _TRAINING)] = None,
    accumulation: Annotated[str | None, training_option("accumulation", _TRAINING)] = None,
    micro_batch: Annotated[str | None, training_option("micro_batch", _TRAINING)] = None,
    checkpointing: Annotated[bool | None, training_option("checkpointing", _TRAINING)] = None,
    cuda_graphs: Annotated[bool | None, training_option("cuda_graphs", _TRAINING)] = None,
    optimizer: Annotated[str | None, training_option("optimizer", _TRAINING)] = None,
    lr: Annotated[str | None, training_option("lr", _TRAINING)] = None,
    weight_decay: Annotated[str | None, training_option("weight_decay", _TRAINING)] = None,
    clip_norm: Annotated[str | None, training_option("clip_norm", _TRAINING)] = None,
    schedule: Annotated[str | None, training_option("schedule", _TRAINING)] = None,
    warmup: Annotated[str | None, training_option("warmup", _TRAINING)] = None,
    cache_size: Annotated[str | None, training_option("cache_size", _TRAINING)] = None,
    workers: Annotated[str | None, training_option("workers", _TRAINING)] = None,
    backbone: Annotated[str | None, setting_option("backbone", _MODEL, table="pretrain")] = None,
    weights: Annotated[str | None, setting_option("weights", _MODEL, table="pretrain")] = None,
    frame_backend: Annotated[str | None, setting_option("frame_backend", _MODEL, table="pretrain")] = None,
    templates: Annotated[str | None, setting_option("templates", _MODEL, table="pretrain")] = None,
    clip_weights: Annotated[str | None, setting_option("clip_weights", _FILES, table="pretrain")] = None,
    clap_weights: Annotated[str | None, setting_option("clap_weights", _FILES, table="pretrain")] = None,
    roberta: Annotated[str | None, setting_option("roberta", _FILES, table="pretrain")] = None,
) -> None:
    """Parse, check, run; `context.params` holds the options by the names of their settings."""
    from avfewshot.cli.pretrain_request import build_request, resume_request

    command = shlex.join(["avfs", *(context.obj or ())])
    request = resume_request(context.params) if resume is not None else build_request(context.params, command)

    from avfewshot.cli.pretrain_run import execute

    status = execute(request)
    if status:
        raise typer.Exit(status)
