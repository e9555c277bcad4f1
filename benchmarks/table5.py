"""Table 5 of the paper on the world of `bound_world.py`, with adapters in the last pairs of layers alone.

Tokens that enter the first of these pairs are computed once, so that a training takes a minute or two of one core. What
is trained are the product's own modules, by its own loss. The last step counts: no validation clip is used, and test
clips are read at the end. Differences from `none` are paired on seeds and clips.

    python benchmarks/bound_world.py bound --seed 1
    python benchmarks/table5.py bound --keep answers
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from avfewshot.adapters.base import HALVES, pair_towers
from avfewshot.config import TrainingConfig
from avfewshot.data.folder import load_folder
from avfewshot.encoders.backbone import build_backbone
from avfewshot.inference.logits import class_texts
from avfewshot.io import write_text
from avfewshot.media.clip_cache import ClipCache
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model
from avfewshot.prompts import load_templates
from avfewshot.training.objective import ClipEmbeddings, Objective

ROWS = ("none", "C", "S", "SC", "T", "SCT")
LR, CLIP_NORM, REPLICATES = 3e-4, 1.0, 2000
Tokens = tuple[torch.Tensor, torch.Tensor]


class World:
    """Tokens of all clips behind the blocks that stay as they are, and their classes."""

    def __init__(self, folder: Path, layers: int) -> None:
        dataset, self.backbone = load_folder(folder), build_backbone("tiny")
        self.classes = dataset.classes
        self.texts = class_texts(self.backbone, dataset.wordings, load_templates(str(self.backbone.templates)))
        pairs = pair_towers(self.backbone.visual, self.backbone.audio)
        self.guided = range(len(pairs) - layers, len(pairs))
        self.stops = pairs[-layers - 1].visual_block + 1, pairs[-layers - 1].audio_block + 1
        self.frozen, clips = AudioVisualModel(self.backbone), ClipCache()
        self.tokens: dict[str, list[Tokens]] = {}
        self.labels = {}
        for split in ("train", "test"):
            samples = [sample for sample in dataset.split(split) if sample.path is not None]
            self.labels[split] = torch.from_numpy(dataset.multi_hot(samples))
            read = (clips.get(s.path, frame_size=self.backbone.visual.image_size) for s in samples if s.path)
            with torch.no_grad():
                self.tokens[split] = [self.through((clip.frames, clip.audio_segments), enter=True) for clip in read]

    def through(self, pair: tuple, *, enter: bool = False) -> Tokens:
        """Frames and sound up to the first pair of layers that has adapters, or tokens from there to the end."""
        towers = self.frozen.visual_tower, self.frozen.audio_tower
        if enter:
            return tuple(
                self.frozen._alone(tower, tower.patch_embed(given), 0, stop)
                for tower, given, stop in zip(towers, pair, self.stops, strict=True)
            )
        return tuple(
            self.frozen._alone(tower, given, stop) for tower, given, stop in zip(towers, pair, self.stops, strict=True)
        )

    def embed(self, model: AudioVisualModel, split: str, rows: list[int]) -> list[ClipEmbeddings]:
        """Clips through the layers of a model, side by side."""
        pairs = [self.tokens[split][row] for row in rows]
        tokens, seconds = tuple(torch.cat(part) for part in zip(*pairs, strict=True)), len(pairs[0][0])
        if model.adapters is None:
            with torch.no_grad():
                tokens = self.through(tokens)
        else:
            for layer in self.guided:  # the adapters of the pairs before are never called
                for half in HALVES:
                    tokens = model._step(layer, half, *tokens, seconds, None, None)
        visual = model._finish(model.visual_tower.forward_head(tokens[0]), "visual", len(rows))
        audio = model._finish(model.audio_tower.forward_head(tokens[1]), "audio", len(rows))
        return [ClipEmbeddings(*pair) for pair in zip(visual, audio, strict=True)]


def train(world: World, row: str, seed: int, options: argparse.Namespace) -> list[int]:
    """Train a row of the table and give the class that it answers to each test clip."""
    parts = {"channel": "C" in row, "spatial": "S" in row, "temporal": "T" in row}
    parts = {"adapter": "none"} if row == "none" else parts
    factors = {"alpha": options.factor, "beta": options.factor, "gamma": options.factor}
    config = TrainingConfig(method="dgsct", blend=1.0, **factors, **parts)
    model, objective = build_model(world.backbone, config, seed=seed), Objective(config, world.texts, per_second=False)
    gates = [] if model.adapters is None else model.adapters.gates()
    others = [p for p in model.parameters() if p.requires_grad and not any(p is gate for gate in gates)]
    groups = [{"params": others, "lr": LR}, *([{"params": gates, "lr": LR * options.gate_lr}] if gates else [])]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / options.steps)))
    labels, draws, order = world.labels["train"], torch.Generator().manual_seed(seed), []
    for _ in range(options.steps):
        order = order or torch.randperm(len(labels), generator=draws).tolist()
        batch, order = order[: options.batch_size], order[options.batch_size :]
        optimizer.zero_grad()
        objective(model, world.embed(model, "train", batch), list(labels[batch])).total.backward()
        torch.nn.utils.clip_grad_norm_([*others, *gates], CLIP_NORM)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        chunks = torch.arange(len(world.labels["test"])).split(32)
        said = [p for rows in chunks for p in objective.predict(model, world.embed(model, "test", rows.tolist()))]
    return [int(one.log_probabilities.argmax()) for one in said]


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the mean of ``[seeds, clips]``: seeds are drawn, then clips, the same ones for each seed."""
    rng, (seeds, clips) = np.random.default_rng(0), values.shape
    draws = ((rng.integers(seeds, size=seeds), rng.integers(clips, size=clips)) for _ in range(REPLICATES))
    low, high = np.quantile([values[np.ix_(*draw)].mean() for draw in draws], [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Train what is not there, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=Path, default=Path("answers"), help="answers of trainings, to go on from")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--rows", default=",".join(ROWS), help="none first")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--factor", type=float, default=1.0, help="alpha, beta and gamma")
    parser.add_argument("--gate-lr", type=float, default=300.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = World(options.folder, options.layers)
    truth = world.labels["test"].int().argmax(1).numpy()
    right: dict[str, list[np.ndarray]] = {row: [] for row in options.rows.split(",")}
    for seed in options.seeds.split(","):
        for row in right:
            path = options.keep / f"{row}-{seed}.json"
            if not path.exists():
                write_text(path, json.dumps(train(world, row, int(seed), options)))
            right[row].append(np.array(json.loads(path.read_text())) == truth)
            print(f"seed {seed}, {row}: {100 * right[row][-1].mean():.1f}", flush=True)
    pairs = {"voice": ("own voice", "other voice"), "side": ("left one", "right one")}
    pairs |= {"order": ("seen first", "heard first")}
    pairs = {name: pair for name, pair in pairs.items() if set(pair) <= set(world.classes)}
    print(f"| row | top-1 | minus none | {' | '.join(pairs)} |\n{'|---' * (3 + len(pairs))}|")
    none = np.array(right["none"], float)
    for row in right:
        table = np.array(right[row], float)
        of_pair = [table[:, np.isin(truth, [world.classes.index(name) for name in pair])] for pair in pairs.values()]
        cells = [f"{100 * one.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})" for one in (table, *of_pair)
                 for low, high in [interval(one)]]  # fmt: skip
        low, high = interval(table - none)
        cells.insert(1, f"{100 * (table - none).mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
