"""Large contrastive batches chunk by chunk and rank by rank: loss and gradients of one big batch on one rank."""

import os
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from avfewshot.models.losses import combined_loss, shared_labels
from avfewshot.training.distributed import gather_batch
from avfewshot.training.gradcache import cached_backward

CLASSES = 4


class Encoders(nn.Module):
    """Two linear encoders in float64, and text projectors and temperatures that only the loss uses."""

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

    def loss(self, visual: Tensor | None, audio: Tensor | None, labels: Tensor, present=(None, None)) -> Tensor:
        logits = [None, None]
        if visual is not None:
            texts = F.normalize(self.visual_text(self.visual_table), dim=-1)[labels]
            logits[0] = self.scales[0].exp() * (visual @ texts.T)
        if audio is not None:
            texts = F.normalize(self.audio_text(self.audio_table), dim=-1)[labels]
            logits[1] = self.scales[1].exp() * (audio @ texts.T)
        return combined_loss(*logits, shared_labels(labels), objective="contrastive", present=present).total


def clips(count: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``[N, 5]`` and ``[N, 6]``, and labels ``[N]`` of which several are the same."""
    generator = torch.Generator().manual_seed(6)
    frames = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    sounds = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return frames, sounds, torch.tensor([0, 1, 2, 0, 3, 1, 0])[:count]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def as_chunks(model: Callable, frames: Tensor, sounds: Tensor, sizes: list[int]) -> list[Callable]:
    parts = zip(frames.split(sizes), sounds.split(sizes), strict=True)
    return [lambda frames=some, sounds=others: model(frames, sounds) for some, others in parts]


def one_batch(factor: float = 1.0, present=(None, None)) -> dict[str, Tensor]:
    model = Encoders()
    frames, sounds, labels = clips()
    (factor * model.loss(*model(frames, sounds), labels, present)).backward()
    return gradients(model)


def in_chunks(sizes: list[int], **options) -> dict[str, Tensor]:
    model = Encoders()
    frames, sounds, labels = clips()
    cached_backward(as_chunks(model, frames, sounds, sizes), lambda parts: model.loss(*parts, labels), **options)
    return gradients(model)


@pytest.mark.parametrize("sizes", [[7], [4, 3], [1, 4, 2], [1] * 7])
def test_gradients_in_chunks_are_those_of_one_big_batch_and_a_gradient_scaler_is_put_in_once(sizes):
    assert_same(in_chunks(sizes), one_batch(), tolerance=0 if len(sizes) == 1 else 1e-10)
    scaled = in_chunks(sizes, backward=lambda scalar: (scalar * 1024).backward())
    assert_same(scaled, one_batch(factor=1024), tolerance=1e-8)


def test_chunks_run_without_a_graph_first_and_one_by_one_with_one_afterwards_and_a_single_one_once():
    model = Encoders()
    frames, sounds, labels = clips()
    events = []

    def note(chunk, number):
        events.append((number, torch.is_grad_enabled(), model.visual.weight.grad is not None))
        return chunk()

    for sizes in ([3, 4], [7]):
        chunks = [
            lambda chunk=chunk, number=number: note(chunk, number)
            for number, chunk in enumerate(as_chunks(model, frames, sounds, sizes))
        ]
        cached_backward(chunks, lambda parts: model.loss(*parts, labels))
        model.zero_grad()
    # The second chunk is run again when the first has passed its gradient on.
    assert events == [(0, False, False), (1, False, False), (0, True, False), (1, True, True), (0, True, False)]


def noisy_step(sizes: list[int], cached: bool) -> tuple[dict, list[float]]:
    """A step of a model with dropout, and the random numbers that follow it."""
    torch.manual_seed(3)
    random.seed(3)
    model = Encoders(dropout=0.5).train()
    frames, sounds, labels = clips(sum(sizes))

    def noisy(chunk):
        factor = random.uniform(0.5, 1)
        return tuple(part * factor for part in chunk())

    def noisy_loss(parts):
        return model.loss(*(part * torch.empty(1, dtype=part.dtype).uniform_(0.5, 1) for part in parts), labels)

    chunks = [lambda chunk=chunk: noisy(chunk) for chunk in as_chunks(model, frames, sounds, sizes)]
    if cached:
        cached_backward(chunks, noisy_loss)
    else:
        visual, audio = zip(*[chunk() for chunk in chunks], strict=True)
        noisy_loss((torch.cat(visual), torch.cat(audio))).backward()
    return gradients(model), [random.random(), torch.rand(1).item()]


@pytest.mark.parametrize("sizes", [[6], [2, 3, 1]])
def test_random_numbers_are_those_of_the_first_run_and_go_on_from_there(sizes):
    expected, following = noisy_step(sizes, cached=False)
    got, followed_by = noisy_step(sizes, cached=True)
    assert_same(got, expected)
    assert followed_by == following


@pytest.mark.parametrize("hearing", [[False] * 7, [True] * 3 + [False] * 4])
def test_a_modality_that_chunks_lack(hearing):
    model = Encoders()
    frames, sounds, labels = clips()
    present = torch.tensor(hearing)
    chunks = [
        lambda rows=rows: model(frames[rows], sounds[rows] if present[rows].all() else None)
        for rows in (slice(3), slice(3, 7))
    ]
    cached_backward(chunks, lambda parts: model.loss(*parts, labels, present=(None, present)))
    got = gradients(model)
    if not present.any():  # what nothing is known of has no gradient, in one batch a gradient of zero
        assert model.audio.weight.grad is None
        got = {name: torch.zeros_like(p) for name, p in model.named_parameters()} | got
    assert_same(got, one_batch(present=(None, present)))


def test_a_frozen_encoder_gets_no_gradient_and_an_unused_parameter_of_the_last_chunk_zeros():
    model, unused = Encoders(), nn.Parameter(torch.ones(2, 3))
    model.visual.requires_grad_(False)
    frames, sounds, labels = clips()
    cached_backward(
        as_chunks(model, frames, sounds, [3, 4]),
        lambda parts: model.loss(*parts, labels),
        parameters=[unused, *(p for p in model.parameters() if p.requires_grad)],
    )
    assert torch.equal(unused.grad, torch.zeros(2, 3))
    expected = {name: value for name, value in one_batch().items() if not name.startswith("visual.")}
    assert_same(gradients(model), expected)


# Several ranks over gloo.

SHARES = (5, 2)
CHUNKS = {0: [2, 2, 1], 1: [2]}


def on_ranks(number: int, sizes: dict[int, list[int]], *, ddp: bool = True, deaf: int | None = None) -> dict:
    """Gradients of ranks that have different numbers of chunks; rank `deaf` has no sound."""
    frames, sounds, labels = (part.split([sum(sizes[0]), sum(sizes[1])])[number] for part in clips())
    module = Encoders()
    model = DistributedDataParallel(module) if ddp else module
    silent = (lambda frames, sounds: model(frames, None)) if number == deaf else model

    def loss(parts):
        present = tuple(torch.full((len(labels),), part is not None) for part in parts)
        batch = gather_batch(*parts, F.one_hot(labels, CLASSES).bool(), present)
        return module.loss(batch.visual, batch.audio, batch.labels.int().argmax(1), present=batch.present)

    chunks = as_chunks(silent, frames, sounds, sizes[number])
    for _ in range(2):  # DDP would complain in the second step about a first one that it does not think finished
        module.zero_grad()
        if ddp:
            cached_backward(chunks, loss, no_sync=model.no_sync, parameters=module.parameters())
            continue
        cached_backward(chunks, loss)
        for parameter in module.parameters():  # as DDP does
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    return gradients(module)


def gathered(number: int) -> dict:
    """What ranks get of each other, one of them without sound, and what they say where widths differ."""
    frames, sounds, labels = (part.split(SHARES)[number] for part in clips())
    masks = torch.ones(len(labels)).bool(), torch.full((len(labels),), number > 0)
    batch = gather_batch(frames.to(torch.bfloat16), sounds if number else None, labels[:, None] > 0, masks)
    try:
        gather_batch(torch.zeros(1, 2 + number), None, torch.ones(1, 1).bool(), tuple(mask[:1] for mask in masks))
    except ValueError as error:
        said = str(error)
    return {
        "embeddings": [batch.visual.detach(), batch.audio.detach()],
        "labels": batch.labels,
        "present": list(batch.present),
        "misfit": said,
    }


def rank(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting, timeout = (Path(folder) / "meeting-point").as_uri(), timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=2, timeout=timeout)
    told = {
        "gathered": gathered(number),
        "averaged": on_ranks(number, CHUNKS, ddp=False),
        "ddp": on_ranks(number, CHUNKS),
        "ddp, one chunk": on_ranks(number, {0: [5], 1: [2]}),
        "ddp, deaf": on_ranks(number, CHUNKS, deaf=1),
        "idle": on_ranks(number, {0: [7], 1: [0]}, ddp=False),
    }
    torch.save(told, Path(folder) / f"{number}.pt")
    dist.barrier()
    os._exit(0)  # threads of gloo that outlive their group can abort a Python that takes itself down


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.mark.parametrize("scenario", ["averaged", "ddp", "ddp, one chunk", "ddp, deaf", "idle"])
def test_several_ranks_in_chunks_equal_one_rank_with_one_big_batch(ranks, scenario):
    hearing = torch.tensor([True] * SHARES[0] + [False] * SHARES[1])
    expected = one_batch(present=(None, hearing if "deaf" in scenario else None))
    for told in ranks:
        assert_same(told[scenario], expected)


def test_ranks_get_all_samples_in_rank_order_in_float32_at_least_and_absent_ones_as_zeros(ranks):
    frames, sounds, labels = clips()
    for told in ranks:
        visual, audio = told["gathered"]["embeddings"]
        assert torch.equal(visual, frames.to(torch.bfloat16).float())
        assert torch.equal(audio, torch.cat((torch.zeros_like(sounds[:5]), sounds[5:])))
        assert torch.equal(told["gathered"]["labels"], labels[:, None] > 0)
        seen, heard = told["gathered"]["present"]
        assert seen is None
        assert heard.tolist() == [False] * 5 + [True] * 2
        assert "do not fit together: (width, bytes) [(2, 4), (3, 4)" in told["gathered"]["misfit"]
