"""AVE: which second of a clip holds which of 28 events that are seen and heard, or none (Tian et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from avfewshot.supervised.base import Example, Features, Recipe, SupervisedTask, TaskData, ZeroShot

BACKGROUND = "background"


class LocalisationTask(SupervisedTask):
    """Class of each second; a target and a prediction is int64 ``[T]``, K where nothing happens."""

    name = "ave"
    title = "audio-visual event localisation (AVE)"
    dataset = "ave"
    headline = "segment_accuracy"
    heads: ClassVar[Mapping[str, Recipe]] = {
        "cmbs": Recipe(7e-4, 64, 200, (10, 20, 30), 0.5, clip_norm=0.5),
        "cmbs-weak": Recipe(6e-4, 64, 200, (10, 20, 40), 0.5, clip_norm=0.5),
    }

    def needs(self, head: str) -> frozenset[str]:
        """CMBS looks at places."""
        return frozenset({"places", "audio"})

    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """See :meth:`SupervisedTask.read`."""
        return self.read_clips(
            root, media, subset, lambda dataset, sample: dataset.segment_labels(sample, self.seconds)
        )

    def build_head(self, head: str, widths: Mapping[str, Any], about: Mapping[str, Any]) -> nn.Module:
        """CMBS, supervised or from the clips' classes alone."""
        from avfewshot.heads.localisation import CMBS

        return CMBS(widths["places"], widths["audio"], len(about["classes"]), weak=head == "cmbs-weak")

    def loss(self, head: Any, features: Features, examples: Sequence[Example]) -> Tensor:
        """See :meth:`CMBS.loss`."""
        seconds = torch.from_numpy(np.stack([example.target for example in examples]))
        said = head(features["places"], features["audio"])
        return head.loss(said, seconds.to(said.gate.device))

    def predict(self, head: Any, features: Features, examples: Sequence[Example]) -> list[Any]:
        """Classes of seconds."""
        return list(head.answer(head(features["places"], features["audio"])).cpu().numpy())

    def metrics(
        self, predictions: Sequence[Any], examples: Sequence[Example], about: Mapping[str, Any]
    ) -> dict[str, float]:
        """Share of right seconds, of those with an event too, and how many are called background."""
        truth = np.stack([example.target for example in examples])
        said = np.stack([one[: truth.shape[1]] for one in predictions])
        event, background = truth < len(about["classes"]), len(about["classes"])
        right = said == truth
        return {
            "segment_accuracy": 100 * float(right.mean()),
            "event_seconds": 100 * float(right[event].mean()) if event.any() else 0.0,
            "background_share": 100 * float((said == background).mean()),
        }

    def reference_lines(self, data: TaskData, zero_shot: ZeroShot | None) -> dict[str, list[Any]]:
        """Zero-shot by second, constant answers, and the true class without the background."""
        test, count = data.splits["test"], len(data.about["classes"])
        truth = np.stack([example.target for example in test])
        train = np.concatenate([example.target for example in data.splits["train"]])
        common = int(np.bincount(train[train < count], minlength=count).argmax())
        return {
            **({} if zero_shot is None else {"zero-shot by second": self._zero_shot(data, zero_shot)}),
            "always background": list(np.full_like(truth, count)),
            f"always {data.about['classes'][common]}": list(np.full_like(truth, common)),
            "true class in all seconds": [np.full_like(row, oracle_class(row, count)) for row in truth],
        }

    def _zero_shot(self, data: TaskData, zero_shot: ZeroShot) -> list[Any]:
        """The most probable class; background below the probability that is best on validation."""

        def said(split: str) -> list[Any]:
            return [joined_probabilities(logits, self.seconds) for logits in zero_shot(split)]

        return self.cut(data, said, _above, np.linspace(0, 1, 51), 0.0)

    def class_of(self, example: Example, about: Mapping[str, Any]) -> str | None:
        """The class of its event."""
        events = example.target[example.target < len(about["classes"])]
        return about["classes"][events[0]] if len(events) else None

    def streams(self, said: Any, about: Mapping[str, Any]) -> dict[str, Any]:
        """Events that are seen and heard."""
        return {"seen and heard": np.eye(len(about["classes"]) + 1, dtype=bool)[said][:, :-1]}

    def describe(self, prediction: Any, example: Example, about: Mapping[str, Any]) -> dict[str, Any]:
        """Names by second."""
        names = [*about["classes"], BACKGROUND]
        return {"seconds": [names[label] for label in prediction]}


def oracle_class(seconds: Any, background: int) -> int:
    """The class of a clip's event; the first class for a clip without one."""
    events = seconds[seconds < background]
    return int(events[0]) if len(events) else 0


def joined_probabilities(logits: Any, seconds: int) -> Any:
    """The product of what is seen and heard, normalised, ``[T, K]``; zero behind the end of a short clip."""
    parts = [part[:seconds, :-1].log_softmax(-1) for part in (logits.visual, logits.audio) if part is not None]
    joined = torch.stack(parts).sum(0).softmax(-1).numpy()
    return np.pad(joined, ((0, seconds - len(joined)), (0, 0)))


def _above(probabilities: Any, threshold: float) -> Any:
    best = probabilities.argmax(-1)
    return np.where(probabilities.max(-1) >= max(threshold, 1e-9), best, probabilities.shape[-1])
