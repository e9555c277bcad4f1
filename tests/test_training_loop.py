"""The training loop: learning, resuming to the bit, stopping, dying."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_support import make_training, names, resumed

from avfewshot.config import TrainingConfig
from avfewshot.errors import AvfsError
from avfewshot.models.checkpoint import load_adapter
from avfewshot.training.cuda_graphs import Passes
from avfewshot.training.journal import Journal
from avfewshot.training.loop import validation_interval
from avfewshot.training.order import epoch_order, window_start
from avfewshot.training.schedule import rate_factor
from avfewshot.training.store import CheckpointStore


def state(training):
    return training._model.trainable_state()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Stop:
    """Interrupts a training after so many steps, as Ctrl-C would."""

    def __init__(self, training, steps):
        self.training, self.left = training, steps
        self.step, training._step = training._step, self

    def __call__(self, group):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.step(group)


def test_training_lowers_the_loss_and_changes_only_what_is_trainable(tmp_path):
    training = make_training(tmp_path, epochs=16)
    frozen = {name: tensor.clone() for name, tensor in training._model.state_dict().items() if "tower" in name}
    training.run()
    losses = [entry["loss"] for entry in Journal(tmp_path / "metrics.jsonl").entries() if entry["kind"] == "step"]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    after = training._model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7, 8])
def test_an_interrupted_training_goes_on_to_the_bit(tmp_path, steps):
    straight = make_training(tmp_path / "straight")
    straight.run()
    broken = make_training(tmp_path / "broken")
    Stop(broken, steps)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = resumed(tmp_path / "broken")
    assert again.progress.step == steps
    again.run()
    assert same(state(straight), state(again))
    assert again.progress == straight.progress
    first, second = (list(Journal(tmp_path / name / "metrics.jsonl").entries()) for name in ("straight", "broken"))
    assert first == second


def test_how_far_the_gates_have_opened_is_written_down(tmp_path):
    training = make_training(tmp_path, epochs=2, validate_every=1)
    progress = training.run()
    gates = [entry["gate"] for entry in Journal(tmp_path / "metrics.jsonl").entries() if entry["kind"] == "epoch"]
    assert gates[0] == 0 < gates[1] < gates[2]
    scales = [tensor for name, tensor in state(training).items() if name.endswith(".scale")]
    assert gates[2] == pytest.approx(torch.cat(scales).abs().mean().item())
    assert progress.gate == gates[progress.best_epoch]


def test_accumulation_resumes_between_its_batches(tmp_path):
    settings = {"accumulation": 2, "batch_size": 1}
    straight = make_training(tmp_path / "straight", **settings)
    straight.run()
    broken = make_training(tmp_path / "broken", **settings)
    Stop(broken, 4)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = resumed(tmp_path / "broken", **settings)
    assert again.progress.batch == 2
    again.run()
    assert same(state(straight), state(again))


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path):
    paths = names()
    large = make_training(tmp_path / "large", batch_size=6, epochs=1, paths=paths)
    small = make_training(tmp_path / "small", batch_size=2, accumulation=3, epochs=1, paths=paths)
    large.run()
    small.run()
    for name, tensor in state(large).items():
        torch.testing.assert_close(state(small)[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["classes", "contrastive"])
def test_micro_batches_change_nothing(tmp_path, objective):
    settings = {"batch_size": 6, "epochs": 2, "objective": objective}
    whole = make_training(tmp_path / "whole", **settings)
    cut = make_training(tmp_path / "cut", micro_batch=2, **settings)
    whole.run()
    cut.run()
    for name, tensor in state(whole).items():
        torch.testing.assert_close(state(cut)[name], tensor, rtol=1e-3, atol=1e-5)


def test_it_shrinks_the_micro_batch_when_memory_ends(tmp_path, caplog):
    training = make_training(tmp_path, batch_size=4, epochs=1)
    reference = make_training(tmp_path / "reference", batch_size=4, epochs=1)
    module = training._steps._passes

    def greedy(frames, audio, **masks):
        if len(frames) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return module(frames, audio, **masks)

    training._steps._passes = Passes(greedy)
    training.run()
    assert training._steps.micro_batch == 1
    assert "ran out of memory" in caplog.text
    reference.run()
    for name, tensor in state(reference).items():
        torch.testing.assert_close(state(training)[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_single_clip_that_does_not_fit_is_an_error_with_advice(tmp_path):
    training = make_training(tmp_path)

    def greedy(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    training._steps._passes = Passes(greedy)
    with pytest.raises(AvfsError, match="not enough memory") as caught:
        training.run()
    assert "--checkpointing" in caught.value.hint


def test_it_stops_when_validation_gets_no_better(tmp_path):
    training = make_training(tmp_path, epochs=20, patience=2)
    verdict = training.progress.best
    training._judge = lambda model, epoch: verdict
    progress = training.run()
    assert progress.epoch == 2
    assert progress.best_epoch == 0
    assert progress.finished == "no better for 2 epochs"


def test_the_untrained_model_is_the_best_when_training_only_harms(tmp_path):
    training = make_training(tmp_path, lr=0.5, clip_norm=0)
    fresh = {name: tensor.clone() for name, tensor in state(training).items()}
    best = training.progress.best
    worse = type(best)(best.figure - 0.1, best.loss + 1, 1.0, best.fitted)
    training._judge = lambda model, epoch: worse
    training.run()
    kept = load_adapter(tmp_path).tensors
    assert same(kept, fresh)
    assert not same(state(training), fresh)


def test_clips_of_unequal_length_and_without_sound_or_picture_train(tmp_path):
    paths = [Path("0-1-2.mp4"), Path("1-1-5.mp4"), Path("2-1-3-mute.mp4"), Path("0-2-3-blind.mp4")]
    training = make_training(tmp_path, paths=paths, batch_size=4, epochs=1)
    training.run()
    entry = next(entry for entry in Journal(tmp_path / "metrics.jsonl").entries() if entry["kind"] == "step")
    assert entry["loss"] > 0


def test_a_clip_that_vanishes_is_named(tmp_path):
    training = make_training(tmp_path, paths=[*names(), Path("1-3-broken.mp4")])
    with pytest.raises(AvfsError, match=r"1-3-broken\.mp4"):
        training.run()


def test_the_order_is_a_function_of_seed_and_epoch():
    assert epoch_order(9, seed=1, epoch=2) == epoch_order(9, seed=1, epoch=2)
    assert sorted(epoch_order(9, seed=1, epoch=2)) == list(range(9))
    assert len({tuple(epoch_order(9, seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("every", "epochs", "clips", "validation", "expected"),
    [
        ("auto", 10, 25, 100, 4),
        ("auto", 20, 25, 40, 2),
        ("auto", 10, 400, 100, 1),
        ("auto", 1, 25, 900, 1),
        (7, 10, 5, 9, 7),
    ],
)
def test_validations_take_no_more_than_training_and_are_two_at_least(every, epochs, clips, validation, expected):
    config = TrainingConfig(validate_every=every, epochs=epochs)
    assert validation_interval(config, clips, validation) == expected


def test_epochs_between_validations_are_not_judged_and_the_last_one_is(tmp_path):
    training = make_training(tmp_path, epochs=5, validate_every=2)
    training.run()
    judged = [entry["epoch"] for entry in Journal(tmp_path / "metrics.jsonl").entries() if entry["kind"] == "epoch"]
    assert judged == [0, 2, 4, 5]


def test_windows_of_long_clips_lie_inside_and_move_from_epoch_to_epoch():
    starts = [window_start(30, 10, seed=1, epoch=epoch, key="a") for epoch in range(20)]
    assert all(0 <= start <= 20 for start in starts)
    assert len(set(starts)) > 5
    assert window_start(10, 10, seed=1, epoch=3, key="a") == 0


def test_schedules():
    cosine = rate_factor(TrainingConfig(schedule="cosine", epochs=10, warmup=0.2), 10)
    assert cosine(0) == pytest.approx(1 / 21)
    assert cosine(20) == pytest.approx(1)
    assert cosine(60) == pytest.approx(0.5)
    assert cosine(100) == pytest.approx(0, abs=1e-12)
    step = rate_factor(TrainingConfig(schedule="step", epochs=10, step_epochs=2, step_factor=0.5), 3)
    assert [step(n) for n in (0, 5, 6, 12)] == [1, 1, 0.5, 0.25]
    assert rate_factor(TrainingConfig(schedule="constant", epochs=5), 3)(50) == 1


def test_killing_it_leaves_a_checkpoint_that_it_goes_on_from_to_the_bit(tmp_path):
    straight = make_training(tmp_path / "straight", epochs=4)
    straight.run()
    folder = tmp_path / "killed"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; import avfewshot.training.loop as loop; loop._SAVE_SECONDS = 0.0\n"
        "from training_support import make_training\n"
        "make_training(Path(sys.argv[2]), epochs=4).run()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(folder)], env=dict(os.environ)
    )
    store = CheckpointStore(folder / "checkpoints")
    try:
        deadline = time.monotonic() + 120
        while len(store.steps()) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = resumed(folder, epochs=4)
    again.run()
    assert same(state(straight), state(again))
