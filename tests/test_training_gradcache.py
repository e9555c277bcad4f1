"""Large contrastive batches chunk by chunk: the gradients of one big batch, whatever the model and the machine do."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from ranks_support import Encoders, assert_same, average_gradients, clips, gather, outcome, run_on_ranks
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from avfewshot.models.losses import CombinedLoss, combined_loss, shared_labels
from avfewshot.training.gradcache import cached_backward


def as_chunks(model, frames, sounds, sizes) -> list:
    """A callable for each chunk of the given sizes."""
    parts = zip(frames.split(sizes), sounds.split(sizes), strict=True)
    return [lambda frames=some, sounds=others: model(frames, sounds) for some, others in parts]


def one_batch(count: int = 7, **present) -> dict:
    model = Encoders()
    frames, sounds, labels = clips(count)
    loss = model.loss(*model(frames, sounds), labels, **present)
    loss.total.backward()
    return outcome(model, loss)


def in_chunks(sizes: list[int], **options) -> dict:
    model = Encoders()
    frames, sounds, labels = clips(sum(sizes))
    chunks = as_chunks(model, frames, sounds, sizes)
    return outcome(model, cached_backward(chunks, lambda parts: model.loss(*parts, labels), **options))


def test_casts_of_autocast_are_dropped_before_every_pass(monkeypatch):
    """A cast that was kept from a pass without a graph would leave a weight without its gradient."""
    events = []
    forget = torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (events.append("forget"), forget()))
    model = Encoders()
    frames, sounds, labels = clips(5)

    def logged(name, function):
        return lambda *given: (events.append(name), function(*given))[1]

    chunks = [logged("embed", chunk) for chunk in as_chunks(model, frames, sounds, [3, 2])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached_backward(chunks, logged("loss", lambda parts: model.loss(*parts, labels)))

    passes = [index for index, event in enumerate(events) if event != "forget"]
    assert [events[index] for index in passes] == ["embed", "embed", "loss", "embed", "embed"]
    assert all(events[index - 1] == "forget" for index in passes)


@pytest.mark.parametrize("sizes", [[7], [4, 3], [1, 4, 2], [1] * 7])
def test_gradients_in_chunks_are_those_of_one_big_batch(sizes):
    assert_same(in_chunks(sizes), one_batch())


def test_a_single_chunk_equals_the_ordinary_backward_pass_to_the_last_bit_and_runs_once():
    model = Encoders()
    frames, sounds, labels = clips(7)
    calls = []

    def chunk():
        calls.append(torch.is_grad_enabled())
        return model(frames, sounds)

    loss = cached_backward([chunk], lambda parts: model.loss(*parts, labels))

    assert_same(outcome(model, loss), one_batch(), tolerance=0)
    assert calls == [True]


def test_chunks_run_without_a_graph_first_and_one_by_one_with_one_afterwards():
    model = Encoders()
    frames, sounds, labels = clips(6)
    events = []

    def note(chunk, number):
        events.append((number, torch.is_grad_enabled(), model.visual.weight.grad is not None))
        return chunk()

    chunks = [
        lambda chunk=chunk, number=number: note(chunk, number)
        for number, chunk in enumerate(as_chunks(model, frames, sounds, [3, 3]))
    ]
    cached_backward(chunks, lambda parts: model.loss(*parts, labels))

    # The second chunk is run again when the first has passed its gradient on.
    assert events == [(0, False, False), (1, False, False), (0, True, False), (1, True, True)]


def test_the_loss_is_returned_without_a_graph():
    model = Encoders()
    frames, sounds, labels = clips(6)
    expected = model.loss(*model(frames, sounds), labels)

    loss = cached_backward(as_chunks(model, frames, sounds, [2, 4]), lambda parts: model.loss(*parts, labels))

    assert not loss.total.requires_grad
    for name in ("total", "visual", "audio", "weights"):
        torch.testing.assert_close(getattr(loss, name), getattr(expected, name).detach(), rtol=0, atol=1e-10)


def test_gradients_add_up_and_scale_leaves_the_result_as_it_is():
    model = Encoders()
    frames, sounds, labels = clips(7)
    chunks = as_chunks(model, frames, sounds, [3, 4])
    for scale in (0.25, 0.5):
        loss = cached_backward(chunks, lambda parts: model.loss(*parts, labels), scale=scale)

    expected = one_batch()
    assert_same(outcome(model, loss), {name: v if name == "total" else 0.75 * v for name, v in expected.items()})


@pytest.mark.parametrize("sizes", [[7], [3, 4]])
def test_the_factor_of_a_gradient_scaler_is_put_in_once(sizes):
    given = []

    def backward(scalar):
        given.append(scalar)
        (scalar * 1024).backward()

    got = in_chunks(sizes, backward=backward)

    expected = one_batch()
    assert_same(got, {name: v if name == "total" else 1024 * v for name, v in expected.items()}, tolerance=1e-8)
    assert len(given) == 1 + len(sizes)
    assert all(scalar.ndim == 0 for scalar in given)


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
        loss = cached_backward(chunks, noisy_loss)
    else:
        visual, audio = zip(*[chunk() for chunk in chunks], strict=True)
        loss = noisy_loss((torch.cat(visual), torch.cat(audio)))
        loss.total.backward()
    return outcome(model, loss), [random.random(), torch.rand(1).item()]


@pytest.mark.parametrize("sizes", [[6], [2, 3, 1]])
def test_random_numbers_are_those_of_the_first_run_and_go_on_from_there(sizes):
    expected, following = noisy_step(sizes, cached=False)

    got, followed_by = noisy_step(sizes, cached=True)

    assert_same(got, expected)
    assert followed_by == following


def test_a_modality_that_no_chunk_has():
    model, reference = Encoders(), Encoders()
    frames, _, labels = clips(6)
    expected = reference.loss(*reference(frames, None), labels)
    expected.total.backward()

    chunks = [lambda part=part: model(part, None) for part in frames.split(2)]
    loss = cached_backward(chunks, lambda parts: model.loss(*parts, labels))

    assert_same(outcome(model, loss), outcome(reference, expected))
    assert model.audio.weight.grad is None


def test_a_modality_that_one_chunk_lacks():
    model = Encoders()
    frames, sounds, labels = clips(7)
    hearing = torch.tensor([True] * 3 + [False] * 4)
    chunks = [lambda: model(frames[:3], sounds[:3]), lambda: model(frames[3:], None)]

    loss = cached_backward(chunks, lambda parts: model.loss(*parts, labels, audio_present=hearing))

    assert_same(outcome(model, loss), one_batch(audio_present=hearing))


def test_a_frozen_encoder_gets_no_gradient():
    model = Encoders()
    model.visual.requires_grad_(False)
    frames, sounds, labels = clips(7)

    loss = cached_backward(as_chunks(model, frames, sounds, [3, 4]), lambda parts: model.loss(*parts, labels))

    expected = {name: value for name, value in one_batch().items() if not name.startswith("visual.")}
    assert_same(outcome(model, loss), expected)


def test_parameters_of_the_last_chunk_s_backward_pass_get_zeros_if_unused_and_their_gradient_if_used():
    model, unused, frozen = Encoders(), nn.Parameter(torch.ones(2, 3)), torch.ones(2)
    frames, sounds, labels = clips(7)

    loss = cached_backward(
        as_chunks(model, frames, sounds, [3, 4]),
        lambda parts: model.loss(*parts, labels),
        parameters=[unused, frozen, *model.parameters()],
    )

    assert torch.equal(unused.grad, torch.zeros(2, 3))
    assert frozen.grad is None
    assert_same(outcome(model, loss), one_batch())


class ShortAndWide(nn.Module):
    """A layer that autocast runs in bfloat16, and one that is kept in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.wide, self.texts = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, frames):
        hidden = self.short(frames)
        with torch.autocast("cpu", enabled=False):
            return F.normalize(self.wide(hidden.float()), dim=-1), None

    def loss(self, visual, labels):
        return combined_loss(5 * visual @ self.texts(torch.eye(4))[labels].T, None, shared_labels(labels))


@pytest.mark.parametrize("sizes", [[6], [2, 3, 1]])
def test_under_autocast_gradients_are_those_of_an_ordinary_backward_pass_outside_of_it(sizes):
    frames, _, labels = clips(6)
    model = ShortAndWide()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(torch.cat([model(part)[0] for part in frames.float().split(sizes)]), labels)
    loss.total.backward()
    expected = outcome(model, loss)
    model.zero_grad()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunks = [lambda part=part: model(part) for part in frames.float().split(sizes)]
        loss = cached_backward(chunks, lambda parts: model.loss(parts[0], labels))

    got = outcome(model, loss)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        # Weights in bfloat16 get their gradient as a sum of rounded ones.
        tolerance = 1e-6 if name.startswith(("wide", "total")) else 1e-2 * value.abs().max().item()
        torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "no chunks"),
        ([lambda: (None, None)], "Chunk 0 gave no embeddings"),
        ([lambda: (torch.ones(2, 3), torch.ones(3, 3))], "Chunk 0 gave embeddings of 2 and 3 samples"),
        ([lambda: (torch.ones(2, 3), None), lambda: (torch.ones(2, 3),)], "Chunks gave 2, 1 embeddings"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(chunks, message):
    with pytest.raises(ValueError, match=message):
        cached_backward(chunks, lambda parts: pytest.fail("there is nothing to compute a loss of"))


def test_a_chunk_that_changes_its_shape_is_refused():
    weight = torch.ones(3, requires_grad=True)
    rows = iter([2, 2, 4])

    def loss(parts):
        total = parts[0].sum()
        return CombinedLoss(total, total.detach(), total.detach(), torch.ones(4, 2))

    with pytest.raises(ValueError, match=r"\[4, 3\] the second time, and \[2, 3\] before"):
        cached_backward([lambda: (weight.expand(next(rows), 3),)] * 2, loss)


def test_exchange_between_ranks_is_put_off_until_the_last_chunk():
    model = Encoders()
    frames, sounds, labels = clips(6)
    events = []

    @contextlib.contextmanager
    def no_sync():
        events.append("quiet")
        yield
        events.append("end")

    def embed(chunk):
        if torch.is_grad_enabled():
            events.append("chunk")
        return chunk()

    def loss(parts):
        events.append("loss")
        return model.loss(*parts, labels)

    chunks = [lambda c=c: embed(c) for c in as_chunks(model, frames, sounds, [2, 2, 2])]
    cached_backward(chunks, loss, no_sync=no_sync)

    assert events == ["quiet", "loss", "end", *["quiet", "chunk", "end"] * 2, "chunk"]


def test_the_audio_visual_model_on_the_tiny_backbone():
    from avfewshot.config import TrainingConfig
    from avfewshot.encoders.backbone import build_backbone
    from avfewshot.models.build import build_model

    backbone = build_backbone("tiny")
    model = build_model(backbone, TrainingConfig(hidden=8, checkpointing=False), seed=1).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.startswith("temperatures"):
                parameter.add_(0.02 * torch.randn_like(parameter))  # fresh adapters would hardly learn anything
    size = backbone.visual.image_size
    frames = torch.randint(0, 256, (3, 1, 3, size, size), dtype=torch.uint8)
    audio, labels = 0.1 * torch.randn(3, 1, 48_000), torch.tensor([0, 1, 0])
    tables = torch.randn(2, backbone.visual.output_dim), torch.randn(2, backbone.audio.output_dim)
    texts = [F.normalize(table, dim=-1) for table in tables]

    def loss(parts):
        visual, sound = (part.mean(1) for part in parts)
        features = [table[labels] for table in model.project_texts(*texts)]
        return combined_loss(*model.logits(visual, sound, *features), shared_labels(labels))

    expected = loss(model(frames, audio))
    expected.total.backward()
    reference = outcome(model, expected)
    model.zero_grad()
    parts = zip(frames.split([2, 1]), audio.split([2, 1]), strict=True)
    got = outcome(model, cached_backward([lambda part=part: model(*part) for part in parts], loss))

    assert {name.split(".")[0] for name in got} == {"total", "adapters", "projectors", "temperatures"}
    assert_same(got, reference, tolerance=1e-5)


SHARES = (5, 2)
CHUNKS = {0: [2, 2, 1], 1: [2]}


def on_ranks(number: int, ddp: bool, *, sizes: dict[int, list[int]], deaf: int | None = None) -> dict:
    """A step of ranks that have different numbers of chunks; rank `deaf` has no sound."""
    frames, sounds, labels = (part.split(SHARES)[number] for part in clips(sum(SHARES)))
    module = Encoders()
    model = DistributedDataParallel(module) if ddp else module
    silent = (lambda frames, sounds: model(frames, None)) if number == deaf else model

    def loss(parts):
        batch = gather(*parts, labels)
        return module.loss(batch.visual, batch.audio, batch.labels, batch.visual_present, batch.audio_present)

    chunks = as_chunks(silent, frames, sounds, sizes[number])
    for _ in range(2):  # DDP would complain in the second step about a first one that it does not think finished
        module.zero_grad()
        if ddp:
            result = cached_backward(chunks, loss, no_sync=model.no_sync, parameters=module.parameters())
        else:
            result = cached_backward(chunks, loss)
            average_gradients(module.parameters())
    return outcome(module, result)


def scenarios(number: int, world: int) -> dict:
    return {
        "averaged": on_ranks(number, False, sizes=CHUNKS),
        "ddp": on_ranks(number, True, sizes=CHUNKS),
        "ddp, one chunk": on_ranks(number, True, sizes={0: [5], 1: [2]}),
        "averaged, deaf": on_ranks(number, False, sizes=CHUNKS, deaf=1),
        "ddp, deaf": on_ranks(number, True, sizes=CHUNKS, deaf=1),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return run_on_ranks(scenarios, (2,), tmp_path_factory.mktemp("ranks"))[2]


@pytest.mark.parametrize("scenario", ["averaged", "ddp", "ddp, one chunk"])
def test_several_ranks_in_chunks_equal_one_rank_with_one_big_batch(ranks, scenario):
    expected = one_batch()
    for told in ranks:
        assert_same(told[scenario], expected)


@pytest.mark.parametrize("scenario", ["averaged, deaf", "ddp, deaf"])
def test_a_rank_without_sound_in_chunks_equals_clips_without_sound_in_one_big_batch(ranks, scenario):
    hearing = torch.tensor([True] * SHARES[0] + [False] * SHARES[1])
    expected = one_batch(audio_present=hearing)
    for told in ranks:
        assert_same(told[scenario], expected)
