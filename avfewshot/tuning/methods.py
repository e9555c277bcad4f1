"""CoOp, CoCoOp, MaPLe and CLIP-LoRA for sight and sound, with their published settings.

Each is a module that turns the seconds of clips into logits over K + 1 texts (the classes, then the background) in both
matching spaces. What they have in common with their papers is the visual side; the sound side is the same construction
on CLAP's text branch and HTS-AT.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.presets import require_walkable
from avfewshot.encoders.text import OpenClipTextBranch, RobertaTextBranch, TextBranch
from avfewshot.encoders.tokenizer import RobertaTokenizer
from avfewshot.encoders.tower import Encoder, Pair
from avfewshot.errors import UsageError
from avfewshot.media.clip import MODALITIES

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

    def steps(self, shots: int, clips: int) -> tuple[int, int]:
        """(optimizer steps, steps of an epoch) of a training."""
        batches = -(-clips // self.batch_size)
        if self.iterations_per_shot:
            return self.iterations_per_shot * shots, batches
        epochs = self.epochs
        if isinstance(epochs, dict):
            epochs = next((count for most, count in sorted(epochs.items()) if shots <= most), max(epochs.values()))
        return epochs * batches, batches


class PromptedText(nn.Module):
    """Unit vectors of K wordings behind M context vectors: ``[start] c_1 .. c_M wording . [end]`` (CoOp, Eq. 2).

    The branch is frozen and is not part of the state; gradients flow through it to the context. M is `context`, or less
    where the longest wording leaves no room for so many (see the attribute `context`).

    Raises:
        UsageError: The branch is neither open_clip's nor RoBERTa's.
    """

    branch: Any
    embedding: Any
    ends: Tensor
    embedded: Tensor

    def __init__(self, branch: TextBranch, wordings: Sequence[str], context: int) -> None:
        super().__init__()
        self.__dict__["branch"] = branch  # frozen: neither its parameters nor its buffers belong to what is learned
        tokens = branch.tokenizer([f"{wording}." for wording in wordings])
        if isinstance(branch, OpenClipTextBranch) and getattr(branch.tower, "pool_type", None) == "argmax":
            ends = tokens.argmax(-1)
            limit = len(branch.tower.positional_embedding)
            self.__dict__["embedding"] = branch.tower.token_embedding
        elif isinstance(branch, RobertaTextBranch):
            ends = (tokens != RobertaTokenizer.PAD).sum(-1) - 1
            limit = branch.model.config.max_position_embeddings - 2
            self.__dict__["embedding"] = branch.model.embeddings.word_embeddings
        else:
            raise UsageError("Prompts can be tuned for text branches of CLIP's kind and for RoBERTa.")
        self.context = min(context, limit - 1 - int(ends.max()))
        self.register_buffer("ends", ends + self.context, persistent=False)
        self.length = int(self.ends.max()) + 1
        with torch.no_grad():
            self.register_buffer("embedded", self.embedding(tokens).float(), persistent=False)

    @property
    def width(self) -> int:
        """Width C of a context vector."""
        return self.embedded.shape[-1]

    def embedding_of(self, text: str) -> Tensor:
        """Token embeddings ``[M, C]`` of the first M words of a text, to begin with."""
        tokens = self.branch.tokenizer([text]).to(self.embedded.device)
        return self.embedding(tokens)[0, 1 : 1 + self.context].detach().float().clone()

    def forward(self, context: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
        """Encode all wordings: unit vectors float32 ``[K, D]``.

        `context` is ``[M, C]``, or ``[K, M, C]`` for one of its own for each wording; `deep` are vectors ``[M, C]``
        that take its places again before layer 1, 2, ... (MaPLe, Eq. 4).
        """
        rows = len(self.embedded)
        context = context.expand(rows, -1, -1)
        inputs = torch.cat((self.embedded[:, :1], context, self.embedded[:, 1:]), dim=1)[:, : self.length]
        encode = self._roberta if isinstance(self.branch, RobertaTextBranch) else self._open_clip
        with torch.autocast(inputs.device.type, enabled=False):
            return F.normalize(encode(inputs, deep).float(), dim=-1)

    def _replaced(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        prompts = prompts.expand(len(tokens), -1, -1).to(tokens.dtype)
        return torch.cat((tokens[:, :1], prompts, tokens[:, 1 + self.context :]), dim=1)

    def _open_clip(self, inputs: Tensor, deep: Sequence[Tensor]) -> Tensor:
        tower = self.branch.tower
        tokens = inputs + tower.positional_embedding[: self.length]
        mask = tower.attn_mask[: self.length, : self.length]
        for index, block in enumerate(tower.transformer.resblocks):
            if 0 < index <= len(deep):
                tokens = self._replaced(tokens, deep[index - 1])
            tokens = block(tokens, attn_mask=mask)
        pooled = tower.ln_final(tokens)[torch.arange(len(tokens)), self.ends]
        projection = tower.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return self.branch.projection(pooled)

    def _roberta(self, inputs: Tensor, deep: Sequence[Tensor]) -> Tensor:
        model = self.branch.model
        mask = torch.arange(self.length, device=inputs.device) <= self.ends[:, None]
        tokens = model.embeddings(inputs_embeds=inputs)
        bias = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill(~mask, torch.finfo(tokens.dtype).min)
        for index, layer in enumerate(model.encoder.layer):
            if 0 < index <= len(deep):
                tokens = self._replaced(tokens, deep[index - 1])
            tokens = layer(tokens, bias[:, None, None, :])
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return self.branch.projection(model.pooler(tokens))


class LowRank(nn.Module):
    """``W + (alpha / r) B A``, one pair of factors for each of the `stacked` maps in a weight ``[n * C, C]``.

    Dropout drops input channels of the update, the same ones for a whole batch: the update is folded into the weight,
    so that the encoder's own attention kernels stay in use. (CLIP-LoRA drops them token by token.)
    """

    def __init__(self, weight: Tensor, *, stacked: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale, self.dropout = alpha / rank, dropout
        self.learning = False  # encoders are kept in evaluation mode, whatever is called on them
        self.down = nn.Parameter(torch.empty(stacked, rank, columns))
        self.up = nn.Parameter(torch.zeros(stacked, rows // stacked, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        down = self.down
        if self.learning and self.dropout:
            kept = torch.rand(down.shape[-1], device=down.device) >= self.dropout
            down = down * kept / (1 - self.dropout)
        return weight + self.scale * (self.up @ down).flatten(0, 1).to(weight.dtype)


def add_low_rank(module: nn.Module, *, rank: int, alpha: float, dropout: float) -> list[LowRank]:
    """Give every self-attention of an encoder (CLIP, HTS-AT, RoBERTa) low-rank updates of query, key and value.

    This is done in place; only their factors ask for a gradient.
    """
    found: list[LowRank] = []
    parts: list[Any] = list(module.modules())
    for part in parts:
        if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            targets = [(part, "in_proj_weight", 3)]
        elif isinstance(getattr(part, "qkv", None), nn.Linear):
            targets = [(part.qkv, "weight", 3)]
        elif all(isinstance(getattr(part, name, None), nn.Linear) for name in ("query", "key", "value")):
            targets = [(linear, "weight", 1) for linear in (part.query, part.key, part.value)]
        else:
            continue
        owner: Any
        for owner, name, stacked in targets:
            update = LowRank(getattr(owner, name), stacked=stacked, rank=rank, alpha=alpha, dropout=dropout)
            parametrize.register_parametrization(owner, name, update)
            found.append(update)
    return found


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
        """Logits of the seconds of several clips, which go through the towers together."""
        columns: list[list[Tensor | None]] = []
        for index, modality in enumerate(MODALITIES):
            present = [part for clip in clips if (part := clip[index]) is not None]
            found = self.embed(modality, torch.cat(present)).split([len(part) for part in present]) if present else ()
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
        """Unit vectors ``[N, D]`` of seconds."""
        if not self.uses_pixels:
            return inputs
        return F.normalize(self.tower(modality)(inputs).float(), dim=-1)

    def tower(self, modality: str) -> Encoder:
        """The encoder of a modality."""
        return getattr(self.backbone, modality)

    def text_features(self, modality: str) -> Tensor:
        """Unit vectors ``[K + 1, D]`` of the texts, with gradient."""
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

    Published for CLIP's two encoders; here the same on CLAP's two as well. Encoders are copied, not changed.
    """

    name, source, uses_pixels = "clip-lora", "Zanella and Ben Ayed, CVPRW 2024", True
    recipe = Recipe("adamw", 2e-4, 32, iterations_per_shot=500, final_lr=1e-6, weight_decay=1e-2)
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
