"""The checkpoints of one run: the last two with everything to go on from, and the best one.

``step-<number>`` is an adapter checkpoint with the training state beside it, in ``state.pt`` (plain values and tensors,
read without running code) and its digest in ``state.json``; ``best-<number>`` is an adapter checkpoint. A process may
be killed at any moment: what is listed is whole, and the next save tidies up.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avfewshot.errors import DataError, WeightsError
from avfewshot.io import sha256_file
from avfewshot.models.checkpoint import (
    FORMAT,
    UNFINISHED,
    AdapterCheckpoint,
    AdapterConfig,
    Identified,
    load_adapter,
    number_of,
    numbered,
    publishing,
    read_json,
    revision_of,
    write_adapter,
    write_adapter_files,
)
from avfewshot.training.state import TrainingState

_STATE = "state.pt"
_DIGEST = "state.json"


@dataclass(frozen=True)
class Resumed:
    """Where a training goes on from.

    Attributes:
        step: Number of the checkpoint.
        config: What it belongs to.
        state: The training's state.
        skipped: Why newer checkpoints were not used, for people; empty as a rule.
    """

    step: int
    config: AdapterConfig
    state: TrainingState
    skipped: tuple[str, ...] = ()


class CheckpointStore:
    """Writes and finds the checkpoints of one run. One process writes at a time.

    Args:
        folder: Where they lie; made when the first one is written.
        keep: How many of the last ones are kept.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError("at least one checkpoint must be kept")
        self.folder = Path(folder)
        self.keep = keep

    def save(self, step: int, config: AdapterConfig, state: TrainingState, *, best: bool = False) -> Path:
        """Write a checkpoint, then remove those that are not needed any more.

        Args:
            step: Number of optimizer steps done.
            config: What the tensors belong to.
            state: The training's state.
            best: Whether this is the best so far.

        Returns:
            The checkpoint's folder.
        """
        # The best first: a run that is killed in between comes by here again, and one that goes on from this step finds
        # the best that it knows of.
        if best:
            write_adapter(self._new("best", step), state.model, config)
        target = self._new("step", step)
        with publishing(target) as unfinished:
            write_adapter_files(unfinished, state.model, config)
            _write_state(unfinished, state)
        self._tidy()
        return target

    def steps(self) -> list[Path]:
        """Checkpoints that a training can go on from, the last one last."""
        return numbered(self.folder, "step")

    def best(self) -> Path | None:
        """The best checkpoint, if any was called so."""
        found = numbered(self.folder, "best")
        return found[-1] if found else None

    def load_best(self, backbone: Identified | None = None) -> AdapterCheckpoint | None:
        """Read the best checkpoint; None where there is none.

        Raises:
            AvfsError: As :func:`~avfewshot.models.checkpoint.load_adapter`.
        """
        path = self.best()
        return None if path is None else load_adapter(path, backbone)

    def load_last(self, backbone: Identified | None = None) -> Resumed | None:
        """Read the last checkpoint that is sound.

        Args:
            backbone: What the training goes on with; None skips the check.

        Returns:
            The checkpoint, or None where there is none at all.

        Raises:
            WeightsError: It was trained with another backbone; or all are damaged.
            DataError: All are damaged.
        """
        skipped: list[str] = []
        failure: DataError | WeightsError | None = None
        for path in reversed(self.steps()):
            found = _try_load(path)
            if isinstance(found, Resumed):
                if backbone is not None:
                    found.config.check_backbone(backbone, where=path)
                return Resumed(found.step, found.config, found.state, tuple(skipped))
            failure = failure or found
            skipped.append(str(found))
        if failure is not None:
            raise failure
        return None

    def _new(self, kind: str, step: int) -> Path:
        """A name that sorts last for its number: a run that went back to an older checkpoint comes by it again."""
        again = [revision_of(path) for path in numbered(self.folder, kind) if number_of(path) == step]
        return self.folder / (f"{kind}-{step:08d}" + (f".{max(again) + 1}" if again else ""))

    def _tidy(self) -> None:
        for path in numbered(self.folder, "step")[: -self.keep] + numbered(self.folder, "best")[:-1]:
            self._discard(path)
        for path in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _discard(self, path: Path) -> None:
        # Under its own name a checkpoint is whole until it is gone: rename it first, in one stroke.
        bin_ = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder))
        os.rename(path, bin_ / path.name)
        shutil.rmtree(bin_, ignore_errors=True)


def _write_state(folder: Path, state: TrainingState) -> None:
    with (folder / _STATE).open("wb") as file:
        torch.save({"parts": state.parts, "rng": state.rng, "progress": state.progress}, file)
    document = {"format": FORMAT, "sha256": {_STATE: sha256_file(folder / _STATE)}}
    (folder / _DIGEST).write_text(json.dumps(document), encoding="utf-8")


def _try_load(path: Path) -> Resumed | DataError | WeightsError:
    try:
        adapter = load_adapter(path)
        values = _read_state(path)
        state = TrainingState(adapter.tensors, values["parts"], values["rng"], values["progress"])
    except (DataError, WeightsError) as error:
        return error
    return Resumed(number_of(path), adapter.config, state)


def _read_state(folder: Path) -> dict[str, Any]:
    document = read_json(folder / _DIGEST)
    try:
        if document != {"format": FORMAT, "sha256": {_STATE: sha256_file(folder / _STATE)}}:
            raise DataError(f"{folder}: its training state is damaged, or of another version.")
        values = torch.load(folder / _STATE, map_location="cpu", weights_only=True)  # runs no code of the file
    except OSError as error:
        raise DataError(f"{folder / _STATE}: cannot be read: {error.strerror}.") from None
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{folder}: its training state is damaged ({str(error).splitlines()[0]}).") from None
    if not isinstance(values, dict) or {"parts", "rng", "progress"} - values.keys():
        raise DataError(f"{folder}: its training state is damaged (parts are missing).")
    return values
