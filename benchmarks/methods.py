"""Few-shot methods on cached embeddings of the toy world: accuracy over shots, three seeds, left-out figures, fit time.

    avfs data toy --root toy
    python benchmarks/methods.py --root toy --output methods.json

Each task is also run with class names that mean nothing (`class_a`, `class_b`, ...), where the text is at chance.
`--write-folder FOLDER` writes such a folder of the first task's clips, for `avfs fewshot --data`, and measures nothing.
Towers run once a clip; everything after that takes seconds. Figures are top-1 (hit@1 where clips carry several labels),
or the share of right seconds for `ave`; intervals resample seeds and clips together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avfewshot.data.load import load_dataset
from avfewshot.data.sampler import draw_support
from avfewshot.encoders.backbone import build_backbone
from avfewshot.evaluation.tasks import find_task
from avfewshot.inference.embedding_cache import EmbeddingCache, embed_cached
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.inference.logits import class_texts
from avfewshot.io import write_text
from avfewshot.media.clip_cache import ClipCache
from avfewshot.media.stream import read_ahead
from avfewshot.methods.base import Features, LabelFeatures, Support
from avfewshot.methods.method import find_method, method_names
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.prompts import load_templates

REPLICATES = 2000
KEPT = ("loo_accuracy", "loo_log_loss", "choice", "calibration", "trainable")


def meaningless(number: int) -> str:
    """A name that says nothing."""
    return f"class_{chr(97 + number // 26) if number >= 26 else ''}{chr(97 + number % 26)}"


class Task:
    """A task's clips as embeddings, and its texts with real and with meaningless names."""

    def __init__(self, name: str, root: Path, backbone: Any, shots: list[int], seeds: list[int]) -> None:
        self.per_second = find_task(name).per_second
        self.dataset = load_dataset(name, root)
        letters = [meaningless(number) for number in range(len(self.dataset.classes))]
        templates = load_templates(backbone.templates)
        self.texts = {}
        for kind, wordings in (("real", self.dataset.wordings), ("meaningless", letters)):
            features = class_texts(backbone, wordings, templates)
            scales = backbone.visual_scale, backbone.audio_scale
            self.texts[kind] = LabelFeatures.with_background(
                self.dataset.classes, features.visual.numpy(), features.audio.numpy(), scales=scales
            )
        draws = {(k, s): draw_support(self.dataset, k, s, only_available=True).samples for k in shots for s in seeds}
        test = [sample for sample in self.dataset.split("test") if sample.path is not None]
        wanted = {sample.id: sample for draw in (*draws.values(), test) for sample in draw}
        model, clips, size = AudioVisualModel(backbone).eval(), ClipCache(), backbone.visual.image_size
        cache = EmbeddingCache(
            {
                **{f"file {role}": digest for role, digest in backbone.identity.items()},
                "precision": "fp32",
                "frame backend": "auto",
                "frame size": str(model.visual_tower.image_size),
            }
        )
        embedder = Embedder(model, torch.device("cpu"))
        paths = list(dict.fromkeys(sample.path for sample in wanted.values()))

        def embed(missing: Any) -> Any:
            return embedder.embed(
                read_ahead(missing, lambda path: clips.get(path, frame_size=size, frame_backend="auto"), workers=2)
            )

        self.embedded = dict(zip(paths, embed_cached(paths, embed, cache), strict=True))
        self.draws = {key: self.support(draw) for key, draw in draws.items()}
        self.test = self.support(test)

    def support(self, samples: Any) -> Support:
        """Clips with labels; those that cannot be read are left out."""
        samples = [sample for sample in samples if isinstance(self.embedded[sample.path], EmbeddedFile)]
        files = [self.embedded[sample.path] for sample in samples]
        features = Features.of(
            (sample.id, *(None if m is None else m.numpy() for m in (file.visual, file.audio)))
            for sample, file in zip(samples, files, strict=True)
        )
        segments = None
        if self.per_second:
            events = np.eye(self.dataset.num_classes + 1, dtype=bool)
            lengths = zip(samples, features.seconds, strict=True)
            segments = tuple(events[self.dataset.segment_labels(sample, int(seconds))] for sample, seconds in lengths)
        return Support(features, self.dataset.multi_hot(samples), segments)

    def measure(self, name: str, key: tuple[int, int], kind: str) -> dict[str, Any]:
        """Fit a method on a draw and score the test clips."""
        begun = time.perf_counter()
        scorer = find_method(name).fit(self.draws[key], self.texts[kind], seed=key[1])
        fitted = time.perf_counter() - begun
        if self.per_second:
            parts = zip(scorer.segment_logits(self.test.features), self.test.segments, strict=True)
            right = [float((scores.argmax(1) == truth.argmax(1)).mean()) for scores, truth in parts]
        else:
            best = scorer.logits(self.test.features).argmax(1)
            right = self.test.labels[np.arange(len(best)), best].astype(float).tolist()
        about = scorer.diagnostics
        return {
            "right": right,
            "seconds": fitted,
            **{name: about.get(name) for name in KEPT},
        }


def interval(right: list[list[float]]) -> tuple[float, float]:
    """95 % over seeds and clips: seeds are drawn, then the clips, the same ones for each seed."""
    rng, table = np.random.default_rng(0), np.array(right)
    seeds, clips = table.shape
    means = [
        table[np.ix_(rng.integers(seeds, size=seeds), rng.integers(clips, size=clips))].mean()
        for _ in range(REPLICATES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--tasks", default="llp_cls,ave_cls,ave")
    parser.add_argument("--names", default="real,meaningless")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--methods", default=",".join(method_names()))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--write-folder", type=Path)
    options = parser.parse_args()
    if options.write_folder:
        for sample in load_dataset(options.tasks.split(",")[0], options.root).samples:
            if sample.path is not None:
                folder = options.write_folder / meaningless(sample.label)
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(sample.path, folder)
        return
    shots, seeds = ([int(part) for part in text.split(",")] for text in (options.shots, options.seeds))
    backbone = build_backbone(options.backbone)
    rows = []
    for name in options.tasks.split(","):
        task = Task(name, options.root, backbone, shots, seeds)
        for kind in options.names.split(","):
            for k in shots:
                print(f"{name}, {kind} names, {k} shots, {len(task.test)} test clips", flush=True)
                for method in options.methods.split(","):
                    runs = [task.measure(method, (k, seed), kind) for seed in seeds]
                    right = [run.pop("right") for run in runs]
                    value, (low, high) = float(np.mean(right)), interval(right)
                    loo = [run["loo_accuracy"] for run in runs if run["loo_accuracy"] is not None]
                    left_out = f"{100 * np.mean(loo):5.1f}" if loo else "    -"
                    seconds = np.mean([run["seconds"] for run in runs])
                    print(
                        f"  {method:16} {100 * value:5.1f} ({100 * low:.1f} to {100 * high:.1f})  left out {left_out}  "
                        f"fit {seconds:.2f} s",
                        flush=True,
                    )
                    cell = {"task": name, "names": kind, "shots": k, "method": method, "runs": runs}
                    rows.append({**cell, "value": value, "low": low, "high": high})
                    if options.output:
                        write_text(options.output, json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
