"""Judge how the packaged `tiny` backbone copes with the recordings of the toy data sets, and what learning gains there.

    avfs data toy --root toy
    python scripts/evaluate_recordings.py --root toy --work build/recordings

Prints, in Markdown: zero-shot accuracy on the test clips; accuracy after a few shots, with one residual linear map per
modality on the frozen embeddings as the simplest learner there is; and what such maps, trained on the toy VGG-Sound,
do for classes of the toy AVE and LLP that it does not have. Embeddings are kept in the work folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

import avfewshot
from avfewshot.classifier import background_feature
from avfewshot.datasets.dataset import Sample
from avfewshot.datasets.load import load_dataset
from avfewshot.datasets.toyworld.manifest import MANIFEST
from avfewshot.fileio import atomic_path, sha256_file
from avfewshot.matching import ClipPrediction, event_weights, predict_clips

SHOTS = (1, 2, 4, 8, 16)
PULL = 3e-3  # towards no change at all, per square of a map's entries
STEPS = 300
RATE = 3e-3
ALIKE = 0.97  # cosine above which two labels are one in a modality: a car that honks and one that wails look the same

Maps = tuple[tuple[Tensor, Tensor], ...]
"""Matrix and offset of each modality."""


class Task:
    """Clips of a data set as embeddings, and the texts of its classes."""

    def __init__(self, classifier: avfewshot.Classifier, name: str, root: Path, work: Path) -> None:
        dataset = load_dataset(name, root)
        self.samples: Sequence[Sample] = [sample for sample in dataset.samples if sample.path is not None]
        self.names = dataset.wordings
        backbone = classifier.backbone
        self.texts = classifier.embed_labels(self.names)
        self.scales = (float(backbone.visual_scale), float(backbone.audio_scale))
        wordings = classifier.templates
        self.background = (
            background_feature(backbone.visual_text, wordings.background_visual).float(),
            background_feature(backbone.audio_text, wordings.background_audio).float(),
        )
        self.clips = self._embedded(classifier, work / f"{name}-{sha256_file(root / MANIFEST)[:12]}.safetensors")

    def _embedded(self, classifier: avfewshot.Classifier, kept: Path) -> tuple[Tensor, Tensor]:
        if not kept.exists():
            clips = [classifier.embed(sample.path) for sample in tqdm(self.samples, desc=kept.stem, disable=None)]
            stacked = {name: torch.stack([getattr(clip, name) for clip in clips]) for name in ("visual", "audio")}
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(kept) as part:
                save_file(stacked, part)
        stored = load_file(kept)
        return stored["visual"], stored["audio"]

    def rows(self, split: str) -> list[int]:
        return [index for index, sample in enumerate(self.samples) if sample.split == split]

    def support(self, shots: int) -> list[int] | None:
        """The first single-label training clips of each class; None where there are too few."""
        chosen: dict[int, list[int]] = {label: [] for label in range(len(self.names))}
        for index in self.rows("train"):
            labels = self.samples[index].labels
            if len(labels) == 1 and len(chosen[labels[0]]) < shots:
                chosen[labels[0]].append(index)
        if any(len(group) < shots for group in chosen.values()):
            return None
        return [index for group in chosen.values() for index in group]

    def learn(self, rows: Sequence[int]) -> Maps:
        """One residual linear map per modality, by cross entropy against the texts of the classes."""
        targets = torch.tensor([self.samples[index].label for index in rows])
        maps = []
        for clips, texts, scale, quiet in zip(self.clips, self.texts, self.scales, self.background, strict=True):
            seconds = clips[list(rows)]
            weights = event_weights(scale * seconds @ texts.T, scale * seconds @ quiet)
            pooled = (weights.unsqueeze(-1) * seconds).sum(-2)
            alike = (texts @ texts.T > ALIKE).float()
            wanted = functional.normalize(alike[targets], p=1, dim=1)
            matrix = torch.zeros(pooled.shape[1], pooled.shape[1], requires_grad=True)
            offset = torch.zeros(pooled.shape[1], requires_grad=True)
            optimizer = torch.optim.Adam([matrix, offset], lr=RATE)
            for _ in range(STEPS):
                moved = functional.normalize(pooled + pooled @ matrix + offset, dim=-1)
                loss = -(wanted * (scale * moved @ texts.T).log_softmax(-1)).sum(1).mean()
                loss = loss + PULL * (matrix.square().sum() + offset.square().sum())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            maps.append((matrix.detach(), offset.detach()))
        return tuple(maps)

    def judge(self, maps: Maps | None = None, *, among: Sequence[int] | None = None) -> dict[str, float | int]:
        """Per cent of test clips whose best label is one of theirs, by fusion and by each modality.

        Args:
            maps: Applied to the embeddings; None: zero-shot.
            among: Classes whose clips are judged; None: all. Candidates are always all classes.
        """
        rows = self.rows("test")
        if among is not None:
            rows = [index for index in rows if set(self.samples[index].labels) <= set(among)]
        seconds = [clips[rows] for clips in self.clips]
        if maps is not None:
            seconds = [
                functional.normalize(part + part @ matrix + offset, dim=-1)
                for part, (matrix, offset) in zip(seconds, maps, strict=True)
            ]
        logits = [scale * part @ texts.T for scale, part, texts in zip(self.scales, seconds, self.texts, strict=True)]
        quiet = [scale * part @ text for scale, part, text in zip(self.scales, seconds, self.background, strict=True)]
        found = predict_clips(*logits, pool="event", visual_background=quiet[0], audio_background=quiet[1])
        return {name: self._hits(shares, rows) for name, shares in _named(found).items()} | {"clips": len(rows)}

    def _hits(self, shares: Tensor, rows: Sequence[int]) -> float:
        best = shares.argmax(-1).tolist()
        hits = [label in self.samples[index].labels for label, index in zip(best, rows, strict=True)]
        return round(100 * sum(hits) / len(hits), 1)


def _named(found: ClipPrediction) -> dict[str, Tensor]:
    return {"fused": found.probabilities, "sight": found.visual, "hearing": found.audio}


def main() -> None:
    """Parse the arguments, embed, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("toy"), help="a toy world with all three data sets")
    parser.add_argument("--work", type=Path, default=Path("build/recordings"), help="folder for embeddings and figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    classifier = avfewshot.load("tiny", device="cpu", precision="fp32")
    tasks = {
        name: Task(classifier, name, arguments.root, arguments.work) for name in ("ave_cls", "llp_cls", "vggsound_cls")
    }
    pretraining = tasks["vggsound_cls"]
    maps = pretraining.learn(pretraining.rows("train"))
    result: dict[str, dict[str, dict[str, float | int]]] = {}
    for name, task in tasks.items():
        lines = {"zero-shot": task.judge()}
        for shots in SHOTS:
            if (rows := task.support(shots)) is not None:
                lines[f"{shots} shots"] = task.judge(task.learn(rows))
        if task is not pretraining:
            new = [index for index, label in enumerate(task.names) if label not in pretraining.names]
            lines["maps of the toy VGG-Sound"] = task.judge(maps)
            lines["classes that it lacks, zero-shot"] = task.judge(among=new)
            lines["classes that it lacks, with its maps"] = task.judge(maps, among=new)
        result[name] = lines
    with atomic_path(arguments.work / "recordings.json") as part:
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("| task | with | fused | sight alone | hearing alone | test clips |\n|---|---|---|---|---|---|")
    for name, lines in result.items():
        for how, line in lines.items():
            print(f"| `{name}` | {how} | " + " | ".join(f"{value}" for value in line.values()) + " |")


if __name__ == "__main__":
    main()
