"""Class means of the support beside the texts: what clips are compared with where names mean little to the text branch.

A clip is compared with ``t_k + c_k`` instead of the text features ``t_k`` alone; ``c_k`` is the unit mean of the
support's projected embeddings of class k (Snell et al., NeurIPS 2017), added to the text's logits as Tip-Adapter adds
its cache (Zhang et al., ECCV 2022). In training a clip's own embedding is left out of its class's mean: otherwise
projectors and adapters learn to find the clip itself, and what they gain is gone on clips they have not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Modality = Literal["visual", "audio"]
PREFIX = "anchors."
"""How the names of an anchors' tensors begin in the state of a model."""


class SupportAnchors(nn.Module):
    """Embeddings of a support by the frozen towers, and its labels; nothing here is trained.

    Args:
        names: K classes.
        visual: float32 ``[N, D_v]``: of each clip the unit mean of its seconds; zeros for a clip without a picture.
        audio: The same of the sound, ``[N, D_a]``.
        labels: Bool ``[N, K]``.
    """

    visual: Tensor
    audio: Tensor
    labels: Tensor

    def __init__(self, names: Sequence[str], visual: Tensor, audio: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("visual", visual.float())
        self.register_buffer("audio", audio.float())
        self.register_buffer("labels", labels.bool())

    @classmethod
    def like(cls, state: Mapping[str, Tensor], names: Sequence[str], widths: tuple[int, int]) -> SupportAnchors | None:
        """Empty ones of widths D_v and D_a for the tensors of a checkpoint and its classes; None where it has none."""
        if not any(name.startswith(PREFIX) for name in state):
            return None
        labels = state.get(PREFIX + "labels")
        clips = len(labels) if labels is not None and labels.ndim else 0
        visual, audio = (torch.zeros(clips, width) for width in widths)
        return cls(names, visual, audio, torch.zeros(clips, len(names), dtype=torch.bool))

    def means(
        self, modality: Modality, project: Callable[[Tensor], Tensor], *, leave_out: Sequence[int | None] = (None,)
    ) -> Tensor:
        """The class means c, and one for "nothing happens", the mean of all of them: ``[len(leave_out), K + 1, D]``.

        They are zeros, so that texts stand alone, where a class would lose its only clip; a class without a clip of
        this modality stands at the mean of the others. `project` leads into the model's matching space, ``[N, D]`` to
        unit vectors ``[N, D]``; `leave_out` are rows of the support, each of which is left out in turn (None: all
        count).
        """
        given = getattr(self, modality)
        present = given.norm(dim=-1, keepdim=True) > 0
        embedded = torch.where(present, project(given), 0.0)
        labels = self.labels.to(embedded) * present
        sums, counts = labels.T @ embedded, labels.sum(0)
        rows = []
        for row in leave_out:
            total, count = sums, counts
            if row is not None:
                total = total - labels[row, :, None] * embedded[row]
                count = count - labels[row]
                if (count[self.labels[row]] < 1).any():
                    rows.append(embedded.new_zeros(len(counts) + 1, embedded.shape[-1]))
                    continue
            means = F.normalize(total, dim=-1)
            known = (count > 0)[:, None]
            middle = (means * known).sum(0, keepdim=True) / known.sum().clamp(min=1)
            rows.append(torch.cat((torch.where(known, means, middle), middle)))
        return torch.stack(rows)
