"""A pretraining of `avfs pretrain`: load it on every rank, train, write the model card; or say what it takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from avfewshot.cli.adapter_training import load_parts, print_dry_run, say_without_graphs
from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.loading import on_device
from avfewshot.cli.progress import Display, ProgressBar
from avfewshot.cli.runs import Run
from avfewshot.cli.terminal import say
from avfewshot.config import PretrainConfig, PretrainingConfig
from avfewshot.encoders.backbone import Backbone
from avfewshot.evaluation.predictions import PredictionConfig
from avfewshot.inference.devices import PRECISIONS
from avfewshot.inference.logits import ClassTexts, class_texts
from avfewshot.io import write_text
from avfewshot.models.build import build_model
from avfewshot.models.checkpoint import find_checkpoint, load_adapter
from avfewshot.prompts import load_templates
from avfewshot.reports.model_card import model_card
from avfewshot.reports.text import count
from avfewshot.training.checkpoints import Resumed
from avfewshot.training.data import PretrainData, shards_to_pretrain, videos_to_pretrain
from avfewshot.training.distributed import launched_ranks, many_devices, parting
from avfewshot.training.plan import make_plan
from avfewshot.training.tasks import PretrainTask, adapter_config
from avfewshot.training.trainer import Trainer
from avfewshot.training.validation import Validator, stream_validator


def execute(run: Run, display: Display, interrupts: Interrupts) -> None:
    """Pretrain on every rank, write the model card."""
    trainer, data, last = _load(run, display)
    # Signals wait: all ranks stop together after a step, with their state on disk.
    with interrupts.put_off() as stopping, parting(trainer.fabric):
        trainer.stopping = stopping
        done = bool(trainer.fit(resume=last).finished)
        if done and display.chief:
            config = load_adapter(find_checkpoint(run.folder)).config
            card = model_card(config, trainer.progress, run.command, data.notes)
            write_text(run.folder / "README.md", card)
            display.write_left(run.folder / "unreadable.csv")
    display.show(None)
    if display.chief:
        say(f"written: {run.folder}")
        say(f"Next: avfs zeroshot --task ave_cls --adapter {shlex.quote(str(run.folder))}")


def print_plan(run: Run, display: Display) -> None:
    """Print what a run would do and take; the list is read, clips are not."""
    asked: PretrainConfig = run.config
    device, config = on_device(asked.model, asked.training)
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
        ("steps", f"{plan.steps:,} in {count(config.epochs, 'epoch')}, batches of {config.batch_size}{each}"),
        ("device", f"{device}, {config.precision}"),
        ("memory", plan.memory_by_part() + each),
        ("run folder", str(run.folder)),
    ]
    display.show(None)
    print_dry_run(rows, plan)


def _load(run: Run, display: Display) -> tuple[Trainer, PretrainData, Resumed | None]:
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
        f"epoch, {count(config.epochs, 'epoch')}; batches of {trainer.step_size * fabric.world_size}, "
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
    if display.chief and data.val is not None and asked.data.val_clips:
        limit = asked.data.val_clips
        validator = stream_validator(data.val, config, backbone, texts, fabric, limit=limit, observer=display)
    else:
        decision = PredictionConfig(config.task, config.plain_fusion, config.pool)
        validator = Validator(decision, None, (), lambda model: (), config.blend)
    display.validated = validator.targets is not None
    return validator


def _data(asked: PretrainConfig, frame_size: int) -> PretrainData:
    data, config = asked.data, asked.training
    assert asked.dataset is not None
    options: dict[str, Any] = {"frame_size": frame_size, "workers": config.workers}
    options |= {"against": data.against, "keep_leaks": data.keep_leaks}
    if data.shards is not None:
        return shards_to_pretrain(data.shards, asked.dataset, **options)
    assert data.root is not None
    options |= {"frame_backend": asked.model.frame_backend, "cache_size": config.cache_size}
    return videos_to_pretrain(asked.dataset, data.root, media=data.media, list_file=data.list_file, **options)
