"""Everything that a training needs in order to go on bit for bit: tensors, optimizer, schedule, random numbers."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avfewshot.errors import DataError


class Trainable(Protocol):
    """The part of a model that is trained; see :class:`~avfewshot.models.audio_visual.AudioVisualModel`."""

    def trainable_state(self) -> dict[str, Tensor]:
        """Tensors by name."""

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""


class Stateful(Protocol):
    """An optimizer, a schedule, a gradient scaler, a sampler."""

    def state_dict(self) -> dict[str, Any]:
        """Its state in plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Put it back."""


@dataclass(frozen=True)
class TrainingState:
    """A training between two optimizer steps; gradients are not part of it.

    Attributes:
        model: The trained tensors by name.
        parts: States of optimizer, schedule and the like, by name.
        rng: States of the random number generators, from :func:`rng_state`.
        progress: Where the training stands (epoch, batch, best figure, ...), in plain values.
    """

    model: dict[str, Tensor]
    parts: dict[str, dict[str, Any]]
    rng: dict[str, Any]
    progress: dict[str, Any]

    @classmethod
    def capture(
        cls,
        model: Trainable,
        parts: Mapping[str, Stateful],
        *,
        progress: Mapping[str, Any],
        generators: Mapping[str, torch.Generator] | None = None,
    ) -> TrainingState:
        """Take down where a training stands.

        Args:
            model: Its trainable tensors are copied.
            parts: What else has a state, by name: ``{"optimizer": ..., "scheduler": ..., "sampler": ...}``. These
                states may share memory with their owners: write the result to disk before the next step.
            progress: Plain values.
            generators: Random number generators of its own beside the global ones, by name.
        """
        return cls(
            model={name: tensor.clone() for name, tensor in model.trainable_state().items()},
            parts={name: part.state_dict() for name, part in parts.items()},
            rng=rng_state(generators),
            progress=dict(progress),
        )

    def restore(
        self,
        model: Trainable,
        parts: Mapping[str, Stateful],
        *,
        generators: Mapping[str, torch.Generator] | None = None,
    ) -> list[str]:
        """Put everything back into freshly built objects of the same form.

        Args:
            model: As for :meth:`capture`.
            parts: The same names as for :meth:`capture`.
            generators: Likewise.

        Returns:
            What could not be restored on this machine, for people; empty if the training goes on bit for bit.

        Raises:
            WeightsError: Tensors do not fit the model.
            DataError: Another part does not fit.
        """
        if parts.keys() != self.parts.keys():
            raise DataError(
                f"The stored training has a state of {', '.join(sorted(self.parts)) or 'nothing'}, this one of "
                f"{', '.join(sorted(parts)) or 'nothing'}.",
                hint="Resume with the settings that the training was begun with.",
            )
        model.load_trainable_state(self.model)
        for name, part in parts.items():
            _load_part(name, part, self.parts[name])
        return set_rng_state(self.rng, generators)


def _load_part(name: str, part: Stateful, state: dict[str, Any]) -> None:
    try:
        # Optimizers keep the very tensors that they are given, and change them.
        part.load_state_dict(copy.deepcopy(state))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"The stored state of the {name} does not fit this training: {error}.",
            hint="Resume with the settings that the training was begun with.",
        ) from None


def rng_state(generators: Mapping[str, torch.Generator] | None = None) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, of those of all GPUs in use, and of `generators`.

    A process that computes on a CPU beside a GPU leaves it alone: not even memory is taken there.

    Args:
        generators: Further generators by name.
    """
    # NumPy's legacy global generator is what libraries draw from.
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))  # a tensor: arrays come in pickles
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
        "generators": {name: generator.get_state() for name, generator in (generators or {}).items()},
    }


def set_rng_state(state: Mapping[str, Any], generators: Mapping[str, torch.Generator] | None = None) -> list[str]:
    """Put back what :func:`rng_state` gave.

    Args:
        state: The states.
        generators: Generators of the same names.

    Returns:
        What could not be restored, since this machine has other devices, for people.

    Raises:
        DataError: The states are not of that form.
    """
    generators = generators or {}
    lost = []
    try:
        if generators.keys() != state["generators"].keys():
            raise ValueError(f"generators {sorted(state['generators'])} instead of {sorted(generators)}")
        random.setstate(state["python"])
        numpy = state["numpy"]
        key = numpy["state"]["key"].numpy().astype(np.uint32)
        np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        for name, generator in generators.items():
            generator.set_state(state["generators"][name])
        here = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
        if here and len(state["cuda"]) == here:
            torch.cuda.set_rng_state_all(state["cuda"])
        elif len(state["cuda"]) != here:
            lost.append(f"random numbers on GPUs ({len(state['cuda'])} when stored, {here} now)")
        if state["mps"] and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"][0])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise DataError(f"The stored states of the random number generators do not fit: {error}.") from None
    return lost
