"""The work of `avfs pretrain`, on every rank: data, model, training, model card."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.cli.console import Notices, library_messages, paused_progress
from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.lifecycle import debugging
from avfewshot.cli.pretrain_request import PretrainRequest
from avfewshot.io import write_text

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from avfewshot.encoders.backbone import Backbone
    from avfewshot.inference.logits import ClassTexts
    from avfewshot.models.audio_visual import AudioVisualModel
    from avfewshot.training.config import TrainingConfig
    from avfewshot.training.pretrain import Pretraining
    from avfewshot.training.pretrain_supply import Supply
    from avfewshot.training.selection import Verdict


def execute(request: PretrainRequest) -> int:
    """Pretrain as asked for.

    Args:
        request: Checked.

    Returns:
        The exit status: 0 done, 130 or 143 cut short.

    Raises:
        AvfsError: It cannot be done.
    """
    with library_messages(Notices(), debug=debugging()), Interrupts() as interrupts:
        from avfewshot.cli.pretrain_progress import PretrainDisplay

        try:
            with PretrainDisplay() as display:
                request, training, supply = _prepare(request, display, interrupts)
                # Signals wait: all ranks stop together after a step, with their state on disk.
                with interrupts.put_off():
                    done = training.run()
                    if done and display.chief:
                        _finish(request, training, supply, display)
        except KeyboardInterrupt:
            if (request.folder / "run.json").is_file():
                _say(f"Interrupted. To go on: avfs pretrain --resume {shlex.quote(str(request.folder))}")
            return interrupts.status
    if display.chief:
        _say(f"written: {request.folder}")
        _say(f"Next: avfs zeroshot --task ave_cls --adapter {shlex.quote(str(request.folder))}")
    return 0


def _prepare(request: PretrainRequest, display: Any, interrupts: Interrupts) -> tuple[PretrainRequest, Any, Supply]:
    from avfewshot.cli.run_model import load_parts, say_without_graphs
    from avfewshot.inference.devices import PRECISIONS, resolve_device, resolve_precision
    from avfewshot.inference.logits import class_texts
    from avfewshot.models.build import build_model
    from avfewshot.prompts import load_templates
    from avfewshot.training.description import describe_training
    from avfewshot.training.fabric import many_devices
    from avfewshot.training.journal import Journal
    from avfewshot.training.pretrain import Pretraining
    from avfewshot.training.store import CheckpointStore

    device = resolve_device(request.model["device"])
    config = dataclasses.replace(request.config, precision=resolve_precision(request.config.precision, device))
    fabric = many_devices(device, config.precision, **request.ranks)
    display.chief = fabric.global_rank == 0
    request = dataclasses.replace(request, folder=Path(fabric.broadcast(str(request.folder))))
    say_without_graphs(config, fabric.device, display, ranks=fabric.world_size)
    config, backbone, initial = load_parts(config, request.model, request.adapter, request.settings, display)
    backbone.to(fabric.device, PRECISIONS[config.precision])
    display.begin("reading the list, looking for clips", 0)
    supply = _supply(request, backbone.visual.image_size)
    for note in supply.notes:
        display.say(note)
    templates = request.model["templates"] or backbone.templates
    texts = class_texts(backbone, supply.train.wordings, load_templates(templates))
    start, judge = _judge(request, config, supply, backbone, texts, fabric, display)
    fresh = build_model(backbone, config, seed=request.seed, device=fabric.device)
    if initial is not None:
        fresh.load_trainable_state(initial.tensors)
    store = CheckpointStore(request.folder / "checkpoints")
    training = Pretraining(
        fabric,
        fresh,
        config,
        seed=request.seed,
        source=supply.train,
        texts=texts,
        judge=judge,
        start=start,
        store=store,
        describe=lambda verdict: describe_training(
            config,
            backbone,
            labels=supply.train.classes,
            wordings=supply.train.wordings,
            templates=templates,
            seed=request.seed,
            support={**supply.about, "ranks": fabric.world_size},
            verdict=verdict,
        ),
        journal=Journal(request.folder / "metrics.jsonl"),
        skip=supply.skip,
        watcher=display.watcher(config, len(supply.train), device),
        stopping=lambda: interrupts.received is not None,
    )
    if display.chief and not request.resumed:
        request.write()
    found = store.load_last(backbone)
    if found is not None:
        doubts = [*found.skipped, *training.resume(found)]
        if found.config.support.get("fingerprint") != supply.about["fingerprint"]:
            doubts.append("the clips are not those that the run was begun with.")
        for doubt in doubts:
            display.say(f"This does not resume bit for bit: {doubt}")
    trainable = sum(p.numel() for p in fresh.parameters() if p.requires_grad)
    display.say(
        f"{len(supply.train):,} clips of {len(supply.train.classes)} classes, {training.steps_per_epoch:,} steps an "
        f"epoch, {config.epochs} epochs; batches of {config.batch_size * config.accumulation * fabric.world_size}, "
        f"{training.micro_batch} at once; {trainable / 1e6:.1f} M trainable parameters; {fabric.world_size} x "
        f"{fabric.device.type}, {config.precision}."
    )
    return request, training, supply


def _judge(
    request: PretrainRequest,
    config: TrainingConfig,
    supply: Supply,
    backbone: Backbone,
    texts: ClassTexts,
    fabric: Fabric,
    display: Any,
) -> tuple[Verdict, Callable[[AudioVisualModel, int], Verdict]]:
    """The verdict on the untrained model, and what judges a trained one after so many epochs; rank 0 alone does."""
    from avfewshot.evaluation.predictions import Decision
    from avfewshot.models.audio_visual import AudioVisualModel
    from avfewshot.training.selection import unjudged
    from avfewshot.training.stream_judge import StreamJudge

    if display.chief and supply.val is not None and request.data["val_clips"]:
        judge = StreamJudge(
            supply.val,
            Decision(config.task, config.fusion, config.pool),
            AudioVisualModel(backbone).to(fabric.device).eval(),
            texts,
            (backbone.visual_scale, backbone.audio_scale),
            limit=request.data["val_clips"],
            share=config.blend,
            device=fabric.device,
            window=config.window,
            autocast=fabric.autocast,
            observer=display,
        )
        if (start := judge.start()) is not None:
            return start, judge
    return unjudged(0, 0.0, 0.0), lambda trained, epoch: unjudged(epoch, config.blend, 1.0)


def _supply(request: PretrainRequest, frame_size: int) -> Supply:
    from avfewshot.training.pretrain_supply import supply_from_shards, supply_from_videos

    data, config = request.data, request.config
    options = {"frame_size": frame_size, "workers": config.workers}
    options |= {name: data[name] for name in ("against", "keep_leaks")}
    if data["shards"] is not None:
        return supply_from_shards(data["shards"], request.dataset, **options)
    return supply_from_videos(
        request.dataset,
        data["root"],
        media=data["media"],
        list_file=data["list"],
        frame_backend=request.model["frame_backend"],
        cache_size=config.cache_size,
        **options,
    )


def _finish(request: PretrainRequest, training: Pretraining, supply: Supply, display: Any) -> None:
    from avfewshot.models.checkpoint import find_checkpoint, load_adapter
    from avfewshot.reports.model_card import model_card

    folder = find_checkpoint(request.folder)
    config = load_adapter(folder).config
    write_text(request.folder / "README.md", model_card(config, training.progress, request.command, supply.notes))
    display.write_left(request.folder / "unreadable.csv")


def _say(message: str) -> None:
    with paused_progress():
        print(message, file=sys.stderr)  # noqa: T201
