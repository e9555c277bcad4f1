"""AVE: which second of a clip holds which of 28 events that are seen and heard, or none (Tian et al., ECCV 2018).

The head is CMBS (Xia and Zhao, CVPR 2022), written from its formulas. Cross-modal background suppression: what one
modality finds irrelevant in time is damped in the other, and classes that neither modality supports are damped in the
answer. Other than in the released code the time gates are compared with the truth as they are (there they pass through
a second sigmoid), and clips without an event teach no class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.inference.logits import ClipLogits
from avfewshot.supervised.base import Example, Features, Recipe, SupervisedTask, TaskData, TaskHead, ZeroShot

BACKGROUND = "background"
VISUAL, AUDIO = 512, 128  # channels that CMBS reads, of VGG-19 and VGGish; other widths pass a linear map
TOP_SECONDS = 4


class Localisation(NamedTuple):
    """What :class:`CMBS` says of B clips of T seconds and K classes."""

    relevance: Tensor  # [B, T] logits: whether there is an event; weakly supervised: the gate's logit
    event: Tensor  # [B, K] logits of the clip's class; weakly supervised [B, K + 1], log-probabilities
    gate: Tensor  # [B, T] in (0, 1): what both modalities find relevant in time
    support: Tensor  # [B, K] logits: the classes of the most certain seconds of each modality


class AudioGuidedAttention(nn.Module):
    """One vector a second from the places of a picture: attention over channels, then places, guided by the sound."""

    def __init__(self, dim: int = 256, key: int = 128, beta: float = 0.4) -> None:
        super().__init__()
        self.beta = beta
        self.query, self.key, self.value = nn.Linear(VISUAL, key), nn.Linear(VISUAL, key), nn.Linear(VISUAL, VISUAL)
        self.visual_channel, self.audio_channel = nn.Linear(VISUAL, VISUAL), nn.Linear(AUDIO, VISUAL)
        self.channel = nn.Sequential(nn.Linear(VISUAL, dim), nn.ReLU(), nn.Linear(dim, VISUAL))
        self.visual_place, self.audio_place = nn.Linear(VISUAL, dim), nn.Linear(AUDIO, dim)
        self.place = nn.Linear(dim, 1)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """``[..., P, 512]`` and ``[..., 128]`` to ``[..., 512]``."""
        itself = F.scaled_dot_product_attention(self.query(visual), self.key(visual), self.value(visual))
        audio = audio.unsqueeze(-2)
        both = F.relu(self.visual_channel(visual)) * F.relu(self.audio_channel(audio))
        channels = torch.sigmoid(self.channel(both.mean(-2, keepdim=True)))
        guided = (channels + 1) * visual
        both = F.relu(self.visual_place(guided)) * F.relu(self.audio_place(audio))
        places = torch.tanh(self.place(both)).softmax(-2)
        return (places * (guided + self.beta * torch.sigmoid(itself) * visual)).sum(-2)


class _CrossLayer(nn.Module):
    """A post-norm decoder layer without self-attention."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        query = self.norms[0](query + self.dropout(self.attention(query, memory, memory, need_weights=False)[0]))
        return self.norms[1](query + self.dropout(self.mlp(query)))


class _Interaction(nn.Module):
    """``LN(x + MHA(x, [a; v], [a; v]))`` with ``x = v * a``."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        product, memory = one * other, torch.cat([one, other], 1)
        return self.norm(product + self.attention(product, memory, memory, need_weights=False)[0])


class CMBS(TaskHead):
    """The head of K classes, the background not counted, for places and seconds of sound of any width."""

    recipe = Recipe(7e-4, 64, 200, (10, 20, 30), 0.5, clip_norm=0.5)
    needs = frozenset({"places", "audio"})
    weak = False

    def __init__(
        self, visual_width: int, audio_width: int, classes: int, *, dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        weak, self.classes = self.weak, classes
        self.alpha, self.gamma = (0.2, 0.5) if weak else (0.1, 0.3)
        self.visual_in = nn.Sequential(nn.Linear(visual_width, VISUAL), nn.ReLU())
        self.audio_in = nn.Identity() if audio_width == AUDIO else nn.Linear(audio_width, AUDIO)
        self.attention = AudioGuidedAttention(dim)
        audio_dim = AUDIO if weak else 2 * AUDIO
        if not weak:
            self.visual_lstm = nn.LSTM(VISUAL, VISUAL // 2, batch_first=True, bidirectional=True)
            self.audio_lstm = nn.LSTM(AUDIO, AUDIO, batch_first=True, bidirectional=True)
        hidden = 2048 if weak else 1024

        def encoder(width: int) -> nn.Sequential:
            layer = nn.TransformerEncoderLayer(dim, 4, hidden, dropout, batch_first=True)
            return nn.Sequential(nn.Linear(width, dim), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))

        self.visual_encoder, self.audio_encoder = encoder(VISUAL), encoder(audio_dim)
        self.visual_query, self.audio_query = nn.Linear(VISUAL, dim), nn.Linear(audio_dim, dim)
        self.visual_decoder = _CrossLayer(dim, 4, hidden, dropout)
        self.audio_decoder = _CrossLayer(dim, 4, hidden, dropout)
        self.visual_gate, self.audio_gate = nn.Linear(dim, 1), nn.Linear(dim, 1)
        outputs = classes + 1 if weak else classes
        self.visual_class = nn.Linear(dim, outputs, bias=not weak)
        self.audio_class = nn.Linear(dim, outputs, bias=not weak)
        heads = 2 if weak else 4
        self.visual_audio, self.audio_visual = _Interaction(dim, heads, dropout), _Interaction(dim, heads, dropout)
        self.relevance = None if weak else nn.Linear(dim, 1)
        self.event = nn.Linear(dim, outputs, bias=not weak)

    @classmethod
    def build(cls, widths: Mapping[str, Any], about: Mapping[str, Any]) -> CMBS:
        """See :meth:`TaskHead.build`."""
        return cls(widths["places"], widths["audio"], len(about["classes"]))

    def forward(self, places: Tensor, audio: Tensor) -> Localisation:
        """``[B, T, P, visual_width]`` and ``[B, T, audio_width]`` to answers."""
        audio = self.audio_in(audio)
        visual = self.attention(self.visual_in(places), audio)
        if not self.weak:
            visual, audio = self.visual_lstm(visual)[0], self.audio_lstm(audio)[0]
        encoded_visual, encoded_audio = self.visual_encoder(visual), self.audio_encoder(audio)
        visual, audio = self.visual_query(visual), self.audio_query(audio)
        visual, audio = (
            self.visual_decoder(visual, torch.cat([encoded_audio, visual], 1)),
            self.audio_decoder(audio, torch.cat([encoded_visual, audio], 1)),
        )
        visual_gate = torch.sigmoid(self.visual_gate(encoded_visual))
        audio_gate = torch.sigmoid(self.audio_gate(encoded_audio))
        if self.weak:
            gate = (visual_gate + audio_gate) / 2
            visual, audio = ((1 - self.alpha + self.alpha * gate) * part for part in (visual, audio))
        else:
            gate = visual_gate * audio_gate
            visual, audio = visual * (1 + self.alpha * audio_gate), audio * (1 + self.alpha * visual_gate)
        visual_class, audio_class = self.visual_class(visual), self.audio_class(audio)
        first = self.visual_audio(visual, audio)
        fused = (first + self.audio_visual(audio, first)) / 2
        top = min(TOP_SECONDS, fused.shape[1])
        support = (visual_class.topk(top, 1).values.mean(1) + audio_class.topk(top, 1).values.mean(1)) / 2
        if self.relevance is None:
            activation = self.event(fused) * self.gamma * (torch.sigmoid(visual_class) + torch.sigmoid(audio_class))
            raw = activation.topk(top, 1).values.mean(1, keepdim=True)
            event = (gate * raw).amax(1).log_softmax(-1)
            return Localisation(torch.logit(gate[..., 0], 1e-6), event, gate[..., 0], support)
        event = self.event(fused.amax(1)) + self.gamma * support
        return Localisation(self.relevance(fused)[..., 0], event, gate[..., 0], support)

    def loss(self, features: Features, examples: Sequence[Example]) -> Tensor:
        """See :meth:`loss_of`."""
        seconds = torch.from_numpy(np.stack([example.target for example in examples]))
        said = self(features["places"], features["audio"])
        return self.loss_of(said, seconds.to(said.gate.device))

    def predict(self, features: Features, examples: Sequence[Example]) -> list[Any]:
        """Classes of seconds."""
        return list(self.answer(self(features["places"], features["audio"])).cpu().numpy())

    def loss_of(self, said: Localisation, seconds: Tensor) -> Tensor:
        """Of what :meth:`forward` said, against classes of seconds int64 ``[B, T]``, K for the background."""
        there = seconds < self.classes
        kinds = torch.where(there, seconds, -1).amax(1)
        if self.weak:  # the background is never a clip's label
            truth = F.one_hot(kinds.clamp(min=0), self.classes + 1) * (kinds >= 0)[:, None]
            return F.multilabel_soft_margin_loss(said.event.exp(), truth.float())
        loss = F.binary_cross_entropy_with_logits(said.relevance, there.float())
        loss = loss + F.binary_cross_entropy(said.gate, there.float())
        if (known := kinds >= 0).any():
            loss = loss + F.cross_entropy(said.event[known], kinds[known])
            loss = loss + F.cross_entropy(said.support[known], kinds[known])
        return loss

    def answer(self, said: Localisation) -> Tensor:
        """Class of each second, int64 ``[B, T]``, K for the background; weakly supervised it is never K."""
        event = said.event[:, : self.classes].argmax(-1, keepdim=True).expand_as(said.relevance)
        return event if self.weak else torch.where(said.relevance > 0, event, self.classes)


class WeakCMBS(CMBS):
    """Learns from the clip's class alone: no recurrent layers, and one answer for all seconds."""

    recipe = Recipe(6e-4, 64, 200, (10, 20, 40), 0.5, clip_norm=0.5)
    weak = True


class LocalisationTask(SupervisedTask):
    """Class of each second; a target and a prediction is int64 ``[T]``, K where nothing happens."""

    name = "ave"
    title = "audio-visual event localisation (AVE)"
    dataset = "ave"
    headline = "segment_accuracy"
    heads: ClassVar = {"cmbs": CMBS, "cmbs-weak": WeakCMBS}

    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """See :meth:`SupervisedTask.read`."""
        return self.read_clips(
            root, media, subset, lambda dataset, sample: dataset.segment_labels(sample, self.seconds)
        )

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
            # The first class for a clip without an event.
            "true class in all seconds": [np.full_like(row, [*row[row < count], 0][0]) for row in truth],
        }

    def _zero_shot(self, data: TaskData, zero_shot: ZeroShot) -> list[Any]:
        """The most probable class; background below the probability that is best on validation."""
        return self.cut(data, zero_shot, self._probabilities, _above, np.linspace(0, 1, 51), 0.0)

    def _probabilities(self, logits: ClipLogits) -> Any:
        """The product of what is seen and heard, normalised, ``[T, K]``; zero behind the end of a short clip."""
        parts = [
            part[: self.seconds, :-1].log_softmax(-1) for part in (logits.visual, logits.audio) if part is not None
        ]
        joined = torch.stack(parts).sum(0).softmax(-1).numpy()
        return np.pad(joined, ((0, self.seconds - len(joined)), (0, 0)))

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


def _above(probabilities: Any, threshold: float) -> Any:
    best = probabilities.argmax(-1)
    return np.where(probabilities.max(-1) >= max(threshold, 1e-9), best, probabilities.shape[-1])
