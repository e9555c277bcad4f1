"""The wheel: built here, installed elsewhere, complete without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import json, sys
import avfewshot
from avfewshot.data.description import load_description
from avfewshot.encoders.presets import load_preset, preset_names
from avfewshot.prompts import load_templates
from avfewshot.io import resource_dir
preset = load_preset("tiny")
print(json.dumps({
    "module": avfewshot.__file__,
    "prompts": str(resource_dir("prompts")),
    "splits": str(resource_dir("data_splits")),
    "templates": len(load_templates("default").visual),
    "classes": len(load_description("ave").classes),
    "presets": preset_names(),
    "heavy": "torch" in sys.modules,
}))
import avfewshot
classifier = avfewshot.load("tiny", device="cpu")
print(json.dumps({"shape": list(classifier.embed_labels(["dog barking", "bell ringing"])[0].shape)}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, text=True, timeout=120)
    return target


def _run(site: Path, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_wheel_finds_its_prompts_splits_and_tiny_weights(site: Path, tmp_path: Path) -> None:
    first, second = map(json.loads, _run(site, tmp_path, "-c", PROBE).splitlines())
    for key in ("module", "prompts", "splits"):
        assert Path(first[key]).is_relative_to(site), key
    assert first["templates"] > 0
    assert first["classes"] == 28
    assert {"base", "large", "tiny"} <= set(first["presets"])
    assert not first["heavy"]
    assert second["shape"] == [2, 128]


def test_installed_wheel_has_the_command(site: Path, tmp_path: Path) -> None:
    assert "zeroshot" in _run(site, tmp_path, "-m", "avfewshot", "--help")
    assert (site / "bin" / "avfs").exists() or (site / "Scripts" / "avfs.exe").exists()


def test_wheel_holds_no_tests_and_no_large_surprises(site: Path) -> None:
    assert not (site / "tests").exists()
    assert not (site / "cli.py").exists()
    size = sum(path.stat().st_size for path in (site / "avfewshot").rglob("*") if "__pycache__" not in path.parts)
    assert size < 25 * 2**20


def test_cli_py_at_the_top_level_is_the_same_program() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, *command, "--version"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for command in (["cli.py"], ["-m", "avfewshot"])
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("avfs ")
