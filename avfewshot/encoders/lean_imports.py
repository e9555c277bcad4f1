"""Classes of open_clip and laion_clap without what their packages import beside them.

``import open_clip`` takes seconds for CoCa, timm, transformers and torchvision's operators (with those torch._dynamo).
laion_clap's HTS-AT drags in h5py and librosa (numba, scipy), and its package asks the network for tokenizers. Here
single modules of both are imported under a private package name, with small stand-ins for what they import and what
is not used here. `sys.modules` gains nothing under the libraries' own names: a real import, before or after, is whole.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from avfewshot.errors import AvfsError

_LOCK = threading.RLock()


def library_module(library: str, module: str, folder: str = "") -> ModuleType:
    """Import one module of open_clip or laion_clap under a private name; an :class:`AvfsError` if it is not there."""
    package = f"_avfewshot_{library}"
    name = f"{package}.{module}"
    with _LOCK:
        if name in sys.modules:
            return sys.modules[name]
        path = library_folder(library) / folder
        if not (path / f"{module}.py").is_file():
            message = f"{path.parent if folder else path}: this version of {library} is not known."
            raise AvfsError(message, hint="Install the versions of constraints.txt.")
        before = set(sys.modules)
        if package not in sys.modules:
            sys.modules[package] = ModuleType(package)
            sys.modules[package].__path__ = [str(path)]
        try:
            with _substituted(_stand_ins()):
                return importlib.import_module(name)
        except BaseException:
            for loaded in [key for key in sys.modules if key.split(".")[0] == package and key not in before]:
                del sys.modules[loaded]
            raise


def is_a(module: object, *names: str) -> bool:
    """Whether an object is of one of open_clip's classes, imported here or by the package itself."""
    return any(
        base.__name__ in names and base.__module__.split(".")[0] in ("open_clip", "_avfewshot_open_clip")
        for base in type(module).__mro__
    )


def library_folder(library: str) -> Path:
    """Where an installed library lies; it is not imported. An :class:`AvfsError` where it is not installed."""
    spec = importlib.util.find_spec(library)  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise AvfsError(f"{library} is not installed.", hint=f"Install it: pip install {library}")
    return Path(spec.submodule_search_locations[0])


@contextlib.contextmanager
def _substituted(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """While it lasts, imports of these names give these modules (None: there is none), and nothing stays behind."""
    roots = {name.split(".")[0] for name in modules}
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in roots}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(before)


def _stand_ins() -> dict[str, ModuleType | None]:
    modules: dict[str, ModuleType | None] = {"timm": None, "transformers": None}
    contents: dict[str, dict[str, Any]] = {
        # Imported by both libraries to freeze convolutional towers, which are not used here.
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.ops.misc": {"FrozenBatchNorm2d": type("FrozenBatchNorm2d", (), {})},
        "h5py": {},  # data sets of laion_clap's training
        # torchlibrosa takes three functions of librosa to fill its convolutions; imported here for HTS-AT alone.
        "librosa": {
            "filters": SimpleNamespace(get_window=_hann, mel=_mel_filters),
            "util": SimpleNamespace(pad_center=_pad_center),
        },
        "torchlibrosa": {"__path__": [str(library_folder("torchlibrosa"))]},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        modules[name] = module
    return modules


def _hann(window: str, size: int, fftbins: bool = True) -> np.ndarray:
    """librosa.filters.get_window for the window that HTS-AT asks for: a periodic Hann window, float64 ``[size]``."""
    if window != "hann" or not fftbins:
        raise ValueError(f"Only periodic Hann windows are known here, not {window!r}.")
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def _pad_center(data: np.ndarray, *, size: int) -> np.ndarray:
    left = (size - len(data)) // 2
    return np.pad(data, (left, size - len(data) - left))


def _mel_filters(*, sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> np.ndarray:
    """librosa.filters.mel with its defaults (Slaney's scale and norm): ``[n_mels, n_fft / 2 + 1]``."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():  # narrow bands that no frequency falls into are empty in librosa's as well
        warnings.filterwarnings("ignore", message="At least one mel filterbank", category=UserWarning)
        filters = melscale_fbanks(n_fft // 2 + 1, fmin, fmax, n_mels, sr, norm="slaney", mel_scale="slaney")
    return filters.T.contiguous().numpy()
