"""A tiny contrastive problem in float64, and processes that solve it together over gloo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.models.losses import CombinedLoss, combined_loss, shared_labels
from avfewshot.training.distributed import GatheredBatch, gather_batch

CLASSES = 4


class Encoders(nn.Module):
    """Two linear encoders, and text projectors and temperatures that only the loss uses."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.visual, self.audio = nn.Linear(5, 4), nn.Linear(6, 3)
        self.visual_text, self.audio_text = nn.Linear(4, 4), nn.Linear(3, 3)
        self.scales = nn.Parameter(torch.zeros(2))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("visual_table", torch.randn(CLASSES, 4, generator=generator))
        self.register_buffer("audio_table", torch.randn(CLASSES, 3, generator=generator))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.double()

    def forward(self, frames: Tensor | None, sounds: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return (
            None if frames is None else F.normalize(self.visual(self.dropout(frames)), dim=-1),
            None if sounds is None else F.normalize(self.audio(self.dropout(sounds)), dim=-1),
        )

    def loss(
        self,
        visual: Tensor | None,
        audio: Tensor | None,
        labels: Tensor,
        visual_present: Tensor | None = None,
        audio_present: Tensor | None = None,
        rows: slice = slice(None),
    ) -> CombinedLoss:
        """The contrastive loss; of the samples `rows` against all, if they are given."""
        logits = [None, None]
        if visual is not None:
            texts = F.normalize(self.visual_text(self.visual_table), dim=-1)[labels]
            logits[0] = self.scales[0].exp() * (visual[rows] @ texts.T)
        if audio is not None:
            texts = F.normalize(self.audio_text(self.audio_table), dim=-1)[labels]
            logits[1] = self.scales[1].exp() * (audio[rows] @ texts.T)
        return combined_loss(
            *logits,
            shared_labels(labels)[rows],
            objective="contrastive" if rows == slice(None) else "classes",
            visual_present=visual_present,
            audio_present=audio_present,
        )


def clips(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``[N, 5]`` and ``[N, 6]``, and labels ``[N]`` of which several are the same."""
    generator = torch.Generator().manual_seed(6)
    frames = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    sounds = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return frames, sounds, torch.tensor([0, 1, 2, 0, 3, 1, 0, 2])[:count]


def outcome(model: nn.Module, loss: CombinedLoss) -> dict[str, Tensor]:
    """The loss and the gradient of every parameter that has one."""
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"total": loss.total.detach(), **gradients}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def gather(visual: Tensor | None, audio: Tensor | None, labels: Tensor) -> GatheredBatch:
    """The samples of all ranks, with class numbers for labels; a modality is there in all samples of a rank or none."""
    given = {"visual_present": visual is not None, "audio_present": audio is not None}
    masks = {name: torch.full((len(labels),), there) for name, there in given.items()}
    batch = gather_batch(visual, audio, F.one_hot(labels, CLASSES).bool(), **masks)
    return dataclasses.replace(batch, labels=batch.labels.int().argmax(1))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """As DDP does."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def run_on_ranks(scenarios: Callable[[int, int], dict], worlds: tuple[int, ...], folder: Path) -> dict[int, list[dict]]:
    """Call ``scenarios(rank, world)`` in as many processes as each world has; what each of them returned, by world."""
    # The same processes for all worlds: most of their time goes into importing torch.
    mp.spawn(_child, args=(scenarios, worlds, str(folder)), nprocs=max(worlds))
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        for world in worlds
    }


def _child(rank: int, scenarios: Callable[[int, int], dict], worlds: tuple[int, ...], folder: str) -> None:
    torch.set_num_threads(1)
    for world in worlds:
        if rank >= world:
            continue
        address = (Path(folder) / f"meeting-point-{world}").as_uri()
        timeout = timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=timeout)
        torch.save(scenarios(rank, world), Path(folder) / f"{world}-{rank}.pt")
        dist.destroy_process_group()
