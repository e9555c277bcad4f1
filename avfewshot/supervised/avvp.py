"""AVVP: what is heard and what is seen in each second, learnt from labels of clips alone (Tian et al., ECCV 2020).

:class:`HAN` is their hybrid attention network with multimodal multiple-instance pooling, :class:`MGN` the multi-modal
grouping network (Mo and Tian, NeurIPS 2022); both written from their formulas. Other than in MGN's released code a
second is judged by how it was assigned to a class's group: an attention between 1.04 and 1.23, as there, switches whole
clips on or off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.data.dataset import Dataset, Sample
from avfewshot.evaluation.parsing import parsing_scores, runs
from avfewshot.supervised.base import Example, Features, Recipe, SupervisedTask, TaskData, TaskHead, ZeroShot

STREAMS = ("heard", "seen")
VISUAL_CERTAINTY = 0.9  # labels of clips are smoothed for sight: what is named is often heard only


class Parsing(NamedTuple):
    """Probabilities of K classes in B clips of T seconds."""

    clip: Tensor  # [B, K]
    audio: Tensor  # [B, K] heard at any time
    visual: Tensor  # [B, K] seen
    audio_seconds: Tensor  # [B, T, K]
    visual_seconds: Tensor  # [B, T, K]
    extra: Tensor  # scalar: what the head adds to the loss

    def loss(self, labels: Tensor) -> Tensor:
        """Against the labels of the clips, float ``[B, K]``."""
        seen = VISUAL_CERTAINTY * labels + (1 - VISUAL_CERTAINTY) / 2
        pairs = ((self.audio, labels), (self.visual, seen), (self.clip, labels))
        # Sums of weights that add up to 1 may exceed 1 by a rounding error.
        return sum((F.binary_cross_entropy(said.clamp(0, 1), true) for said, true in pairs), self.extra)

    def answer(self) -> tuple[Tensor, Tensor]:
        """What is heard and what is seen, bool ``[B, T, K]``; only classes that the clip as a whole has."""
        there = (self.clip >= 0.5)[:, None]
        return (self.audio_seconds >= 0.5) & there, (self.visual_seconds >= 0.5) & there


class ParsingHead(TaskHead):
    """What both heads share; `visual_widths` are the channels of each feature of sight."""

    recipe = Recipe(3e-4, 16, 40, (10, 20, 30), 0.1)
    needs = frozenset({"visual", "audio"})

    @classmethod
    def build(cls, widths: Mapping[str, Any], about: Mapping[str, Any]) -> ParsingHead:
        """See :meth:`TaskHead.build`."""
        make: Any = cls
        return make(widths["audio"], [widths["visual"]], len(about["classes"]))

    def loss(self, features: Features, examples: Sequence[Example]) -> Tensor:
        """See :meth:`Parsing.loss`."""
        labels = torch.from_numpy(np.stack([example.target[0] for example in examples])).float()
        return self(features["audio"], features["visual"]).loss(labels.to(features["audio"].device))

    def predict(self, features: Features, examples: Sequence[Example]) -> list[Any]:
        """What is heard and seen."""
        streams = self(features["audio"], features["visual"]).answer()
        return list(zip(*(stream.cpu().numpy() for stream in streams), strict=True))


class _Inputs(nn.Module):
    """Both modalities in one width; several features of sight are joined."""

    def __init__(self, audio_width: int, visual_widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.audio = nn.Linear(audio_width, dim)
        self.visual = nn.ModuleList(nn.Linear(width, dim) for width in visual_widths)
        self.join = nn.Linear(len(visual_widths) * dim, dim) if len(visual_widths) > 1 else nn.Identity()

    def forward(self, audio: Tensor, *visual: Tensor) -> tuple[Tensor, Tensor]:
        sight = [layer(part) for layer, part in zip(self.visual, visual, strict=True)]
        return self.audio(audio), self.join(torch.cat(sight, dim=-1))


class HAN(ParsingHead):
    """Every second attends to all seconds of its own modality and of the other one, with one layer for both."""

    def __init__(
        self, audio_width: int, visual_widths: Sequence[int], classes: int, *, dim: int = 512, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.inputs = _Inputs(audio_width, visual_widths, dim)
        self.own = nn.MultiheadAttention(dim, 1, dropout=dropout, batch_first=True)
        self.other = nn.MultiheadAttention(dim, 1, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim), nn.Dropout(dropout)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.dropout = nn.Dropout(dropout)
        self.class_of = nn.Linear(dim, classes)
        self.when = nn.Linear(dim, classes)
        self.which = nn.Linear(dim, classes)

    def forward(self, audio: Tensor, *visual: Tensor) -> Parsing:
        """``[B, T, audio_width]`` and ``[B, T, width]`` for each feature of sight."""
        sound, sight = self.inputs(audio, *visual)
        both = torch.stack([self._mix(sound, sight), self._mix(sight, sound)], dim=2)  # [B, T, 2, dim]
        said = torch.sigmoid(self.class_of(both))
        when, which = self.when(both).softmax(1), self.which(both).softmax(2)
        by_modality = (when * said).sum(1)
        clip = (when * which * said).sum((1, 2))
        return Parsing(clip, by_modality[:, 0], by_modality[:, 1], said[:, :, 0], said[:, :, 1], clip.new_zeros(()))

    def _mix(self, query: Tensor, other: Tensor) -> Tensor:
        attended = self.dropout(self.other(query, other, other, need_weights=False)[0])
        attended = attended + self.dropout(self.own(query, query, query, need_weights=False)[0])
        query = self.norms[0](query + attended)
        return self.norms[1](query + self.mlp(query))


class Grouping(nn.Module):
    """Tokens gather what belongs to them; each element is shared out among all groups."""

    def __init__(self, dim: int, tokens: int, heads: int, *, hard: bool = False) -> None:
        super().__init__()
        self.hard = hard  # whether training assigns each element to one group, drawn by its probability
        self.norm_tokens, self.norm_elements, self.norm_queries = (nn.LayerNorm(dim) for _ in range(3))
        self.exchange = _mlp(tokens, dim // 2)
        self.norm_attention, self.norm_mlp, self.norm_out = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp, self.mlp_out = _mlp(dim, 4 * dim), _mlp(dim, 4 * dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, elements: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, dim]`` and ``[B, G, dim]`` to groups ``[B, G, dim]`` and shares ``[B, G, N]``, 1 over G."""
        elements, tokens = self.norm_elements(elements), self.norm_tokens(tokens)
        groups = self.norm_queries(self.exchange(tokens.mT).mT)
        query = self.norm_attention(groups)
        groups = groups + self.attention(query, elements, elements, need_weights=False)[0]
        groups = groups + self.mlp(self.norm_mlp(groups))
        logits = self.query(groups) @ self.key(elements).mT * groups.shape[-1] ** -0.5
        hard = self.hard and self.training
        shares = F.gumbel_softmax(logits, hard=True, dim=1) if hard else logits.softmax(1)
        gathered = shares / (shares.sum(-1, keepdim=True) + 1) @ self.value(elements)
        groups = groups + self.out(gathered)
        return groups + self.mlp_out(self.norm_out(groups)), shares


class MGN(ParsingHead):
    """A token for each class gathers the seconds of its class, in each modality and then over both.

    T is fixed; `depths` are the blocks before the grouping of sound, of sight, and of both.
    """

    def __init__(
        self,
        audio_width: int,
        visual_widths: Sequence[int],
        classes: int,
        *,
        seconds: int = 10,
        dim: int = 128,
        heads: int = 8,
        depths: tuple[int, int, int] = (3, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.inputs = _Inputs(audio_width, visual_widths, dim)
        self.tokens = nn.Parameter(0.02 * torch.randn(2, classes, dim))  # of sound and of sight
        self.guide = Grouping(dim, seconds, heads, hard=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True)
                    for _ in range(depth)
                )
            )
            for depth in depths
        )
        self.groupings = nn.ModuleList(Grouping(dim, classes, heads) for _ in depths)
        self.present = nn.ModuleList(nn.Linear(dim, 1) for _ in depths)
        self.identity = nn.ModuleList(nn.Linear(dim, classes) for _ in range(2))

    def forward(self, audio: Tensor, *visual: Tensor) -> Parsing:
        """``[B, T, audio_width]`` and ``[B, T, width]`` for each feature of sight."""
        sound, sight = self.inputs(audio, *visual)
        sound = sound + self.guide(sight, sound)[0]
        groups, shares = [], []
        for index, elements in enumerate((sound, sight)):
            tokens = self.tokens[index].expand(len(elements), -1, -1)
            mixed = self.blocks[index](torch.cat([elements, tokens], dim=1))
            group, share = self.groupings[index](*mixed.split([elements.shape[1], tokens.shape[1]], dim=1))
            groups.append(group)
            shares.append(share)
        both = self.blocks[2](torch.cat(groups, dim=1))
        groups.append(self.groupings[2](both, self.tokens.mean(0).expand(len(both), -1, -1))[0])
        heard, seen, clip = (
            torch.sigmoid(layer(group))[..., 0] for layer, group in zip(self.present, groups, strict=True)
        )
        # A class's surest second is as probable as the class; others by their share of that one's.
        seconds = [
            said[:, None] * (share / share.amax(-1, keepdim=True)).mT
            for said, share in zip((heard, seen), shares, strict=True)
        ]
        own = torch.arange(self.tokens.shape[1], device=audio.device)
        extra = sum(
            (F.cross_entropy(layer(tokens), own) for layer, tokens in zip(self.identity, self.tokens, strict=True)),
            clip.new_zeros(()),
        )
        return Parsing(clip, heard, seen, seconds[0], seconds[1], extra)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class ParsingTask(SupervisedTask):
    """Classes of each second; a prediction is what is heard and what is seen, bool ``[T, K]`` each.

    A target is the labels of the clip, bool ``[K]``, and its truth by second in the form of a prediction.
    """

    name = "avvp"
    title = "audio-visual video parsing (LLP)"
    dataset = "llp"
    headline = "segment_Type"
    heads: ClassVar = {"han": HAN, "mgn": MGN}

    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """See :meth:`SupervisedTask.read`."""

        def target(dataset: Dataset, sample: Sample) -> Any:
            streams = (dataset.event_matrix(sample, name, self.seconds) for name in ("audio", "visual"))
            return dataset.multi_hot([sample])[0], tuple(streams)

        return self.read_clips(root, media, subset, target)

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
        return self.cut(data, zero_shot, self._probabilities, _above, np.linspace(0.05, 0.95, 19), 0.5)

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
