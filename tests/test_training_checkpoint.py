from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import signal
import sys
import time
import traceback
import zipfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from standin_towers import StandInBackbone, make_backbone, make_inputs
from torch import Tensor

from avfewshot.config import TrainingConfig
from avfewshot.errors import DataError, UsageError, WeightsError
from avfewshot.io import sha256_file
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model, load_model
from avfewshot.models.checkpoint import AdapterConfig, find_checkpoint, load_adapter, write_adapter
from avfewshot.models.losses import combined_loss
from avfewshot.training.checkpoints import CheckpointManager, TrainingState, rng_state, set_rng_state

TRAINING = TrainingConfig(task="ave_cls", hidden=4, checkpointing=False)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


@dataclass
class NamedBackbone(StandInBackbone):
    name: str = "stand-in"
    identity: dict[str, str] = field(default_factory=lambda: {"clip": "ab" * 32, "clap": "random:0"})


def named_backbone(**changes) -> NamedBackbone:
    plain = make_backbone([(5, 12)] * 2, [(16, 4), (4, 8)])
    return NamedBackbone(plain.visual, plain.audio, **changes)


def adapter_config(**changes) -> AdapterConfig:
    values = {
        "task": "ave_cls",
        "labels": ("Cat", "Frying (food), loud"),
        "wordings": ("a cat", "frying"),
        "templates": "default",
        "backbone": "stand-in",
        "identity": named_backbone().identity,
        "training": TRAINING.to_dict(),
        "seed": 3,
        "support": {"fingerprint": "12ab", "ids": ["-x"]},
        "metrics": {"top1": 0.1 + 0.2},
    }
    return AdapterConfig(**{**values, **changes})


class Order:
    """A shuffled order of clips that is walked batch by batch, and remembers where it stands."""

    def __init__(self, clips: int) -> None:
        self.clips, self.left = clips, []

    def draw(self, count: int) -> list[int]:
        if not self.left:
            self.left = torch.randperm(self.clips).tolist()
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def state_dict(self) -> dict:
        return {"left": list(self.left)}

    def load_state_dict(self, state: dict) -> None:
        self.left = list(state["left"])


class Run:
    """A small real training: DG-SCT adapters and projectors on stand-in towers, with noise from every generator."""

    def __init__(self, optimizer: type[torch.optim.Optimizer], schedule: str) -> None:
        self.model: AudioVisualModel = build_model(named_backbone(), TRAINING, seed=1)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # Two groups, the order and the settings of which must survive.
        self.optimizer = optimizer([{"params": trained[:5], "lr": 1e-2}, {"params": trained[5:]}], lr=3e-3)
        scheduler = torch.optim.lr_scheduler
        self.scheduler = {
            "step": lambda: scheduler.MultiStepLR(self.optimizer, [2, 4]),
            "warmup": lambda: scheduler.SequentialLR(
                self.optimizer,
                [
                    scheduler.LinearLR(self.optimizer, 0.1, total_iters=2),
                    scheduler.CosineAnnealingLR(self.optimizer, 4),
                ],
                [2],
            ),
        }[schedule]()
        self.order = Order(5)
        self.frames, self.audio = make_inputs(5, 2)
        self.texts = torch.nn.functional.normalize(
            torch.randn(3, 13, generator=torch.Generator().manual_seed(2)), dim=-1
        )

    @property
    def parts(self) -> dict:
        return {"optimizer": self.optimizer, "scheduler": self.scheduler, "order": self.order}

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            rows = self.order.draw(2)  # five clips in twos: the third step is in the middle of an epoch
            noise = 0.1 * torch.randn(1) + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002
            visual, audio = self.model(self.frames[rows], self.audio[rows] + noise)
            texts = self.model.project_texts(self.texts[:, :6], self.texts[:, 6:])
            logits = self.model.logits(visual.mean(1), audio.mean(1), *texts)
            positives = torch.eye(3, dtype=torch.bool)[torch.tensor(rows) % 3]
            loss = combined_loss(*logits, positives, objective="classes").total
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def capture(self, step: int) -> TrainingState:
        progress = {"step": step, "epoch": 1, "best": 0.1 + 0.2, "figures": [float("-inf")]}
        return TrainingState.capture(self.model, self.parts, progress=progress)

    def everything(self) -> dict[str, Tensor]:
        moments = {
            f"{number}/{name}": tensor
            for number, values in self.optimizer.state_dict()["state"].items()
            for name, tensor in values.items()
        }
        return {**self.model.state_dict(), **moments}


def reseed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(torch.optim.Adam, "step"), (torch.optim.AdamW, "warmup")],
)
def test_a_resumed_training_is_the_same_to_the_bit(tmp_path, optimizer, schedule):
    reseed(7)
    straight = Run(optimizer, schedule)
    losses = straight.steps(6)

    reseed(7)
    first = Run(optimizer, schedule)
    begun = first.steps(3)
    store = CheckpointManager(tmp_path)
    store.save(3, adapter_config(), first.capture(3))
    first.steps(2)  # what happens after the checkpoint must not matter

    reseed(99)
    second = Run(optimizer, schedule)
    resumed = store.load_last(named_backbone())
    assert resumed.state.restore(second.model, second.parts) == []
    assert resumed.state.progress == {"step": 3, "epoch": 1, "best": 0.1 + 0.2, "figures": [float("-inf")]}
    assert begun + second.steps(3) == losses
    expected, found = straight.everything(), second.everything()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) and expected[name].dtype == found[name].dtype for name in found)
    assert second.scheduler.get_last_lr() == straight.scheduler.get_last_lr()
    assert len(set(losses)) == 6  # it did learn, and the noise was there


def test_a_state_can_be_restored_again_and_is_not_changed_by_training():
    run = Run(torch.optim.Adam, "step")
    run.steps(1)
    state = copy.deepcopy(run.capture(1))
    outcomes = []
    for _ in range(2):
        other = Run(torch.optim.Adam, "step")
        state.restore(other.model, other.parts)
        outcomes.append((other.steps(2), other.everything()))
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(tensor, outcomes[1][1][name]) for name, tensor in outcomes[0][1].items())


def test_a_state_is_a_copy_of_the_model_and_not_the_model():
    run = Run(torch.optim.Adam, "step")
    state = run.capture(0)
    before = {name: tensor.clone() for name, tensor in state.model.items()}
    run.steps(2)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.model.items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in run.model.trainable_state().items())


def test_a_state_of_another_training_is_refused(tmp_path):
    state = Run(torch.optim.Adam, "step").capture(0)
    other = Run(torch.optim.Adam, "step")
    with pytest.raises(DataError, match=r"has a state of optimizer, order, scheduler, this one of optimizer"):
        state.restore(other.model, {"optimizer": other.optimizer})
    with pytest.raises(DataError, match="random number generators"):
        replace(state, rng={}).restore(other.model, other.parts)
    single = torch.optim.Adam(other.model.temperatures.parameters())
    with pytest.raises(DataError, match="state of the optimizer does not fit"):
        state.restore(other.model, {**other.parts, "optimizer": single})
    with pytest.raises(WeightsError, match="do not fit the model"):
        replace(state, model={}).restore(other.model, other.parts)


def test_random_numbers_of_gpus_that_are_not_here_are_told():
    run = Run(torch.optim.Adam, "step")
    state = run.capture(0)
    state.rng["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    (lost,) = state.restore(run.model, run.parts)
    assert "GPUs" in lost


def test_random_numbers_and_keys_of_all_kinds_come_back_from_disk_as_they_were(tmp_path):
    reseed(11)
    parts = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "m": torch.ones(2, dtype=torch.bfloat16)}}},
        "schedule": {"milestones": Counter({3: 2}), "betas": (0.9, 0.99), "best": float("-inf"), 1: None},
    }
    state = TrainingState({"x": torch.ones(1)}, parts, rng_state(), {"step": 1})
    drawn = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    CheckpointManager(tmp_path).save(1, adapter_config(), state)
    found = CheckpointManager(tmp_path).load_last().state
    assert found.parts["schedule"] == parts["schedule"]
    moments = found.parts["optimizer"]["state"][0]
    assert moments["step"] == 3
    assert torch.equal(moments["m"], torch.ones(2, dtype=torch.bfloat16))
    reseed(12)
    assert set_rng_state(found.rng) == []
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn  # noqa: NPY002


class Bomb:
    """A stranger's pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_state_that_would_run_code_is_damaged_and_runs_none(tmp_path):
    store = CheckpointManager(tmp_path / "run")
    store.save(1, adapter_config(), small_state(1))
    folder, trap = tmp_path / "run" / "step-00000001", tmp_path / "trap"
    torch.save({"parts": Bomb(trap), "rng": {}, "progress": {}}, folder / "state.pt")
    document = {"format": 1, "sha256": {"state.pt": sha256_file(folder / "state.pt")}}
    (folder / "state.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"step-00000001.*damaged"):
        store.load_last()
    assert not trap.exists()


def test_hostile_states_are_named_and_take_no_memory(tmp_path):
    store = CheckpointManager(tmp_path / "run")
    store.save(1, adapter_config(), small_state(1))
    folder, random = tmp_path / "run" / "step-00000001", np.random.default_rng(3)
    state, whole = folder / "state.pt", (folder / "state.pt").read_bytes()

    def refused(content: bytes | None = None) -> bool:
        if content is not None:
            state.write_bytes(content)
        (folder / "state.json").write_text(json.dumps({"format": 1, "sha256": {"state.pt": sha256_file(state)}}))
        try:
            store.load_last()
        except DataError as error:
            return "step-00000001" in str(error)
        return False

    assert not refused()
    for number in range(150):
        changed = bytearray(whole)
        for at in random.integers(0, len(whole), random.integers(1, 12)):
            changed[at] = random.integers(0, 256)
        refused(bytes(changed[: None if number % 3 else random.integers(0, len(whole))]))  # whatever: no other error
    assert all(map(refused, (b"", b"PK\x05\x06" + bytes(18), whole[:40], pickle.dumps({"parts": {}}))))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(state, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, bytes(400 << 20) if "/data/" in name else data)
    assert refused()
    huge = torch.zeros(1).expand(1 << 34)  # 64 GB by its strides, 4 bytes by its storage
    deep: list = []
    for _ in range(20_000):
        deep = [deep]
    for parts in ({"optimizer": {"state": {0: huge}}}, deep, 3, None):
        with contextlib.suppress(RecursionError):  # of who writes it
            torch.save({"parts": parts, "rng": {}, "progress": {}}, state)
            assert refused()


# Adapter checkpoints.


def test_a_trained_adapter_gives_the_same_embeddings_after_loading(tmp_path):
    run = Run(torch.optim.Adam, "step")
    run.steps(3)
    config = adapter_config()
    folder = write_adapter(tmp_path / "adapter", run.model.trainable_state(), config)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    model, found = load_model(folder, named_backbone())
    assert found == config
    assert not model.training
    for one, two in zip(model(run.frames, run.audio), run.model(run.frames, run.audio), strict=True):
        assert torch.equal(one, two)
    tensors = load_adapter(folder).tensors
    assert not any("tower" in name for name in tensors)
    assert tensors.keys() == run.model.trainable_state().keys()


def test_an_adapter_from_before_there_were_variants_has_the_compact_one(tmp_path):
    backbone = named_backbone()
    trained = build_model(backbone, TrainingConfig(variant="compact"), seed=5)
    config = adapter_config(training=TrainingConfig().to_dict())
    folder = write_adapter(tmp_path / "adapter", trained.trainable_state(), config)
    document = json.loads((folder / "config.json").read_text())
    del document["training"]["variant"]
    (folder / "config.json").write_text(json.dumps(document))

    model, found = load_model(folder, backbone)

    assert found.training["variant"] == model.adapters.settings["variant"] == "compact"
    assert all(torch.equal(model.trainable_state()[name], value) for name, value in trained.trainable_state().items())


def test_the_files_of_a_checkpoint_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        folder = write_adapter(tmp_path / "adapter", {"x": torch.ones(1)}, adapter_config())
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"adapter": 0o750, "adapter.safetensors": 0o640, "config.json": 0o640}


def test_another_backbone_is_refused_with_every_difference(tmp_path):
    folder = write_adapter(tmp_path / "adapter", {"x": torch.ones(1)}, adapter_config())
    other = named_backbone(name="large", identity={"clip": "cd" * 32, "roberta": "ef" * 32})
    with pytest.raises(WeightsError) as caught:
        load_adapter(folder, other)
    for part in ("'large'", "clip: abababababab... when trained, cdcd", "clap: random:0 when trained, absent here",
                 "roberta: absent when trained, efef", "'stand-in'"):  # fmt: skip
        assert part in str(caught.value)
    load_adapter(folder, named_backbone(name="renamed"))


def test_a_damaged_or_exchanged_checkpoint_is_refused(tmp_path):
    folder = write_adapter(tmp_path / "a", {"x": torch.ones(64)}, adapter_config())
    other = write_adapter(tmp_path / "b", {"x": torch.zeros(64)}, adapter_config())
    tensors, config = folder / "adapter.safetensors", folder / "config.json"
    good, text = tensors.read_bytes(), config.read_text()
    for content in ((other / "adapter.safetensors").read_bytes(), good[:-1] + b"\x01", good[:50], b""):
        tensors.write_bytes(content)
        with pytest.raises(WeightsError, match=r"adapter\.safetensors"):
            load_adapter(folder)
    tensors.write_bytes(good)
    changes = (('"format": 1', '"format": 2'), ('"seed": 3', '"seed": "3"'), ('"a cat"', "7"), ('"a cat",', ""))
    for content in (text[:-5], "[]", "{}", *(text.replace(*change) for change in changes)):
        config.write_text(content)
        with pytest.raises(DataError, match=r"config\.json"):
            load_adapter(folder)
    config.write_text(text)
    assert torch.equal(load_adapter(folder).tensors["x"], torch.ones(64))


def test_all_missing_and_wrong_fields_are_listed():
    with pytest.raises(DataError, match=r"labels is missing;.*seed must be a whole number"):
        AdapterConfig.from_dict({"task": "ave", "seed": True}, where="config.json")


def test_digests_that_are_no_texts_are_refused(tmp_path):
    folder = write_adapter(tmp_path / "a", {"x": torch.ones(64)}, adapter_config())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"identity": {"visual": ["a"]}}))
    with pytest.raises(DataError, match="identity must hold texts"):
        load_adapter(folder)


def test_a_run_stands_for_its_best_checkpoint(tmp_path):
    store = CheckpointManager(tmp_path / "run" / "checkpoints")
    state = Run(torch.optim.Adam, "step").capture(0)
    store.save(1, adapter_config(), state)
    assert find_checkpoint(tmp_path / "run").name == "step-00000001"
    store.save(2, adapter_config(), state, best=True)
    store.save(10, adapter_config(), state)
    assert find_checkpoint(tmp_path / "run").name == "best-00000002"
    assert find_checkpoint(store.folder / "step-00000010").name == "step-00000010"
    for path, fault, what in (
        (tmp_path, DataError, "holds no adapter"),
        (tmp_path / "none", UsageError, "no such folder"),
    ):
        with pytest.raises(fault, match=what):
            find_checkpoint(path)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write_adapter(tmp_path / "adapter", {"x": torch.ones(1)}, adapter_config())


# The checkpoints of a run.


def small_state(step: int) -> TrainingState:
    return TrainingState(
        {"x": torch.full((100,), float(step))}, {"optimizer": {"step": torch.tensor(step)}}, {}, {"step": step}
    )


def test_the_last_two_and_the_best_are_kept(tmp_path):
    store = CheckpointManager(tmp_path)
    assert store.load_last() is None
    with pytest.raises(DataError, match="no best checkpoint"):
        store.load_best()
    for step in (8, 9, 10, 11):
        store.save(step, adapter_config(), small_state(step), best=step in (8, 9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000009", "step-00000010", "step-00000011"]
    assert store.load_last().step == 11
    assert store.load_best().tensors["x"][0] == 9


def test_a_number_that_comes_again_counts_as_the_later_one(tmp_path):
    store = CheckpointManager(tmp_path)
    for value in (1, 2, 3):
        store.save(5, adapter_config(), small_state(value), best=True)
    resumed = store.load_last()
    assert (resumed.step, resumed.state.progress["step"]) == (5, 3)
    assert store.load_best().tensors["x"][0] == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["adapter.safetensors", "config.json", "state.pt", "state.json"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, name):
    store = CheckpointManager(tmp_path)
    for step in (1, 2):
        store.save(step, adapter_config(), small_state(step))
    damaged = tmp_path / "step-00000002" / name
    content = bytearray(damaged.read_bytes())
    at = content.index(b'"sha256"') + 20 if name == "state.json" else len(content) - 1
    content[at] ^= 1
    damaged.write_bytes(content)
    resumed = store.load_last()
    assert (resumed.step, resumed.state.model["x"][0]) == (1, 1)
    assert "step-00000002" in resumed.skipped[0]
    (tmp_path / "step-00000001" / name).unlink()
    with pytest.raises((DataError, WeightsError), match="step-00000002"):
        store.load_last()


def test_a_training_does_not_go_on_with_another_backbone(tmp_path):
    store = CheckpointManager(tmp_path)
    store.save(1, adapter_config(), small_state(1), best=True)
    other = named_backbone(identity={"clip": "random:1", "clap": "random:0"})
    for load in (store.load_last, store.load_best):
        with pytest.raises(WeightsError, match="random:1 here"):
            load(other)


def check_sound(store: CheckpointManager, least: int) -> int:
    """Every checkpoint under its own name is whole; the last one is not older than `least`, nor the best than it."""
    resumed = store.load_last()
    assert resumed.skipped == ()
    for path in store.steps():
        load_adapter(path)
    assert resumed.step == resumed.state.progress["step"] == resumed.state.parts["optimizer"]["step"]
    assert torch.equal(resumed.state.model["x"], torch.full((100,), float(resumed.step)))
    assert resumed.step >= least
    best = store.load_best()
    assert best.tensors["x"][0] in (resumed.step, resumed.step + 1)
    return resumed.step


def fork(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


@needs_fork
def test_dying_at_any_operation_on_the_file_system_leaves_a_sound_checkpoint(tmp_path):
    store = CheckpointManager(tmp_path)
    for step in (1, 2):
        store.save(step, adapter_config(), small_state(step), best=True)

    def save_and_die(step: int, operation: int) -> None:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            ours = event == "open" and str(tmp_path) in str(arguments[0])  # and not the modules that are imported
            if ours or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"):
                count += 1
                if count == operation:
                    os._exit(9)

        sys.addaudithook(hook)
        store.save(step, adapter_config(), small_state(step), best=True)
        os._exit(0)

    last, deaths = 2, 0
    for operation in range(1, 1000):
        child = fork(lambda at=operation, step=last + 1: save_and_die(step, at))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        last = check_sound(store, last)
        if status == 0:
            break
        deaths += 1
    assert deaths > 15
    store.save(last + 1, adapter_config(), small_state(last + 1))
    assert not list(tmp_path.glob(".part-*"))
    assert len(store.steps()) == 2


@needs_fork
def test_killing_a_writing_process_at_random_moments_leaves_a_sound_checkpoint(tmp_path):
    store = CheckpointManager(tmp_path)
    store.save(1, adapter_config(), small_state(1), best=True)

    def save_on(step: int, tell: int) -> None:
        while True:
            step += 1
            store.save(step, adapter_config(), small_state(step), best=True)
            os.write(tell, b".")

    rng = random.Random(0)
    last = 1
    for _ in range(8):
        listen, tell = os.pipe()
        child = fork(lambda step=last, tell=tell: save_on(step, tell))
        os.close(tell)
        assert os.read(listen, 1) == b"."
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(listen)
        last = check_sound(store, last + 1)
