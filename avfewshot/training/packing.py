"""Nested Python values, such as an optimizer's state, as a JSON tree and tensors by name; no pickle."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ATOMS = (type(None), bool, int, float, str)
_MARK = "$"


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Take a value apart.

    Args:
        value: Dicts, lists, tuples, counters, tensors, NumPy arrays and numbers, None, bools, ints, floats and texts,
            nested at will. Keys of dicts may be any of the simple values.

    Returns:
        A tree for JSON and the tensors that it refers to: contiguous copies on the CPU.

    Raises:
        TypeError: Anything else.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, tensors, ""), tensors


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what :func:`pack` took apart; NumPy arrays and tensors have the bits that they had.

    Raises:
        ValueError: The tree or its tensors are not of that form.
    """
    try:
        return _unpack(tree, tensors)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a packed value: {error!r}") from None


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if type(value) in _ATOMS:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return {"$tensor": _keep(value, tensors, name)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "u" and value.dtype.itemsize > 1:  # a kind that torch can hardly hold
            wide = torch.from_numpy(value.astype(np.int64) if value.itemsize < 8 else value.view(np.int64))
            return {"$array": _keep(wide, tensors, name), "dtype": value.dtype.name}
        return {"$array": _keep(torch.from_numpy(value), tensors, name), "dtype": value.dtype.name}
    if type(value) in (dict, OrderedDict, Counter):
        if any(type(key) not in _ATOMS for key in value):
            raise TypeError(f"{name or 'the value'} has keys that cannot be stored")
        items = [(key, _pack(item, tensors, f"{name}/{key}")) for key, item in value.items()]
        if type(value) is not Counter and all(type(key) is str and not key.startswith(_MARK) for key in value):
            return dict(items)
        return {"$counter" if type(value) is Counter else "$dict": [list(item) for item in items]}
    if type(value) in (list, tuple):
        items = [_pack(item, tensors, f"{name}/{number}") for number, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    raise TypeError(f"{name or 'the value'} is a {type(value).__name__}, which cannot be stored")


def _keep(tensor: Tensor, tensors: dict[str, Tensor], name: str) -> str:
    key = name.lstrip("/") or "value"
    while key in tensors:  # the keys "1" and 1 of one dict
        key += "'"
    # A copy: the original goes on changing, and tensors that share memory cannot be stored.
    tensors[key] = tensor.detach().to("cpu", copy=True).contiguous()
    return key


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = next(iter(tree), "")
    if not kind.startswith(_MARK):
        return {key: _unpack(item, tensors) for key, item in tree.items()}
    content = tree[kind]
    if kind == "$tensor":
        return tensors[content]
    if kind == "$array":
        dtype = np.dtype(tree["dtype"])
        stored = tensors[content].numpy()
        return stored.view(dtype) if dtype == np.uint64 else stored.astype(dtype, copy=False)
    if kind == "$tuple":
        return tuple(_unpack(item, tensors) for item in content)
    if kind in ("$dict", "$counter"):
        items = {key: _unpack(item, tensors) for key, item in content}
        return Counter(items) if kind == "$counter" else items
    raise ValueError(f"{kind} is unknown")
