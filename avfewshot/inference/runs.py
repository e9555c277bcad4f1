"""What a few-shot run left beside adapters: a fitted method, or one that was tuned through the towers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avfewshot.encoders.backbone import Backbone
from avfewshot.errors import DataError
from avfewshot.methods.method import CONFIG_NAME as SCORER_NAME
from avfewshot.methods.method import Scorer
from avfewshot.models.checkpoint import CONFIG_NAME, AdapterCheckpoint, read_config, seed_folders
from avfewshot.models.hub import local_adapter
from avfewshot.tuning.fit import ABOUT_NAME, load
from avfewshot.tuning.methods import TunedMethod


@dataclass(frozen=True, eq=False)
class LearnedRun(AdapterCheckpoint):
    """A fitted method and what it belongs to."""

    scorer: Scorer

    @property
    def none(self) -> str | None:
        """What the run calls "none of these": the one of its labels that its method has no text for."""
        return next((label for label in self.config.labels if label not in self.scorer.texts.names), None)

    @property
    def audio_context(self) -> str:
        """What its clips were embedded with: ``"second"`` or ``"clip"``."""
        return str(self.config.training.get("audio_context", "second"))

    @property
    def is_tuned(self) -> bool:
        """Whether adapters of the same seed speak beside it."""
        return self.scorer.is_tuned


def find_learned(path: str | os.PathLike[str]) -> LearnedRun | None:
    """What a few-shot run learnt beside adapters, or None where it holds no fitted method.

    Of several seeds the one that the run chose is taken, or that with the lowest log-loss on clips left out. A
    :class:`DataError` where files are damaged or do not belong together.
    """
    path = local_adapter(path)
    folders = [path, path / "scorer", *(seed / "scorer" for seed in seed_folders(path))]
    found = [folder for folder in folders if (folder / SCORER_NAME).is_file()]
    if not found:
        return None
    runs = []
    for folder in found:
        _, config = read_config(folder)
        runs.append(LearnedRun(folder, {}, config, Scorer.load(folder)))
        names = [label for label in config.labels if label != runs[-1].none]
        if names != list(runs[-1].scorer.texts.names) or (runs[-1].none and not runs[-1].scorer.negatives):
            raise DataError(f"{folder}: its files do not belong together.", hint="Copy the whole folder again.")
    losses = [run.scorer.diagnostics.get("loo_log_loss") for run in runs]
    return runs[int(np.argmin([np.inf if loss is None else loss for loss in losses]))]


@dataclass(frozen=True, eq=False)
class TunedRun(AdapterCheckpoint):
    """A method that was tuned through the towers (CoOp, CoCoOp, MaPLe, CLIP-LoRA) and what it belongs to."""

    def method(self, backbone: Backbone, wordings: Sequence[str] | None = None) -> TunedMethod:
        """The method over a backbone that is on its device; for other wordings than its own where such are given."""
        own = load(self.path, backbone)
        if wordings is None or tuple(wordings) == own.texts[:-1]:
            return own
        return load(self.path, backbone, [*wordings, own.texts[-1]])


def find_tuned(path: str | os.PathLike[str]) -> TunedRun | None:
    """The tuned method of a few-shot run, or None; of several seeds the one that the run chose, or the first."""
    path = local_adapter(path)
    places = [path, *(place for base in (path, *seed_folders(path)) for place in sorted(base.glob("*")))]
    for folder in places:
        if (folder / ABOUT_NAME).is_file() and (folder / CONFIG_NAME).is_file():
            return TunedRun(folder, {}, read_config(folder)[1])
    return None
