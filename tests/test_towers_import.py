"""laion_clap's classes are imported without what its package does at import."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

BLOCK = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked: {args}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, timeout=240)


def test_classes_come_without_the_network_and_leave_nothing_half_imported() -> None:
    done = run("""
import sys
path = list(sys.path)
from avfewshot.encoders.htsat import build_htsat, load_htsat_module
sizes = {"hop": 768, "native_samples": 48000, "spec_size": 64, "embed_dim": 32, "num_heads": [2, 4, 8, 16]}
branch = build_htsat(sizes)
assert type(branch).__name__ == "HTSAT_Swin_Transformer"
assert load_htsat_module() is load_htsat_module()
assert isinstance(branch, load_htsat_module().HTSAT_Swin_Transformer)
for name in sys.modules:
    assert name.split(".")[0] not in ("laion_clap", "clap_module", "transformers"), name
assert sys.path == path
print("as it should be")
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "as it should be"
    assert not done.stderr


def test_package_can_still_be_imported_afterwards(tmp_path) -> None:
    # A stand-in with the layout of laion_clap, whose real __init__ asks the network for tokenizers.
    package = tmp_path / "laion_clap"
    (package / "clap_module").mkdir(parents=True)
    (package / "__init__.py").write_text("from laion_clap.clap_module import htsat\nready = True\n")
    (package / "clap_module" / "__init__.py").write_text("heavy = True\n")
    (package / "clap_module" / "htsat.py").write_text("from .utils import helper\n")
    (package / "clap_module" / "utils.py").write_text("helper = 1\n")
    done = run(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from avfewshot.encoders.htsat import load_htsat_module
private = load_htsat_module()
assert private.helper == 1
import laion_clap
assert laion_clap.ready and laion_clap.clap_module.heavy
assert laion_clap.htsat.helper == 1
print("as it should be")
""")
    assert done.stdout.strip() == "as it should be", done.stderr


@pytest.mark.parametrize("layout", ["nothing", "another version", "broken"])
def test_missing_library_is_one_clear_error(layout: str, tmp_path) -> None:
    if layout != "nothing":
        package = tmp_path / "laion_clap"
        (package / "clap_module").mkdir(parents=True)
        (package / "__init__.py").touch()
        if layout == "broken":
            (package / "clap_module" / "htsat.py").write_text("import a_module_that_is_missing\n")
    done = run(f"""
import importlib.machinery, sys
real = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    if name == "laion_clap":
        path = [{str(tmp_path)!r}]
    return real(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
from avfewshot.encoders.htsat import load_htsat_module
for _ in range(2):
    try:
        load_htsat_module()
    except Exception as error:
        print(type(error).__name__, error)
assert not [name for name in sys.modules if "laion_clap" in name]
""")
    expected = {
        "nothing": "AvfsError laion_clap is not installed. Install it: pip install laion_clap",
        "another version": "this version of laion_clap is not known",
        "broken": "ModuleNotFoundError No module named 'a_module_that_is_missing'",
    }[layout]
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(expected in line for line in lines)


def test_open_clip_itself_can_be_imported_whole_afterwards() -> None:
    done = run("""
import sys
from avfewshot.encoders.backbone import build_backbone
build_backbone("tiny")
heavy = {"open_clip", "laion_clap", "timm", "transformers", "torchvision", "librosa", "torchlibrosa", "h5py", "scipy"}
assert not heavy & {name.split(".")[0] for name in sys.modules}, heavy & {name.split(".")[0] for name in sys.modules}
import open_clip
import open_clip.timm_model
import torchvision.ops.misc
assert open_clip.timm_model.timm is not None
assert open_clip.transformer.VisionTransformer.__module__ == "open_clip.transformer"
assert hasattr(torchvision.ops.misc.FrozenBatchNorm2d, "forward")
print("as it should be")
""")
    assert done.stdout.strip() == "as it should be", done.stderr


def test_filters_of_the_lean_import_are_those_of_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    from avfewshot.encoders.lean_imports import _hann, _mel_filters, _pad_center

    settings = {"sr": 48000, "n_fft": 1024, "n_mels": 64, "fmin": 50, "fmax": 14000}
    assert np.abs(_mel_filters(**settings) - librosa.filters.mel(**settings)).max() < 1e-6
    assert np.abs(_hann("hann", 1024) - librosa.filters.get_window("hann", 1024, fftbins=True)).max() < 1e-12
    assert np.array_equal(_pad_center(np.ones(3), size=6), librosa.util.pad_center(np.ones(3), size=6))
