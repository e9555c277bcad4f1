"""Which device to compute on, and in which number format."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

import torch

from avfewshot.errors import UsageError, check_choice

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats of the towers by the name that people give them."""

# Parts of messages by which allocators other than CUDA's say that memory ran out.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

# By their numbers in malloc.h: M_MMAP_MAX, no mappings of their own; M_TRIM_THRESHOLD, nothing back; M_TOP_PAD, bytes.
_MALLOC_SETTINGS = {-4: 0, -1: -1, -2: 64 << 20}

_CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # as torch.cpu.get_capabilities names them


def available_devices() -> list[str]:
    """Devices that this machine has, as people name them: ``"cpu"``, ``"cuda:0"``, ``"mps"``."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def resolve_device(name: str = "auto") -> torch.device:
    """The device of a name: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.

    Raises:
        UsageError: The name is wrong or this machine has no such device.
    """
    name, available = str(name), available_devices()
    if name == "auto":
        gpus = [device for device in available if device != "cpu"]
        return torch.device(gpus[0] if gpus else "cpu")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in available:
        hint = f"This machine has: {', '.join(available)}. `auto` takes the best of them."
        if wanted.startswith("cuda") and not torch.backends.cuda.is_built():
            hint += " The installed torch was built without CUDA."
        raise UsageError(f"There is no device {name!r}.", hint=hint)
    return torch.device(wanted)


def resolve_precision(name: str, device: torch.device) -> str:
    """The number format of the towers on a device, a key of :data:`PRECISIONS`.

    ``"auto"`` is bf16 where the hardware computes in it, else fp16 on CUDA devices with tensor cores, else fp32.

    Raises:
        UsageError: The name is unknown, or the device cannot compute in the format.
    """
    check_choice("precision", name, ("auto", *PRECISIONS))
    if name == "auto" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    if name == "auto":
        return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
    if name == "bf16" and device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise UsageError("This macOS has no bf16 on its GPU.", hint="Use --precision fp32 or fp16.")
    return name


def cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; without them it is slower than float32."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name)) for name in _CPU_BF16)
    # Older releases of torch tell less.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def keep_float32() -> None:
    """Let float32 be float32 on a GPU: cuDNN rounds what goes into convolutions and RNNs unless it is told not to."""
    torch.backends.cudnn.allow_tf32 = False


def keep_memory() -> None:
    """Have the C library (glibc; others as they are) keep what training steps free on a processor for the next step.

    By default every large tensor is mapped anew, and the first write to each of its pages costs as much as the numbers.
    """
    for setting, value in _MALLOC_SETTINGS.items():
        _glibc("mallopt", setting, value)


def free_memory(device: torch.device) -> None:
    """Give back what nothing holds any more: objects in cycles, and what torch or the C library keep for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    _glibc("malloc_trim", 0)


def _glibc(function: str, *numbers: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), function)(*numbers)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that the device's memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error).lower() for part in _OUT_OF_MEMORY)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside: matrices of one clip are done before a second thread has been woken.

    On a busy machine the wait for it is a time slice at each operation, five times what all else of a clip costs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
