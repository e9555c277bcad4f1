"""AVVP: what is heard and what is seen in each second, learnt from labels of clips alone (Tian et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from avfewshot.data.dataset import Dataset, Sample
from avfewshot.evaluation.parsing import parsing_scores, runs
from avfewshot.supervised.base import Example, Features, Recipe, SupervisedTask, TaskData, ZeroShot

STREAMS = ("heard", "seen")


class ParsingTask(SupervisedTask):
    """Classes of each second; a prediction is what is heard and what is seen, bool ``[T, K]`` each.

    A target is the labels of the clip, bool ``[K]``, and its truth by second in the form of a prediction.
    """

    name = "avvp"
    title = "audio-visual video parsing (LLP)"
    dataset = "llp"
    headline = "segment_Type"
    heads: ClassVar[Mapping[str, Recipe]] = {
        "han": Recipe(3e-4, 16, 40, (10, 20, 30), 0.1),
        "mgn": Recipe(3e-4, 16, 40, (10, 20, 30), 0.1),
    }

    def needs(self, head: str) -> frozenset[str]:
        """Embeddings of seconds."""
        return frozenset({"visual", "audio"})

    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """See :meth:`SupervisedTask.read`."""

        def target(dataset: Dataset, sample: Sample) -> Any:
            streams = (dataset.event_matrix(sample, name, self.seconds) for name in ("audio", "visual"))
            return dataset.multi_hot([sample])[0], tuple(streams)

        return self.read_clips(root, media, subset, target)

    def build_head(self, head: str, widths: Mapping[str, Any], about: Mapping[str, Any]) -> nn.Module:
        """HAN or MGN."""
        from avfewshot.heads.parsing import HAN, MGN

        classes = len(about["classes"])
        if head == "mgn":
            return MGN(widths["audio"], [widths["visual"]], classes, seconds=self.seconds)
        return HAN(widths["audio"], [widths["visual"]], classes)

    def loss(self, head: Any, features: Features, examples: Sequence[Example]) -> Tensor:
        """See :meth:`Parsing.loss`."""
        labels = torch.from_numpy(np.stack([example.target[0] for example in examples])).float()
        return head(features["audio"], features["visual"]).loss(labels.to(features["audio"].device))

    def predict(self, head: Any, features: Features, examples: Sequence[Example]) -> list[Any]:
        """What is heard and seen."""
        streams = head(features["audio"], features["visual"]).answer()
        return list(zip(*(stream.cpu().numpy() for stream in streams), strict=True))

    def metrics(
        self, predictions: Sequence[Any], examples: Sequence[Example], about: Mapping[str, Any]
    ) -> dict[str, float]:
        """See :func:`~avfewshot.evaluation.parsing.parsing_scores`."""
        return parsing_scores(predictions, [example.target[1] for example in examples])

    def reference_lines(self, data: TaskData, zero_shot: ZeroShot | None) -> dict[str, list[Any]]:
        """Zero-shot by second, nothing, one class always, and the true labels of clips without their times."""
        test, classes = data.splits["test"], data.about["classes"]
        common = int(np.stack([example.target[0] for example in data.splits["train"]]).sum(0).argmax())
        nothing = np.zeros((self.seconds, len(classes)), dtype=bool)
        always = nothing.copy()
        always[:, common] = True
        return {
            **({} if zero_shot is None else {"zero-shot by second": self._zero_shot(data, zero_shot)}),
            "nothing at all": [(nothing, nothing)] * len(test),
            f"always {classes[common]}, heard": [(always, nothing)] * len(test),
            f"always {classes[common]}, heard and seen": [(always, always)] * len(test),
            "true labels in all seconds": [(np.tile(e.target[0], (self.seconds, 1)),) * 2 for e in test],
        }

    def _zero_shot(self, data: TaskData, zero_shot: ZeroShot) -> list[Any]:
        """In each modality the classes that stand out in a second; from which probability on, validation says."""

        def said(split: str) -> list[Any]:
            return [self._probabilities(one) for one in zero_shot(split)]

        return self.cut(data, said, _above, np.linspace(0.05, 0.95, 19), 0.5)

    def _probabilities(self, logits: Any) -> tuple[Any, Any]:
        """Of classes and the background together, the background left out: zero where there is no such modality."""
        shape = next(len(part[0]) for part in (logits.audio, logits.visual) if part is not None)
        streams = []
        for part in (logits.audio, logits.visual):
            stream = np.zeros((self.seconds, shape - 1))
            if part is not None:
                known = part[: self.seconds].softmax(-1)[:, :-1].numpy()
                stream[: len(known)] = known
            streams.append(stream)
        return streams[0], streams[1]

    def class_of(self, example: Example, about: Mapping[str, Any]) -> str | None:
        """Its label, where it has a single one."""
        labels = np.flatnonzero(example.target[0])
        return about["classes"][labels[0]] if len(labels) == 1 else None

    def streams(self, said: Any, about: Mapping[str, Any]) -> dict[str, Any]:
        """What is heard and what is seen."""
        return dict(zip(STREAMS, said, strict=True))

    def truth(self, example: Example) -> Any:
        """What is heard and what is seen in truth."""
        return example.target[1]

    def describe(self, prediction: Any, example: Example, about: Mapping[str, Any]) -> dict[str, Any]:
        """Events with their bounds in seconds."""
        return {
            name: [
                {"label": label, "start": start, "end": end}
                for index, label in enumerate(about["classes"])
                for start, end in runs(stream[:, index])
            ]
            for name, stream in zip(STREAMS, prediction, strict=True)
        }


def _above(streams: tuple[Any, Any], threshold: float) -> tuple[Any, Any]:
    return streams[0] >= threshold, streams[1] >= threshold
