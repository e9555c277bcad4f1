"""The one way by which tensors come from a file into a model.

Weight files come from strangers. Tensors are read from safetensors, or from a PyTorch checkpoint whose pickle may name
nothing but tensors, containers and numbers; every other file is refused with the reason. Into a model go exactly the
tensors that it has: whatever is missing, left over or of another shape is an error that lists them.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from avfewshot.errors import WeightsError, some

FETCH_HINT = "Download it again with `avfs weights fetch`, or from where you got it."
_SHOWN = 4  # names listed of each kind of mismatch
_WRAPPERS = ("module.", "_orig_mod.", "model.")
# Keys under which training programs keep the tensors, the first that is there; an average of them ("ema") comes last.
_HOLDERS = "state_dict model_state_dict model module net network weights params model_ema ema".split()
_MAX_HEADER = 100 * 1024 * 1024  # the safetensors library's own limit
_PLAIN_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")


class WeightsWarning(UserWarning):
    """Something about a weight file that its user should know."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file on the CPU, without running anything that the file contains.

    Understands safetensors and PyTorch checkpoints: a dict of tensors, or one under ``state_dict``, ``model`` or
    another usual key, nested too. A ``module.``, ``model.`` or ``_orig_mod.`` in front of every name is taken off.
    Large files are mapped into memory rather than read.

    Raises:
        WeightsError: The file is missing, empty, truncated, no weight file, or asks for more than tensors.
    """
    path = Path(path)
    kind = _kind(path)
    state = _read_safetensors(path) if kind == "safetensors" else _read_checkpoint(path, mmap=kind == "zip")
    if not state:
        raise WeightsError(f"{path}: holds no tensors.", hint=FETCH_HINT)
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    path: str | Path,
    architecture: str,
    optional: Callable[[str], bool] = lambda name: False,
) -> None:
    """Copy tensors into a model; every tensor of the model must be there, and nothing else.

    Half precision is widened to the model's own number format. `path` and `architecture` are for messages; `optional`
    tells the names of the model's tensors that may be absent, since the model computes them itself.

    Raises:
        WeightsError: Names or shapes differ; they are listed, shortened.
    """
    own = module.state_dict()
    there = [name for name in own if name in state]
    faults = {
        "missing": [name for name in own if name not in state and not optional(name)],
        "unknown": [name for name in state if name not in own],
        "of another shape": [
            f"{name} ({_shape(state[name])} in the file, {_shape(own[name])} in the model)"
            for name in there
            if own[name].shape != state[name].shape
        ],
        "no plain numbers": [
            f"{name} ({str(state[name].dtype).removeprefix('torch.')})"
            for name in there
            if own[name].is_floating_point() and not _is_plain(state[name])
        ],
    }
    if any(faults.values()):
        _name_what_it_is(state, own, path)
        listed = "; ".join(f"{what}: {some(names, _SHOWN)}" for what, names in faults.items() if names)
        hint = "Give the weights that belong to the backbone, or the backbone that belongs to the weights."
        raise WeightsError(f"{path}: these weights are not of {architecture}. {listed}.", hint=hint)
    learnt = {name for name, _ in module.named_parameters()}
    if broken := [name for name in there if name in learnt and not _is_finite(state[name])]:
        message = f"{path}: holds values that are no numbers (NaN or infinite): {some(broken, _SHOWN)}."
        raise WeightsError(message, hint=FETCH_HINT)
    module.load_state_dict(dict(state), strict=False)  # strict was settled above


def _is_plain(tensor: Tensor) -> bool:
    """Whether it holds a model's numbers as they are: neither codes of a quantised model, nor sparse, nor nothing."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.float().sum(dtype=torch.float64).isfinite())


def _name_what_it_is(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise for well-known files of another layout or architecture, with what fits them."""
    if "vision_model.embeddings.patch_embedding.weight" in state:
        raise WeightsError(
            f"{path}: is a CLIP in the layout of transformers (openai/clip-vit-...); open_clip's layout is needed.",
            hint="Take the same weights from open_clip, for example `avfs weights fetch base`.",
        )
    stem, ours = (tensors.get("audio_branch.patch_embed.proj.weight") for tensors in (state, own))
    names = {96: "HTSAT-tiny", 128: "HTSAT-base", 256: "HTSAT-large"}
    if stem is not None and ours is not None and stem.shape[0] != ours.shape[0] and stem.shape[0] in names:
        message = f"{path}: is a CLAP whose audio tower is {names[stem.shape[0]]}, which is not the backbone's."
        hint = f"Give a backbone of your own with `audio: {names[stem.shape[0]]}` below `clap` (docs/extending.md)."
        raise WeightsError(message, hint=hint)


def _kind(path: Path) -> str:
    """``"safetensors"``, ``"zip"`` or ``"legacy"`` by the first bytes, never by the name alone."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise WeightsError(f"{path}: is not a file, weights are needed.")
        with open(path, "rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        message = f"{path}: there is no such file."
        raise WeightsError(message, hint="Check the path, or run `avfs weights fetch`.") from None
    except IsADirectoryError:
        raise WeightsError(f"{path}: is a folder, a weight file is needed.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise WeightsError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not head:
        raise WeightsError(f"{path}: is empty.", hint=FETCH_HINT)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        message = f"{path}: is a web page, not weights."
        raise WeightsError(message, hint="Download the file itself, not the page that links to it.")
    if text.startswith(b"version https://git-lfs"):
        message = f"{path}: is a Git LFS pointer, not the weights."
        raise WeightsError(message, hint="Run `git lfs pull` where it came from.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "legacy"
    if len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= _MAX_HEADER:
        return "safetensors"
    raise WeightsError(
        f"{path}: is not a weight file (neither safetensors nor a PyTorch checkpoint), or its beginning is damaged.",
        hint=FETCH_HINT,
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: is truncated or damaged ({error}).", hint=FETCH_HINT) from None


def _read_checkpoint(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    if mmap:
        _refuse_other_archives(path)
    try:
        with torch.serialization.safe_globals(_numpy_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on storages and protocols, of no use to the person
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # torch raises whatever the half-read file happens to lead it to.
        reason = re.sub(r"\s+", " ", str(error)).split(". ")[0][:120]
        raise WeightsError(f"{path}: is truncated or damaged ({reason}).", hint=FETCH_HINT) from None
    state = checkpoint
    for _ in _HOLDERS:  # a dict may hold itself
        held = (state.get(key) for key in _HOLDERS) if isinstance(state, Mapping) else ()
        state = next((value for value in held if isinstance(value, Mapping)), state)
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not tensors by name.")
    if strangers := [str(k) for k, value in state.items() if not (isinstance(k, str) and isinstance(value, Tensor))]:
        raise WeightsError(f"{path}: not all entries are tensors: {some(strangers, _SHOWN)}.")
    return dict(state)


def _refuse_other_archives(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises whatever damaged bytes lead it to; torch.load words the damage
        return
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        what = "NumPy's" if names and all(name.endswith(".npy") for name in names) else "a ZIP"
        hint = "Unpack it, if weights are in it, or give another file."
        raise WeightsError(f"{path}: is {what} archive, no checkpoint of PyTorch: {some(names, _SHOWN)}.", hint=hint)
    if any(name.endswith("/constants.pkl") for name in names):
        hint = "Give the safetensors file of the same model, for example the one that `avfs weights fetch` gets."
        raise WeightsError(f"{path}: is a TorchScript program, not plain weights; programs are not run.", hint=hint)


def _refusal(path: Path, reason: str) -> WeightsError:
    wanted = re.search(r"(?:GLOBAL|class|function|type)\s+([\w.]+\.[\w.]+)", reason)
    if wanted and "unsupported" in reason.lower():
        return WeightsError(
            f"{path}: refused: on loading it wants to use {wanted[1]}, which weights do not need and which could run"
            " any program.",
            hint="Do not use this file unless you know who made it; ask for a safetensors version.",
        )
    _, told, last = reason.partition("error message.")
    last = re.sub(r"\s+", " ", last).strip()[:160] if told else "a pickle that is no checkpoint"
    return WeightsError(f"{path}: is damaged or not a plain PyTorch checkpoint ({last}).", hint=FETCH_HINT)


def _numpy_globals() -> list[Any]:
    """What a checkpoint may hold beside tensors: numbers of numpy, as LAION's has them, by a stricter constructor."""
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtype_classes = [type(np.dtype(name)) for name in _PLAIN_DTYPES]
    ours = [*((_number, name) for name in names), np.dtype, *dtype_classes]
    # What the process allows already stays allowed when ours are taken back.
    return [entry for entry in ours if entry not in torch.serialization.get_safe_globals()]


def _number(dtype: Any, data: Any = None) -> Any:
    if not (isinstance(dtype, np.dtype) and dtype.name in _PLAIN_DTYPES and isinstance(data, bytes)):
        raise pickle.UnpicklingError(f"numpy value of {dtype!r} is not a plain number")
    if len(data) != dtype.itemsize:
        raise pickle.UnpicklingError("numpy value of the wrong length")
    return np.frombuffer(data, dtype=dtype)[0].item()


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a single number"


class ZerosForRandom(TorchFunctionMode):
    """Inside it, modules that initialise themselves at random mostly get zeros, at no cost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in _DRAWS:
            return func(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        tensor.detach().zero_()
        return tensor


# Methods of tensors, functions of torch.nn.init and those that transformers puts in their place: told by their names.
_DRAWS = frozenset(
    f"{name}_" for name in ("uniform", "normal", "trunc_normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform")
)
