"""Reading weight files: what is understood, what is refused, and what the person is told."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weights_support import (
    AUDIO,
    CLIP_MODEL,
    ROBERTA,
    fusion_state,
    laion_state,
    write_clip,
    write_laion,
    write_preset,
    write_roberta,
)

from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.kinds.clap import REBUILT, is_rebuilt
from avfewshot.encoders.presets import load_preset
from avfewshot.encoders.weights.load import WeightsWarning, load_into, read_tensors
from avfewshot.encoders.weights.locate import file_sha256
from avfewshot.errors import WeightsError
from avfewshot.inference.embedding_cache import embedding_identity

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor(2)}


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def reason(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    assert str(path) in caught.value.message
    return str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_every_form_gives_the_same_tensors(form, tmp_path):
    path = tmp_path / "weights.bin"  # the form is found out from the content
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
    read = read_tensors(path)
    assert sorted(read) == sorted(STATE)
    assert all(torch.equal(read[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(legacy, tmp_path):
    path, mark = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"state_dict": {**STATE, "x": Malicious(mark)}}, path, _use_new_zipfile_serialization=not legacy)
    told = reason(path)
    assert "refused" in told
    assert "posix.system" in told or "nt.system" in told
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap is live: whoever trusts the file is caught
    assert mark.exists()


def test_numbers_of_numpy_pass_but_no_other_objects_of_numpy(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": STATE, "best": np.float64(0.5), "n": np.int32(3), "ok": np.bool_(True)}, path)
    assert sorted(read_tensors(path)) == sorted(STATE)
    torch.save({"state_dict": STATE, "array": np.array([object()])}, path)
    assert "refused" in reason(path)
    assert np.dtype not in torch.serialization.get_safe_globals()  # the allow-list is taken back


def test_an_object_scalar_of_numpy_is_refused(tmp_path):
    path = tmp_path / "weights.pt"

    class Forged:
        def __reduce__(self):
            return np.core.multiarray.scalar, (np.dtype("O"), "anything")

    torch.save({"state_dict": STATE, "x": Forged()}, path)
    assert "damaged or not a plain PyTorch checkpoint" in reason(path) or "refused" in reason(path)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.model."])
@pytest.mark.parametrize(
    "keys", ["", "model", "state_dict", "state_dict model", "model state_dict", "ema", "net weights"]
)
def test_wrappers_around_the_tensors_are_taken_off(prefix, keys, tmp_path):
    path = tmp_path / "weights.pt"
    state = {prefix + name: tensor for name, tensor in STATE.items()}
    for key in keys.split():
        state = {key: state, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(state, path)
    assert sorted(read_tensors(path)) == sorted(STATE)


def test_a_checkpoint_that_holds_itself_ends(tmp_path):
    checkpoint: dict = {"epoch": 1}
    checkpoint["model"] = checkpoint
    torch.save(checkpoint, tmp_path / "weights.pt")
    assert "not all entries are tensors" in reason(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.ones(2, 2, dtype=torch.int8), "no plain numbers: weight (int8)"),
        (torch.ones(2, 2, dtype=torch.complex64), "no plain numbers: weight (complex64)"),
        (torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8), "no plain numbers: weight (qint8)"),
        (torch.eye(2).to_sparse(), "no plain numbers: weight (float32)"),
        (torch.ones(2, 2, device="meta"), "no plain numbers: weight (float32)"),
        (torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]), "no numbers (NaN or infinite): weight"),
        (torch.full((2, 2), float("inf"), dtype=torch.float16), "no numbers (NaN or infinite): weight"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(weight, said):
    with pytest.raises(WeightsError) as caught:
        load_into(nn.Linear(2, 2), {"weight": weight, "bias": torch.zeros(2)}, path="w.pt", architecture="a map")
    assert said in str(caught.value)
    largest = torch.full(
        (2, 2), torch.finfo(torch.float16).max, dtype=torch.float16
    )  # no fault, though their sum is none
    load_into(nn.Linear(2, 2), {"weight": largest, "bias": torch.zeros(2)}, path="w.pt", architecture="a map")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("vision_model.embeddings.patch_embedding.weight", (768, 3, 32, 32), "CLIP in the layout of transformers"),
        ("audio_branch.patch_embed.proj.weight", (128, 1, 4, 4), "HTSAT-base"),
    ],
)
def test_files_of_other_layouts_and_sizes_are_named_for_what_they_are(name, shape, said, tmp_path):
    own = torch.nn.Module()
    own.audio_branch = torch.nn.Module()
    own.audio_branch.patch_embed = torch.nn.Module()
    own.audio_branch.patch_embed.proj = torch.nn.Conv2d(1, 96, 4, bias=False)
    with pytest.raises(WeightsError, match=said) as caught:
        load_into(own, {name: torch.zeros(shape)}, path="some.pt", architecture="CLAP")
    assert caught.value.hint


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_truncated_files_are_told(form, kept, tmp_path):
    path = tmp_path / "weights.bin"
    state = {f"layer{number}": torch.randn(50, 50) for number in range(8)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    told = reason(path)
    assert "truncated or damaged" in told
    assert "avfs weights fetch" in told


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>Not Found</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"RIFF....WAVEfmt ", "is not a weight file"),
        (b"\x80\x02", "truncated or damaged"),
        (b"PK\x03\x04" + b"\0" * 600, "truncated or damaged"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "is not a weight file"),
    ],
)
def test_other_files_are_told_apart(content, expected, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert expected in reason(path)


def test_archives_and_pickles_of_others_are_told_apart(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    assert "NumPy's archive, no checkpoint of PyTorch: a.npy" in reason(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model/weights.safetensors", "x")
    assert "a ZIP archive, no checkpoint of PyTorch: model/weights.safetensors" in reason(tmp_path / "a.zip")
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": [1, 2]}, 4))
    assert "a pickle that is no checkpoint" in reason(tmp_path / "a.pt")


def test_missing_files_and_folders_are_told(tmp_path):
    assert "null byte" in reason(Path("a\0b"))
    assert "there is no such file" in reason(tmp_path / "absent.pt")
    assert "is a folder" in reason(tmp_path)


def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "ViT.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated; OpenAI's own files are of this kind
        torch.jit.script(nn.Linear(2, 2)).save(str(path))
    assert "TorchScript" in reason(path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"state_dict": {}}, {"a": 3}, {"state_dict": {"a": "text"}}, {3: torch.ones(1)}]
)
def test_checkpoints_of_anything_but_tensors_are_told(content, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert "tensors" in reason(path)


def test_mismatches_are_listed_and_shortened():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    state = {f"{number}.weight": torch.ones(2, 2) for number in range(9)} | {
        "9.weight": torch.ones(3, 2),
        "odd": torch.ones(1),
    }
    before = model[0].weight.clone()
    with pytest.raises(WeightsError) as caught:
        load_into(model, state, path="w.pt", architecture="a small model")
    told = str(caught.value)
    assert "w.pt: these weights are not of a small model" in told
    assert "missing: 0.bias, 1.bias, 2.bias, 3.bias and 6 more" in told
    assert "unknown: odd" in told
    assert "9.weight (3x2 in the file, 2x2 in the model)" in told
    assert torch.equal(model[0].weight, before)  # nothing is half loaded


def test_half_precision_is_widened_and_only_named_tensors_may_be_absent():
    model = nn.BatchNorm1d(2)
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    state["weight"] = torch.tensor([0.5, 2.0], dtype=torch.float16)
    del state["num_batches_tracked"]
    with pytest.raises(WeightsError, match="missing: num_batches_tracked"):
        load_into(model, state, path="w", architecture="x")
    load_into(model, state, path="w", architecture="x", optional=lambda name: name == "num_batches_tracked")
    assert model.weight.dtype == torch.float32
    assert model.weight.tolist() == [0.5, 2.0]


# Backbones


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A backbone whose files lie beside its preset."""
    folder = tmp_path_factory.mktemp("small")
    write_roberta(folder / "roberta")
    entries = {"repository": None, "checkpoint": None}
    path = write_preset(
        folder,
        clip={**entries, "file": "clip.safetensors"},
        clap={**entries, "file": "clap.pt", "tokenizer": "roberta"},
    )
    preset = load_preset(path)
    write_clip(preset, folder / "clip.safetensors")
    write_laion(laion_state(preset), folder / "clap.pt")
    return preset


def failure(preset, **paths) -> str:
    with pytest.raises(WeightsError) as caught:
        build_backbone(preset, **paths)
    return str(caught.value)


def test_clap_weights_of_another_architecture_are_told(small, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    audio = {**small.clap.audio, "embed_dim": 16}
    preset = load_preset(write_preset(other, clap={"audio": {**audio, "depths": [1, 2], "num_heads": [1, 2]}}))
    write_laion(laion_state(preset), tmp_path / "other.pt")
    told = failure(small, clap_weights=tmp_path / "other.pt")
    assert "other.pt: these weights are not of CLAP" in told
    assert "in the file" in told
    assert " more" in told
    assert len(told) < 1500


def test_clip_weights_of_another_architecture_are_told(small, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    vision = {**CLIP_MODEL["vision_cfg"], "layers": 3, "patch_size": 8}
    preset = load_preset(write_preset(other, clip={"model": {**CLIP_MODEL, "vision_cfg": vision}}))
    write_clip(preset, tmp_path / "other.safetensors")
    told = failure(small, clip_weights=tmp_path / "other.safetensors")
    assert "unknown: visual.transformer.resblocks.2" in told
    assert "visual.positional_embedding (17x32 in the file, 5x32 in the model)" in told


def test_fused_checkpoints_lose_their_fusion_layers_with_one_warning(small, tmp_path):
    state = laion_state(small)
    extra = fusion_state(small)
    assert any("fusion_model" in name for name in extra)
    assert any("mel_conv2d" in name for name in extra)
    write_laion(state | extra, tmp_path / "fused.pt")
    with pytest.warns(WeightsWarning, match="fusion") as told:
        fused = build_backbone(small, clap_weights=tmp_path / "fused.pt")
    assert sum(issubclass(warning.category, WeightsWarning) for warning in told) == 1
    assert fused.audio.config.front_end == "htk"
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightsWarning)
        plain = build_backbone(small)
    assert plain.audio.config.front_end == "slaney"
    waveform = torch.randn(1, 48_000)
    assert not torch.allclose(fused.audio(waveform), plain.audio(waveform), atol=1e-4)


def test_fusion_against_the_preset_is_an_error(small, tmp_path):
    write_laion(laion_state(small) | fusion_state(small), tmp_path / "fused.pt")
    preset = load_preset(write_preset(tmp_path, clap={"fused": False}))
    with pytest.raises(WeightsError, match="fused: true"):
        preset.clap.load({"clap": tmp_path / "fused.pt"})
    preset = load_preset(write_preset(tmp_path, clap={"fused": True}))
    with pytest.raises(WeightsError, match="has no feature fusion"):
        preset.clap.load({"clap": small.clap.source.file})


def test_the_names_are_those_of_laion_clap(monkeypatch, tmp_path):
    """The library's own CLAP, with a small RoBERTa in the place of the one it would download."""
    import importlib

    from transformers import RobertaConfig, RobertaModel

    from avfewshot.encoders.htsat import load_htsat_module

    text = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = RobertaConfig(**text, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    monkeypatch.setattr(RobertaModel, "from_pretrained", classmethod(lambda cls, *_, **__: cls(config)))
    package = load_htsat_module().__name__.rpartition(".")[0]
    library = importlib.import_module(f"{package}.model")
    audio = {"model_type": "HTSAT", "model_name": "tiny", "hop_size": 480}
    sizes = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    theirs = library.CLAP(768, audio, {**sizes, "model_type": "roberta"})
    preset = load_preset(
        write_preset(tmp_path, clap={"audio": "HTSAT-tiny", "text": {**text, "type": "roberta"}, "joint_dim": 512})
    )
    ours, _ = preset.clap.build()
    left_out = ("audio_transform.", "text_transform.")
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items() if not name.startswith(left_out)}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected


def test_rebuilt_tensors_may_be_left_out_of_a_file(small, tmp_path):
    state = {name.removeprefix("module."): tensor for name, tensor in laion_state(small).items()}
    kept = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    kept = {name: tensor for name, tensor in kept.items() if not is_rebuilt(name)}
    assert len(kept) < len(state) - 5
    save_file(kept, tmp_path / "short.safetensors")
    whole, short = build_backbone(small), build_backbone(small, clap_weights=tmp_path / "short.safetensors")
    waveform = torch.randn(2, 48_000)
    assert short.audio(waveform).dtype == torch.float32
    assert torch.allclose(short.audio(waveform), whole.audio(waveform), atol=2e-2)
    assert all("bn0" not in part and "audio_projection" not in part for part in REBUILT)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone(small):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_backbone(small, weights="random", seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = (build_backbone(small, weights="random", seed=seed) for seed in (1, 2))
    texts = ["a dog", "rain"]
    assert torch.equal(first.audio_text.encode(texts), again.audio_text.encode(texts))
    assert first.audio_text.fingerprint == again.audio_text.fingerprint != other.audio_text.fingerprint
    assert first.identity == again.identity
    assert all(digest.startswith("random:1:") for digest in first.identity.values())
    frames = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(first.visual(frames), again.visual(frames))
    assert not torch.allclose(first.visual(frames), other.visual(frames))


@pytest.mark.parametrize(
    ("role", "change"),
    [
        ("clip", {"clip": {"quick_gelu": True}}),
        ("clip", {"clip": {"mean": [0.1, 0.2, 0.3]}}),
        ("clip", {"clip": {"model": {**CLIP_MODEL, "vision_cfg": {**CLIP_MODEL["vision_cfg"], "layers": 3}}}}),
        ("clip", {"clip": {"model": {**CLIP_MODEL, "text_cfg": {**CLIP_MODEL["text_cfg"], "layers": 3}}}}),
        ("clap", {"clap": {"audio": {**AUDIO, "native_samples": 47_000}}}),
        ("clap", {"clap": {"audio": {**AUDIO, "depths": [1, 3]}}}),
        ("clap", {"clap": {"text": {**ROBERTA, "num_hidden_layers": 1}}}),
        ("clap", {"clap": {"joint_dim": 8}}),
    ],
)
def test_random_weights_of_one_seed_share_features_with_no_other_architecture(small, tmp_path, role, change):
    other = load_preset(write_preset(tmp_path, **change))
    first, second = (embedding_identity(build_backbone(p, weights="random"), "fp32") for p in (small, other))
    assert first[f"file {role}"] != second[f"file {role}"]


@pytest.mark.parametrize("change", [{"mean": [0.5, 0.5, 0.5]}, {"std": [0.2, 0.2, 0.2]}, {"quick_gelu": True}])
def test_the_same_weights_read_in_another_way_share_no_features(small, tmp_path, change):
    paths = {"clip_weights": small.clip.source.file, "clap_weights": small.clap.source.file}
    paths["roberta"] = small.path.parent / "roberta"
    presets = []
    for name, clip in (("one", {}), ("two", {"repository": "elsewhere/clip"}), ("other", change)):
        (tmp_path / name).mkdir()
        presets.append(load_preset(write_preset(tmp_path / name, clip=clip)))
    first, second, third = (embedding_identity(build_backbone(p, **paths), "fp32") for p in presets)
    assert first == second
    assert second != third
    assert "preset" not in embedding_identity(build_backbone("tiny"), "fp32")  # nor are kept entries of it forgotten


def test_the_kind_of_gelu_is_in_the_fingerprint_and_in_the_result(small, tmp_path):
    quick = load_preset(write_preset(tmp_path, clip={"quick_gelu": True}))
    paths = {"clip_weights": small.clip.source.file, "clap_weights": small.clap.source.file}
    plain, quick = (build_backbone(preset, **paths, roberta=small.path.parent / "roberta") for preset in (small, quick))
    assert plain.visual_text.fingerprint != quick.visual_text.fingerprint
    assert plain.audio_text.fingerprint == quick.audio_text.fingerprint
    difference = plain.visual_text.encode(["a dog"]) - quick.visual_text.encode(["a dog"])
    assert difference.abs().max() > 1e-5


def test_loading_leaves_the_global_generator_alone_and_fills_every_tensor(small):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    backbone = build_backbone(small)
    assert torch.equal(torch.get_rng_state(), before)
    stored = read_tensors(small.clap.source.file)
    loaded = backbone.audio_text.model.state_dict()
    assert all(torch.equal(tensor, stored[f"text_branch.{name}"]) for name, tensor in loaded.items())
    assert build_backbone(small).audio.front_end(torch.randn(1, 48_000), backbone.audio.audio_branch).isfinite().all()


def test_everything_is_frozen_and_stays_in_evaluation_mode(small):
    backbone = build_backbone(small)
    for module in (backbone.visual, backbone.audio, backbone.visual_text, backbone.audio_text):
        module.train()
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(backbone.audio_text.encode(["rain"]), backbone.audio_text.encode(["rain"]))


def test_the_towers_take_another_number_format_and_the_texts_do_not(small):
    backbone = build_backbone(small).to("cpu", torch.bfloat16)
    assert backbone.visual.visual.proj.dtype == torch.bfloat16
    assert backbone.audio_text.encode(["rain"]).dtype == torch.float32


def test_hashes_are_remembered_until_the_file_changes(monkeypatch, tmp_path):
    import avfewshot.encoders.weights.locate as identity

    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = file_sha256(path)
    counted = []
    real = identity.sha256_file
    monkeypatch.setattr(identity, "sha256_file", lambda file: counted.append(file) or real(file))
    assert file_sha256(path) == first
    assert counted == []
    assert file_sha256(path, remember=False) == first
    assert len(counted) == 1
    path.write_bytes(b"another")
    assert file_sha256(path) != first
