"""Checkpoints: adapters and states come back as they were, or are refused; dying anywhere leaves a sound one."""

import contextlib
import copy
import io
import json
import os
import pickle
import random
import sys
import traceback
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_support import StopAfter, backbone, clips, make_trainer, read, same, tensors

from avfewshot.config import TrainingConfig
from avfewshot.errors import DataError, UsageError, WeightsError
from avfewshot.io import sha256_file
from avfewshot.models.build import build_model, load_model
from avfewshot.models.checkpoint import AdapterConfig, find_checkpoint, load_adapter, write_adapter
from avfewshot.training.checkpoints import CheckpointManager, TrainingState, rng_state, set_rng_state


def adapter_config(**changes) -> AdapterConfig:
    values = {
        "task": "ave_cls",
        "labels": ("Cat", "Frying (food), loud"),
        "wordings": ("a cat", "frying"),
        "templates": "default",
        "backbone": "stand-in",
        "identity": {"clip": "ab" * 32, "clap": "random:0"},
        "training": TrainingConfig(task="ave_cls", hidden=4, checkpointing=False).to_dict(),
        "seed": 3,
        "support": {"fingerprint": "12ab", "ids": ["-x"]},
        "metrics": {"top1": 0.1 + 0.2},
    }
    return AdapterConfig(**{**values, **changes})


def named_backbone(**changes):
    return replace(backbone(), **{"identity": adapter_config().identity, **changes})


def small_state(step: int) -> TrainingState:
    return TrainingState(
        {"x": torch.full((100,), float(step))}, {"optimizer": {"step": torch.tensor(step)}}, {}, {"step": step}
    )


def reseed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def test_a_state_is_a_copy_that_training_does_not_change(tmp_path):
    first = make_trainer(tmp_path / "first", stopping=StopAfter(2))
    first.fit()
    found = first.checkpoints.load_last()
    captured = TrainingState.capture(first.model, first.parts, progress={}).model
    assert same(captured, tensors(first))
    before = copy.deepcopy(captured)
    first.stopping = StopAfter(2)
    first.fit(resume=found)
    again = make_trainer(tmp_path / "again", stopping=StopAfter(2))
    again.fit(resume=found)
    assert same(tensors(again), tensors(first))
    assert same(captured, before)
    assert not same(captured, tensors(first))


def test_a_state_of_another_training_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, stopping=StopAfter(1))
    trainer.fit()
    model, parts, state = trainer.model, trainer.parts, trainer.checkpoints.load_last().state
    with pytest.raises(DataError, match=r"has a state of optimizer, precision, this one of optimizer"):
        state.restore(model, {"optimizer": parts["optimizer"]})
    with pytest.raises(DataError, match="random number generators"):
        replace(state, rng={}).restore(model, parts)
    single = torch.optim.Adam(model.temperatures.parameters())
    with pytest.raises(DataError, match="state of the optimizer does not fit"):
        state.restore(model, {**parts, "optimizer": single})
    with pytest.raises(WeightsError, match="do not fit the model"):
        replace(state, model={}).restore(model, parts)
    state.rng["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    (lost,) = state.restore(model, parts)
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


def test_hostile_states_are_named_run_no_code_and_take_no_memory(tmp_path):
    store, trap = CheckpointManager(tmp_path / "run"), tmp_path / "trap"
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
            archive.writestr(name, bytes(32 << 20) if "/data/" in name else data)
    assert refused()
    huge = torch.zeros(1).expand(1 << 34)  # 64 GB by its strides, 4 bytes by its storage
    deep: list = []
    for _ in range(20_000):
        deep = [deep]
    for parts in ({"optimizer": {"state": {0: huge}}}, deep, 3, None, Bomb(trap)):
        with contextlib.suppress(RecursionError):  # of who writes it
            torch.save({"parts": parts, "rng": {}, "progress": {}}, state)
            assert refused()
    assert not trap.exists()


# Adapter checkpoints.


def test_a_trained_adapter_gives_the_same_embeddings_after_loading(tmp_path):
    trainer = make_trainer(tmp_path / "run", stopping=StopAfter(3))
    trainer.fit()
    config = adapter_config(training=trainer.config.to_dict())
    folder = write_adapter(tmp_path / "adapter", tensors(trainer), config)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "run"]
    model, found = load_model(folder, named_backbone())
    assert found == config
    assert not model.training
    clip = read(clips()[0])
    inputs = clip.frames[None], clip.audio_segments[None]
    for one, two in zip(model(*inputs), trainer.model.eval()(*inputs), strict=True):
        assert torch.equal(one, two)
    assert same(load_adapter(folder).tensors, tensors(trainer))


def test_an_adapter_from_before_there_were_variants_has_the_compact_one(tmp_path):
    trained = build_model(named_backbone(), TrainingConfig(variant="compact"), seed=5)
    config = adapter_config(training=TrainingConfig().to_dict())
    del config.training["variant"]
    folder = write_adapter(tmp_path / "adapter", trained.trainable_state(), config)
    model, found = load_model(folder, named_backbone())
    assert found.training["variant"] == model.adapters.settings["variant"] == "compact"
    assert same(model.trainable_state(), trained.trainable_state())


def test_the_files_of_a_checkpoint_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        folder = write_adapter(tmp_path / "adapter", {"x": torch.ones(1)}, adapter_config())
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"adapter": 0o750, "adapter.safetensors": 0o640, "config.json": 0o640}


def test_another_backbone_is_refused_with_every_difference(tmp_path):
    store = CheckpointManager(tmp_path)
    folder = store.save(1, adapter_config(), small_state(1), best=True)
    other = named_backbone(name="large", identity={"clip": "cd" * 32, "roberta": "ef" * 32})
    for load in (lambda backbone: load_adapter(folder, backbone), store.load_last, store.load_best):
        with pytest.raises(WeightsError) as caught:
            load(other)
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
    config.write_text(json.dumps(json.loads(text) | {"identity": {"visual": ["a"]}}))
    with pytest.raises(DataError, match="identity must hold texts"):
        load_adapter(folder)
    with pytest.raises(DataError, match=r"labels is missing;.*seed must be a whole number"):
        AdapterConfig.from_dict({"task": "ave", "seed": True}, where="config.json")
    config.write_text(text)
    assert torch.equal(load_adapter(folder).tensors["x"], torch.ones(64))
    with pytest.raises(DataError, match="exists already"):  # and nothing is written over it
        write_adapter(folder, {"x": torch.ones(1)}, adapter_config())


def test_a_run_stands_for_its_best_checkpoint(tmp_path):
    store, state = CheckpointManager(tmp_path / "run" / "checkpoints"), small_state(1)
    store.save(1, adapter_config(), state)
    assert find_checkpoint(tmp_path / "run").name == "step-00000001"
    store.save(2, adapter_config(), state, best=True)
    store.save(10, adapter_config(), state)
    assert find_checkpoint(tmp_path / "run").name == "best-00000002"
    assert find_checkpoint(store.folder / "step-00000010").name == "step-00000010"
    with pytest.raises(DataError, match="holds no adapter"):
        find_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        find_checkpoint(tmp_path / "none")


# The checkpoints of a run.


def test_the_last_two_and_the_best_are_kept_and_a_number_that_comes_again_counts_as_the_later_one(tmp_path):
    store = CheckpointManager(tmp_path)
    assert store.load_last() is None
    with pytest.raises(DataError, match="no best checkpoint"):
        store.load_best()
    (tmp_path / "best-00000099").mkdir()
    with pytest.raises(DataError, match=r"best-00000099.*Remove .*--resume trains that anew"):
        store.load_best()
    (tmp_path / "best-00000099").rmdir()
    for step in (8, 9, 10, 11):
        store.save(step, adapter_config(), small_state(step), best=step in (8, 9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000009", "step-00000010", "step-00000011"]
    assert (store.load_last().step, store.load_best().tensors["x"][0]) == (11, 9)
    for value in (1, 2, 3):
        store.save(15, adapter_config(), small_state(value), best=True)
    resumed = store.load_last()
    assert (resumed.step, resumed.state.progress["step"], store.load_best().tensors["x"][0]) == (15, 3, 3)
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
    with pytest.raises(DataError, match="step-00000002") as caught:
        store.load_last()
    assert f"Remove {tmp_path}, and result.json beside it" in caught.value.hint


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
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

        try:
            sys.addaudithook(hook)
            store.save(step, adapter_config(), small_state(step), best=True)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    last, deaths = 2, 0
    for operation in range(1, 1000):
        if (child := os.fork()) == 0:
            save_and_die(last + 1, operation)
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
