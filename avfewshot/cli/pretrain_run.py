"""The work of `avfs pretrain`, on every rank: data, model, training, model card."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.cli.console import Notices, library_messages, paused_progress
from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.lifecycle import debugging
from avfewshot.cli.pretrain_request import PretrainRequest
from avfewshot.errors import DataError
from avfewshot.fileio import write_text

if TYPE_CHECKING:
    from avfewshot.datasets.clip_source import ClipSource
    from avfewshot.training.pretrain import Pretraining

_BYTES_PER_CLIP = 1_000_000
"""A decoded clip in the cache takes about this much; a list that does not fit is decoded anew in each epoch."""


@dataclass(frozen=True)
class Supply:
    """Where clips come from.

    Attributes:
        train: Clips to train on.
        val: Clips to judge on, or None.
        skip: Whether a clip is to be left out, by its id.
        about: What a checkpoint says of the list.
        notes: What a person should know.
    """

    train: ClipSource
    val: ClipSource | None
    skip: Callable[[str], bool]
    about: dict[str, Any]
    notes: tuple[str, ...]


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
                _say(f"Interrupted. To go on: avfs pretrain --resume {request.folder}")
            return interrupts.status
    if display.chief:
        _say(f"written: {request.folder}")
        _say(f"Next: avfs zeroshot --task ave_cls --adapter {request.folder}")
    return 0


def _prepare(request: PretrainRequest, display: Any, interrupts: Interrupts) -> tuple[PretrainRequest, Any, Supply]:
    from avfewshot.devices import resolve_device, resolve_precision
    from avfewshot.encoders.backbone import build_backbone
    from avfewshot.model import AudioVisualModel
    from avfewshot.prompts import load_templates
    from avfewshot.scoring.predictions import Decision, Fitted
    from avfewshot.scoring.texts import class_texts
    from avfewshot.training.build import build_model
    from avfewshot.training.checkpoint import AdapterConfig, load_adapter
    from avfewshot.training.fabric import many_devices
    from avfewshot.training.journal import Journal
    from avfewshot.training.pretrain import Pretraining
    from avfewshot.training.selection import Verdict
    from avfewshot.training.store import CheckpointStore
    from avfewshot.training.stream_judge import StreamJudge
    from avfewshot.training.transfer import like_checkpoint

    device = resolve_device(request.model["device"])
    config = dataclasses.replace(request.config, precision=resolve_precision(request.config.precision, device))
    fabric = many_devices(device, config.precision, **launched_ranks(request.ranks))
    display.chief = fabric.global_rank == 0
    request = dataclasses.replace(request, folder=Path(fabric.broadcast(str(request.folder))))
    model = request.model
    display.begin(f"loading {model['backbone']}", 0)
    backbone = build_backbone(
        model["backbone"],
        weights=model["weights"],
        clip_weights=model["clip_weights"],
        clap_weights=model["clap_weights"],
        roberta=model["roberta"],
    )
    backbone.to(fabric.device)
    display.begin("reading the list, looking for clips", 0)
    supply = find_supply(request, backbone.visual.image_size)
    for note in supply.notes:
        display.say(note)
    templates = model["templates"] or backbone.templates
    texts = class_texts(backbone, supply.train.wordings, load_templates(templates))
    initial = None
    if request.adapter is not None:
        initial = load_adapter(request.adapter, backbone)
        given = [row[0] for row in request.settings if not row[2].startswith("default")]
        config = like_checkpoint(config, initial, given=given)
    start, judge = Verdict(0.0, 0.0, 0.0, Fitted()), None
    if display.chief and supply.val is not None and request.data["val_clips"]:
        judge = StreamJudge(
            supply.val,
            Decision("vggsound_cls", config.fusion, config.pool),
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
        start = judge.start() or start
    fresh = build_model(backbone, config, seed=request.seed)
    if initial is not None:
        fresh.load_trainable_state(initial.tensors)
    store = CheckpointStore(request.folder / "checkpoints")

    def describe(verdict: Verdict) -> AdapterConfig:
        return AdapterConfig(
            task="vggsound_cls",
            labels=supply.train.classes,
            wordings=supply.train.wordings,
            templates=templates,
            backbone=backbone.name,
            identity=dict(backbone.identity),
            training=config.to_dict(),
            seed=request.seed,
            support={**supply.about, "ranks": fabric.world_size},
            decision={
                "blend": verdict.blend,
                "pool": config.pool,
                "fusion": config.fusion,
                "window": config.window,
                **dataclasses.asdict(verdict.fitted),
            },
            metrics={"validation": {"figure": verdict.figure, "loss": verdict.loss}},
        )

    def judged(trained: AudioVisualModel) -> Verdict:
        if judge is not None and judge.num_clips:
            return judge(trained)
        # Nothing tells whether this epoch is better than the one before: the last one counts.
        share = 1.0 if config.blend == "auto" else float(config.blend)
        return Verdict(0.0, -float(training.progress.epoch), share, Fitted())

    training = Pretraining(
        fabric,
        fresh.to(fabric.device),
        config,
        seed=request.seed,
        source=supply.train,
        texts=texts,
        judge=judged,
        start=start,
        store=store,
        describe=describe,
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


def launched_ranks(asked: Mapping[str, Any]) -> dict[str, Any]:
    """How many ranks there are: what torchrun has started counts, whatever --devices and --nodes say.

    Args:
        asked: devices, nodes and strategy, as in :class:`~avfewshot.cli.pretrain_request.PretrainRequest`.
    """
    world, local = (int(os.environ.get(name) or 0) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world > 1 and local:
        return {**asked, "devices": local, "nodes": world // local}
    return dict(asked)


def find_supply(request: PretrainRequest, frame_size: int) -> Supply:
    """Find the clips of a request, in videos or in shards, without those that would leak into evaluation.

    Args:
        request: Checked.
        frame_size: Side of the pictures that the backbone needs.

    Raises:
        AvfsError: There are none, or they cannot be read.
    """
    from avfewshot.datasets.check import find_other_datasets
    from avfewshot.datasets.leakage import EVALUATION_SPLITS, without_leaks, youtube_ids

    data, config = request.data, request.config
    if data["shards"] is not None:
        from avfewshot.datasets.sampler import fingerprint
        from avfewshot.datasets.shards.reader import ShardSet
        from avfewshot.training.leaks import LeakFilter

        shards = ShardSet.open(data["shards"])
        shards.check_frame_side(frame_size)
        train = shards.split("train", threads=config.workers)
        val = shards.split("val", threads=config.workers) if shards.splits.get("val") else None
        others = [] if data["keep_leaks"] else find_other_datasets(_Nobody(request.dataset), data["against"])
        forbidden = {video for other in others for video in youtube_ids(other, EVALUATION_SPLITS)}
        leaks = LeakFilter(forbidden)
        left = sum(leaks(name) for name in train.ids)
        notes = [leaks.describe(left, bool(others), data["keep_leaks"])]
        about = {"list": shards.index.title, "fingerprint": fingerprint(train.ids), "clips": len(train) - left}
        return Supply(train, val, leaks, about, tuple(notes))
    return _raw_supply(request, frame_size, find_other_datasets, without_leaks)


def _raw_supply(request: PretrainRequest, frame_size: int, find_others: Any, without_leaks: Any) -> Supply:
    from functools import partial

    from avfewshot.cli.fewshot_request import check_media
    from avfewshot.datasets.clip_source import RawSource, read_start
    from avfewshot.datasets.load import load_dataset
    from avfewshot.datasets.sampler import fingerprint
    from avfewshot.training.clip_cache import ClipCache

    data, config = request.data, request.config
    dataset = load_dataset(request.dataset, data["root"], media=data["media"], list_file=data["list"])
    check_media(dataset, data["media"] or [data["root"]])
    notes = [f"{dataset.description.title}: {dataset.form}, {len(dataset.samples):,} clips."]
    notes += [finding.message for finding in dataset.report.findings if finding.severity != "info"]
    if not data["keep_leaks"]:
        others = find_others(dataset, [*data["against"], data["root"], Path(data["root"]).parent])
        removal = without_leaks(dataset, others)
        where = ", ".join(f"{count:,} in {name}" for name, count in removal.by_source.items())
        names = ", ".join(other.description.title for other in others) or "no other data set found (--against DIR)"
        where = f" ({where})" if where else ""
        notes.append(f"Leakage into evaluation ({names}): {len(removal.removed):,} clips left out{where}.")
        dataset = removal.dataset
    else:
        notes.append("Videos of evaluation splits are kept (--keep-leaks): figures on those data sets are too good.")
    usable = dataset.available("train")
    if not usable:
        raise DataError(f"{dataset.description.title} has no training clip with media.")
    total = sum(sample.split == "train" for sample in dataset.samples)
    if len(usable) < total:
        notes.append(f"{len(usable):,} of {total:,} training clips have media.")
    if config.cache_size >= _BYTES_PER_CLIP * len(dataset.available()):
        cache = ClipCache(max_bytes=config.cache_size)
        frame_backend = request.model["frame_backend"]

        def read(path: Path) -> Any:
            return cache.get(path, frame_size=frame_size, frame_backend=frame_backend)
    else:
        read = partial(read_start, frame_size=frame_size, frame_backend=request.model["frame_backend"])
    val = dataset.available("val")
    return Supply(
        RawSource(dataset, usable, read, threads=config.workers),
        RawSource(dataset, val, read, threads=config.workers) if val else None,
        lambda name: False,
        {
            "list": dataset.form,
            "fingerprint": fingerprint(sample.id for sample in usable),
            "clips": len(usable),
        },
        tuple(notes),
    )


@dataclass(frozen=True)
class _Nobody:
    """Stands for a data set whose annotation files are not here."""

    name: str
    files: dict[str, Path] = dataclasses.field(default_factory=dict)


def _finish(request: PretrainRequest, training: Pretraining, supply: Supply, display: Any) -> None:
    from avfewshot.reports.model_card import model_card
    from avfewshot.training.checkpoint import find_checkpoint, load_adapter

    folder = find_checkpoint(request.folder)
    config = load_adapter(folder).config
    write_text(request.folder / "README.md", model_card(config, training.progress, request.command, supply.notes))
    display.write_left(request.folder / "unreadable.csv")


def _say(message: str) -> None:
    with paused_progress():
        print(message, file=sys.stderr)  # noqa: T201
