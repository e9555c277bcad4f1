"""Every test runs offline, on one thread, seeded, and away from the user's own files."""

import functools
import gc
import ipaddress
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before any test module imports a library that reads them once, at its own import.
_HOME = Path(tempfile.mkdtemp(prefix="avfs-tests-"))
_CLEARED = ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "COLUMNS")
for _name in [name for name in os.environ if name.startswith(("AVFS_", "HF_")) or name in _CLEARED]:
    del os.environ[_name]
os.environ.update(
    HOME=str(_HOME),
    XDG_CACHE_HOME=str(_HOME / "xdg-cache"),
    XDG_CONFIG_HOME=str(_HOME / "xdg-config"),
    AVFS_CACHE=str(_HOME / "avfs-cache"),
    HF_HOME=str(_HOME / "hf"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


gc.disable()  # until all test modules are imported: none of it is garbage


class NetworkBlocked(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):  # a Unix socket
        return True
    host = address[0]
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in {"", "localhost", None}:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _guarded(original):
    def call(self, *args, **kwargs):
        address = args[-1] if args else None  # connect(address), sendto(data, address), sendto(data, flags, address)
        if self.family in {socket.AF_INET, socket.AF_INET6} and not _is_local(address):
            raise NetworkBlocked(f"a test tried to reach {address!r}; tests run without a network")
        return original(self, *args, **kwargs)

    return call


def _guarded_lookup(original):
    def call(host, *args, **kwargs):
        if not _is_local((host,)):
            raise NetworkBlocked(f"a test tried to look up {host!r}; tests run without a network")
        return original(host, *args, **kwargs)

    return call


for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guarded(getattr(socket.socket, _name)))
socket.getaddrinfo = _guarded_lookup(socket.getaddrinfo)


def pytest_collection_finish() -> None:
    """Let the garbage collector look at what tests make, seldom, and never at a million objects of imported modules."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)
    gc.enable()
    if "torch" in sys.modules:  # the library fills its Fourier matrix anew for every tower
        from avfewshot.encoders.htsat import load_htsat_module

        base = load_htsat_module().Spectrogram.__init__.__globals__["DFTBase"]
        matrix = functools.cache(functools.partial(base.dft_matrix, None))
        base.dft_matrix = lambda _, size: matrix(size)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the throw-away home."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _memory_given_back() -> Iterator[None]:
    """Memory that the tests of a file free is not kept for the next: a fork copies all page tables."""
    yield
    if devices := sys.modules.get("avfewshot.inference.devices"):
        devices.free_memory(sys.modules["torch"].device("cpu"))
    gc.freeze()


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of its own and the same random numbers for every test."""
    monkeypatch.setenv("AVFS_CACHE", str(tmp_path_factory.mktemp("cache")))
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture
def avfs(tmp_path: Path):
    """Commands in the folder of the test, with its cache."""
    from command_support import Commands

    return Commands(tmp_path, shared=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files are recorded anew on request only."""
    parser.addoption("--update-golden", action="store_true", help="record the files in tests/golden anew")
