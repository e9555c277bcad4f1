"""NumPy code on torch's tensors, so that tracing sees what scoring by a few-shot method computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _reduction(reduce: Callable[..., Tensor]) -> Any:
    return lambda self, axis=-1, keepdims=False: Traced(reduce(self.tensor, axis, keepdims))


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """A float64 array of NumPy code whose arithmetic is done by a tensor, so that tracing sees it.

    It takes what scoring by a few-shot method uses; anything else raises TypeError, and the method cannot be exported.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    shape = property(lambda self: self.tensor.shape)
    T = property(lambda self: Traced(self.tensor.T))
    sum, mean = _reduction(torch.sum), _reduction(torch.mean)
    var = _reduction(lambda tensor, axis, keep: (tensor - tensor.mean(axis, True)).square().mean(axis, keep))
    any = _reduction(lambda tensor, *how: (tensor != 0).any(*how))
    all = _reduction(lambda tensor, *how: (tensor != 0).all(*how))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, key: Any) -> Traced:
        return Traced(self.tensor[_index(key)])

    def __setitem__(self, key: Any, values: Any) -> None:
        self.tensor = self.tensor.clone()
        self.tensor[_index(key)] = _tensor(values)

    def copy(self) -> Traced:
        """As of an array."""
        return self

    def max(self, axis: int = -1, keepdims: bool = False, initial: float | None = None) -> Traced:
        """As of an array."""
        if not self.tensor.shape[axis]:
            return Traced(torch.full_like(self.tensor.sum(axis, keepdims), initial or 0.0))
        return Traced(self.tensor.amax(axis, keepdims))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if ufunc is np.logaddexp and method == "reduce":
            return Traced(inputs[0].tensor.logsumexp(options["axis"]))
        function = _UFUNCS.get(ufunc.__name__)
        if function is None or method != "__call__" or options:
            return NotImplemented
        result = function(*map(_tensor, inputs))
        if out is None:
            return Traced(result)
        if not isinstance(out[0], Traced):
            return NotImplemented
        out[0].tensor = result
        return out[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        function = _FUNCTIONS.get(func.__name__)
        return NotImplemented if function is None else Traced(function(*args, **kwargs))


def _tensor(value: Any) -> Any:
    if isinstance(value, Traced):
        return value.tensor
    value = np.asarray(value)
    return torch.from_numpy(np.ascontiguousarray(value if value.dtype == bool else value.astype(np.float64)))


def _index(key: Any) -> Any:
    """A NumPy index for a tensor: masks, which would make sizes depend on values, become numbers."""
    if isinstance(key, tuple):
        return tuple(map(_index, key))
    if isinstance(key, np.ndarray):
        return torch.from_numpy(np.flatnonzero(key) if key.dtype == bool else key)
    return key


def _stacked(join: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda parts, axis=0: join([_tensor(part) for part in parts], axis)


_UFUNCS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div, "true_divide": torch.div,
    "matmul": torch.matmul, "negative": torch.neg, "square": torch.square, "power": torch.pow, "sqrt": torch.sqrt,
    "exp": torch.exp, "log": torch.log, "log1p": lambda x: (1 + x).log(),
    "arctanh": lambda x: 0.5 * ((1 + x) / (1 - x)).log(),
    "logaddexp": lambda a, b: torch.maximum(a, b) + (1 + (-(a - b).abs()).exp()).log(),
    "maximum": torch.maximum, "minimum": torch.minimum, "greater": torch.gt, "less": torch.lt,
    "bitwise_and": torch.logical_and, "invert": torch.logical_not, "logical_not": torch.logical_not,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "norm": lambda values, axis=-1, keepdims=False: values.tensor.square().sum(axis, keepdims).sqrt(),
    "clip": lambda values, low, high: values.tensor.clamp(low, high),
    "where": lambda mask, a, b: torch.where(_tensor(mask), _tensor(a), _tensor(b)),
    "concatenate": _stacked(torch.cat),
    "stack": _stacked(torch.stack),
    "zeros_like": lambda values: torch.zeros_like(values.tensor),
}
