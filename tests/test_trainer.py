"""The training loop of few-shot and pretraining: learning, resuming to the bit, stopping, dying, clips that fail."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_support import (
    Diary,
    MemorySource,
    StopAfter,
    assert_close,
    backbone,
    clips,
    log,
    losses,
    make_trainer,
    names,
    resumed,
    same,
    tensors,
    validator,
)

from avfewshot.config import TrainingConfig
from avfewshot.errors import AvfsError
from avfewshot.models.checkpoint import load_adapter
from avfewshot.training import checkpoints
from avfewshot.training import trainer as trainer_module
from avfewshot.training.cuda_graphs import EagerRunner
from avfewshot.training.data import window_start
from avfewshot.training.metrics_log import MetricsLogger
from avfewshot.training.protocol import TrainTask
from avfewshot.training.tasks import FewShotTask, validation_interval

KINDS = ["fewshot", "pretrain"]
MIXED = [Path(f"{name}.mp4") for name in ("0-1-2", "1-1-5", "2-1-3-mute", "0-2-3-blind", "1-2-9")]


@pytest.fixture(scope="module", params=KINDS)
def straight(request, tmp_path_factory):
    """An uninterrupted training: 3 epochs of 3 steps; a pretraining's last step of each epoch has two clips."""
    folder = tmp_path_factory.mktemp(request.param)
    trainer = make_trainer(folder, kind=request.param)
    trainer.fit()
    return request.param, trainer, folder


def ends_alike(straight, again, folder):
    _, trainer, expected = straight
    assert same(tensors(trainer), tensors(again))
    assert again.progress == trainer.progress
    assert log(folder) == log(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["contrastive", "classes"])
def test_training_lowers_the_loss_and_changes_only_what_is_trainable(tmp_path, kind, objective):
    trainer = make_trainer(
        tmp_path, kind=kind, paths=clips(6), batch_size=6, epochs=12, validate_every=12, lr=1e-2, objective=objective
    )
    frozen = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items() if "tower" in name}
    trainer.fit()
    course = losses(tmp_path)
    assert sum(course[-3:]) < 0.8 * sum(course[:3])
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


def test_the_course_is_written_down_and_every_clip_is_used_once_in_every_epoch_in_another_order(straight):
    _, trainer, folder = straight
    entries = log(folder)
    expected = [("epoch", 0)]
    for epoch in (1, 2, 3):
        expected += [*(("step", step) for step in range(3 * epoch - 2, 3 * epoch + 1)), ("epoch", 3 * epoch)]
    assert [(entry["kind"], entry["step"]) for entry in entries] == expected
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert all(0 < entry["visual_weight"] < 1 and entry["audio_loss"] > 0 for entry in steps)
    assert trainer.progress.finished == "all 3 epochs done"
    source = trainer.task.source
    epochs = [[name for epoch, name in source.given if epoch == number] for number in range(3)]
    assert [sorted(names) for names in epochs] == [sorted(path.stem for path in source.paths)] * 3
    assert len(set(map(tuple, epochs))) == 3


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_asked_to_stop_it_saves_and_goes_on_to_the_bit_with_the_same_clips(tmp_path, straight, steps):
    kind, trainer, _ = straight
    broken = make_trainer(tmp_path, kind=kind, stopping=StopAfter(steps))
    assert not broken.fit().finished
    assert broken.progress.step == steps
    again = resumed(tmp_path, kind=kind)
    assert again.progress == broken.progress
    again.fit()
    ends_alike(straight, again, tmp_path)
    assert broken.task.source.given + again.task.source.given == trainer.task.source.given


@pytest.mark.parametrize("steps", [0, 2, 4, 8])
def test_broken_off_at_any_step_it_goes_on_to_the_bit(tmp_path, straight, steps, monkeypatch):
    kind, *_ = straight
    if steps % 4 == 0:  # with checkpoints inside epochs, and without
        monkeypatch.setattr(trainer_module, "SAVE_SECONDS", -1.0)
    broken = make_trainer(tmp_path, kind=kind)
    broken.task.save_every_epoch = True
    sample, left = broken.task.sample, broken.step_size * steps

    def break_off(item, epoch):
        nonlocal left
        if left == 0:
            raise OSError("the disk is full")
        left -= 1
        return sample(item, epoch)

    left -= 2 * (steps // 3) if kind == "pretrain" else 0  # the last steps of epochs have two clips of four
    broken.task.sample = break_off
    with pytest.raises(OSError, match="full"):
        broken.fit()
    again = resumed(tmp_path, kind=kind)
    assert again.progress.step == (steps if steps % 4 == 0 else 3 * (steps // 3))
    again.fit()
    ends_alike(straight, again, tmp_path)


@pytest.mark.parametrize("torn", [False, True])
def test_killed_around_its_first_checkpoint_it_still_tells_how_it_began(tmp_path, straight, torn):
    kind, _, folder = straight
    broken = make_trainer(tmp_path, kind=kind)
    save = broken.checkpoints.save

    def killed(*given, **options):
        if not torn:
            save(*given, **options)
        raise SystemExit

    broken.checkpoints.save = killed
    with pytest.raises(SystemExit):
        broken.fit()
    assert log(tmp_path) == log(folder)[:1]
    if torn:  # before the checkpoint: it begins anew
        (tmp_path / "metrics.jsonl").open("a").write('{"kind": "ste')
        make_trainer(tmp_path, kind=kind, stopping=StopAfter(1)).fit()
        assert log(tmp_path) == log(folder)[:2]
    else:
        assert resumed(tmp_path, kind=kind).progress.step == 0
        assert log(tmp_path) == log(folder)[:1]


def test_a_journal_that_was_damaged_keeps_its_sound_lines(tmp_path):
    sound = {"kind": "step", "step": 1, "loss": 0.5}
    odd = [
        b"\xff\xfe",
        b"{}",
        b"[1]",
        b'{"kind": "step", "step": "1"}',
        b'{"step": 1}',
        b"[" * 100_000,
        b'{"kind": "ste',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*odd[:3], json.dumps(sound).encode(), *odd[3:]]))
    journal = MetricsLogger(tmp_path / "metrics.jsonl")
    assert list(journal.entries()) == [sound]
    journal.rewind({"step": 1})
    assert journal.path.read_text() == json.dumps(sound) + "\n"


@pytest.mark.parametrize("straight", ["pretrain"], indirect=True)
def test_killing_it_leaves_a_checkpoint_that_it_goes_on_from_to_the_bit(tmp_path, straight):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; import avfewshot.training.trainer as trainer; trainer.SAVE_SECONDS = -1.0\n"
        "from training_support import make_trainer\n"
        "make_trainer(Path(sys.argv[2]), kind='pretrain').fit()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)])
    store = make_trainer(tmp_path, kind="pretrain").checkpoints
    try:
        deadline = time.monotonic() + 120
        while len(store.steps()) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode in (0, -signal.SIGKILL)
    again = resumed(tmp_path, kind="pretrain")
    again.fit()
    ends_alike(straight, again, tmp_path)


def test_accumulation_resumes_between_its_steps(tmp_path):
    settings = {"accumulation": 2, "batch_size": 1}
    whole = make_trainer(tmp_path / "straight", **settings)
    whole.fit()
    make_trainer(tmp_path / "broken", stopping=StopAfter(4), **settings).fit()
    again = resumed(tmp_path / "broken", **settings)
    assert (again.progress.epoch, again.progress.batch) == (1, 1)
    again.fit()
    assert same(tensors(whole), tensors(again))


def test_a_training_that_is_done_removes_what_a_killed_one_had_not(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit()
    folder = trainer.checkpoints.folder
    kept = sorted(path.name for path in folder.iterdir())
    shutil.copytree(trainer.checkpoints.steps()[-1], folder / "step-00000001")  # killed before it was removed
    (folder / ".part-d9k1a4f1" / "step-00000002").mkdir(parents=True)  # or while it was
    again = make_trainer(tmp_path)
    again.fit(resume=again.checkpoints.load_last(backbone()))
    assert sorted(path.name for path in folder.iterdir()) == kept


def test_from_an_older_checkpoint_it_goes_on_to_the_bit_and_what_does_not_is_said(tmp_path, straight, monkeypatch):
    kind, *_ = straight
    make_trainer(tmp_path, kind=kind, stopping=StopAfter(4)).fit()
    newest = make_trainer(tmp_path, kind=kind).checkpoints.steps()[-1]
    (newest / "state.pt").write_bytes(b"damaged")
    diary = Diary()
    trainer = make_trainer(tmp_path, kind=kind, callbacks=[diary])
    trainer.fit(resume=trainer.checkpoints.load_last(backbone()))
    [warning] = diary.warnings
    assert warning.startswith("An older checkpoint is gone on from: ")
    assert newest.name in warning
    ends_alike(straight, trainer, tmp_path)
    monkeypatch.setattr(checkpoints, "set_rng_state", lambda state: ["another device"])
    trainer.fit(resume=trainer.checkpoints.load_last(backbone()))
    assert diary.warnings[1:] == ["This does not resume bit for bit: another device"]


def test_resuming_on_another_number_of_ranks_is_refused(tmp_path):
    make_trainer(tmp_path, kind="pretrain", ranks=2, stopping=StopAfter(1)).fit()
    trainer = make_trainer(tmp_path, kind="pretrain")
    with pytest.raises(AvfsError, match=r"begun on 2 ranks and cannot go on with 1.*Resume on 2 ranks"):
        trainer.fit(resume=trainer.checkpoints.load_last())


def test_callbacks_are_told_where_an_epoch_goes_on(tmp_path, straight):
    kind, *_ = straight
    first, second = Diary(), Diary()
    make_trainer(tmp_path, kind=kind, epochs=2, callbacks=[first], stopping=StopAfter(2)).fit()
    trainer = make_trainer(tmp_path, kind=kind, epochs=2, callbacks=[second])
    trainer.fit(resume=trainer.checkpoints.load_last())
    assert (first.epochs, second.epochs) == ([(1, 3, 0)], [(1, 3, 2), (2, 3, 0)])
    assert first.losses + second.losses == losses(tmp_path)
    assert [epoch for epoch, _, _ in second.metrics] == [1, 2]
    assert second.paces[-1].left == 0
    assert all(pace.clips > 0 and 0 <= pace.waiting <= 1 and pace.memory is None for pace in second.paces)
    assert (first.warnings, second.warnings) == ([], [])


def test_how_far_the_gates_have_opened_is_written_down(tmp_path):
    trainer = make_trainer(tmp_path, epochs=2, validate_every=1)
    progress = trainer.fit()
    gates = [entry["gate"] for entry in log(tmp_path) if entry["kind"] == "epoch"]
    assert gates[0] == 0 < gates[1] < gates[2]
    scales = [tensor for name, tensor in tensors(trainer).items() if name.endswith(".scale")]
    assert gates[2] == pytest.approx(torch.cat(scales).abs().mean().item())
    assert progress.gate == gates[progress.best_epoch]


@pytest.mark.parametrize("objective", ["classes", "contrastive"])
def test_micro_batches_and_accumulation_change_nothing_in_a_pretraining(tmp_path, objective):
    """In a few-shot training: see test_training_gradients.py. Accumulated batches are one contrastive batch."""
    common = {"kind": "pretrain", "objective": objective, "pool": "event"}
    for name, paths, epochs, sizes in (
        ("micro", MIXED, 2, ({"batch_size": 5}, {"batch_size": 5, "micro_batch": 1})),
        ("accumulated", clips(6), 1, ({"batch_size": 6}, {"batch_size": 2, "accumulation": 3})),
    ):
        trained = []
        for number, size in enumerate(sizes):
            trainer = make_trainer(tmp_path / f"{name}-{number}", paths=paths, epochs=epochs, **common, **size)
            trainer.fit()
            trained.append(tensors(trainer))
        assert min(losses(tmp_path / f"{name}-0")) > 0
        assert losses(tmp_path / f"{name}-1") == pytest.approx(losses(tmp_path / f"{name}-0"), abs=1e-5)
        assert_close(*trained)


class Greedy(EagerRunner):
    """Has memory for so many clips at once."""

    def __init__(self, runner, room):
        super().__init__(runner)
        self.room = room

    def __call__(self, frames, audio, **masks):
        if len(audio if frames is None else frames) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().__call__(frames, audio, **masks)


@pytest.mark.parametrize("kind", KINDS)
def test_it_shrinks_the_micro_batch_when_memory_ends_and_says_so_when_nothing_is_left(tmp_path, kind, caplog):
    reference = make_trainer(tmp_path / "reference", kind=kind, batch_size=4, epochs=1)
    reference.fit()
    trainer = make_trainer(tmp_path / "short", kind=kind, batch_size=4, epochs=1)
    trainer.runner = Greedy(trainer.runner, room=1)
    trainer.fit()
    assert trainer.micro_batch == 1
    assert "ran out of memory" in caplog.text
    assert_close(tensors(reference), tensors(trainer))
    hopeless = make_trainer(tmp_path / "hopeless", kind=kind)
    hopeless.runner = Greedy(hopeless.runner, room=0)
    with pytest.raises(AvfsError, match="not enough memory for a training step with 1 clip at once") as caught:
        hopeless.fit()
    assert all(option in caught.value.hint for option in ("--micro-batch", "--checkpointing"))


def test_it_stops_when_validation_gets_no_better(tmp_path):
    trainer = make_trainer(tmp_path, epochs=20, patience=2, validate_every=1)
    trainer.task.validate = lambda model, epoch: trainer.progress.best
    progress = trainer.fit()
    assert (progress.epoch, progress.best_epoch, progress.finished) == (2, 0, "no better for 2 epochs")


def test_the_untrained_model_is_the_best_when_training_only_harms(tmp_path):
    trainer = make_trainer(tmp_path, lr=0.5, clip_norm=0, epochs=1)
    fresh, baseline = tensors(trainer), trainer.task.baseline(trainer.model.eval())
    worse = dataclasses.replace(baseline, figure=baseline.figure - 0.1)
    trainer.task.validate = lambda model, epoch: worse
    assert trainer.fit().best_epoch == 0
    assert same(load_adapter(tmp_path).tensors, fresh)
    assert not same(tensors(trainer), fresh)


@pytest.mark.parametrize("better", [True, False])
def test_what_a_training_begins_with_is_the_baseline_where_it_is_better_than_the_towers(tmp_path, better):
    trainer = make_trainer(tmp_path, options={"pretrained": True}, epochs=1)
    zero_shot = trainer.task.baseline(trainer.model.eval())
    begun = dataclasses.replace(zero_shot, loss=zero_shot.loss + (-0.1 if better else 0.1), blend=0.25)
    trainer.task.validator = type("Fixed", (), {"baseline": lambda _: zero_shot, "__call__": lambda *_: begun})()
    assert trainer.fit().best == (begun if better else zero_shot)


def test_clips_that_vanish_from_a_support_or_a_validation_are_named(tmp_path):
    with pytest.raises(AvfsError, match=r"1-3-broken\.mp4"):
        make_trainer(tmp_path / "support", paths=[*names(), Path("1-3-broken.mp4")]).fit()
    source, trainer = MemorySource(clips(6)), make_trainer(tmp_path / "validation", epochs=1)
    trainer.task.validator = validator(trainer.config, source)
    source.paths[2] = Path("2-90-broken.mp4")
    with pytest.raises(AvfsError, match=r"cannot be read any more.*--resume"):
        trainer.fit()


def test_clips_of_a_list_that_cannot_be_read_or_are_skipped_are_left_out(tmp_path):
    failures, seen, paths = [], [], [*clips(9), Path("1-80-broken.mp4")]
    options = {"on_failure": failures.append, "skip": lambda name: name.startswith("2")}
    trainer = make_trainer(tmp_path, kind="pretrain", paths=paths, epochs=1, options=options)
    accumulate = trainer.accumulate
    trainer.accumulate = lambda samples: (seen.extend(clip.labels.tolist() for clip in samples), accumulate(samples))[1]
    assert trainer.fit().step == 3
    [failure] = failures
    assert (failure.id, failure.path, failure.error) == ("1-80-broken", str(paths[-1]), "it is broken.")
    assert len(seen) == 6
    assert not any(labels[2] for labels in seen)


def test_a_batch_of_which_nothing_is_left_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, kind="pretrain", epochs=1, options={"skip": lambda name: True})
    before = tensors(trainer)
    trainer.fit()
    assert same(tensors(trainer), before)
    assert losses(tmp_path) == [0.0, 0.0, 0.0]


def test_clips_without_any_sound_have_no_loss_by_hearing(tmp_path):
    paths = [Path(f"{label}-{number}-mute.mp4") for number in range(2) for label in range(3)]
    make_trainer(tmp_path, kind="pretrain", paths=paths, batch_size=6, epochs=1).fit()
    [step] = [entry for entry in log(tmp_path) if entry["kind"] == "step"]
    assert (step["audio_loss"], step["visual_weight"]) == (0, 1)
    assert step["visual_loss"] > 0


def test_a_loss_that_is_no_number_ends_the_training_before_it_does_harm(tmp_path):
    trainer = make_trainer(tmp_path, epochs=1)
    accumulate, before = trainer.accumulate, tensors(trainer)
    trainer.accumulate = lambda samples: {**accumulate(samples), "loss": float("nan")}
    with pytest.raises(AvfsError, match="not a finite number"):
        trainer.fit()
    assert same(tensors(trainer), before)


def test_a_validator_takes_the_first_clips_that_can_be_read():
    config = TrainingConfig(task="vggsound_cls", blend=1.0)
    found = validator(config, MemorySource([Path("0-1-broken.mp4"), *clips(9)]), limit=10)
    assert len(found.zero_shot) == len(found.targets.labels) == 9
    assert len(validator(config, MemorySource(clips(9)), limit=4).zero_shot) == 4
    assert 0 <= found.baseline().figure <= 1


def test_validations_take_no_more_than_training_and_are_two_at_least():
    for every, epochs, count, validation, expected in (
        ("auto", 10, 25, 100, 4),
        ("auto", 20, 25, 40, 2),
        ("auto", 10, 400, 100, 1),
        ("auto", 1, 25, 900, 1),
        (7, 10, 5, 9, 7),
    ):
        config = TrainingConfig(validate_every=every, epochs=epochs)
        assert validation_interval(config, count, validation) == expected


def test_it_is_validated_as_often_as_asked_and_after_the_last_epoch_with_the_share_that_is_set(tmp_path):
    make_trainer(tmp_path, paths=clips(4), epochs=5, validate_every=2, blend=0.75).fit()
    entries = [(entry["epoch"], entry["blend"]) for entry in log(tmp_path) if entry["kind"] == "epoch"]
    assert entries == [(0, 0.0), (2, 0.75), (4, 0.75), (5, 0.75)]


def test_windows_of_long_clips_lie_inside_and_move_from_epoch_to_epoch():
    starts = [window_start(30, 10, seed=1, epoch=epoch, key="a") for epoch in range(20)]
    assert all(0 <= start <= 20 for start in starts)
    assert len(set(starts)) > 5
    assert window_start(10, 10, seed=1, epoch=3, key="a") == 0


def test_schedules(tmp_path, monkeypatch):
    lr_lambda = TrainTask().lr_lambda
    cosine = lr_lambda(TrainingConfig(schedule="cosine", epochs=10, warmup=0.2), 10)
    assert [cosine(n) for n in (0, 20, 60, 100)] == pytest.approx([1 / 21, 1, 0.5, 0], abs=1e-12)
    step = lr_lambda(TrainingConfig(schedule="step", epochs=10, step_epochs=2, step_factor=0.5), 3)
    assert [step(n) for n in (0, 5, 6, 12)] == [1, 1, 0.5, 0.25]
    assert lr_lambda(TrainingConfig(schedule="constant", epochs=5), 3)(50) == 1
    monkeypatch.setattr(FewShotTask, "lr_lambda", lambda self, config, steps: lambda done: 0.5**done)
    make_trainer(tmp_path, epochs=1, lr=1e-3).fit()  # a task may have a schedule of its own
    rates = [entry["lr"] for entry in log(tmp_path) if entry["kind"] == "step"]
    assert rates == pytest.approx([1e-3 * 0.5**done for done in range(3)])
