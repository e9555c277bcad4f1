"""Judge the packaged `tiny` backbone on frames, seconds and clips that it was never trained on.

    python scripts/evaluate_tiny.py --work build/tiny --docs docs

Clips are rendered, written as mp4 and read back by the media reader. Two sets are made with seeds of their own: the
validation set chooses how segments are pooled and modalities fused; the test set is looked at once, with that choice.
Writes ``tiny.json`` and ``tiny-curves.svg`` into the docs folder and prints the tables in Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch import Tensor
from toy_captions import UNSEEN_TEMPLATES_AUDIO, UNSEEN_TEMPLATES_VISUAL
from toy_samples import sample_frame, sample_sound
from tqdm import tqdm

import avfewshot
from avfewshot.encoders.text import label_features
from avfewshot.inference.logits import background_feature
from avfewshot.io import atomic_path, write_text
from avfewshot.models.fusion import FUSIONS, POOLS, predict_clips
from avfewshot.prompts import load_templates
from avfewshot.toyworld.render import write_clip
from avfewshot.toyworld.script import ave_script
from avfewshot.toyworld.vocabulary import COMPOSITIONS, HELD_OUT, OBJECTS, SEEN, SOUNDS

SINGLE = 3000
PER_CLASS = {"validation": 8, "test": 16}
SEEDS = {"validation": 7001, "test": 7003}


def clip_path(work: Path, split: str, label: int, number: int) -> Path:
    return work / split / f"{COMPOSITIONS[label].name.replace(' ', '-')}-{number:02d}.mp4"


def make_clip(task: tuple[Path, str, int, int]) -> None:
    """Write one clip of an evaluation set, unless it is there."""
    work, split, label, number = task
    path = clip_path(work, split, label, number)
    if not path.exists():
        rng = np.random.default_rng([SEEDS[split], label, number])
        write_clip(ave_script(COMPOSITIONS[label], rng), path)


def make_clips(work: Path) -> None:
    """Write both evaluation sets in two processes."""
    tasks = [
        (work, split, label, number)
        for split, count in PER_CLASS.items()
        for label in range(len(COMPOSITIONS))
        for number in range(count)
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        list(tqdm(pool.imap_unordered(make_clip, tasks, 4), total=len(tasks), desc="clips", disable=None))


class Judge:
    """Scores embeddings of clips against the names of classes."""

    def __init__(self, classifier: avfewshot.Classifier, work: Path) -> None:
        self.backbone = classifier.backbone
        self.templates = load_templates(self.backbone.templates)
        self.clips: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        weights = hashlib.sha256(json.dumps(self.backbone.identity, sort_keys=True).encode()).hexdigest()[:12]
        for split, count in PER_CLASS.items():
            pairs = list(itertools.product(range(len(COMPOSITIONS)), range(count)))
            kept = work / f"{split}-{weights}.safetensors"
            if not kept.exists():
                embedded = [
                    classifier.embed(clip_path(work, split, *pair)) for pair in tqdm(pairs, desc=split, disable=None)
                ]
                stacked = {
                    name: torch.stack([getattr(clip, name) for clip in embedded]) for name in ("visual", "audio")
                }
                with atomic_path(kept) as part:
                    save_file(stacked, part)
            stacked = load_file(kept)
            self.clips[split] = (stacked["visual"], stacked["audio"], torch.tensor([label for label, _ in pairs]))
        self.background = (
            background_feature(self.backbone.visual_text, self.templates.background_visual).float(),
            background_feature(self.backbone.audio_text, self.templates.background_audio).float(),
        )

    def single(self, templates: str) -> tuple[int, int]:
        """Correct single frames and single seconds of SINGLE each, over all objects and over all sounds."""
        rng = np.random.default_rng(SEEDS["test"])
        options = {"empty": 0.0, "crowded": 0.0}
        frames = [sample_frame(rng, side=self.backbone.visual.image_size, **options) for _ in range(SINGLE)]
        seconds = [sample_sound(rng, **options) for _ in range(SINGLE)]
        pictures = torch.from_numpy(np.stack([frame.picture for frame in frames])).permute(0, 3, 1, 2)
        waves = torch.from_numpy(np.stack([second.waveform for second in seconds]))
        chosen = load_templates(templates)
        right = []
        for tower, inputs, branch, names, wordings, truth in (
            (self.backbone.visual, pictures, self.backbone.visual_text, OBJECTS, chosen.visual, frames),
            (self.backbone.audio, waves, self.backbone.audio_text, SOUNDS, chosen.audio, seconds),
        ):
            texts = label_features(branch, names, wordings)
            with torch.inference_mode():
                guess = torch.cat([(tower(part) @ texts.T).argmax(1) for part in inputs.split(250)])
            target = torch.tensor([sample.object if names is OBJECTS else sample.sound for sample in truth])
            right.append(int((guess == target).sum()))
        return right[0], right[1]

    def right(
        self,
        split: str,
        *,
        candidates: Sequence[int],
        among: Sequence[int],
        pool: str,
        templates: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> dict[str, Tensor]:
        """Which clips of the classes `among` are named right among `candidates`: by each fusion and each modality."""
        visual, audio, target = self.clips[split]
        rows = torch.isin(target, torch.tensor(among))
        names = [COMPOSITIONS[index].name for index in candidates]
        wordings = templates or (self.templates.visual, self.templates.audio)
        texts = (
            label_features(self.backbone.visual_text, names, wordings[0]),
            label_features(self.backbone.audio_text, names, wordings[1]),
        )
        scales = (self.backbone.visual_scale, self.backbone.audio_scale)
        logits = [s * e[rows] @ t.T for s, e, t in zip(scales, (visual, audio), texts, strict=True)]
        quiet = [s * e[rows] @ b for s, e, b in zip(scales, (visual, audio), self.background, strict=True)]
        truth = torch.tensor([list(candidates).index(label) for label in target[rows].tolist()])
        found = {
            fusion: predict_clips(*logits, fusion=fusion, pool=pool, backgrounds=(quiet[0], quiet[1]))
            for fusion in FUSIONS
        }
        shares = {fusion: prediction.probabilities for fusion, prediction in found.items()}
        shares |= {"visual": found["weighted"].visual, "audio": found["weighted"].audio}
        return {name: share.argmax(-1) == truth for name, share in shares.items()}


def interval(right: int, total: int) -> dict[str, float]:
    """Per cent with the 95 % interval of Wilson."""
    bounds = binomtest(right, total).proportion_ci(method="wilson")
    return {
        "percent": round(100 * right / total, 1),
        "low": round(100 * bounds.low, 1),
        "high": round(100 * bounds.high, 1),
        "of": total,
    }


def shown(cell: dict[str, float]) -> str:
    return f"{cell['percent']:.1f} ({cell['low']:.1f}-{cell['high']:.1f})"


def evaluate(judge: Judge) -> dict:
    """Choose on validation, judge on test."""
    everything = range(len(COMPOSITIONS))
    seen = range(len(SEEN))
    held_out = range(len(SEEN), len(SEEN) + len(HELD_OUT))
    objects, sounds = [c.object for c in COMPOSITIONS], [c.sound for c in COMPOSITIONS]
    ambiguous = [
        index
        for index, composition in enumerate(COMPOSITIONS)
        if objects.count(composition.object) > 1 and sounds.count(composition.sound) > 1
    ]

    def judged(split: str, among: Sequence[int], pool: str, **options: Any) -> dict[str, dict[str, float]]:
        right = judge.right(split, candidates=everything, among=among, pool=pool, **options)
        return {name: interval(int(value.sum()), len(value)) for name, value in right.items()}

    validation = {f"pool {pool}": judged("validation", everything, pool) for pool in POOLS}
    pool = max(POOLS, key=lambda name: validation[f"pool {name}"]["weighted"]["percent"])
    groups = {
        "all 45 classes": everything,
        "37 classes seen in training captions": seen,
        "8 held-out compositions": held_out,
        "looks and sounds both shared": ambiguous,
    }
    test = {name: judged("test", among, pool) for name, among in groups.items()}
    wordings = {
        f"{visual} / {audio}": judged("test", everything, pool, templates=([visual], [audio]))
        for visual, audio in zip(UNSEEN_TEMPLATES_VISUAL, UNSEEN_TEMPLATES_AUDIO, strict=True)
    }
    frames, seconds = judge.single("toy")
    return {
        "frame over 20 objects": interval(frames, SINGLE),
        "second over 20 sounds": interval(seconds, SINGLE),
        "validation": validation,
        "pool chosen on validation": pool,
        "test": test,
        "unseen wordings": wordings,
    }


def tables(result: dict) -> str:
    """The figures as Markdown."""
    lines = [
        "| input | classes | accuracy, % (95 % interval) |",
        "|---|---|---|",
        f"| one frame | 20 objects | {shown(result['frame over 20 objects'])} |",
        f"| one second of sound | 20 sounds | {shown(result['second over 20 sounds'])} |",
    ]
    parts = {
        "Test clips, named among all 45 classes": "test",
        "Wordings never trained on, all 45 classes": "unseen wordings",
        "Validation clips, all 45 classes": "validation",
    }
    columns = {
        "weighted": "fused, weighted (default)",
        "product": "fused, product",
        "visual": "sight alone",
        "audio": "hearing alone",
    }
    for title, key in parts.items():
        lines += ["", f"| {title} | clips | {' | '.join(columns.values())} |", "|---" * (len(columns) + 2) + "|"]
        for name, row in result[key].items():
            cells = " | ".join(shown(row[column]) for column in columns)
            lines.append(f"| {name} | {row['weighted']['of']} | {cells} |")
    return "\n".join(lines)


def plot(work: Path, target: Path) -> None:
    """Training curves of both pairs."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "avfewshot", "font.size": 10})
    from matplotlib import pyplot

    figure, (loss, accuracy) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, title, colour in (("clip", "frames, 20 objects", "#0b6e99"), ("clap", "seconds, 20 sounds", "#c4570a")):
        lines = [json.loads(line) for line in (work / f"{name}.jsonl").read_text().splitlines()]
        minutes = [line["minutes"] for line in lines]
        loss.plot(minutes, [line["contrastive"] for line in lines], color=colour, label=title, marker=".")
        accuracy.plot(minutes, [100 * line["accuracy"] for line in lines], color=colour, label=title, marker=".")
    loss.set(xlabel="minutes, one core each", ylabel="contrastive loss of the last batch")
    accuracy.set(xlabel="minutes, one core each", ylabel="zero-shot accuracy on fresh samples, %", ylim=(0, 100))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Parse the arguments, make the clips, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder of the training, for the clips")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder for the figures and the curves")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_clips(arguments.work)
    judge = Judge(avfewshot.load("tiny", device="cpu", precision="fp32"), arguments.work)
    result = evaluate(judge)
    write_text(arguments.docs / "tiny.json", json.dumps(result, indent=1) + "\n")
    if (arguments.work / "clip.jsonl").exists():
        plot(arguments.work, arguments.docs / "tiny-curves.svg")
    print(tables(result))


if __name__ == "__main__":
    main()
