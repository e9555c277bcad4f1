"""Does a pretraining that is killed again and again end as one that nobody touched?

    python benchmarks/kill_pretrain.py --kills 20 --seed 1
    python benchmarks/kill_pretrain.py --kills 20 --root my_clips

A small pretraining (backbone `tiny`, 12 steps) runs once undisturbed. Then others are ended by SIGKILL at moments drawn
at random, each time a process of its own, and resumed until they come to their end. Every step writes a checkpoint
there, so that many kills fall into the writing of one. Each finished training is compared with the undisturbed one: all
trained tensors bit by bit, and every line of the journal. Clips are made up, in memory, or read from the videos below
``--root`` (a folder of classes, as for ``--task folder``). Printed are a table of the kills and a JSON object; the exit
status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avfewshot.config import TrainingConfig
from avfewshot.data.clip_source import ClipSource, LabelledClip, RawSource, read_start, share
from avfewshot.data.folder import load_folder
from avfewshot.encoders.backbone import Backbone, build_backbone
from avfewshot.evaluation.observer import Observer
from avfewshot.inference.logits import ClassTexts, class_texts
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.models.build import build_model
from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.prompts import load_templates
from avfewshot.training import trainer
from avfewshot.training.checkpoints import CheckpointManager
from avfewshot.training.data import epoch_order
from avfewshot.training.distributed import single_device
from avfewshot.training.metrics_log import MetricsLogger
from avfewshot.training.tasks import PretrainTask
from avfewshot.training.validation import stream_validator

SECONDS = 1
"""Length of a clip."""

CONFIG = TrainingConfig(
    task="vggsound_cls", objective="contrastive", batch_size=4, epochs=3, lr=1e-3, window=SECONDS, micro_batch=2,
    precision="fp32", workers=0, warmup=0.05, blend="auto", checkpointing=False, hidden=8,
)  # fmt: skip


class MadeUpClips:
    """Coloured noise to look at and noise of several loudnesses to listen to, one kind a class."""

    classes = ("dog barking", "bell ringing", "clock ticking")
    wordings = classes

    def __init__(self, first: int, count: int, side: int) -> None:
        self._numbers, self._side = range(first, first + count), side

    def __len__(self) -> int:
        return len(self._numbers)

    def count(self, rank: int, world: int) -> int:
        """Clips of a rank."""
        return share(len(self), rank, world)

    def stream(
        self, *, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[LabelledClip]:
        """See :class:`~avfewshot.data.clip_source.ClipSource`."""
        order = list(range(len(self))) if seed is None else epoch_order(len(self), seed=seed, epoch=epoch)
        for index in order[rank::world][start:]:
            yield self._clip(self._numbers[index])

    def _clip(self, number: int) -> LabelledClip:
        label = number % len(self.classes)
        generator = torch.Generator().manual_seed(number)
        size = SECONDS, 3, self._side, self._side
        frames = torch.randint(0, 120, size, dtype=torch.uint8, generator=generator)
        frames[:, label] += 100
        wave = 0.05 * (1 + label) * torch.randn(SECONDS * SAMPLE_RATE, generator=generator)
        return LabelledClip(f"clip{number}", (label,), Clip(Path(f"clip{number}"), float(SECONDS), 0, frames, wave))


@dataclass(frozen=True)
class Setting:
    """What all trainings share, made once, before processes are forked off."""

    backbone: Backbone
    texts: ClassTexts
    train: ClipSource
    val: ClipSource
    seed: int


def main() -> int:
    """Read the arguments, kill, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often a process is killed")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and of the training")
    parser.add_argument("--root", type=Path, help="folder of clips, CLASS/*.mp4; made-up clips unless given")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = prepare(arguments.root, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="avfs-benchmark-") as folder:
        report = compare(setting, arguments.kills, Path(folder))
    report["command"] = "python benchmarks/kill_pretrain.py " + " ".join(sys.argv[1:])
    text = json.dumps(report, indent=2)
    print(text)
    print(table(report), file=sys.stderr)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return 1 if report["differences"] else 0


def prepare(root: Path | None, seed: int) -> Setting:
    """Load the backbone and find the clips."""
    backbone = build_backbone("tiny")
    side = backbone.visual.image_size
    if root is None:
        train, val = MadeUpClips(0, 14, side), MadeUpClips(100, 3, side)
    else:
        dataset = load_folder(root)
        read = partial(read_start, frame_size=side, seconds=SECONDS)
        train, val = (RawSource(dataset, dataset.available(split), read, threads=0) for split in ("train", "val"))
    texts = class_texts(backbone, train.wordings, load_templates(backbone.templates))
    return Setting(backbone, texts, train, val, seed)


def train(setting: Setting, folder: Path, save_seconds: float) -> None:
    """Begin a training in a folder, or go on with the one that is there, to its end."""
    trainer.SAVE_SECONDS = save_seconds
    backbone, config = setting.backbone, CONFIG
    fabric = single_device(torch.device("cpu"), "fp32")
    validator = stream_validator(setting.val, config, backbone, setting.texts, fabric, limit=3, observer=Observer())

    def describe(metrics: Any) -> AdapterConfig:
        return AdapterConfig(
            task=config.task, labels=setting.train.classes, wordings=setting.train.wordings,
            templates=backbone.templates, backbone=backbone.name, identity=dict(backbone.identity),
            training=config.to_dict(), seed=setting.seed, decision={"blend": metrics.blend}, support={"ranks": 1},
        )  # fmt: skip

    model = build_model(backbone, config, seed=setting.seed)
    task = PretrainTask(
        model,
        config,
        source=setting.train,
        texts=setting.texts,
        validator=validator,
        describe=describe,
        seed=setting.seed,
        device=torch.device("cpu"),
    )
    training = trainer.Trainer(fabric, model, config, task, folder=folder, seed=setting.seed)
    last = training.checkpoints.load_last(backbone)
    if last is not None and (lost := training.resume(last)):
        raise SystemExit(f"not restored: {', '.join(lost)}")
    training.fit()


def compare(setting: Setting, kills: int, folder: Path) -> dict[str, Any]:
    """Train undisturbed, then kill, resume and compare until there were enough kills."""
    # Forked, not spawned: the imports of a process take longer than its training.
    fork = multiprocessing.get_context("fork")

    def start(path: Path, save_seconds: float) -> Any:
        process = fork.Process(target=train, args=(setting, path, save_seconds))
        process.start()
        return process

    straight = folder / "straight"
    process = start(straight, 300.0)
    process.join()
    if process.exitcode:
        raise SystemExit("The undisturbed training failed.")
    began = time.monotonic()
    process = start(folder / "timed", -1.0)
    process.join()
    whole = time.monotonic() - began
    draw = random.Random(setting.seed)
    rows: list[dict[str, Any]] = []
    differences = differing(straight, folder / "timed")
    finished = 1
    while True:
        finished += 1
        path = folder / f"killed-{finished}"
        while True:
            process = start(path, -1.0)
            moment = draw.uniform(0, 0.5 * whole)
            if len(rows) < kills:
                process.join(moment)
            else:
                process.join()
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:  # it had come to its end
                break
            rows.append({"training": finished - 1, "after_seconds": round(moment, 2), **left(path)})
            print(f"kill {len(rows)} of {kills}", file=sys.stderr)
        if process.exitcode:
            differences.append(f"training {finished - 1}: exit status {process.exitcode}")
        differences += [f"training {finished - 1}: {what}" for what in differing(straight, path)]
        if len(rows) >= kills:
            break
    steps = sum(entry["kind"] == "step" for entry in MetricsLogger(straight / "metrics.jsonl").entries())
    return {
        "benchmark": "kill_pretrain",
        "seed": setting.seed,
        "clips": len(setting.train),
        "steps": steps,
        "seconds_undisturbed_with_a_checkpoint_a_step": round(whole, 1),
        "kills": rows,
        "trainings_compared": finished,
        "tensors_compared": len(final_tensors(straight)),
        "journal_lines_compared": len((straight / "metrics.jsonl").read_text().splitlines()),
        "differences": differences,
    }


def left(folder: Path) -> dict[str, Any]:
    """What a killed process has left behind."""
    steps = CheckpointManager(folder / "checkpoints").steps()
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return {
        "checkpoint": steps[-1].name if steps else "none",
        "last_step_written_down": max((entry["step"] for entry in MetricsLogger(path).entries()), default=0),
        "unfinished_checkpoint": any(each.name.startswith(".") for each in (folder / "checkpoints").glob("*")),
        "torn_line": bool(text) and not text.endswith("\n"),
    }


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Trained tensors and optimizer state of the last checkpoint."""
    found = CheckpointManager(folder / "checkpoints").load_last()
    if found is None:
        return {}
    moments = found.state.parts["optimizer"]["state"]
    extra = {f"optimizer {key} {name}": value for key, part in moments.items() for name, value in part.items()}
    return {**found.state.model, **{name: torch.as_tensor(value) for name, value in extra.items()}}


def differing(first: Path, second: Path) -> list[str]:
    """What differs between two finished trainings."""
    ours, theirs = final_tensors(first), final_tensors(second)
    found = (
        [f"the tensors are others: {', '.join(sorted(ours.keys() ^ theirs.keys()))}"]
        if ours.keys() ^ theirs.keys()
        else []
    )
    found += [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
    best = [CheckpointManager(folder / "checkpoints").load_best().tensors for folder in (first, second)]
    found += [f"best checkpoint: {name}" for name in best[0] if not torch.equal(best[0][name], best[1][name])]
    if (first / "metrics.jsonl").read_text() != (second / "metrics.jsonl").read_text():
        found.append("the journal")
    return found


def table(report: dict[str, Any]) -> str:
    """The kills and the outcome for people."""
    lines = [f"{'kill':>4} {'training':>8} {'after s':>8}  {'checkpoint':14} {'last step':>9}  remains"]
    for number, row in enumerate(report["kills"], 1):
        remains = [
            what
            for what, there in (
                ("unfinished checkpoint", row["unfinished_checkpoint"]),
                ("torn line", row["torn_line"]),
            )
            if there
        ]
        lines.append(
            f"{number:4} {row['training']:8} {row['after_seconds']:8.2f}  {row['checkpoint']:14} "
            f"{row['last_step_written_down']:9}  {', '.join(remains)}"
        )
    lines.append(
        f"{report['trainings_compared']} trainings of {report['steps']} steps, {report['tensors_compared']} tensors "
        f"and {report['journal_lines_compared']} journal lines each: "
        + (f"DIFFERENT: {'; '.join(report['differences'])}" if report["differences"] else "all equal, to the bit.")
    )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
