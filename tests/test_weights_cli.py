"""``avfs weights`` as people type it."""

import pytest
from command_support import Commands
from weights_support import make_hub, serving, write_preset


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


@pytest.fixture
def avfs(here):
    return Commands(here, shared=False)


def test_list_says_sizes_licences_sources_and_where(avfs, here):
    out, _ = avfs("weights", "list")
    for expected in (
        "605 MB", "1.86 GB", "CC0-1.0", "MIT", str(here.parent / "hub-cache"),
        "lukewys/laion_clap/630k-audioset-best.pt",
        "PE-A-Frame weights   missing  1.8 GB, Apache-2.0",
        "its SHA-256 is not known beforehand",
    ):  # fmt: skip
        assert expected in out
    assert out.index("base:") < out.index("large:") < out.index("tiny:")
    base, tiny = out.split("large:")[0], out.split("tiny:")[1]
    assert "here" not in base
    assert "bpe.txt.gz" in tiny
    assert out.count("GFLOPs a clip; run whole, no adapters") == 3  # pe, peav, siglip2
    assert "published: ImageNet 63.3, 38 sets 52.5 (open_clip, docs/openclip_results.csv)" in base
    assert "its SHA-256 is not known beforehand" not in base
    assert avfs("weights", "list", "tiny")[0].strip() in out  # from what is remembered


def test_list_of_one_as_json(avfs):
    (base,) = avfs.json("weights", "list", "base")
    assert [file["option"] for file in base["files"]] == ["--clip-weights", "--clap-weights", "--roberta", "--roberta"]
    assert all(file["path"] is None for file in base["files"])
    assert base["files"][1]["sha256"].startswith("8053c977")
    assert base["adapters"]
    assert base["memory_bytes"] == 4 * base["parameters"] > 1e9
    assert 100e9 < base["flops_per_clip"] < 400e9


def test_fetch_then_check_then_list(avfs, here, hub):
    preset = write_preset(here)
    out, _ = avfs("weights", "check", preset, status=1)
    assert out.count("missing") == 4
    assert f"avfs weights fetch {preset}" in out
    out, err = avfs("weights", "fetch", preset)
    assert out.count(": fetched: ") == 4
    assert "CLAP weights: fetching lukewys/laion_clap/630k-small.pt" in err
    assert f"avfs weights check {preset}" in out
    assert avfs("weights", "fetch", "--backbone", preset)[0].count(": here already: ") == 4
    findings = avfs.json("weights", "check", preset)
    assert [finding["status"] for finding in findings] == ["ok"] * 5
    assert findings[-1]["detail"].startswith("loads: embeddings of 16 and 16 numbers")
    out, _ = avfs("weights", "list", preset)
    assert out.count("here") >= 4
    assert "missing" not in out


def test_files_by_path_are_neither_fetched_nor_missed_and_damaged_ones_named(avfs, here, hub, hub_files):
    preset, clip = write_preset(here), hub_files["timm/small_clip/open_clip_model.safetensors"]
    paths = ["--clap-weights", hub_files["lukewys/laion_clap/630k-small.pt"]]
    paths += ["--roberta", hub_files["small/roberta/vocab.json"].parent, "--clip-weights"]
    assert avfs("weights", "fetch", preset, *paths, clip)[0].count("here already") == 4
    assert hub.requests == []
    assert avfs("weights", "check", preset, *paths, clip)[0].count("ok ") == 5
    broken = here / "broken.safetensors"
    broken.write_bytes(clip.read_bytes()[:-500])
    out, _ = avfs("weights", "check", preset, *paths, broken, status=1)
    (damaged,) = [line for line in out.splitlines() if line.startswith("damaged")]
    assert str(broken) in damaged
    assert "truncated or damaged" in damaged


def test_settings_have_their_say(avfs, here, monkeypatch):
    (here / "avfs.toml").write_text('backbone = "tiny"\n')
    assert "backbone tiny" in avfs("weights", "check")[0]
    monkeypatch.setenv("AVFS_BACKBONE", "base")
    assert "630k-audioset-best.pt" in avfs("weights", "check", status=1)[0]


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        ("fetch tinny", 2, "Did you mean 'tiny'?"),
        ("list base --backbone tiny", 2, "Two backbones are given"),
        ("check tiny --format xml", 2, "not one of table, json"),
        ("check tiny --roberta folder", 2, "no RoBERTa"),
        ("fetch base", 1, "HF_HUB_OFFLINE forbids the network"),
        ("fetch base", 1, "--clip-weights"),
    ],
)
def test_misuse_or_a_missing_network_is_told_in_a_line(avfs, words, status, expected):
    assert expected in avfs.refused("weights", *words.split(), status=status)


def test_the_packaged_backbone_needs_no_fetching(avfs):
    assert avfs("weights", "fetch", "tiny")[0].count("here already") == 4
    assert "embeddings of 128 and 128 numbers" in avfs("weights", "check", "tiny")[0]
