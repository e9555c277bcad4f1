"""The whole way from the hub to a working backbone: a local server, random weights, the official layout."""

import hashlib
import shutil
import socket

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from weights_support import make_hub, serving, write_preset

from avfewshot.encoders import fetch as fetching
from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.check import check
from avfewshot.encoders.presets import load_preset, preset_names
from avfewshot.encoders.weights.locate import locate
from avfewshot.errors import WeightsError


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory):
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(hub_files, monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path / "hub-cache", hub_files) as server:
        yield server


def one(preset, key):
    return next(needed for needed in preset.files() if needed.key == key)


def fetch_all(preset):
    return [fetching.fetch(preset, needed) for needed in preset.files()]


def refused(preset, key) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        fetching.fetch(preset, one(preset, key))
    return caught.value


def test_from_nothing_to_a_backbone_that_embeds(hub, hub_files, tmp_path):
    path = write_preset(tmp_path)
    preset = load_preset(path)
    with pytest.raises(WeightsError) as caught:
        build_backbone(path)
    for part in ("lacks 4 files", "open_clip_model.safetensors", str(tmp_path / "hub-cache")):
        assert part in str(caught.value)
    assert "avfs weights fetch" in caught.value.hint
    assert hub.requests == []  # building never downloads
    assert all(entry.downloaded for entry in fetch_all(preset))
    assert sorted(hub.downloads()) == ["630k-small.pt", "merges.txt", "open_clip_model.safetensors", "vocab.json"]
    hub.requests.clear()
    assert not any(entry.downloaded for entry in fetch_all(preset))
    backbone = build_backbone(path)
    assert hub.requests == []
    digest = hashlib.sha256(hub_files["lukewys/laion_clap/630k-small.pt"].read_bytes()).hexdigest()
    assert backbone.identity["clap"] == digest
    assert backbone.audio_scale == pytest.approx(float(torch.tensor(3.0).exp()))  # stored as a logarithm
    features = backbone.audio_text.encode(["a dog is barking", "rain"])
    assert features.norm(dim=-1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert fetching.fetch(preset, one(preset, "roberta_merges"), force=True).downloaded

    # Files are compared when they are loaded and when they are checked.
    merges = locate(one(preset, "roberta_merges"))
    text = merges.read_text()
    merges.write_text(text + "\n")
    with pytest.raises(WeightsError, match="is not the file that it should be"):
        build_backbone(path)
    merges.write_text(text)
    clap = locate(one(preset, "clap")).resolve()
    data = bytearray(clap.read_bytes())
    data[-2000] ^= 1
    clap.write_bytes(data)
    statuses = {finding.part: finding.status for finding in check(preset)}
    assert statuses["CLAP weights"] == "damaged"
    assert "backbone small" not in statuses  # it is not loaded then
    assert fetching.fetch(preset, one(preset, "clap")).downloaded
    assert [finding.status for finding in check(preset)] == ["ok"] * 5
    with pytest.raises(WeightsError, match=r"0{64} was expected"):
        build_backbone(write_preset(tmp_path, clap={"sha256": "0" * 64}))


def test_a_broken_connection_is_taken_up_where_it_broke(hub, hub_files, monkeypatch, tmp_path):
    preset = load_preset(write_preset(tmp_path))
    source = hub_files["timm/small_clip/open_clip_model.safetensors"]
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 64_000)  # of 10 MB, larger than the file
    hub.cut = [1_000_000]
    path = fetching.fetch(preset, one(preset, "clip")).path
    assert path.read_bytes() == source.read_bytes()
    asked = [ranged for method, _, ranged in hub.requests if method == "GET"]
    assert asked == [None, f"bytes={1_000_000 // 64_000 * 64_000}-"]


def test_what_a_server_does_not_have_or_is_not_expected_is_refused(hub, tmp_path):
    for entries, expected in (
        ({"sha256": "0" * 64}, "arrived damaged"),
        ({"repository": "nobody/nothing"}, "no such repository"),
        ({"checkpoint": "absent.pt"}, "has no file absent.pt"),
        ({"revision": "v9"}, "no revision 'v9'"),
    ):
        assert expected in str(refused(load_preset(write_preset(tmp_path, clap=entries)), "clap"))
    hub.status = 503  # a server out of order
    told = str(refused(load_preset(write_preset(tmp_path)), "clip"))
    assert "503" in told
    assert hub.address in told


def test_without_safetensors_the_other_official_name_is_taken(hub, hub_files, tmp_path):
    state_file = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(load_file(hub_files["timm/small_clip/open_clip_model.safetensors"]), state_file)
    hub.files = {"timm/small_clip/open_clip_pytorch_model.bin": state_file}
    preset = load_preset(write_preset(tmp_path))
    assert fetching.fetch(preset, one(preset, "clip")).path.name == state_file.name
    assert locate(one(preset, "clip")).name == state_file.name


def test_no_network_says_what_to_do(monkeypatch, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    error = refused(load_preset(write_preset(tmp_path)), "clip")
    assert "cannot be reached" in error.message
    assert "--clip-weights" in error.hint
    assert "HF_ENDPOINT" in error.hint


def test_files_by_path_need_no_hub_and_open_no_socket(hub_files, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    preset, opened = write_preset(tmp_path), []

    class Refused(socket.socket):
        def __init__(self, *args, **kwargs):
            opened.append(args)
            raise OSError("no sockets here")

    monkeypatch.setattr(socket, "socket", Refused)
    backbone = build_backbone(
        preset,
        clip_weights=hub_files["timm/small_clip/open_clip_model.safetensors"],
        clap_weights=hub_files["lukewys/laion_clap/630k-small.pt"],
        roberta=hub_files["small/roberta/vocab.json"].parent,
    )
    assert backbone.visual_text.encode(["a dog"]).shape == (1, 16)
    backbone.audio_text.encode(["a dog"])
    backbone.visual(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    backbone.audio(torch.zeros(1, 48_000))
    build_backbone(preset, weights="random").audio_text.encode(["a dog"])
    assert opened == []


def test_every_file_of_a_packaged_preset_is_pinned_where_public_material_tells():
    unknown = set()
    for name in preset_names():
        for needed in load_preset(name).files():
            source = needed.source
            if source.repository:
                pins = {"sha256": (source.sha256, 64), "revision": (source.revision, 40)}
                unknown |= {(name, needed.key, pin) for pin, (value, _) in pins.items() if value is None}
                assert all(value is None or len(value) == length for value, length in pins.values()), (name, needed)
    siglip2 = ("clip", "clip_text_tokenizer", "clip_text_tokenizer_config", "clip_text_tokenizer_type")
    expected = {("siglip2", key, pin) for key in siglip2 for pin in ("sha256", "revision")}
    expected |= {("peav", key, "sha256") for key in ("clip", "peav_config", "peav_tokenizer")}
    expected |= {("peav", key, pin) for key in ("clap", "peav_timeline_config") for pin in ("sha256", "revision")}
    assert unknown == expected | {("large-plus", "clip", "sha256")}  # recorded with the first download


def test_what_a_server_serves_first_is_recorded_and_held_to(hub, hub_files, tmp_path, monkeypatch):
    preset = load_preset(write_preset(tmp_path))
    merges = one(preset, "roberta_merges")
    first = fetching.fetch(preset, merges)
    assert first.recorded == hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert fetching.fetch(preset, merges).recorded is None
    other = tmp_path / "other.txt"
    other.write_bytes(hub_files["small/roberta/merges.txt"].read_bytes() + b"\n")
    hub.files["small/roberta/merges.txt"] = other
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "another-cache"))
    assert "arrived damaged" in str(refused(preset, "roberta_merges"))


def test_plain_http_is_refused_without_a_flag(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    monkeypatch.setattr(fetching, "_download", lambda *_, **__: pytest.fail("the server was asked"))
    preset = load_preset("base")
    error = refused(preset, "clip")
    assert "plain http" in str(error)
    assert "--allow-http" in error.hint
    monkeypatch.setattr(fetching, "_download", lambda *_, **__: None)
    assert fetching.fetch(preset, one(preset, "clip"), allow_http=True) is None


@pytest.mark.parametrize("refs", ["b" * 40 + "\n", None, "c" * 40])
def test_a_cache_that_was_filled_by_hand_is_found(hub_files, monkeypatch, tmp_path, refs):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "models--lukewys--laion_clap"
    snapshot = folder / "snapshots" / ("b" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(hub_files["lukewys/laion_clap/630k-small.pt"], snapshot)
    if refs:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(refs)
    elsewhere = {"revision": "d" * 40}  # another revision, and nothing to compare it with
    for entries, found in (({}, True), (elsewhere, False), (elsewhere | {"sha256": "0" * 64}, True)):
        needed = one(load_preset(write_preset(tmp_path, clap=entries)), "clap")
        assert locate(needed) == (snapshot / "630k-small.pt" if found else None)
