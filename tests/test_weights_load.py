"""Reading weight files: what is understood, what is refused, and what the person is told."""

import importlib
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import RobertaConfig, RobertaModel
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
from avfewshot.encoders.htsat import load_htsat_module
from avfewshot.encoders.kinds.clap import REBUILT, is_rebuilt
from avfewshot.encoders.presets import load_preset
from avfewshot.encoders.weights import locate
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


def write(state: object, path: Path, form: str = "zip") -> Path:
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_every_form_gives_the_same_tensors_and_truncated_files_are_told(form, tmp_path):
    state = STATE | {f"layer{number}": torch.randn(50, 50) for number in range(8)}
    path = write(state, tmp_path / "weights.bin", form)  # the form is found out from the content
    read = read_tensors(path)
    assert sorted(read) == sorted(state)
    assert all(torch.equal(read[name], state[name]) for name in state)
    data = path.read_bytes()
    for kept in (0.5, 0.99):
        path.write_bytes(data[: int(len(data) * kept)])
        told = reason(path)
        assert "truncated or damaged" in told
        assert "avfs weights fetch" in told


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_malicious_pickle_is_refused_and_not_run(form, tmp_path):
    mark = tmp_path / "ran"
    path = write({"state_dict": {**STATE, "x": Malicious(mark)}}, tmp_path / "weights.pt", form)
    told = reason(path)
    assert "refused" in told
    assert "posix.system" in told or "nt.system" in told
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap is live: whoever trusts the file is caught
    assert mark.exists()


def test_numbers_of_numpy_pass_but_no_other_objects_of_numpy(tmp_path):
    class Forged:
        def __reduce__(self):
            return np.core.multiarray.scalar, (np.dtype("O"), "anything")

    path = tmp_path / "weights.pt"
    write({"state_dict": STATE, "best": np.float64(0.5), "n": np.int32(3), "ok": np.bool_(True)}, path)
    assert sorted(read_tensors(path)) == sorted(STATE)
    assert "refused" in reason(write({"state_dict": STATE, "array": np.array([object()])}, path))
    told = reason(write({"state_dict": STATE, "x": Forged()}, path))
    assert "damaged or not a plain PyTorch checkpoint" in told or "refused" in told
    assert np.dtype not in torch.serialization.get_safe_globals()  # the allow-list is taken back


def test_wrappers_around_the_tensors_are_taken_off(tmp_path):
    wrappers = ("", "model", "state_dict", "state_dict model", "model state_dict", "ema", "net weights")
    for prefix in ("module.", "model.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.model."):
        for keys in wrappers:
            state = {prefix + name: tensor for name, tensor in STATE.items()}
            for key in keys.split():
                state = {key: state, "epoch": 3, "optimizer": {"state": {}}}
            assert sorted(read_tensors(write(state, tmp_path / "weights.pt"))) == sorted(STATE), (prefix, keys)


def load_linear(weight: torch.Tensor) -> None:
    load_into(nn.Linear(2, 2), {"weight": weight, "bias": torch.zeros(2)}, path="w.pt", architecture="a map")


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
    with pytest.raises(WeightsError, match=re.escape(said)):
        load_linear(weight)
    largest = torch.finfo(torch.float16).max
    load_linear(torch.full((2, 2), largest, dtype=torch.float16))  # no fault, though their sum is none


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("vision_model.embeddings.patch_embedding.weight", (768, 3, 32, 32), "CLIP in the layout of transformers"),
        ("audio_branch.patch_embed.proj.weight", (128, 1, 4, 4), "HTSAT-base"),
    ],
)
def test_files_of_other_layouts_and_sizes_are_named_for_what_they_are(name, shape, said):
    embed = nn.ModuleDict({"proj": nn.Conv2d(1, 96, 4, bias=False)})
    own = nn.ModuleDict({"audio_branch": nn.ModuleDict({"patch_embed": embed})})
    with pytest.raises(WeightsError, match=said) as caught:
        load_into(own, {name: torch.zeros(shape)}, path="some.pt", architecture="CLAP")
    assert caught.value.hint


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


def test_missing_files_archives_pickles_and_programs_are_told_apart(tmp_path):
    assert "null byte" in reason(Path("a\0b"))
    assert "there is no such file" in reason(tmp_path / "absent.pt")
    assert "is a folder" in reason(tmp_path)
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    assert "NumPy's archive, no checkpoint of PyTorch: a.npy" in reason(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model/weights.safetensors", "x")
    assert "a ZIP archive, no checkpoint of PyTorch: model/weights.safetensors" in reason(tmp_path / "a.zip")
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": [1, 2]}, 4))
    assert "a pickle that is no checkpoint" in reason(tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated; OpenAI's own files are of this kind
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "ViT.pt"))
    assert "TorchScript" in reason(tmp_path / "ViT.pt")


def test_checkpoints_of_anything_but_tensors_are_told(tmp_path):
    itself: dict = {"epoch": 1}
    itself["model"] = itself
    for content in ([1, 2], {"state_dict": {}}, {"a": 3}, {"state_dict": {"a": "text"}}, {3: torch.ones(1)}, itself):
        told = reason(write(content, tmp_path / "weights.pt"))
        assert ("not all entries are tensors" if content is itself else "tensors") in told


def test_mismatches_are_listed_and_shortened():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    state = {f"{number}.weight": torch.ones(2, 2) for number in range(9)}
    state |= {"9.weight": torch.ones(3, 2), "odd": torch.ones(1)}
    before = model[0].weight.clone()
    with pytest.raises(WeightsError) as caught:
        load_into(model, state, path="w.pt", architecture="a small model")
    for part in (
        "w.pt: these weights are not of a small model",
        "missing: 0.bias, 1.bias, 2.bias, 3.bias and 6 more",
        "unknown: odd",
        "9.weight (3x2 in the file, 2x2 in the model)",
    ):
        assert part in str(caught.value)
    assert torch.equal(model[0].weight, before)  # nothing is half loaded


def test_half_precision_is_widened_and_only_named_tensors_may_be_absent():
    model = nn.BatchNorm1d(2)
    state = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    state["weight"] = torch.tensor([0.5, 2.0], dtype=torch.float16)
    del state["num_batches_tracked"]
    with pytest.raises(WeightsError, match="missing: num_batches_tracked"):
        load_into(model, state, path="w", architecture="x")
    load_into(model, state, path="w", architecture="x", optional=lambda name: name == "num_batches_tracked")
    assert (model.weight.dtype, model.weight.tolist()) == (torch.float32, [0.5, 2.0])


# Backbones


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A backbone whose files lie beside its preset."""
    folder = tmp_path_factory.mktemp("small")
    write_roberta(folder / "roberta")
    entries = {"repository": None, "checkpoint": None}
    clip, clap = {**entries, "file": "clip.safetensors"}, {**entries, "file": "clap.pt", "tokenizer": "roberta"}
    preset = load_preset(write_preset(folder, clip=clip, clap=clap))
    write_clip(preset, folder / "clip.safetensors")
    write_laion(laion_state(preset), folder / "clap.pt")
    return preset


def test_weights_of_another_architecture_are_told(small, tmp_path):
    vision = {**CLIP_MODEL["vision_cfg"], "layers": 3, "patch_size": 8}
    audio = {**small.clap.audio, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2]}
    path = write_preset(tmp_path, clip={"model": {**CLIP_MODEL, "vision_cfg": vision}}, clap={"audio": audio})
    write_clip(load_preset(path), tmp_path / "other.safetensors")
    write_laion(laion_state(load_preset(path)), tmp_path / "other.pt")
    position = "visual.positional_embedding (17x32 in the file, 5x32 in the model)"
    for option, file, *parts in (
        ("clap_weights", "other.pt", "other.pt: these weights are not of CLAP", "in the file", " more"),
        ("clip_weights", "other.safetensors", "unknown: visual.transformer.resblocks.2", position),
    ):
        with pytest.raises(WeightsError) as caught:
            build_backbone(small, **{option: tmp_path / file})
        assert [part for part in parts if part not in str(caught.value)] == []
        assert len(str(caught.value)) < 1500


def test_fused_checkpoints_lose_their_fusion_layers_with_one_warning(small, tmp_path):
    extra = fusion_state(small)
    assert any("fusion_model" in name for name in extra)
    assert any("mel_conv2d" in name for name in extra)
    write_laion(laion_state(small) | extra, tmp_path / "fused.pt")
    with pytest.warns(WeightsWarning, match="fusion") as told:
        fused = build_backbone(small, clap_weights=tmp_path / "fused.pt")
    assert sum(issubclass(warning.category, WeightsWarning) for warning in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightsWarning)
        plain = build_backbone(small)
    assert (fused.audio.config.front_end, plain.audio.config.front_end) == ("htk", "slaney")
    waveform = torch.randn(1, 48_000)
    assert not torch.allclose(fused.audio(waveform), plain.audio(waveform), atol=1e-4)
    # A preset may say what it expects.
    for expected, file, message in (
        (False, tmp_path / "fused.pt", "fused: true"),
        (True, small.clap.source.file, "has no feature fusion"),
    ):
        preset = load_preset(write_preset(tmp_path, clap={"fused": expected}))
        with pytest.raises(WeightsError, match=message):
            preset.clap.load({"clap": file})


def test_the_names_are_those_of_laion_clap(monkeypatch, tmp_path):
    """The library's own CLAP, with a small RoBERTa in the place of the one it would download."""
    text = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = RobertaConfig(**text, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    monkeypatch.setattr(RobertaModel, "from_pretrained", classmethod(lambda cls, *_, **__: cls(config)))
    library = importlib.import_module(f"{load_htsat_module().__name__.rpartition('.')[0]}.model")
    audio = {"model_type": "HTSAT", "model_name": "tiny", "hop_size": 480}
    sizes = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    theirs = library.CLAP(768, audio, {**sizes, "model_type": "roberta"})
    clap = {"audio": "HTSAT-tiny", "text": {**text, "type": "roberta"}, "joint_dim": 512}
    ours, _ = load_preset(write_preset(tmp_path, clap=clap)).clap.build()
    left_out = ("audio_transform.", "text_transform.")
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items() if not name.startswith(left_out)}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected


def test_rebuilt_tensors_may_be_left_out_of_a_file(small, tmp_path):
    state = {name.removeprefix("module."): tensor for name, tensor in laion_state(small).items()}
    kept = {name: tensor for name, tensor in state.items() if not is_rebuilt(name)}
    assert len(kept) < len(state) - 5
    halved = {name: t.half().contiguous() if t.is_floating_point() else t for name, t in kept.items()}
    save_file(halved, tmp_path / "short.safetensors")
    whole, short = build_backbone(small), build_backbone(small, clap_weights=tmp_path / "short.safetensors")
    waveform = torch.randn(2, 48_000)
    assert short.audio(waveform).dtype == torch.float32
    assert torch.allclose(short.audio(waveform), whole.audio(waveform), atol=2e-2)
    assert all("bn0" not in part and "audio_projection" not in part for part in REBUILT)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone(small):
    before = torch.get_rng_state()
    first, again, other = (build_backbone(small, weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    texts = ["a dog", "rain"]
    assert torch.equal(first.audio_text.encode(texts), again.audio_text.encode(texts))
    assert first.audio_text.fingerprint == again.audio_text.fingerprint != other.audio_text.fingerprint
    assert first.identity == again.identity
    assert all(digest.startswith("random:1:") for digest in first.identity.values())
    frames = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(first.visual(frames), again.visual(frames))
    assert not torch.allclose(first.visual(frames), other.visual(frames))


def test_random_weights_of_one_seed_share_features_with_no_other_architecture(small, tmp_path):
    def vary(part):
        return {"clip": {"model": {**CLIP_MODEL, part: {**CLIP_MODEL[part], "layers": 3}}}}

    plain = embedding_identity(build_backbone(small, weights="random"), "fp32")
    for role, change in (
        ("clip", {"clip": {"quick_gelu": True}}),
        ("clip", {"clip": {"mean": [0.1, 0.2, 0.3]}}),
        ("clip", vary("vision_cfg")),
        ("clip", vary("text_cfg")),
        ("clap", {"clap": {"audio": {**AUDIO, "native_samples": 47_000}}}),
        ("clap", {"clap": {"audio": {**AUDIO, "depths": [1, 3]}}}),
        ("clap", {"clap": {"text": {**ROBERTA, "num_hidden_layers": 1}}}),
        ("clap", {"clap": {"joint_dim": 8}}),
    ):
        other = build_backbone(load_preset(write_preset(tmp_path, **change)), weights="random")
        assert embedding_identity(other, "fp32")[f"file {role}"] != plain[f"file {role}"], change


def test_the_same_weights_read_in_another_way_share_no_features(small, tmp_path):
    paths = {"clip_weights": small.clip.source.file, "clap_weights": small.clap.source.file}
    paths["roberta"] = small.path.parent / "roberta"
    mean, std = {"mean": [0.5, 0.5, 0.5]}, {"std": [0.2, 0.2, 0.2]}
    changes = ({}, {"repository": "elsewhere/clip"}, {"quick_gelu": True}, mean, std)
    built = [build_backbone(load_preset(write_preset(tmp_path, clip=clip)), **paths) for clip in changes]
    identity, elsewhere, *different = (embedding_identity(one, "fp32") for one in built)
    assert identity == elsewhere
    assert identity not in different
    assert "preset" not in embedding_identity(build_backbone("tiny"), "fp32")  # nor are kept entries of it forgotten
    plain, _, quick, *_ = built  # the kind of GELU is in the fingerprint and in the result
    assert plain.visual_text.fingerprint != quick.visual_text.fingerprint
    assert plain.audio_text.fingerprint == quick.audio_text.fingerprint
    difference = plain.visual_text.encode(["a dog"]) - quick.visual_text.encode(["a dog"])
    assert difference.abs().max() > 1e-5


def test_loading_leaves_the_global_generator_alone_fills_every_tensor_and_freezes_it(small):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    backbone = build_backbone(small)
    assert torch.equal(torch.get_rng_state(), before)
    stored = read_tensors(small.clap.source.file)
    loaded = backbone.audio_text.model.state_dict()
    assert all(torch.equal(tensor, stored[f"text_branch.{name}"]) for name, tensor in loaded.items())
    assert backbone.audio.front_end(torch.randn(1, 48_000), backbone.audio.audio_branch).isfinite().all()
    for module in (backbone.visual, backbone.audio, backbone.visual_text, backbone.audio_text):
        module.train()
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(backbone.audio_text.encode(["rain"]), backbone.audio_text.encode(["rain"]))
    backbone.to("cpu", torch.bfloat16)  # the towers take another number format, the texts do not
    assert backbone.visual.visual.proj.dtype == torch.bfloat16
    assert backbone.audio_text.encode(["rain"]).dtype == torch.float32


def test_hashes_are_remembered_until_the_file_changes(monkeypatch, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = file_sha256(path)
    counted, real = [], locate.sha256_file
    monkeypatch.setattr(locate, "sha256_file", lambda file: counted.append(file) or real(file))
    assert file_sha256(path) == first
    assert counted == []
    assert file_sha256(path, remember=False) == first
    assert len(counted) == 1
    path.write_bytes(b"another")
    assert file_sha256(path) != first
