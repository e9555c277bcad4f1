"""Several gloo ranks against one: what they gather, their loss, and their gradients after averaging."""

from __future__ import annotations

import pytest
import torch
from ranks_support import Encoders, assert_same, average_gradients, clips, gather, outcome, run_on_ranks

from avfewshot.training.distributed import gather_batch

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
    batch = gather(*model(frames, None if number == deaf else sounds), labels)
    loss = model.loss(batch.visual, batch.audio, batch.labels, batch.visual_present, batch.audio_present)
    loss.total.backward()
    average_gradients(model.parameters())
    return outcome(model, loss)


def misfit(number: int) -> str:
    try:
        gather(torch.zeros(1, 2 + number), None, torch.tensor([1]))
    except ValueError as error:
        return str(error)
    return "no error"


def scenarios(number: int, world: int) -> dict:
    rows = UNEQUAL[world]
    frames, sounds, labels = share_of(number, rows)
    nothing = gather(frames, None, labels)
    halves = gather(frames.to(torch.bfloat16), sounds if number else None, labels)
    return {
        "frames": nothing.visual.detach(),
        "labels": nothing.labels,
        "without sound": [nothing.audio, nothing.audio_present, nothing.visual_present],
        "short format": halves.visual.detach(),
        "sound elsewhere": [halves.audio.detach(), halves.audio_present],
        "equal": together(number, EQUAL[world]),
        "unequal": together(number, rows),
        "idle": together(number, IDLE[world]),
        "deaf": together(number, rows, deaf=1),
        "misfit": misfit(number),
    }


@pytest.fixture(scope="module")
def all_ranks(tmp_path_factory) -> dict[int, list[dict]]:
    return run_on_ranks(scenarios, (2, 3), tmp_path_factory.mktemp("ranks"))


@pytest.fixture(params=[2, 3], ids=["two ranks", "three ranks"])
def ranks(request, all_ranks) -> list[dict]:
    return all_ranks[request.param]


def test_every_rank_has_all_samples_in_rank_order(ranks):
    frames, _, labels = clips(sum(UNEQUAL[len(ranks)]))
    for told in ranks:
        assert torch.equal(told["frames"], frames)
        assert torch.equal(told["labels"], labels)


def test_embeddings_travel_in_float32_at_least_and_absent_ones_as_zeros(ranks):
    rows = UNEQUAL[len(ranks)]
    frames, sounds, _ = clips(sum(rows))
    for told in ranks:
        assert torch.equal(told["short format"], frames.to(torch.bfloat16).float())
        audio, present = told["sound elsewhere"]
        assert torch.equal(audio, torch.cat((torch.zeros_like(sounds[: rows[0]]), sounds[rows[0] :])))
        assert present.tolist() == [False] * rows[0] + [True] * sum(rows[1:])


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


def test_embeddings_that_do_not_fit_are_an_error_on_every_rank(ranks):
    for told in ranks:
        assert "do not fit together: (width, bytes) [(2, 4), (3, 4)" in told["misfit"]


def test_a_single_rank_keeps_what_it_has():
    visual, labels = torch.ones(2, 3, requires_grad=True), torch.eye(2, dtype=torch.bool)
    batch = gather_batch(
        visual, None, labels, visual_present=torch.tensor([True, True]), audio_present=torch.tensor([False, False])
    )
    assert batch.visual is visual
    assert batch.labels is labels
    assert (batch.audio, batch.visual_present) == (None, None)
    assert not batch.audio_present.any()


def test_embeddings_and_labels_of_different_number_are_refused():
    with pytest.raises(ValueError, match="3 labels and 2 rows of audio"):
        gather(None, torch.ones(2, 4), torch.tensor([1, 2, 3]))
