"""Pretraining on one rank: learning, resuming to the bit, stopping, dying, clips that cannot be read."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pretrain_support import MemorySource, clips, journal, losses, make_pretraining, resumed, stream_judge, tensors

from avfewshot.config import TrainingConfig
from avfewshot.errors import AvfsError
from avfewshot.models.checkpoint import load_adapter
from avfewshot.training import pretrain
from avfewshot.training.cuda_graphs import Passes
from avfewshot.training.pretrain import PretrainWatcher
from avfewshot.training.store import CheckpointStore


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first, second, tolerance=1e-5):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted pretraining: 3 epochs of 3 steps, the last one of each epoch on two clips."""
    folder = tmp_path_factory.mktemp("straight")
    training = make_pretraining(folder)
    assert training.run()
    return training, folder


class Watcher(PretrainWatcher):
    def __init__(self):
        self.failures, self.losses, self.paces, self.epochs, self.verdicts = [], [], [], [], []

    def begin_epoch(self, epoch, steps, done):
        self.epochs.append((epoch, steps, done))

    def stepped(self, step, loss, pace):
        self.losses.append(loss)
        self.paces.append(pace)

    def judged(self, epoch, verdict, best):
        self.verdicts.append((epoch, verdict, best))

    def unreadable(self, failure):
        self.failures.append(failure)


class StopAfter:
    """Asks a pretraining to stop after so many of its steps."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self):
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("objective", ["contrastive", "classes"])
def test_pretraining_lowers_the_loss_and_changes_only_what_is_trainable(tmp_path, objective):
    training = make_pretraining(
        tmp_path, paths=clips(6), batch_size=6, epochs=12, validate_every=12, lr=1e-2, objective=objective
    )
    frozen = {name: tensor.clone() for name, tensor in training._model.state_dict().items() if "tower" in name}
    training.run()
    course = losses(tmp_path)
    assert sum(course[-3:]) < 0.8 * sum(course[:3])
    after = training._model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


def test_the_course_is_written_down(straight):
    training, folder = straight
    entries = journal(folder)
    assert [(entry["kind"], entry["step"]) for entry in entries] == [
        ("epoch", 0), *(("step", step) for step in (1, 2, 3)), ("epoch", 3), *(("step", step) for step in (4, 5, 6)),
        ("epoch", 6), *(("step", step) for step in (7, 8, 9)), ("epoch", 9),
    ]  # fmt: skip
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert all(0 < entry["visual_weight"] < 1 and entry["audio_loss"] > 0 for entry in steps)
    assert training.progress.finished == "all 3 epochs done"


def test_every_clip_is_used_once_in_every_epoch_in_another_order(straight):
    training, _ = straight
    given = training._source.given
    epochs = [[name for epoch, name in given if epoch == number] for number in range(3)]
    assert [sorted(names) for names in epochs] == [sorted(path.stem for path in clips())] * 3
    assert len(set(map(tuple, epochs))) == 3


@pytest.mark.parametrize("steps", [1, 3, 5, 9])
def test_asked_to_stop_it_saves_and_goes_on_to_the_bit_with_the_same_clips(tmp_path, straight, steps):
    training, folder = straight
    broken = make_pretraining(tmp_path, options={"stopping": StopAfter(steps)})
    assert broken.run() is False
    assert broken.progress.step == steps
    again = resumed(tmp_path)
    assert again.progress == broken.progress
    assert again.run() is True
    assert same(tensors(training), tensors(again))
    assert again.progress == training.progress
    assert journal(tmp_path) == journal(folder)
    assert broken._source.given + again._source.given == training._source.given


@pytest.mark.parametrize("steps", [0, 2, 4, 8])
def test_broken_off_at_any_step_it_goes_on_to_the_bit(tmp_path, straight, steps, monkeypatch):
    training, folder = straight
    if steps % 4 == 0:  # with checkpoints inside epochs, and without
        monkeypatch.setattr(pretrain, "SAVE_SECONDS", -1.0)
    broken = make_pretraining(tmp_path)
    step, left = broken._step, steps

    def break_off(batch):
        nonlocal left
        if left == 0:
            raise OSError("the disk is full")
        left -= 1
        step(batch)

    broken._step = break_off
    with pytest.raises(OSError, match="full"):
        broken.run()
    again = resumed(tmp_path)
    assert again.progress.step == (steps if steps % 4 == 0 else 3 * (steps // 3))
    again.run()
    assert same(tensors(training), tensors(again))
    assert journal(tmp_path) == journal(folder)


def test_killed_right_behind_its_first_checkpoint_it_still_tells_how_it_began(tmp_path, straight):
    _, folder = straight
    broken = make_pretraining(tmp_path)
    save = broken._save

    def killed(**given):
        save(**given)
        raise SystemExit

    broken._save = killed
    with pytest.raises(SystemExit):
        broken.run()
    assert journal(tmp_path) == journal(folder)[:1]
    assert resumed(tmp_path).progress.step == 0
    assert journal(tmp_path) == journal(folder)[:1]


def test_killed_before_its_first_checkpoint_it_begins_anew(tmp_path, straight):
    _, folder = straight
    broken = make_pretraining(tmp_path)
    broken._journal.write(kind="epoch", step=0, epoch=0)
    (tmp_path / "metrics.jsonl").open("a").write('{"kind": "ste')
    make_pretraining(tmp_path, options={"stopping": StopAfter(1)}).run()
    assert journal(tmp_path) == journal(folder)[:2]


def test_killing_it_leaves_a_checkpoint_that_it_goes_on_from_to_the_bit(tmp_path, straight):
    training, folder = straight
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; import avfewshot.training.pretrain as pretrain; pretrain.SAVE_SECONDS = -1.0\n"
        "from pretrain_support import make_pretraining\n"
        "make_pretraining(Path(sys.argv[2])).run()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)], env=dict(os.environ)
    )
    store = CheckpointStore(tmp_path / "checkpoints")
    try:
        deadline = time.monotonic() + 120
        while len(store.steps()) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode in (0, -signal.SIGKILL)
    again = resumed(tmp_path)
    again.run()
    assert same(tensors(training), tensors(again))
    assert journal(tmp_path) == journal(folder)


@pytest.mark.parametrize("objective", ["contrastive", "classes"])
def test_micro_batches_change_nothing(tmp_path, objective):
    settings = {"epochs": 1, "objective": objective, "pool": "event"}
    whole = make_pretraining(tmp_path / "whole", **settings)
    cut = make_pretraining(tmp_path / "cut", micro_batch=1, **settings)
    whole.run()
    cut.run()
    close(tensors(whole), tensors(cut))
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_accumulated_batches_are_one_contrastive_batch(tmp_path):
    whole = make_pretraining(tmp_path / "whole", epochs=1, batch_size=4)
    parts = make_pretraining(tmp_path / "parts", epochs=1, batch_size=2, accumulation=2)
    assert (whole.micro_batch, parts.micro_batch) == (4, 2)
    whole.run()
    parts.run()
    close(tensors(whole), tensors(parts))


def test_clips_that_cannot_be_read_are_left_out_and_told(tmp_path):
    watcher = Watcher()
    paths = [*clips(6), Path("1-80-broken.mp4")]
    training = make_pretraining(tmp_path, paths=paths, epochs=1, options={"watcher": watcher})
    batches = []
    step = training._step
    training._step = lambda batch: (batches.append(len(batch)), step(batch))
    assert training.run()
    [failure] = watcher.failures
    assert (failure.id, failure.path, failure.error) == ("1-80-broken", str(paths[-1]), "it is broken.")
    assert sum(batches) == 6
    assert training.progress.step == 2


def test_skipped_clips_are_left_out(tmp_path):
    training = make_pretraining(tmp_path, epochs=1, options={"skip": lambda name: name.startswith("1")})
    seen = []
    step = training._step
    training._step = lambda batch: (seen.extend(clip.labels.tolist() for clip in batch), step(batch))
    training.run()
    assert len(seen) == 7
    assert not any(labels[1] for labels in seen)


def test_a_batch_of_which_nothing_is_left_changes_nothing(tmp_path):
    training = make_pretraining(tmp_path, epochs=1, options={"skip": lambda name: True})
    before = tensors(training)
    before = {name: tensor.clone() for name, tensor in before.items()}
    training.run()
    assert same(tensors(training), before)
    assert losses(tmp_path) == [0.0, 0.0, 0.0]


def test_clips_of_unequal_length_and_without_sound_or_picture_train(tmp_path):
    names = ["0-1-2", "1-1-5", "2-1-3-mute", "0-2-3-blind", "1-2-9"]
    paths = [Path(f"{name}.mp4") for name in names]
    whole = make_pretraining(tmp_path / "whole", paths=paths, batch_size=5, epochs=2)
    cut = make_pretraining(tmp_path / "cut", paths=paths, batch_size=5, epochs=2, micro_batch=1)
    whole.run()
    cut.run()
    assert min(losses(tmp_path / "whole")) > 0
    close(tensors(whole), tensors(cut))


def test_clips_without_any_sound_have_no_loss_by_hearing(tmp_path):
    paths = [Path(f"{label}-{number}-mute.mp4") for number in range(2) for label in range(3)]
    make_pretraining(tmp_path, paths=paths, batch_size=6, epochs=1).run()
    [step] = [entry for entry in journal(tmp_path) if entry["kind"] == "step"]
    assert (step["audio_loss"], step["visual_weight"]) == (0, 1)
    assert step["visual_loss"] > 0


def test_resuming_on_another_number_of_ranks_is_refused(tmp_path):
    training = make_pretraining(tmp_path, ranks=2, options={"stopping": StopAfter(1)})
    training.run()
    found = CheckpointStore(tmp_path / "checkpoints").load_last()
    with pytest.raises(AvfsError, match="begun on 2 ranks and cannot go on with 1") as caught:
        make_pretraining(tmp_path).resume(found)
    assert "Resume on 2 ranks" in caught.value.hint


def test_the_watcher_is_told_where_an_epoch_goes_on(tmp_path):
    first, second = Watcher(), Watcher()
    make_pretraining(tmp_path, epochs=2, options={"watcher": first, "stopping": StopAfter(2)}).run()
    resumed(tmp_path, epochs=2, options={"watcher": second}).run()
    assert (first.epochs, second.epochs) == ([(1, 3, 0)], [(1, 3, 2), (2, 3, 0)])
    assert first.losses + second.losses == losses(tmp_path)
    assert [epoch for epoch, _, _ in second.verdicts] == [1, 2]
    assert second.paces[-1].left == 0
    assert all(pace.clips > 0 and 0 <= pace.waiting <= 1 and pace.memory is None for pace in second.paces)


def test_the_untrained_model_is_the_best_when_training_only_harms(tmp_path):
    training = make_pretraining(tmp_path, epochs=1, lr=0.5, clip_norm=0)
    fresh = {name: tensor.clone() for name, tensor in tensors(training).items()}
    worse = dataclasses.replace(training.progress.best, figure=training.progress.best.figure - 0.1)
    training._judge = lambda model, epoch: worse
    training.run()
    assert training.progress.best_epoch == 0
    assert same(load_adapter(tmp_path).tensors, fresh)
    assert not same(tensors(training), fresh)


def test_it_is_judged_as_often_as_asked_and_after_the_last_epoch(tmp_path):
    watcher = Watcher()
    make_pretraining(tmp_path, paths=clips(4), epochs=3, validate_every=2, options={"watcher": watcher}).run()
    assert [epoch for epoch, _, _ in watcher.verdicts] == [2, 3]


def test_a_loss_that_is_no_number_ends_the_training_before_it_does_harm(tmp_path):
    training = make_pretraining(tmp_path, epochs=1)
    gradients = training._gradients
    before = {name: tensor.clone() for name, tensor in tensors(training).items()}
    training._gradients = lambda batch: dataclasses.replace(gradients(batch), total=torch.tensor(float("nan")))
    with pytest.raises(AvfsError, match="not a finite number"):
        training.run()
    assert same(tensors(training), before)


def test_it_shrinks_the_micro_batch_when_memory_ends_and_says_so_when_nothing_is_left(tmp_path):
    training = make_pretraining(tmp_path / "short", epochs=1)
    reference = make_pretraining(tmp_path / "reference", epochs=1)
    module, room = training._passes, 1

    def greedy(frames, audio, **masks):
        if len(audio if frames is None else frames) > room:
            raise torch.OutOfMemoryError("out of memory")
        return module(frames, audio, **masks)

    training._passes = Passes(greedy)
    training.run()
    assert training.micro_batch == 1
    reference.run()
    close(tensors(reference), tensors(training))
    room = 0
    hopeless = make_pretraining(tmp_path / "hopeless", epochs=1)
    hopeless._passes = Passes(greedy)
    with pytest.raises(AvfsError, match="not enough memory for 1 clips") as caught:
        hopeless.run()
    assert "--micro-batch" in caught.value.hint


def test_a_judge_looks_at_the_first_clips_that_can_be_read():
    config = TrainingConfig(task="vggsound_cls", blend=1.0)
    judge = stream_judge(MemorySource([Path("0-1-broken.mp4"), *clips(9)]), config, limit=10)
    assert judge.num_clips == 9
    assert stream_judge(MemorySource(clips(9)), config, limit=4).num_clips == 4
    assert 0 <= judge.start().figure <= 1


def test_a_judge_whose_clips_vanish_says_so(tmp_path):
    training = make_pretraining(tmp_path, epochs=1)
    training._judge._source.paths[2] = Path("2-90-broken.mp4")
    with pytest.raises(AvfsError, match="cannot be read any more") as caught:
        training.run()
    assert "--resume" in caught.value.hint
