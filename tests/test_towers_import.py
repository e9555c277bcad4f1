"""laion_clap's classes are imported without what its package does at import."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BLOCK = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked: {args}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
"""


def run(code: str) -> list[str]:
    """Lines that a Python of its own prints."""
    done = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def write_package(folder: Path, **modules: str) -> None:
    """A stand-in with the layout of laion_clap, whose real __init__ asks the network for tokenizers."""
    (folder / "laion_clap" / "clap_module").mkdir(parents=True)
    (folder / "laion_clap" / "__init__.py").write_text("from laion_clap.clap_module import htsat\nready = True\n")
    for name, text in modules.items():
        (folder / "laion_clap" / "clap_module" / f"{name}.py").write_text(text)


def test_classes_come_without_the_network_and_the_libraries_can_be_imported_whole_afterwards() -> None:
    assert run("""
import sys
from pathlib import Path
path = list(sys.path)
from avfewshot.encoders.htsat import build_htsat, load_htsat_module
sizes = {"hop": 768, "native_samples": 48000, "spec_size": 64, "embed_dim": 32, "num_heads": [2, 4, 8, 16]}
branch = build_htsat(sizes)
assert type(branch).__name__ == "HTSAT_Swin_Transformer"
assert load_htsat_module() is load_htsat_module()
assert isinstance(branch, load_htsat_module().HTSAT_Swin_Transformer)
assert sys.path == path

from avfewshot.encoders.backbone import build_backbone
build_backbone("tiny")
heavy = {"open_clip", "laion_clap", "clap_module", "timm", "transformers", "torchvision", "librosa", "torchlibrosa"}
heavy |= {"h5py", "scipy"}
assert not heavy & {name.split(".")[0] for name in sys.modules}, heavy & {name.split(".")[0] for name in sys.modules}
import open_clip
import open_clip.timm_model
import torchvision.ops.misc
assert open_clip.timm_model.timm is not None
assert open_clip.transformer.VisionTransformer.__module__ == "open_clip.transformer"
assert hasattr(torchvision.ops.misc.FrozenBatchNorm2d, "forward")
print("as it should be")
""") == ["as it should be"]


def test_package_can_still_be_imported_afterwards(tmp_path) -> None:
    write_package(tmp_path, __init__="heavy = True\n", htsat="from .utils import helper\n", utils="helper = 1\n")
    assert run(f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})
from avfewshot.encoders.htsat import load_htsat_module
private = load_htsat_module()
assert private.helper == 1
import laion_clap
assert laion_clap.ready and laion_clap.clap_module.heavy
assert laion_clap.htsat.helper == 1
print("as it should be")
""") == ["as it should be"]


def test_missing_library_is_one_clear_error(tmp_path) -> None:
    write_package(tmp_path / "another version")
    write_package(tmp_path / "broken", htsat="import a_module_that_is_missing\n")
    lines = run(f"""
import importlib.machinery, sys
real = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    if name == "laion_clap":
        path = [{str(tmp_path)!r} + "/" + layout]
    return real(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
from avfewshot.encoders.htsat import load_htsat_module
for layout in ("nothing", "another version", "broken"):
    importlib.invalidate_caches()
    for _ in range(2):
        try:
            load_htsat_module()
        except Exception as error:
            print(type(error).__name__, error)
    assert not [name for name in sys.modules if "laion_clap" in name]
""")
    expected = [
        "AvfsError laion_clap is not installed. Install it: pip install laion_clap",
        "this version of laion_clap is not known",
        "ModuleNotFoundError No module named 'a_module_that_is_missing'",
    ]
    assert len(lines) == 6
    for number, line in enumerate(lines):
        assert expected[number // 2] in line


def test_filters_of_the_lean_import_are_those_of_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    from avfewshot.encoders.lean_imports import _hann, _mel_filters, _pad_center

    settings = {"sr": 48000, "n_fft": 1024, "n_mels": 64, "fmin": 50, "fmax": 14000}
    assert np.abs(_mel_filters(**settings) - librosa.filters.mel(**settings)).max() < 1e-6
    assert np.abs(_hann("hann", 1024) - librosa.filters.get_window("hann", 1024, fftbins=True)).max() < 1e-12
    assert np.array_equal(_pad_center(np.ones(3), size=6), librosa.util.pad_center(np.ones(3), size=6))
