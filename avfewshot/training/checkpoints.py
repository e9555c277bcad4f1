"""Checkpoints that a training resumes from bit for bit: tensors, optimizer, random numbers, and where it stands.

A run keeps the last two with everything to go on from, and the best one. ``step-<number>`` is an adapter checkpoint
with the training state beside it, in ``state.pt`` (plain values and tensors, read without running code) and its digest
in ``state.json``; ``best-<number>`` is an adapter checkpoint. A process may be killed at any moment: what is listed is
whole, and the next save tidies up.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from avfewshot.encoders.backbone import Backbone
from avfewshot.errors import DataError, WeightsError
from avfewshot.io import read_json, sha256_file
from avfewshot.models.checkpoint import (
    FORMAT,
    UNFINISHED,
    AdapterCheckpoint,
    AdapterConfig,
    load_adapter,
    numbered,
    place_of,
    publishing,
    write_adapter,
    write_adapter_files,
)

_STATE = "state.pt"
_DIGEST = "state.json"
_KEPT = 2  # checkpoints to go on from
_MISFITS = (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError)  # of a state of another form
_RESUME_HINT = "Resume with the settings that the training was begun with."


@dataclass(frozen=True)
class TrainingState:
    """A training between two optimizer steps; gradients are not part of it."""

    model: dict[str, Tensor]  # the trained tensors by name
    parts: dict[str, dict[str, Any]]  # states of optimizer, gradient scaler and the like, by name
    rng: dict[str, Any]  # states of the random number generators, from rng_state
    progress: dict[str, Any]  # where the training stands (epoch, batch, best figure, ...), in plain values

    @classmethod
    def capture(cls, model: Any, parts: Mapping[str, Any], *, progress: Mapping[str, Any]) -> TrainingState:
        """Take down where a training stands: what `model` and `parts` (optimizer, gradient scaler, ...) have as state.

        States of `parts` may share memory with their owners: write the result to disk before the next step.
        """
        return cls(
            model={name: tensor.clone() for name, tensor in model.trainable_state().items()},
            parts={name: part.state_dict() for name, part in parts.items()},
            rng=rng_state(),
            progress=dict(progress),
        )

    def restore(self, model: Any, parts: Mapping[str, Any]) -> list[str]:
        """Put everything back into freshly built objects of the same form.

        Gives what could not be restored on this machine, for people; empty if the training goes on bit for bit. A
        :class:`DataError` where the stored state is not that of such objects.
        """
        if parts.keys() != self.parts.keys():
            raise DataError(
                f"The stored training has a state of {', '.join(sorted(self.parts)) or 'nothing'}, this one of "
                f"{', '.join(sorted(parts)) or 'nothing'}.",
                hint=_RESUME_HINT,
            )
        model.load_trainable_state(self.model)
        for name, part in parts.items():
            try:
                # Optimizers keep the very tensors that they are given, and change them.
                part.load_state_dict(copy.deepcopy(self.parts[name]))
            except _MISFITS as error:  # noqa: PERF203
                raise DataError(
                    f"The stored state of the {name} does not fit this training: {error}.", hint=_RESUME_HINT
                ) from None
        return set_rng_state(self.rng)


def rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, and of those of all GPUs in use.

    A process that computes on a CPU beside a GPU leaves it alone: not even memory is taken there.
    """
    # NumPy's legacy global generator is what libraries draw from.
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))  # a tensor: arrays come in pickles
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> list[str]:
    """Put back what :func:`rng_state` gave; says what could not be, since this machine has other devices.

    A :class:`DataError` where it is not of that form.
    """
    lost = []
    try:
        random.setstate(state["python"])
        numpy = state["numpy"]
        key = numpy["state"]["key"].numpy().astype(np.uint32)
        np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        here = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
        if here and len(state["cuda"]) == here:
            torch.cuda.set_rng_state_all(state["cuda"])
        elif len(state["cuda"]) != here:
            lost.append(f"random numbers on GPUs ({len(state['cuda'])} when stored, {here} now)")
        if state["mps"] and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"][0])
    except _MISFITS as error:
        raise DataError(f"The stored states of the random number generators do not fit: {error}.") from None
    return lost


@dataclass(frozen=True)
class Resumed:
    """Where a training goes on from."""

    step: int  # number of the checkpoint
    config: AdapterConfig  # what it belongs to
    state: TrainingState
    skipped: tuple[str, ...] = ()  # why newer checkpoints were not used, for people; empty as a rule


class CheckpointManager:
    """Writes and finds the checkpoints of one run. One process writes at a time."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def save(self, step: int, config: AdapterConfig, state: TrainingState, *, best: bool = False) -> Path:
        """Write a checkpoint after `step` optimizer steps, then remove those that are not needed any more.

        Gives the new one's folder.
        """
        # The best first: a run that is killed in between comes by here again, and one that goes on from this step finds
        # the best that it knows of.
        if best:
            write_adapter(self._new("best", step), state.model, config)
        target = self._new("step", step)
        with publishing(target) as unfinished:
            write_adapter_files(unfinished, state.model, config)
            try:
                with (unfinished / _STATE).open("wb") as file:
                    torch.save({"parts": state.parts, "rng": state.rng, "progress": state.progress}, file)
            except RuntimeError as error:  # torch's own for a disk that is full
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            document = {"format": FORMAT, "sha256": {_STATE: sha256_file(unfinished / _STATE)}}
            (unfinished / _DIGEST).write_text(json.dumps(document), encoding="utf-8")
        self.tidy()
        return target

    def steps(self) -> list[Path]:
        """Checkpoints that a training can go on from, the last one last."""
        return numbered(self.folder, "step")

    def load_best(self, backbone: Backbone | None = None) -> AdapterCheckpoint:
        """Read the best checkpoint, as :func:`~avfewshot.models.checkpoint.load_adapter` does.

        A :class:`DataError` where there is none, or it is damaged.
        """
        paths = numbered(self.folder, "best")
        if not paths:
            raise self._lost(f"{self.folder}: there is no best checkpoint.")
        try:
            adapter = load_adapter(paths[-1])
        except (DataError, WeightsError) as error:
            raise self._lost(error.message) from None
        if backbone is not None:
            adapter.config.check_backbone(backbone, where=paths[-1])
        return adapter

    def _lost(self, message: str) -> DataError:
        hint = f"Remove {self.folder}, and result.json beside it; then --resume trains that anew."
        return DataError(message, hint=hint)

    def load_last(self, backbone: Backbone | None = None) -> Resumed | None:
        """Read the last checkpoint that is sound; None where there is none at all. Without a backbone none is checked.

        Raises:
            AvfsError: All are damaged, or it was trained with another backbone.
        """
        skipped: list[str] = []
        for path in reversed(self.steps()):
            try:
                adapter, values = load_adapter(path), _read_state(path)
            except (DataError, WeightsError) as error:
                skipped.append(error.message)
                continue
            if backbone is not None:
                adapter.config.check_backbone(backbone, where=path)
            state = TrainingState(adapter.tensors, values["parts"], values["rng"], values["progress"])
            return Resumed(place_of(path)[0], adapter.config, state, tuple(skipped))
        if skipped:
            raise self._lost(skipped[0])
        return None

    def _new(self, kind: str, step: int) -> Path:
        """A name that sorts last for its number: a run that went back to an older checkpoint comes by it again."""
        places = [place_of(path) for path in numbered(self.folder, kind)]
        again = [revision for number, revision in places if number == step]
        return self.folder / (f"{kind}-{step:08d}" + (f".{max(again) + 1}" if again else ""))

    def tidy(self) -> None:
        """Remove the checkpoints that are not needed any more, and what a killed process left unfinished."""
        for path in numbered(self.folder, "step")[:-_KEPT] + numbered(self.folder, "best")[:-1]:
            # Under its own name a checkpoint is whole until it is gone: rename it first, in one stroke.
            trash = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder))
            os.rename(path, trash / path.name)
            shutil.rmtree(trash, ignore_errors=True)
        for path in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)


def _read_state(folder: Path) -> dict[str, Any]:
    document = read_json(folder / _DIGEST)
    try:
        if document != {"format": FORMAT, "sha256": {_STATE: sha256_file(folder / _STATE)}}:
            raise DataError(f"{folder}: its training state is damaged, or of another version.")
        with zipfile.ZipFile(folder / _STATE) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it is compressed")  # a few bytes may unpack to any size
        values = torch.load(folder / _STATE, map_location="cpu", weights_only=True)  # runs no code of the file
        tensors = (value for value in tree_leaves(values) if isinstance(value, Tensor))
        if any(tensor.nbytes > tensor.untyped_storage().nbytes() for tensor in tensors):
            raise ValueError("a tensor is larger than what is stored of it")
    except OSError as error:
        raise DataError(f"{folder / _STATE}: cannot be read: {error.strerror or error}.") from None
    except DataError:
        raise
    except Exception as error:  # zipfile and the reader of pickles raise whatever damaged bytes lead them to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{folder}: its training state is damaged ({reason}).") from None
    if not isinstance(values, dict) or not all(
        isinstance(values.get(key), dict) for key in ("parts", "rng", "progress")
    ):
        raise DataError(f"{folder}: its training state is damaged (parts are missing).")
    return values
