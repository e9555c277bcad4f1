"""`avfs pretrain`: pretrain adapters and projectors on a large list of clips."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.options import backbone_faults, collect, with_options
from avfewshot.cli.runs import Run, folder_faults, load_parts, new_run, resumed_run, say_without_graphs
from avfewshot.cli.terminal import Interrupts, Notices, debugging, library_messages, say
from avfewshot.config import PretrainConfig, PretrainingConfig, resolve
from avfewshot.errors import UsageError, raise_faults
from avfewshot.io import write_text

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from avfewshot.cli.progress import Display
    from avfewshot.encoders.backbone import Backbone
    from avfewshot.inference.logits import ClassTexts
    from avfewshot.models.audio_visual import AudioVisualModel
    from avfewshot.training.pretrain import Pretraining
    from avfewshot.training.pretrain_supply import Supply
    from avfewshot.training.selection import Verdict

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

DATASETS = ("vggsound40k", "vggsound", "ovave")


@app.command(help=HELP)
@with_options("pretrain")
def pretrain(
    context: typer.Context,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.", show_default=False)
    ] = None,
    **flags: Any,
) -> None:
    """Options -> config -> load -> run -> write."""
    if resume is not None:
        run = resumed_run(
            "pretrain", Path(resume).expanduser(), flags, may_change=("device", "devices", "nodes", "strategy")
        )
    else:
        run = _requested(flags, shlex.join(["avfs", *(context.obj or ())]))
    status = _execute(run)
    if status:
        raise typer.Exit(status)


def _requested(flags: dict[str, Any], command: str) -> Run:
    """Check everything that can be checked without reading data or weights, and tell all that is wrong at once."""
    dataset = flags["dataset"]
    settings = resolve("pretrain", {**flags, "dataset": dataset if dataset in DATASETS else None})
    faults = settings.faults
    if dataset not in DATASETS:
        what = "Which list is to be pretrained on?" if dataset is None else f"There is no pretraining list {dataset!r}."
        faults.append(UsageError(what, hint=f"avfs pretrain {'|'.join(DATASETS)}; --list names a file of your own."))
    config: PretrainConfig = settings.config
    data, root = config.data, config.data.root
    faults += [
        UsageError(f"--against {folder}: there is no such folder.") for folder in data.against if not folder.is_dir()
    ]
    if data.shards is not None:
        given = (("--root", data.root), ("--media", data.media), ("--list", data.list_file))
        if extra := [flag for flag, value in given if value]:
            faults.append(UsageError(f"{' and '.join(extra)} cannot be given with --shards.", hint="Leave them out."))
    elif root is None and dataset in DATASETS:
        from avfewshot.cli.datacheck import data_root

        root = collect(faults, lambda: data_root(dataset, None))
    faults += [*backbone_faults(settings), *folder_faults(settings)]
    raise_faults(faults)
    settings.config = config.replace(data=data.replace(root=root))
    return new_run(settings, "pretrain", dataset, command)


def _execute(run: Run) -> int:
    """Pretrain on every rank, write the model card; gives the exit status."""
    with library_messages(Notices(), debug=debugging()), Interrupts() as interrupts:
        from avfewshot.cli.progress import Display

        try:
            with Display() as display:
                training, supply = _load(run, display, interrupts)
                # Signals wait: all ranks stop together after a step, with their state on disk.
                with interrupts.put_off():
                    done = training.run()
                    if done and display.chief:
                        _write(run, training, supply, display)
        except KeyboardInterrupt:
            if told := run.how_to_resume():
                say(told)
            return interrupts.status
    if display.chief:
        say(f"written: {run.folder}")
        say(f"Next: avfs zeroshot --task ave_cls --adapter {shlex.quote(str(run.folder))}")
    return 0


def _load(run: Run, display: Display, interrupts: Interrupts) -> tuple[Pretraining, Supply]:
    from avfewshot.inference.devices import PRECISIONS, resolve_device, resolve_precision
    from avfewshot.inference.logits import class_texts
    from avfewshot.models.build import build_model
    from avfewshot.prompts import load_templates
    from avfewshot.training.description import describe_training
    from avfewshot.training.fabric import many_devices
    from avfewshot.training.journal import Journal
    from avfewshot.training.pretrain import Pretraining
    from avfewshot.training.store import CheckpointStore

    asked: PretrainConfig = run.config
    device = resolve_device(asked.model.device)
    config = asked.training.replace(precision=resolve_precision(asked.training.precision, device))
    fabric = many_devices(device, config.precision, **dict(asked.ranks))
    display.chief = fabric.global_rank == 0
    say_without_graphs(config, fabric.device, display, ranks=fabric.world_size)
    config, backbone, initial = load_parts(run, config, display)
    backbone.to(fabric.device, PRECISIONS[config.precision])
    display.begin("reading the list, looking for clips", 0)
    supply = _supply(asked, backbone.visual.image_size)
    for note in supply.notes:
        display.say(note)
    templates = asked.model.templates or backbone.templates
    texts = class_texts(backbone, supply.train.wordings, load_templates(templates))
    start, judge = _validation(asked, config, supply, backbone, texts, fabric, display)
    fresh = build_model(backbone, config, seed=config.seed, device=fabric.device)
    if initial is not None:
        fresh.load_trainable_state(initial.tensors)
    if display.chief:
        run.claim()
    run.folder = Path(fabric.broadcast(str(run.folder)))
    store = CheckpointStore(run.folder / "checkpoints")
    training = Pretraining(
        fabric,
        fresh,
        config,
        seed=config.seed,
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
            seed=config.seed,
            support={**supply.about, "ranks": fabric.world_size},
            verdict=verdict,
        ),
        journal=Journal(run.folder / "metrics.jsonl"),
        skip=supply.skip,
        watcher=display.pretrain_watcher(config),
        stopping=lambda: interrupts.received is not None,
    )
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
    return training, supply


def _validation(
    asked: PretrainConfig,
    config: PretrainingConfig,
    supply: Supply,
    backbone: Backbone,
    texts: ClassTexts,
    fabric: Fabric,
    display: Display,
) -> tuple[Verdict, Callable[[AudioVisualModel, int], Verdict]]:
    """Figures of the untrained model, and what validates a trained one after so many epochs; rank 0 alone does."""
    from avfewshot.evaluation.predictions import Decision
    from avfewshot.models.audio_visual import AudioVisualModel
    from avfewshot.training.selection import unjudged
    from avfewshot.training.stream_judge import StreamJudge

    if display.chief and supply.val is not None and asked.data.val_clips:
        judge = StreamJudge(
            supply.val,
            Decision(config.task, config.fusion, config.pool),
            AudioVisualModel(backbone).to(fabric.device).eval(),
            texts,
            (backbone.visual_scale, backbone.audio_scale),
            limit=asked.data.val_clips,
            share=config.blend,
            device=fabric.device,
            window=config.window,
            autocast=fabric.autocast,
            observer=display,
        )
        if (start := judge.start()) is not None:
            return start, judge
    return unjudged(0, 0.0, 0.0), lambda trained, epoch: unjudged(epoch, config.blend, 1.0)


def _supply(asked: PretrainConfig, frame_size: int) -> Supply:
    from avfewshot.training.pretrain_supply import supply_from_shards, supply_from_videos

    data, config = asked.data, asked.training
    options: dict[str, Any] = {
        "frame_size": frame_size,
        "workers": config.workers,
        "against": data.against,
        "keep_leaks": data.keep_leaks,
    }
    if data.shards is not None:
        return supply_from_shards(data.shards, asked.dataset, **options)
    return supply_from_videos(
        asked.dataset,
        data.root,
        media=data.media,
        list_file=data.list_file,
        frame_backend=asked.model.frame_backend,
        cache_size=config.cache_size,
        **options,
    )


def _write(run: Run, training: Pretraining, supply: Supply, display: Display) -> None:
    from avfewshot.models.checkpoint import find_checkpoint, load_adapter
    from avfewshot.reports.model_card import model_card

    config = load_adapter(find_checkpoint(run.folder)).config
    write_text(run.folder / "README.md", model_card(config, training.progress, run.command, supply.notes))
    display.write_left(run.folder / "unreadable.csv")
