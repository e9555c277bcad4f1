"""The texts that clips are compared with, those of the classes and one for "nothing happens", and the logits.

The last of the K + 1 columns belongs to the background text. Tasks that label clips use it to find the seconds that
count, tasks that label seconds as one more answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.text import TextBranch, label_features, lost_texts
from avfewshot.inference.devices import one_thread
from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import LabelFeatures
from avfewshot.models import fusion
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.prompts import Templates


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """Features of K classes, and of the background as row K: unit vectors float32."""

    visual: Tensor  # [K + 1, D_v]; no rows where the modality was not asked for
    audio: Tensor  # [K + 1, D_a]; likewise
    names: tuple[str, ...] = ()  # of the classes: where a model has class means of them, these stand beside the texts

    @property
    def num_classes(self) -> int:
        """K."""
        return max(len(self.visual), len(self.audio)) - 1

    def to(self, device: torch.device | str) -> ClassTexts:
        """The same features on a device."""
        return ClassTexts(self.visual.to(device), self.audio.to(device), self.names)

    def projected(self, model: AudioVisualModel, *, anchored: bool = True) -> ClassTexts:
        """The features in a trained model's matching spaces, on its device; plus its class means, if `anchored`."""
        device = model.temperatures.visual.device
        given = [part.to(device) for part in (self.visual, self.audio)]
        found = model.project_texts(*(part if len(part) else None for part in given))
        visual, audio = (part if new is None else new for part, new in zip(given, found, strict=True))
        if anchored and model.anchors is not None and set(self.names) <= set(model.anchors.names) and self.names:
            rows = [*map(model.anchors.names.index, self.names), -1]  # the background's is the last
            visual = visual + model.class_means("visual")[0, rows] if len(visual) else visual
            audio = audio + model.class_means("audio")[0, rows] if len(audio) else audio
        return ClassTexts(visual, audio, self.names)

    def for_methods(self, backbone: Backbone, **options: Any) -> LabelFeatures:
        """The same as few-shot methods take them; `options` are further fields."""
        visual, audio = self.visual.double().numpy(), self.audio.double().numpy()
        scales = backbone.visual_scale, backbone.audio_scale
        return LabelFeatures.with_background(self.names, visual, audio, scales=scales, **options)

    @torch.no_grad()
    def space_of(self, model: AudioVisualModel) -> tuple[ClassTexts, tuple[float, float]]:
        """What embeddings by a trained model are compared with: :meth:`projected`, on the CPU, and both scales."""
        visual, audio = (model.temperatures.scale(modality).item() for modality in MODALITIES)
        return self.projected(model).to("cpu"), (visual, audio)


def class_texts(
    backbone: Backbone,
    wordings: Sequence[str],
    templates: Templates,
    *,
    names: Sequence[str] | None = None,
    modality: str = "av",
) -> ClassTexts:
    """Encode the classes' wordings and the background, once for a whole run, with warnings as of :func:`text_warnings`.

    Features are on the CPU; those of a modality that is not asked for have no rows. `names` are for the warnings.
    """
    for message in text_warnings(backbone, names or wordings, wordings, templates):
        warnings.warn(message, stacklevel=1)
    parts = []
    for name, branch, prompts, background in (
        ("visual", backbone.visual_text, templates.visual, templates.background_visual),
        ("audio", backbone.audio_text, templates.audio, templates.background_audio),
    ):
        if modality not in ("av", name):
            parts.append(torch.empty(0, 0))
            continue
        classes = label_features(branch, wordings, prompts).cpu()
        parts.append(torch.cat((classes, background_feature(branch, background)[None].float())))
    visual, audio = parts
    return ClassTexts(visual, audio, tuple(names or wordings))


def text_warnings(backbone: Backbone, names: Sequence[str], wordings: Sequence[str], templates: Templates) -> list[str]:
    """What the text encoders lose of the classes' texts: those that are cut, and those that are the same."""
    lost = [
        lost_texts(branch, names, wordings, prompts)
        for branch, prompts in (
            (backbone.visual_text, templates.visual),
            (backbone.audio_text, templates.audio),
        )
    ]
    return list(dict.fromkeys(warning for messages in lost for warning in messages))


def background_feature(branch: TextBranch, texts: Sequence[str]) -> Tensor:
    """The mean of the unit vectors of texts that say that nothing happens, of length one: float64 ``[D]``."""
    features = label_features(branch, texts, ("{}",))
    return F.normalize(features.cpu().double().mean(0), dim=-1)


@dataclass(frozen=True, eq=False)
class ClipLogits:
    """Scaled cosine similarities of the T seconds of a clip with K + 1 texts."""

    visual: Tensor | None  # float64 [T, K + 1] on the CPU, or None without a picture
    audio: Tensor | None  # the same of the sound

    @property
    def num_segments(self) -> int:
        """T; 0 for a clip with neither."""
        present = self.visual if self.visual is not None else self.audio
        return 0 if present is None else len(present)

    def only(self, modality: str) -> ClipLogits:
        """What one modality (``"visual"`` or ``"audio"``) says alone."""
        return ClipLogits(self.visual if modality == "visual" else None, self.audio if modality == "audio" else None)

    def ensemble(self, trained: ClipLogits, alpha: float) -> ClipLogits:
        """These of the frozen towers joined with those of a trained model; see :func:`.fusion.ensemble`."""
        return ClipLogits(
            fusion.ensemble(self.visual, trained.visual, alpha), fusion.ensemble(self.audio, trained.audio, alpha)
        )


@one_thread()
def score_clip(
    visual: Tensor | None, audio: Tensor | None, texts: ClassTexts, scales: tuple[float, float]
) -> ClipLogits:
    """Compare the embeddings of a clip, unit vectors ``[T, D]`` on the CPU, with texts in the same spaces."""
    # Float64 from here on: these are small matrices, and results should not hang on how they were batched.
    return ClipLogits(
        None if visual is None else fusion.logits(visual.double(), texts.visual, scales[0]),
        None if audio is None else fusion.logits(audio.double(), texts.audio, scales[1]),
    )
