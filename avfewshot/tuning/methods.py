"""CoOp, CoCoOp, MaPLe and CLIP-LoRA for sight and sound, with their published settings.

Each is a module that turns the seconds of clips into logits over K + 1 texts (the classes, then the background) in both
matching spaces. What they have in common with their papers is the visual side; the sound side is the same construction
on CLAP's text branch and HTS-AT.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.presets import require_walkable
from avfewshot.encoders.tower import Encoder, Pair
from avfewshot.media.clip import MODALITIES
from avfewshot.tuning.layers import PromptedText, add_low_rank

_BEGINNINGS = {"visual": "a photo of a", "audio": "this is a sound of"}


@dataclass(frozen=True)
class Recipe:
    """Published training settings of a method."""

    optimizer: str  # "sgd" (momentum 0.9, weight decay 5e-4) or "adamw"
    lr: float
    batch_size: int  # clips
    epochs: dict[int, int] | int = 0  # by the largest number of shots that they are for, or one number
    iterations_per_shot: int = 0  # instead of epochs
    warmup_lr: float = 0.0  # of the first epoch; 0: none
    final_lr: float = 0.0
    weight_decay: float = 5e-4
    seconds: int = 0  # of a clip in a step, drawn anew; 0: all

    def steps(self, shots: int, clips: int) -> tuple[int, int]:
        """(optimizer steps, steps of an epoch) of a training."""
        batches = -(-clips // self.batch_size)
        if self.iterations_per_shot:
            return self.iterations_per_shot * shots, batches
        epochs = self.epochs
        if isinstance(epochs, dict):
            epochs = next((count for most, count in sorted(epochs.items()) if shots <= most), max(epochs.values()))
        return epochs * batches, batches


class TunedMethod(nn.Module):
    """What the methods share: frozen towers and text branches of a backbone, logits in both spaces.

    Args:
        backbone: Its encoders are used and never changed.
        texts: K + 1 wordings: the classes, then the background.
        context: Learnt vectors before each text, by modality, where other than `vectors`.
    """

    name: str
    recipe: Recipe
    source: str
    uses_pixels = False  # whether it reads frames and waveforms; else the frozen embeddings of seconds
    vectors = 0  # that are learnt before each text, in either text branch
    seconds = 0.0  # of its training, those before an interruption among them

    def __init__(self, backbone: Backbone, texts: Sequence[str], *, context: Mapping[str, int] | None = None) -> None:
        super().__init__()
        if self.uses_pixels:
            require_walkable(self.name, backbone.visual, backbone.audio)
        self.__dict__["backbone"] = backbone
        self.texts = tuple(texts)
        self.scales = {"visual": backbone.visual_scale, "audio": backbone.audio_scale}
        self._kept: dict[str, Tensor] = {}
        if self.vectors:
            lengths = context or dict.fromkeys(MODALITIES, self.vectors)
            self.prompts: Any = nn.ModuleDict(
                {name: PromptedText(getattr(backbone, f"{name}_text"), texts, lengths[name]) for name in MODALITIES}
            )

    def forward(self, visual: Tensor | None, audio: Tensor | None) -> Pair:
        """Logits ``[T, K + 1]`` of the seconds of one clip, for each modality that is there.

        Both are unit vectors ``[T, D]``, or, where `uses_pixels`, uint8 frames ``[T, 3, S, S]`` and waveforms ``[T,
        samples]``; None where the clip has none.
        """
        return self.logits([(visual, audio)])[0]

    def logits(self, clips: Sequence[Pair]) -> list[Pair]:
        """Logits of the seconds of several clips, wherever these are; they go through the towers together."""
        device = next(self.tower("visual").parameters()).device
        columns: list[list[Tensor | None]] = []
        for index, modality in enumerate(MODALITIES):
            present = [part for clip in clips if (part := clip[index]) is not None]
            found = (
                self.embed(modality, torch.cat(present).to(device)).split(list(map(len, present))) if present else ()
            )
            vectors = iter(found)
            columns.append([None if clip[index] is None else next(vectors) for clip in clips])
        return self.compare(list(zip(*columns, strict=True)))

    def compare(self, clips: Sequence[Pair]) -> list[Pair]:
        """Logits of the embedded seconds of several clips; texts are encoded once for all of them."""
        columns = []
        for index, modality in enumerate(MODALITIES):
            seconds = [clip[index] for clip in clips]
            texts = self._texts(modality).T if any(one is not None for one in seconds) else torch.empty(0)
            columns.append([None if one is None else self.scales[modality] * one @ texts for one in seconds])
        return list(zip(*columns, strict=True))

    def _texts(self, modality: str) -> Tensor:
        """Features of the texts; kept where nothing is learnt."""
        if torch.is_grad_enabled():
            return self.text_features(modality)
        if modality not in self._kept:
            self._kept[modality] = self.text_features(modality)
        return self._kept[modality]

    def embed(self, modality: str, inputs: Tensor) -> Tensor:
        """Unit vectors ``[N, D]`` of N seconds, which are as :meth:`forward` takes them."""
        if not self.uses_pixels:
            return inputs
        return F.normalize(self.tower(modality)(inputs).float(), dim=-1)

    def tower(self, modality: str) -> Encoder:
        """The encoder of a modality."""
        return getattr(self.backbone, modality)

    def text_features(self, modality: str) -> Tensor:
        """Unit vectors ``[K + 1, D]`` of the texts, with gradient; a TypeError where a method has none of its own."""
        raise TypeError(f"{type(self).__name__} has no text features of its own.")

    def learning(self, on: bool) -> None:
        """Switch what acts in training alone."""
        self._kept.clear()

    @property
    def num_trainable(self) -> int:
        """Learned parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


class CoOp(TunedMethod):
    """Zhou et al., IJCV 2022 (arXiv 2109.01134): M learned context vectors, shared by all classes; towers frozen."""

    name, source = "coop", "Zhou et al., IJCV 2022"
    vectors = 16
    recipe = Recipe("sgd", 2e-3, 32, epochs={1: 50, 4: 100, 16: 200}, warmup_lr=1e-5)

    def __init__(self, backbone: Backbone, texts: Sequence[str], **context: Any) -> None:
        super().__init__(backbone, texts, **context)
        sizes = {name: (self.prompts[name].context, self.prompts[name].width) for name in MODALITIES}
        self.context = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(sizes[name])) for name in MODALITIES})

    def text_features(self, modality: str) -> Tensor:
        """See :meth:`TunedMethod.text_features`."""
        return self.prompts[modality](self.context[modality])


class CoCoOp(TunedMethod):
    """Zhou et al., CVPR 2022 (arXiv 2203.05557): the context is shifted by a small network that sees the input.

    A clip's input is the mean of its seconds, so that its texts are encoded once a clip and modality.
    """

    name, source = "cocoop", "Zhou et al., CVPR 2022"
    vectors = 4
    recipe = Recipe("sgd", 2e-3, 1, epochs=10, warmup_lr=1e-5)

    def __init__(self, backbone: Backbone, texts: Sequence[str], **context: Any) -> None:
        super().__init__(backbone, texts, **context)
        self.context = nn.ParameterDict(
            {name: nn.Parameter(self.prompts[name].embedding_of(_BEGINNINGS[name])) for name in MODALITIES}
        )
        self.shift = nn.ModuleDict()
        for name in MODALITIES:
            dim, width = getattr(backbone, f"{name}_text").output_dim, self.prompts[name].width
            hidden = max(1, dim // 16)
            self.shift[name] = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def compare(self, clips: Sequence[Pair]) -> list[Pair]:
        """See :meth:`TunedMethod.compare`."""
        return [(self._conditioned("visual", visual), self._conditioned("audio", audio)) for visual, audio in clips]

    def _conditioned(self, modality: str, seconds: Tensor | None) -> Tensor | None:
        if seconds is None:
            return None
        shift = self.shift[modality](F.normalize(seconds.mean(0), dim=-1))
        return self.scales[modality] * seconds @ self.prompts[modality](self.context[modality] + shift).T


class MaPLe(TunedMethod):
    """Khattak et al., CVPR 2023 (arXiv 2210.03117): deep prompts in the text branch, mapped into the visual tower.

    The sound side has deep prompts in CLAP's text branch alone: HTS-AT's windows leave no place for further tokens.
    """

    name, source, uses_pixels = "maple", "Khattak et al., CVPR 2023", True
    vectors = 2
    recipe = Recipe("sgd", 3.5e-3, 4, epochs=5, warmup_lr=1e-5)

    def __init__(self, backbone: Backbone, texts: Sequence[str], *, depth: int = 9, **context: Any) -> None:
        super().__init__(backbone, texts, **context)
        self.context: Any = nn.ModuleDict()
        for name in MODALITIES:
            prompts = self.prompts[name]
            first = nn.Parameter(prompts.embedding_of(_BEGINNINGS[name]))
            deep = [nn.Parameter(0.02 * torch.randn(prompts.context, prompts.width)) for _ in range(depth - 1)]
            self.context[name] = nn.ParameterList([first, *deep])
        visual: Any = backbone.visual
        sizes = self.prompts["visual"].width, visual.token_shapes[0][1]
        self.maps: Any = nn.ModuleDict({"visual": nn.ModuleList(nn.Linear(*sizes) for _ in range(depth))})

    def text_features(self, modality: str) -> Tensor:
        """See :meth:`TunedMethod.text_features`."""
        first, *deep = self.context[modality]
        return self.prompts[modality](first, deep)

    def embed(self, modality: str, inputs: Tensor) -> Tensor:
        """See :meth:`TunedMethod.embed`; the visual prompts stand behind the patches, replaced layer by layer."""
        if modality == "audio":
            with torch.no_grad():
                return super().embed(modality, inputs)
        tower: Any = self.tower(modality)
        tokens = tower.patch_embed(inputs)
        length = tokens.shape[1]
        for index in range(tower.depth):
            if index < len(self.maps["visual"]):
                prompts = self.maps["visual"][index](self.context["visual"][index]).to(tokens.dtype)
                tokens = torch.cat((tokens[:, :length], prompts.expand(len(tokens), -1, -1)), dim=1)
            tokens = tower.downsample(index, tower.mlp_block(index, tower.attn_block(index, tokens)))
        return F.normalize(tower.forward_head(tokens[:, :length]).float(), dim=-1)


class ClipLora(TunedMethod):
    """Zanella and Ben Ayed, CVPRW 2024 (arXiv 2405.18541): rank-2 updates of q, k and v in every attention.

    Published for CLIP's two encoders; here the same on CLAP's two as well. Encoders are copied, not changed. A batch is
    of 32 seconds, one of each of 32 clips, where the published one is of 32 pictures.
    """

    name, source, uses_pixels = "clip-lora", "Zanella and Ben Ayed, CVPRW 2024", True
    recipe = Recipe("adamw", 2e-4, 32, iterations_per_shot=500, final_lr=1e-6, weight_decay=1e-2, seconds=1)
    towers: dict[str, Encoder]

    def __init__(
        self, backbone: Backbone, texts: Sequence[str], *, rank: int = 2, alpha: float = 1.0, dropout: float = 0.25
    ) -> None:
        super().__init__(backbone, texts)
        options: dict[str, Any] = {"rank": rank, "alpha": alpha, "dropout": dropout}
        self.__dict__["towers"] = {name: copy.deepcopy(getattr(backbone, name)) for name in MODALITIES}
        branches = {name: copy.deepcopy(getattr(backbone, f"{name}_text")) for name in MODALITIES}
        self.updates: Any = nn.ModuleDict()
        self.prompts: Any = nn.ModuleDict()
        for name in MODALITIES:
            parts = [*add_low_rank(self.towers[name], **options), *add_low_rank(branches[name], **options)]
            self.updates[name] = nn.ModuleList(parts)
            wordings = [f"{_BEGINNINGS[name]} {text}" for text in texts]
            self.prompts[name] = PromptedText(branches[name], wordings, 0)

    def tower(self, modality: str) -> Encoder:
        """See :meth:`TunedMethod.tower`."""
        return self.towers[modality]

    def text_features(self, modality: str) -> Tensor:
        """See :meth:`TunedMethod.text_features`."""
        prompts = self.prompts[modality]
        return prompts(prompts.embedded.new_zeros(0, prompts.width))

    def learning(self, on: bool) -> None:
        """Dropout inside the updates."""
        super().learning(on)
        for updates in self.updates.values():
            for update in updates:
                update.learning = on


TUNED: dict[str, type[TunedMethod]] = {method.name: method for method in (CoOp, CoCoOp, MaPLe, ClipLora)}
"""By name."""
