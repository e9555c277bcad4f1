"""``avfs weights`` as people type it."""

from __future__ import annotations

import json
import shutil

import pytest
from weights_support import make_hub, serving, write_preset

from avfewshot.cli.app import run


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory):
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def here(monkeypatch, tmp_path):
    """An empty folder to type in, and an empty hub cache."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return folder


@pytest.fixture
def hub(hub_files, here, monkeypatch):
    with serving(monkeypatch, here.parent / "hub-cache", hub_files) as server:
        yield server


def typed(capfd, *words) -> tuple[int, str, str]:
    status = run(["weights", *(str(word) for word in words)])
    told = capfd.readouterr()
    return status, told.out, told.err


def test_list_says_sizes_licences_sources_and_where(capfd, here):
    status, out, _ = typed(capfd, "list")
    assert status == 0
    for expected in ("base:", "large:", "tiny:", "605 MB", "1.86 GB", "CC0-1.0", "MIT", str(here.parent / "hub-cache")):
        assert expected in out
    assert "lukewys/laion_clap/630k-audioset-best.pt" in out
    assert out.index("base:") < out.index("large:") < out.index("tiny:")
    base, tiny = out.split("large:")[0], out.split("tiny:")[1]
    assert "here" not in base
    assert "bpe.txt.gz" in tiny
    assert out.count("GFLOPs a clip; run whole, no adapters") == 3  # pe, peav, siglip2
    assert "PE-A-Frame weights   missing  1.8 GB, Apache-2.0" in out
    assert "published: ImageNet 63.3, 38 sets 52.5 (open_clip, docs/openclip_results.csv)" in base
    assert "its SHA-256 is not known beforehand" not in base
    assert "its SHA-256 is not known beforehand" in out
    assert typed(capfd, "list", "tiny")[1].strip() in out  # from what is remembered


def test_list_of_one_as_json(capfd, here):
    status, out, _ = typed(capfd, "list", "base", "--format", "json")
    (base,) = json.loads(out)
    assert status == 0
    assert [file["option"] for file in base["files"]] == ["--clip-weights", "--clap-weights", "--roberta", "--roberta"]
    assert all(file["path"] is None for file in base["files"])
    assert base["files"][1]["sha256"].startswith("8053c977")
    assert base["adapters"]
    assert base["memory_bytes"] == 4 * base["parameters"] > 1e9
    assert 100e9 < base["flops_per_clip"] < 400e9


def test_fetch_then_check_then_list(capfd, here, hub):
    preset = write_preset(here)
    status, out, err = typed(capfd, "check", preset)
    assert status == 1
    assert out.count("missing") == 4
    assert f"avfs weights fetch {preset}" in out
    status, out, err = typed(capfd, "fetch", preset)
    assert (status, out.count(": fetched: ")) == (0, 4)
    assert "CLAP weights: fetching lukewys/laion_clap/630k-small.pt" in err
    assert f"avfs weights check {preset}" in out
    status, out, _ = typed(capfd, "fetch", "--backbone", preset)
    assert (status, out.count(": here already: ")) == (0, 4)
    status, out, _ = typed(capfd, "check", preset, "--format", "json")
    findings = json.loads(out)
    assert status == 0
    assert [finding["status"] for finding in findings] == ["ok"] * 5
    assert findings[-1]["detail"].startswith("loads: embeddings of 16 and 16 numbers")
    status, out, _ = typed(capfd, "list", preset)
    assert out.count("here") >= 4
    assert "missing" not in out


def test_files_by_path_are_neither_fetched_nor_missed(capfd, here, hub, hub_files):
    preset = write_preset(here)
    paths = ["--clip-weights", hub_files["timm/small_clip/open_clip_model.safetensors"]]
    paths += ["--clap-weights", hub_files["lukewys/laion_clap/630k-small.pt"]]
    paths += ["--roberta", hub_files["small/roberta/vocab.json"].parent]
    status, out, _ = typed(capfd, "fetch", preset, *paths)
    assert (status, out.count("here already"), hub.requests) == (0, 4, [])
    status, out, _ = typed(capfd, "check", preset, *paths)
    assert (status, out.count("ok ")) == (0, 5)


def test_check_names_what_is_damaged(capfd, here, hub_files):
    preset = write_preset(here)
    broken = here / "broken.safetensors"
    broken.write_bytes(hub_files["timm/small_clip/open_clip_model.safetensors"].read_bytes()[:-500])
    shutil.copytree(hub_files["small/roberta/vocab.json"].parent, here / "roberta")
    paths = ["--clap-weights", hub_files["lukewys/laion_clap/630k-small.pt"], "--roberta", here / "roberta"]
    status, out, _ = typed(capfd, "check", preset, "--clip-weights", broken, *paths)
    assert status == 1
    (damaged,) = [line for line in out.splitlines() if line.startswith("damaged")]
    assert str(broken) in damaged
    assert "truncated or damaged" in damaged


def test_settings_have_their_say(capfd, here, monkeypatch):
    (here / "avfs.toml").write_text('backbone = "tiny"\n')
    assert "backbone tiny" in typed(capfd, "check")[1]
    monkeypatch.setenv("AVFS_BACKBONE", "base")
    assert "630k-audioset-best.pt" in typed(capfd, "check")[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fetch", "tinny"], "Did you mean 'tiny'?"),
        (["list", "base", "--backbone", "tiny"], "Two backbones are given"),
        (["check", "tiny", "--format", "xml"], "not one of table, json"),
        (["check", "tiny", "--roberta", "folder"], "no RoBERTa"),
    ],
)
def test_misuse_is_told_in_a_line(capfd, here, words, expected):
    status, _, err = typed(capfd, *words)
    assert status == 2
    assert expected in err
    assert "Traceback" not in err


def test_fetch_without_a_network_is_one_clear_error(capfd, here):
    status, _, err = typed(capfd, "fetch", "base")
    assert status == 1
    assert "HF_HUB_OFFLINE forbids the network" in err
    assert "--clip-weights" in err
    assert "Traceback" not in err


def test_the_packaged_backbone_needs_no_fetching(capfd, here):
    status, out, _ = typed(capfd, "fetch", "tiny")
    assert (status, out.count("here already")) == (0, 4)
    status, out, _ = typed(capfd, "check", "tiny")
    assert status == 0
    assert "embeddings of 128 and 128 numbers" in out
