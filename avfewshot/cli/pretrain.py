"""`avfs pretrain`: pretrain adapters and projectors on a large list of clips."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from avfewshot.cli.data import data_root
from avfewshot.cli.loading import on_device
from avfewshot.cli.options import backbone_faults, with_options
from avfewshot.cli.runs import (
    DryRun,
    Resume,
    Run,
    command_line,
    load_parts,
    new_run,
    print_dry_run,
    resumed_run,
    run_faults,
    say_without_graphs,
    session,
)
from avfewshot.cli.terminal import say
from avfewshot.config import PretrainConfig, PretrainingConfig, resolve
from avfewshot.errors import UsageError, collect, did_you_mean, raise_faults
from avfewshot.io import write_text

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from avfewshot.cli.progress import Display
    from avfewshot.encoders.backbone import Backbone
    from avfewshot.inference.logits import ClassTexts
    from avfewshot.training.checkpoints import Resumed
    from avfewshot.training.data import PretrainData
    from avfewshot.training.trainer import Trainer
    from avfewshot.training.validation import Validator


DATASETS = ("vggsound40k", "vggsound", "ovave")


@with_options("pretrain")
def pretrain(context: typer.Context, resume: Resume = None, dry_run: DryRun = False, **flags: Any) -> None:
    """Pretrain adapters and projectors on VGG-Sound(40K), or on another list of VGG-Sound clips.

    Clips come from videos (--root) or from prepared shards (--shards, see `avfs data prepare`). Clips whose videos are
    in the evaluation splits of AVE and LLP are left out where their annotation files are found.

    [bold]Examples[/bold]

      avfs pretrain vggsound40k
      avfs pretrain vggsound40k --shards SHARDS --devices 8 --batch-size 64
      torchrun --nnodes 4 --nproc-per-node 8 -m avfewshot pretrain vggsound40k --shards SHARDS
      avfs pretrain --resume runs/pretrain/20260101-120000-vggsound40k
      avfs zeroshot --task ave --adapter runs/pretrain/20260101-120000-vggsound40k

    [bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted; --resume goes on.
    """
    if resume is not None:
        free = ("device", "devices", "nodes", "strategy", "tracker")
        run = resumed_run("pretrain", resume, flags, may_change=free)
    else:
        run = _requested(flags, command_line(context))
    (_print_plan if dry_run else _execute)(run)


def _requested(flags: dict[str, Any], command: str) -> Run:
    """Check everything that can be checked without reading data or weights, and tell all that is wrong at once."""
    dataset = flags["dataset"]
    settings = resolve("pretrain", {**flags, "dataset": dataset if dataset in DATASETS else None})
    faults = settings.faults
    if dataset not in DATASETS:
        what = "Which list is to be pretrained on?"
        if dataset is not None:
            what = f"There is no pretraining list {dataset!r}.{did_you_mean(dataset, DATASETS)}"
        faults.append(UsageError(what, hint=f"avfs pretrain {'|'.join(DATASETS)}; --list names a file of your own."))
    config: PretrainConfig = settings.config
    data, root = config.data, config.data.root
    faults += [
        UsageError(f"--against {folder}: there is no such folder.") for folder in data.against if not folder.is_dir()
    ]
    if data.shards is not None:
        options = (("--root", data.root), ("--media", data.media), ("--list", data.list_file))
        if extra := [flag for flag, value in options if value]:
            faults.append(UsageError(f"{' and '.join(extra)} cannot be given with --shards.", hint="Leave them out."))
    elif root is None and dataset in DATASETS:
        root = collect(faults, lambda: data_root(dataset, None))
    faults += [*backbone_faults(settings), *run_faults(settings)]
    raise_faults(faults)
    settings.config = config.replace(data=data.replace(root=root))
    return new_run(settings, "pretrain", str(dataset), command)


def _execute(run: Run) -> None:
    """Pretrain on every rank, write the model card."""
    with session(run.how_to_resume) as (display, interrupts):
        trainer, data, last = _load(run, display)
        # Signals wait: all ranks stop together after a step, with their state on disk.
        with interrupts.put_off() as stopping:
            trainer.stopping = stopping
            done = bool(trainer.fit(resume=last).finished)
            if done and display.chief:
                from avfewshot.models.checkpoint import find_checkpoint, load_adapter
                from avfewshot.reports.model_card import model_card

                config = load_adapter(find_checkpoint(run.folder)).config
                card = model_card(config, trainer.progress, run.command, data.notes)
                write_text(run.folder / "README.md", card)
                display.write_left(run.folder / "unreadable.csv")
    if display.chief:
        say(f"written: {run.folder}")
        say(f"Next: avfs zeroshot --task ave_cls --adapter {shlex.quote(str(run.folder))}")


def _print_plan(run: Run) -> None:
    """Print what a run would do and take; the list is read, clips are not."""
    import torch

    from avfewshot.models.build import build_model
    from avfewshot.training.distributed import launched_ranks
    from avfewshot.training.plan import make_plan

    asked: PretrainConfig = run.config
    device, config = on_device(asked.model, asked.training)
    with session() as (display, _):
        config, backbone, _ = load_parts(run, config, display)
        display.begin("reading the list, looking for clips", 0)
        data = _data(asked, backbone.visual.image_size)
        devices, nodes = launched_ranks(asked.ranks.devices, asked.ranks.nodes)
        ranks = nodes * (devices if isinstance(devices, int) else max(1, torch.cuda.device_count()))
        plan = make_plan(build_model(backbone, config), backbone, config, -(-len(data.train) // ranks))
    validation = 0 if data.val is None else min(len(data.val), asked.data.val_clips)
    each = f" on each of {ranks} devices" if ranks > 1 else ""
    rows = [
        ("data", f"{len(data.train):,} clips of {len(data.train.classes)} classes; {validation:,} to validate with"),
        *(("", note) for note in data.notes),
        ("steps", f"{plan.steps:,} in {config.epochs} epochs, batches of {config.batch_size}{each}"),
        ("device", f"{device}, {config.precision}"),
        ("memory", plan.memory_by_part() + each),
        ("run folder", str(run.folder)),
    ]
    print_dry_run(rows, plan)


def _load(run: Run, display: Display) -> tuple[Trainer, PretrainData, Resumed | None]:
    from avfewshot.cli.progress import ProgressBar
    from avfewshot.inference.devices import PRECISIONS
    from avfewshot.inference.logits import class_texts
    from avfewshot.models.build import build_model
    from avfewshot.prompts import load_templates
    from avfewshot.training.distributed import many_devices
    from avfewshot.training.tasks import PretrainTask, adapter_config
    from avfewshot.training.trainer import Trainer

    asked: PretrainConfig = run.config
    device, config = on_device(asked.model, asked.training)
    fabric = many_devices(device, config.precision, **dict(asked.ranks))
    display.chief = fabric.global_rank == 0
    say_without_graphs(config, fabric.device, display, ranks=fabric.world_size)
    config, backbone, initial = load_parts(run, config, display)
    backbone.to(fabric.device, PRECISIONS[config.precision])
    display.begin("reading the list, looking for clips", 0)
    data = _data(asked, backbone.visual.image_size)
    for note in data.notes:
        display.say(note)
    templates = asked.model.templates or backbone.templates
    texts = class_texts(backbone, data.train.wordings, load_templates(templates))
    validator = _validator(asked, config, data, backbone, texts, fabric, display)
    model = build_model(backbone, config, seed=config.seed, device=fabric.device)
    if initial is not None:
        model.load_trainable_state(initial.tensors)
    if display.chief:
        run.claim()
    run.folder = Path(fabric.broadcast(str(run.folder)))
    about = {"labels": data.train.classes, "wordings": data.train.wordings, "templates": templates}
    about |= {"seed": config.seed, "support": {**data.about, "ranks": fabric.world_size}}
    task = PretrainTask(
        model, config, source=data.train, texts=texts, validator=validator, seed=config.seed, device=fabric.device,
        describe=lambda metrics: adapter_config(config, backbone, metrics=metrics, **about),
        skip=data.skip, on_failure=display.unreadable,
    )  # fmt: skip
    callbacks = [ProgressBar(display, "epoch", config.epochs, pace=True), *run.trackers(run.folder)]
    trainer = Trainer(fabric, model, config, task, callbacks, folder=run.folder, seed=config.seed)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    display.say(
        f"{len(data.train):,} clips of {len(data.train.classes)} classes, {trainer.steps_per_epoch:,} steps an "
        f"epoch, {config.epochs} epochs; batches of {trainer.step_size * fabric.world_size}, "
        f"{trainer.micro_batch} at once; {trainable / 1e6:.1f} M trainable parameters; {fabric.world_size} x "
        f"{fabric.device.type}, {config.precision}."
    )
    last = trainer.checkpoints.load_last(backbone)
    if last is not None and last.config.support.get("fingerprint") != data.about["fingerprint"]:
        display.say("This does not resume bit for bit: the clips are not those that the run was begun with.")
    return trainer, data, last


def _validator(
    asked: PretrainConfig, config: PretrainingConfig, data: PretrainData, backbone: Backbone, texts: ClassTexts,
    fabric: Fabric, display: Display,
) -> Validator:  # fmt: skip
    """What validates a model; rank 0 alone has clips to do it."""
    from avfewshot.evaluation.predictions import PredictionConfig
    from avfewshot.training.validation import Validator, stream_validator

    if display.chief and data.val is not None and asked.data.val_clips:
        limit = asked.data.val_clips
        validator = stream_validator(data.val, config, backbone, texts, fabric, limit=limit, observer=display)
    else:
        decision = PredictionConfig(config.task, config.fusion, config.pool)
        validator = Validator(decision, None, (), lambda model: (), config.blend)
    display.validated = validator.targets is not None
    return validator


def _data(asked: PretrainConfig, frame_size: int) -> PretrainData:
    from avfewshot.training.data import shards_to_pretrain, videos_to_pretrain

    data, config = asked.data, asked.training
    assert asked.dataset is not None
    options: dict[str, Any] = {"frame_size": frame_size, "workers": config.workers}
    options |= {"against": data.against, "keep_leaks": data.keep_leaks}
    if data.shards is not None:
        return shards_to_pretrain(data.shards, asked.dataset, **options)
    assert data.root is not None
    options |= {"frame_backend": asked.model.frame_backend, "cache_size": config.cache_size}
    return videos_to_pretrain(asked.dataset, data.root, media=data.media, list_file=data.list_file, **options)
