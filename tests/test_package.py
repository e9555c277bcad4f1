"""The wheel: built here, installed elsewhere, complete without the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from media_factory import tone, write_media

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import json, sys
import avfewshot
from avfewshot.data.description import load_description
from avfewshot.encoders.presets import preset_names
from avfewshot.prompts import load_templates
from avfewshot.io import resource_dir
found = {
    "places": [avfewshot.__file__, str(resource_dir("prompts")), str(resource_dir("data_splits"))],
    "templates": len(load_templates("default").visual),
    "classes": len(load_description("ave").classes),
    "presets": preset_names(),
    "heavy": "torch" in sys.modules,
}
texts = avfewshot.load("tiny", device="cpu").embed_labels(["dog barking", "bell ringing"])[0]
print(json.dumps({**found, "shape": list(texts.shape)}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True, timeout=120)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """A folder with the wheel installed, and nothing else."""
    target = wheel.parent / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, text=True, timeout=120)
    return target


def _run(site: Path | str, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_wheel_finds_its_prompts_splits_and_tiny_weights_and_has_the_command(site: Path, tmp_path) -> None:
    found = json.loads(_run(site, tmp_path, "-c", PROBE))
    assert all(Path(place).is_relative_to(site) for place in found["places"])
    assert found["templates"] > 0
    assert found["classes"] == 28
    assert {"base", "large", "tiny"} <= set(found["presets"])
    assert not found["heavy"]
    assert found["shape"] == [2, 128]
    assert "zeroshot" in _run(site, tmp_path, "-m", "avfewshot", "--help")
    assert (site / "bin" / "avfs").exists() or (site / "Scripts" / "avfs.exe").exists()


def test_wheel_holds_what_is_needed_and_nothing_else_and_twine_accepts_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names, size = archive.namelist(), sum(file.file_size for file in archive.infolist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    ls_files = ["git", "ls-files", "avfewshot", "prompts", "data_splits"]
    tracked = subprocess.run(ls_files, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    moved = [re.sub("^(prompts|data_splits)/", r"avfewshot/_resources/\1/", name) for name in tracked]
    assert set(moved) <= set(names)
    for needed in ("avfewshot/py.typed", "avfewshot/_resources/prompts/default.yaml"):
        assert needed in names
    assert any(name.startswith("avfewshot/_resources/data_splits/") for name in names)
    assert any("tiny" in name and name.endswith(".safetensors") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"avfewshot"}  # the package and its metadata
    assert not any("test" in name.split("/") or "__pycache__" in name for name in names)
    assert size < 25 * 2**20
    # What has no wheels for macOS and aarch64 must not keep the package from being installed there.
    [decord] = re.findall("(?m)^Requires-Dist: decord.*", metadata)
    assert "platform_machine" in decord
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _version(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "hatchling", "version"],
        cwd=folder, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("SETUPTOOLS_SCM_")},
    )  # fmt: skip
    return done.stdout.strip()


def test_a_tag_is_the_version_and_neither_a_shallow_clone_nor_a_tarball_needs_one(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", _version(tree))  # a tarball

    def git(*arguments: str, folder: Path = tree) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "v9.8.7")
    assert _version(tree) == "9.8.7"
    git("commit", "-qm", "two", "--allow-empty")
    assert _version(tree).startswith("9.8.8.dev1+g")
    git("clone", "-q", "--depth", "1", "--no-tags", tree.as_uri(), str(tmp_path / "shallow"))
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\.dev1\+g\w+", _version(tmp_path / "shallow"))


HIDING = """
import importlib.metadata, sys
HIDDEN = {"decord", "triton", "faiss"}  # what has no wheels for macOS or aarch64, or need not be there
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
version = importlib.metadata.version
def hidden(name):
    if name in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = hidden
"""


RUNNING = """
import json, pathlib, sys
from command_support import execute
print(json.dumps([execute(pathlib.Path(), *command) for command in json.loads(sys.argv[1])]))
"""


def test_all_but_the_decord_backend_works_where_linux_only_packages_are_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    write_media(tmp_path / "clip.mp4", seconds=2.0, audio=tone(2.0))
    zeroshot = ("zeroshot", "clip.mp4", "--label", "dog barking", "--label", "rain", "--backbone", "tiny")
    as_json = ("--format", "json")
    commands = [(*zeroshot, *as_json), ("doctor", *as_json), (*zeroshot, "--frame-backend", "decord")]
    site = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests")))
    (status, out, err), (_, found, _), refused = json.loads(_run(site, tmp_path, "-c", RUNNING, json.dumps(commands)))
    assert status == 0, err
    assert json.loads(out)["clips"][0]["duration"] == pytest.approx(2.0, abs=0.1)
    assert {one["what"]: one for one in json.loads(found)}["decord"]["status"] == "note"
    assert refused[0] == 2
    assert "'decord' cannot be used" in refused[2]
    assert "'pyav'" in refused[2]
