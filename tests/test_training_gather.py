"""Several gloo ranks against one: what they gather, their loss, and their gradients after averaging."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks_support import Encoders, assert_same, clips, outcome, run_on_ranks

from avfewshot.models.losses import shared_labels
from avfewshot.training.gather import average_gradients, gather_batch, gather_with_gradient
from avfewshot.training.ranks import rank, world_size

EQUAL = {2: (3, 3), 3: (2, 2, 2)}
UNEQUAL = {2: (5, 2), 3: (3, 1, 4)}
IDLE = {2: (6, 0), 3: (2, 0, 4)}


def one_rank(count: int, visual_present=None, audio_present=None) -> dict:
    """The loss and the gradients of all clips in one batch, without torch.distributed."""
    model = Encoders()
    frames, sounds, labels = clips(count)
    loss = model.loss(*model(frames, sounds), labels, visual_present, audio_present)
    loss.total.backward()
    return outcome(model, loss)


def share_of(number: int, rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The clips of one rank."""
    return tuple(part.split(rows)[number] for part in clips(sum(rows)))


def together(number: int, rows: tuple[int, ...], *, deaf: int | None = None) -> dict:
    """The loss and the averaged gradients of a batch that is spread over ranks; rank `deaf` has no sound."""
    frames, sounds, labels = share_of(number, rows)
    model = Encoders()
    visual, audio = model(frames, None if number == deaf else sounds)
    batch = gather_batch(visual, audio, labels)
    loss = model.loss(batch.visual, batch.audio, batch.labels, batch.visual_present, batch.audio_present)
    loss.total.backward()
    average_gradients(model.parameters())
    return outcome(model, loss)


def own_rows_only(number: int, rows: tuple[int, ...]) -> dict:
    """Each rank has a loss of its own: that of its samples among the texts of all."""
    frames, sounds, labels = share_of(number, rows)
    model = Encoders()
    batch = gather_batch(*model(frames, sounds), labels)
    start = sum(rows[:number])
    loss = model.loss(batch.visual, batch.audio, batch.labels, rows=slice(start, start + rows[number]))
    loss.total.backward()
    average_gradients(model.parameters())
    return outcome(model, loss)


def partly_used(number: int) -> dict:
    """One parameter that all ranks use, one that only rank 1 uses, one that none uses, one that is frozen."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3)]
    frozen = torch.zeros(2)
    frozen.grad = torch.full((2,), float(number))
    parameters[0].grad = torch.full((2, 3), float(number))
    if number == 1:
        parameters[1].grad = torch.arange(6.0).view(2, 3)
    average_gradients([*parameters, frozen])
    return {"grads": [parameter.grad for parameter in parameters], "frozen": frozen.grad}


def frozen_elsewhere(number: int) -> torch.Tensor | None:
    """Only rank 0 has something to learn; the others still have to take part in the backward pass."""
    tensor = torch.ones(1, 2, requires_grad=number == 0)
    gathered = gather_with_gradient(tensor)
    (gathered.sum() * (number + 1)).backward()
    return tensor.grad


def misfit(number: int) -> str:
    try:
        gather_with_gradient(torch.zeros(1, 2 + number))
    except ValueError as error:
        return str(error)
    return "no error"


def subgroup(number: int, world: int) -> torch.Tensor | None:
    """The first rank and the last, among themselves."""
    group = dist.new_group([0, world - 1])
    if number not in (0, world - 1):
        return None
    tensor = torch.full((1,), float(number), requires_grad=True)
    gathered = gather_with_gradient(tensor, group)
    (gathered * torch.tensor([10.0, 100.0])).sum().backward()
    return torch.stack((*gathered.detach(), tensor.grad[0], torch.tensor(float(rank(group)))))


def scenarios(number: int, world: int) -> dict:
    rows = UNEQUAL[world]
    frames, _, labels = share_of(number, rows)
    nothing = gather_batch(frames, None, labels)
    return {
        "place": [rank(), world_size()],
        "frames": gather_with_gradient(frames),
        "labels": gather_with_gradient(labels),
        "masks": gather_with_gradient(labels == 0),
        "multi-hot": gather_batch(frames, None, torch.nn.functional.one_hot(labels, 4).bool()).labels,
        "without sound": [nothing.audio, nothing.audio_present, nothing.visual_present],
        "positives": shared_labels(gather_batch(frames, None, labels).labels),
        "equal": together(number, EQUAL[world]),
        "unequal": together(number, rows),
        "idle": together(number, IDLE[world]),
        "deaf": together(number, rows, deaf=1),
        "own rows": own_rows_only(number, EQUAL[world]),
        "partly used": partly_used(number),
        "frozen elsewhere": frozen_elsewhere(number),
        "misfit": misfit(number),
        "subgroup": subgroup(number, world),
    }


@pytest.fixture(scope="module")
def all_ranks(tmp_path_factory) -> dict[int, list[dict]]:
    return run_on_ranks(scenarios, (2, 3), tmp_path_factory.mktemp("ranks"))


@pytest.fixture(params=[2, 3], ids=["two ranks", "three ranks"])
def ranks(request, all_ranks) -> list[dict]:
    return all_ranks[request.param]


def test_ranks_know_their_place(ranks):
    assert [told["place"] for told in ranks] == [[number, len(ranks)] for number in range(len(ranks))]


def test_every_rank_has_all_samples_in_rank_order(ranks):
    frames, _, labels = clips(sum(UNEQUAL[len(ranks)]))
    for told in ranks:
        assert torch.equal(told["frames"], frames)
        assert torch.equal(told["labels"], labels)
        assert torch.equal(told["masks"], labels == 0)
        assert told["masks"].dtype == torch.bool
        assert torch.equal(told["multi-hot"], torch.nn.functional.one_hot(labels, 4).bool())


def test_a_modality_that_no_rank_has_stays_away(ranks):
    for told in ranks:
        audio, audio_present, visual_present = told["without sound"]
        assert audio is None
        assert not audio_present.any()
        assert visual_present is None


@pytest.mark.parametrize(("scenario", "shares"), [("equal", EQUAL), ("unequal", UNEQUAL), ("idle", IDLE)])
def test_loss_and_averaged_gradients_are_those_of_one_rank_with_the_whole_batch(ranks, scenario, shares):
    expected = one_rank(sum(shares[len(ranks)]))
    for told in ranks:
        assert_same(told[scenario], expected)


def test_a_rank_without_sound_equals_clips_without_sound_in_one_batch(ranks):
    rows = UNEQUAL[len(ranks)]
    hearing = torch.ones(sum(rows), dtype=torch.bool)
    hearing[rows[0] : rows[0] + rows[1]] = False
    expected = one_rank(sum(rows), audio_present=hearing)
    for told in ranks:
        assert_same(told["deaf"], expected)


def test_clips_of_other_ranks_with_the_same_label_are_positives(ranks):
    labels = clips(sum(UNEQUAL[len(ranks)]))[2].tolist()
    expected = torch.tensor([[row == column for column in labels] for row in labels])
    for told in ranks:
        assert torch.equal(told["positives"], expected)


def test_different_losses_of_the_ranks_give_the_gradient_of_their_mean(ranks):
    rows = EQUAL[len(ranks)]
    model = Encoders()
    frames, sounds, labels = clips(sum(rows))
    embeddings = model(frames, sounds)
    starts = [sum(rows[:number]) for number in range(len(rows))]
    losses = [model.loss(*embeddings, labels, rows=slice(s, s + n)) for s, n in zip(starts, rows, strict=True)]
    torch.stack([loss.total for loss in losses]).mean().backward()
    for told, loss in zip(ranks, losses, strict=True):
        assert_same(told["own rows"], outcome(model, loss))


def test_averaging_counts_unused_parameters_as_zero_and_leaves_frozen_ones_alone(ranks):
    world = len(ranks)
    for number, told in enumerate(ranks):
        everywhere, somewhere, nowhere = told["partly used"]["grads"]
        assert torch.equal(everywhere, torch.full((2, 3), (world - 1) / 2))
        torch.testing.assert_close(somewhere, torch.arange(6.0).view(2, 3) / world)
        assert nowhere is None
        assert torch.equal(told["partly used"]["frozen"], torch.full((2,), float(number)))


def test_a_rank_with_nothing_to_learn_takes_part_in_the_backward_pass(ranks):
    world = len(ranks)
    assert torch.equal(ranks[0]["frozen elsewhere"], torch.full((1, 2), world * (world + 1) / 2))
    assert all(told["frozen elsewhere"] is None for told in ranks[1:])


def test_tensors_that_do_not_fit_are_an_error_on_every_rank(ranks):
    for told in ranks:
        assert "rank 0: torch.float32 [N, 2" in told["misfit"]
        assert "rank 1: torch.float32 [N, 3" in told["misfit"]


def test_a_group_of_ranks_gathers_among_itself(ranks):
    last = len(ranks) - 1
    assert torch.equal(ranks[0]["subgroup"], torch.tensor([0.0, last, 20.0, 0.0]))
    assert torch.equal(ranks[last]["subgroup"], torch.tensor([0.0, last, 200.0, 1.0]))


def test_without_torch_distributed_nothing_changes():
    tensor = torch.ones(2, 3, requires_grad=True)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)

    average_gradients([parameter])

    assert gather_with_gradient(tensor) is tensor
    assert torch.equal(parameter.grad, torch.ones(2))
    assert (rank(), world_size()) == (0, 1)


def test_a_single_rank_marks_the_presence_of_modalities_as_several_do():
    labels, mask = torch.tensor([1, 2]), torch.tensor([True, False])

    batch = gather_batch(torch.ones(2, 3), None, labels)
    partly = gather_batch(torch.ones(2, 3), torch.ones(2, 4), labels, audio_present=mask)

    assert batch.visual_present is None
    assert batch.audio is None
    assert not batch.audio_present.any()
    assert torch.equal(partly.audio_present, mask)


def test_embeddings_and_labels_of_different_number_are_refused():
    with pytest.raises(ValueError, match="3 labels and 2 audio embeddings"):
        gather_batch(None, torch.ones(2, 4), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="2 labels and 1 visual marks"):
        gather_batch(torch.ones(2, 4), None, torch.tensor([1, 2]), visual_present=torch.tensor([True]))


def test_a_scalar_cannot_be_gathered():
    with pytest.raises(ValueError, match="without dimensions"):
        gather_with_gradient(torch.tensor(1.0))
