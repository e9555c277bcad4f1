"""The texts that clips are compared with: those of the classes, and one for "nothing happens"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.label_features import label_features
from avfewshot.inference.classifier import background_feature
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.prompts import Templates


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """Features of K classes, and of the background as row K.

    Attributes:
        visual: Unit vectors float32 ``[K + 1, D_v]``.
        audio: Unit vectors float32 ``[K + 1, D_a]``.
    """

    visual: Tensor
    audio: Tensor

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.visual) - 1

    def to(self, device: torch.device | str) -> ClassTexts:
        """The same features on a device."""
        return ClassTexts(self.visual.to(device), self.audio.to(device))

    def projected(self, model: AudioVisualModel) -> ClassTexts:
        """The features in a trained model's matching spaces; on the model's device."""
        device = model.temperatures.visual.device
        visual, audio = model.project_texts(self.visual.to(device), self.audio.to(device))
        return ClassTexts(visual, audio)


def class_texts(backbone: Backbone, wordings: Sequence[str], templates: Templates) -> ClassTexts:
    """Encode the classes' wordings and the background, once for a whole run.

    Args:
        backbone: Its text branches do the work.
        wordings: What stands for each of the K classes in prompts.
        templates: Prompt templates.

    Returns:
        Features on the CPU.
    """
    parts = []
    for branch, prompts, background in (
        (backbone.visual_text, templates.visual, templates.background_visual),
        (backbone.audio_text, templates.audio, templates.background_audio),
    ):
        classes = label_features(branch, wordings, prompts).cpu()
        parts.append(torch.cat((classes, background_feature(branch, background)[None].float())))
    return ClassTexts(*parts)
