"""Sound in one pass (`--audio-context clip`): windows, whole clips and their seconds, caches, stores, runs."""

import functools
import json
import re
import sqlite3
from types import SimpleNamespace

import pytest
import torch
from command_support import EXACT, TINY, Commands
from fewshot_worlds import write_class_folders
from torch.nn import functional as F
from towers_support import clap_tower, clip_tower, pictures, sounds

import avfewshot
from avfewshot.encoders.presets import load_preset
from avfewshot.errors import UsageError
from avfewshot.inference.embedding_cache import EmbeddingCache, embedding_identity
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.store.store import Store

CPU = torch.device("cpu")
TEN_SECONDS = {
    "hop": 960, "spec_size": 128, "mel_bins": 32, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [4, 8, 8]
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> AudioVisualModel:
    towers = {"visual": clip_tower(layers=2), "audio": clap_tower(TEN_SECONDS)}
    return AudioVisualModel(SimpleNamespace(**towers, visual_scale=10.0, audio_scale=10.0))


def clip(name: str, seconds: int, *, modality: str = "av", last: bool = True):
    frames = pictures(seconds) if modality != "audio" else None
    audio = sounds(1, seconds * 48_000).view(seconds, 48_000) if modality != "visual" else None
    parts = {"frames": frames, "audio_segments": audio, "warnings": (), "last": last}
    return SimpleNamespace(path=name, duration=float(seconds), **parts)


@pytest.mark.parametrize("batch_size", [1, 12, 100])
def test_long_clips_come_in_windows_of_ten_seconds(model, batch_size) -> None:
    parts = [clip("long", 7, last=False), clip("long", 7, last=False), clip("long", 9)]
    short, silent = clip("short", 3), clip("silent", 3, modality="visual")
    files = list(Embedder(model, CPU, batch_size, audio_context="clip").embed([*parts, short, silent]))
    assert [file.path for file in files] == ["long", "short", "silent"]
    waves = torch.cat([part.audio_segments for part in parts])
    for start, stop in ((0, 10), (10, 20), (20, 23)):
        with torch.no_grad():
            whole, seconds = model.audio_tower.forward_windows(waves[start:stop].reshape(1, -1))
        torch.testing.assert_close(files[0].audio[start:stop], F.normalize(seconds[0], dim=-1), atol=1e-5, rtol=0)
        expected = F.normalize(whole, dim=-1).expand(stop - start, -1)
        torch.testing.assert_close(files[0].audio_windows[start:stop], expected, atol=1e-5, rtol=0)
    frames = torch.cat([part.frames for part in parts])
    torch.testing.assert_close(files[0].visual, model(frames[None], None)[0][0], atol=1e-5, rtol=0)
    assert files[1].audio.shape == files[1].audio_windows.shape == (3, 64)
    assert torch.equal(files[1].by_clip.audio, files[1].audio_windows)
    assert files[2].audio is None
    assert files[2].audio_windows is None
    assert files[2].by_clip is files[2]


def test_a_tower_without_a_time_grid_is_refused(model) -> None:
    other = SimpleNamespace(adapters=None, audio_tower=torch.nn.Identity(), parameters=model.parameters)
    with pytest.raises(UsageError, match="--audio-context clip needs an HTS-AT"):
        Embedder(other, CPU, audio_context="clip")


def test_caches_know_the_context(tmp_path) -> None:
    backbone = SimpleNamespace(identity={"clap": "1"}, recipe="", visual=SimpleNamespace(image_size=64))
    by_second, by_clip = (embedding_identity(backbone, "fp32", context) for context in ("second", "clip"))
    assert by_second == embedding_identity(backbone, "fp32")
    assert by_second != by_clip
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"media")
    file = EmbeddedFile(str(path), 2.0, None, torch.randn(2, 4), (), torch.randn(2, 4))
    cache = EmbeddingCache(by_clip, tmp_path / "cache")
    cache.put(path, file)
    assert torch.equal(cache.get(path).audio_windows, file.audio_windows)
    assert EmbeddingCache(by_second, tmp_path / "cache").get(path) is None


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips of three seconds, and a backbone of random weights that hears ten seconds."""
    folder = tmp_path_factory.mktemp("context")
    write_class_folders(folder / "clips", clips=3)
    tiny = load_preset("tiny").path.read_text(encoding="utf-8")
    head, _, text = tiny.partition("  audio:\n")
    audio = "".join(f"    {key}: {value}\n" for key, value in (TEN_SECONDS | {"class_num": 1}).items())
    packaged = load_preset("tiny").path.parent.parent / "tiny"
    text = (head + "  audio:\n" + audio + text[text.index("  text:") :]).replace("../tiny", str(packaged))
    (folder / "ten.yaml").write_text(text, encoding="utf-8")
    return folder


TEN = ("--backbone", "ten.yaml", "--weights", "random", *EXACT)


@pytest.fixture(scope="module")
def avfs(world):
    return Commands(world, shared=False)


@pytest.fixture(scope="module")
def store(avfs, world):
    avfs("embed", "clips", "--store", "store", "--audio-context", "clip", *TEN)
    return world / "store"


def test_a_store_has_the_windows_and_refuses_a_mixture(avfs, world, store) -> None:
    held = Store(store)
    assert held.audio_context == "clip"
    settings = {"weights": "random", "device": "cpu", "precision": "fp32", "audio_context": "clip"}
    entry = held.embedded[0]
    whole = avfewshot.load(str(world / "ten.yaml"), **settings).embed(entry.path)
    assert torch.allclose(torch.from_numpy(held.of(entry)[1].copy()), whole.audio, atol=1e-5)
    assert torch.allclose(torch.from_numpy(held.audio_windows(entry)), whole.audio_windows, atol=1e-5)
    assert (whole.audio - whole.audio_windows).abs().max() > 1e-4
    for command in (
        ("embed", "clips", "--store", "store", "--audio-context", "second"),
        ("zeroshot", "--label", "a", "--label", "b", "--store", "store", *TEN),
        ("find", "a", "--store", "store", "--audio-context", "second"),
    ):
        assert re.search("audio.context", avfs.refused(*command))
    avfs("find", "--like", entry.path, "--store", "store", "--audio-context", "clip")


def test_a_store_of_an_earlier_version_gets_its_table_when_it_is_written(world, tmp_path) -> None:
    embed = functools.partial(Commands(tmp_path, shared=False), "embed", world / "clips", "--store", "old")
    embed(*TINY)
    with sqlite3.connect(tmp_path / "old" / "store.db") as database:
        database.execute("DROP TABLE windows")
        about = json.loads(database.execute("SELECT value FROM about WHERE key = 'model'").fetchone()[0])
        del about["audio_context"]
        database.execute("UPDATE about SET value = ? WHERE key = 'model'", (json.dumps(about),))
    held = Store(tmp_path / "old")
    assert held.audio_context == "second"
    assert held.audio_windows(held.embedded[0]) is None
    embed("--audio-context", "second")


def test_zeroshot_hears_the_clip_and_its_seconds_differ(avfs, store) -> None:
    def heard(context, *given):
        labels = ("--label", "dog barking", "--label", "bird chirping", "--segments")
        return avfs.json("zeroshot", *given, "--audio-context", context, *labels, *TEN)["clips"][0]["audio"]

    by_clip = heard("clip", "clips")
    assert heard("second", "clips") != by_clip
    assert heard("clip", "--store", "store") == pytest.approx(by_clip, abs=1e-4)


def test_compare_sets_both_side_by_side_and_a_run_remembers_its_own(avfs, world) -> None:
    common = ("--data", "clips", "--shots", "1", "--backbone", "ten.yaml", "--weights", "random")
    avfs("compare", *common, "--seeds", "1", "--audio-context", "second,clip")
    table = json.loads((world / "runs" / "compare" / "folder" / "compare.json").read_text(encoding="utf-8"))
    systems = {row["system"] for row in table["tables"][0]["systems"]}
    assert {"zero-shot (second)", "zero-shot (clip)", "auto (second)", "auto (clip)"} <= systems
    run = avfs.made("fewshot", *common, "--no-tune", "--audio-context", "clip", name="r")
    settings = {"adapter": str(run), "backbone": str(world / "ten.yaml"), "weights": "random", "device": "cpu"}
    assert avfewshot.load(**settings).audio_context == "clip"
    with pytest.raises(UsageError, match="--audio-context clip, not second"):
        avfewshot.load(**settings, audio_context="second")
