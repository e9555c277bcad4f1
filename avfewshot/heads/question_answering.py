"""ST-AVQA: answers to questions about what is seen and heard (Li et al., CVPR 2022, section 4).

The question and the sound choose places in each second (spatial grounding) and seconds in the clip (temporal
grounding); what is chosen answers the question. Beside the answer, the head learns whether a picture and a sound belong
together, from pictures of other videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MATCH_WEIGHT = 0.5
"""Weight of the matching loss beside the answer's."""


class QuestionEncoder(nn.Module):
    """Word indices ``[B, W]``, 0 behind the last word, to ``[B, dim]``. Padding is not read; the release reads it."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, words: Tensor) -> Tensor:
        """Encode questions of one word or more."""
        lengths = (words > 0).sum(1).clamp(min=1).cpu()
        embedded = torch.tanh(self.embedding(words))
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        hidden, cell = self.lstm(packed)[1]
        return self.out(torch.tanh(torch.cat([hidden[-1], cell[-1]], dim=-1)))


class _TemporalGrounding(nn.Module):
    """The question attends to seconds."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, question: Tensor, seconds: Tensor) -> Tensor:
        """``[B, dim]`` and ``[B, T, dim]`` to ``[B, dim]``: what was attended to beside the mean of all seconds."""
        attended = self.attention(question[:, None], seconds, seconds, need_weights=False)[0][:, 0]
        return self.norm(attended + self.feed(attended)) + seconds.mean(1)


class STAVQA(nn.Module):
    """The head.

    Args:
        visual_width: Channels of a place of a picture; other than `dim`, a linear map stands before all else.
        audio_width: Channels of a second of sound.
        words: Number of words, the padding among them.
        answers: Number of answers.
        dim: Width of everything inside.
        dropout: After the activations.
    """

    def __init__(
        self,
        visual_width: int,
        audio_width: int,
        words: int,
        answers: int,
        *,
        dim: int = 512,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.question = QuestionEncoder(words, dim)
        self.visual = nn.Identity() if visual_width == dim else nn.Linear(visual_width, dim)
        self.audio = nn.Sequential(nn.Linear(audio_width, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.ground = nn.Linear(2 * dim, dim)
        widths = (2 * dim, dim, dim // 2, dim // 4)
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.match = nn.Sequential(*layers, nn.Linear(widths[-1], 2))
        self.visual_time = _TemporalGrounding(dim, heads, dropout)
        self.audio_time = _TemporalGrounding(dim, heads, dropout)
        self.fuse = nn.Linear(2 * dim, dim)
        self.answer = nn.Linear(dim, answers)

    def forward(self, places: Tensor, audio: Tensor, words: Tensor) -> Tensor:
        """Answer questions.

        Args:
            places: ``[B, T, P, C_v]``, P places of a picture a second.
            audio: ``[B, T, C_a]``.
            words: int64 ``[B, W]``.

        Returns:
            Logits ``[B, answers]``.
        """
        sound = self.audio(audio)
        return self._answer(self._grounded(self.visual(places), sound), sound, words)

    def loss(
        self, places: Tensor, audio: Tensor, words: Tensor, answers: Tensor, others: Sequence[int] | None
    ) -> Tensor:
        """Cross-entropy of the answers, int64 ``[B]``, and of whether pictures belong to the sound.

        `others` has for each row one whose pictures are of another video; None: matching is not learnt from.
        """
        pictures, sound = self.visual(places), self.audio(audio)
        visual = self._grounded(pictures, sound)
        loss = F.cross_entropy(self._answer(visual, sound, words), answers)
        if others is None:
            return loss
        wrong = self._grounded(pictures[others], sound)
        pairs = torch.cat([torch.cat([sound, picture], dim=-1).flatten(0, 1) for picture in (visual, wrong)])
        own = (torch.arange(len(pairs), device=pairs.device) < len(pairs) // 2).long()
        return loss + MATCH_WEIGHT * F.cross_entropy(self.match(pairs), own)

    def _grounded(self, places: Tensor, sound: Tensor) -> Tensor:
        """Pictures ``[B, T, dim]``, with what is at the places that fit the sound."""
        similarity = torch.einsum("btpc,btc->btp", F.normalize(places, dim=-1), F.normalize(sound, dim=-1))
        grounded = torch.einsum("btp,btpc->btc", similarity.softmax(-1), places)
        return self.ground(torch.tanh(torch.cat([places.mean(2), grounded], dim=-1)))

    def _answer(self, visual: Tensor, sound: Tensor, words: Tensor) -> Tensor:
        question = self.question(words)
        both = torch.cat([self.audio_time(question, sound), self.visual_time(question, visual)], dim=-1)
        return self.answer(torch.tanh(self.fuse(torch.tanh(both)) * question))
