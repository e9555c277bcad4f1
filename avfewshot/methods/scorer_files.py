"""A fitted method as two files: arrays in ``scorer.safetensors``, everything else in ``scorer.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from avfewshot.errors import DataError
from avfewshot.io import write_bytes, write_text
from avfewshot.methods.base import LabelFeatures
from avfewshot.methods.rows import Head

FORMAT = 1
TENSORS_NAME, CONFIG_NAME = "scorer.safetensors", "scorer.json"
HEADS = ("clip", "second")
NOT_A_SCORER = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What parts raise that are not a scorer's, or do not belong together."""


def write_scorer(
    folder: Path,
    texts: LabelFeatures,
    trained: npt.NDArray[np.bool_],
    heads: Mapping[str, Head | None],
    settings: Mapping[str, Any],
) -> None:
    """Write what :func:`read_scorer` reads; `heads` by :data:`HEADS`."""
    arrays: dict[str, npt.NDArray[Any]] = {"trained": trained}
    config: dict[str, Any] = {"format": FORMAT, **settings, "texts": {}}
    for part, head in heads.items():
        config[part] = None
        if head is not None:
            config[part] = {"params": head.params, "trainable": head.trainable}
            arrays |= {f"{part}/{name}": values for name, values in head.arrays.items()}
            arrays |= {} if head.loo is None else {f"{part}.loo": head.loo}
    for name, value in vars(texts).items():
        if isinstance(value, np.ndarray):
            arrays[f"texts/{name}"] = value
        else:
            config["texts"][name] = value
    write_bytes(folder / TENSORS_NAME, save_tensors({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=1))


def read_scorer(
    folder: Path,
) -> tuple[LabelFeatures, npt.NDArray[np.bool_], dict[str, Head | None], dict[str, Any]]:
    """Texts, classes that were trained, heads and settings.

    Raises:
        DataError: A file is missing or damaged.
        Exception: Any of :data:`NOT_A_SCORER`: the files are whole, and of another form.
    """
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        arrays = {k: np.array(v) for k, v in load_tensors((folder / TENSORS_NAME).read_bytes()).items()}
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}.", hint="Give the folder of a finished run.") from None
    except (ValueError, SafetensorError) as error:
        raise DataError(f"{folder}: holds a damaged scorer ({error}).", hint="Fit it again.") from None
    if config["format"] != FORMAT:
        raise ValueError(f"format {config['format']}, this program reads {FORMAT}")
    if any(a.dtype.kind not in "fbi" or (a.dtype.kind == "f" and not np.isfinite(a).all()) for a in arrays.values()):
        raise ValueError("a value is not finite")
    heads: dict[str, Head | None] = dict.fromkeys(HEADS)
    for part in HEADS:
        if config[part] is not None:
            params, trainable = config[part]["params"], int(config[part]["trainable"])
            heads[part] = Head(_below(arrays, part), params, arrays.get(f"{part}.loo"), trainable=trainable)
    stored = _below(arrays, "texts")
    names, scales = tuple(map(str, config["texts"]["names"])), tuple(map(float, config["texts"]["scales"]))
    texts = LabelFeatures(**{**config["texts"], **stored, "names": names, "scales": scales})
    for name, values in stored.items():  # as they were: normalising twice may change the last bit
        object.__setattr__(texts, name, values)
    trained = arrays["trained"].astype(bool)
    if trained.shape != (len(names),):
        raise ValueError("labels and classes differ in number")
    return texts, trained, heads, config


def _below(arrays: Mapping[str, npt.NDArray[Any]], part: str) -> dict[str, npt.NDArray[Any]]:
    return {name.partition("/")[2]: values for name, values in arrays.items() if name.startswith(f"{part}/")}
