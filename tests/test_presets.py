"""Backbone presets: packaged ones, custom files, and what is told about faulty ones."""

import json
from types import SimpleNamespace

import pytest
import yaml

from avfewshot.encoders.htsat import load_htsat_module
from avfewshot.encoders.lean_imports import library_folder
from avfewshot.encoders.presets import load_preset, preset_names
from avfewshot.errors import UsageError
from avfewshot.prompts import load_templates

GOOD = {
    "clip": {"model": "ViT-B-16", "pretrained": "openai"},
    "clap": {"repository": "lukewys/laion_clap", "checkpoint": "630k-best.pt"},
}


def write(path, document):
    path.write_text(yaml.safe_dump(document))
    return path


def faults(path) -> str:
    with pytest.raises(UsageError) as caught:
        load_preset(path)
    return str(caught.value)


def test_base_comes_first_and_every_preset_loads():
    assert preset_names()[0] == "base"
    assert preset_names() == ["base", "base-plus", "large", "large-plus", "pe", "peav", "siglip2", "tiny"]
    for name in preset_names():
        preset = load_preset(name)
        assert preset.name == name
        assert preset.description
        assert load_templates(preset.templates).visual


def test_an_unknown_name_lists_the_valid_ones():
    told = faults("tinny")
    assert "Did you mean 'tiny'?" in told
    assert "base, base-plus, large, large-plus, pe, peav, siglip2, tiny" in told


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in ("peav", "tiny")])
def test_the_repository_written_down_is_that_of_open_clips_tag(name):
    clip = load_preset(name).clip
    entry = clip.tag()
    assert entry["hf_hub"].strip("/") == clip.source.repository
    assert bool(entry.get("quick_gelu")) == (clip.pretrained == "openai")


@pytest.mark.parametrize("name", ["base-plus", "large-plus"])
def test_the_audio_tower_of_the_plus_presets_is_the_librarys(name):
    config = json.loads((library_folder("laion_clap") / "clap_module/model_configs/HTSAT-base.json").read_text())
    library = load_htsat_module().create_htsat_model(SimpleNamespace(**config["audio_cfg"]))
    model, _ = load_preset(name).clap.outlined()
    shapes = {key: tensor.shape for key, tensor in library.state_dict().items()}
    ours = {key: tensor.shape for key, tensor in model.audio_branch.state_dict().items()}
    assert ours == shapes
    assert model.audio_projection[0].in_features == config["embed_dim"] == 1024


def test_tiny_is_complete_without_the_hub_has_no_roberta_and_cannot_be_changed(tmp_path):
    preset = load_preset("tiny")
    for needed in preset.files():
        assert needed.source.repository is None
        assert needed.source.file.parent.name == "tiny"
    assert preset.clip.source.file.name == "clip.safetensors"
    assert preset.clap.source.file.name == "clap.safetensors"
    assert preset.templates == "toy"
    with pytest.raises(UsageError, match="no RoBERTa"):
        preset.files(roberta=tmp_path)
    with pytest.raises(TypeError):
        preset.clip.model["embed_dim"] = 3


def test_a_custom_file_takes_an_open_clip_name_and_a_laion_checkpoint(tmp_path):
    preset = load_preset(write(tmp_path / "mine.yaml", GOOD))
    assert preset.name == "mine"
    assert preset.templates == "default"
    assert preset.clap.text == {"type": "roberta"}
    source = preset.clip.weights()
    assert source.repository == "timm/vit_base_patch16_clip_224.openai"
    assert source.names == ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    keys = [needed.key for needed in preset.files()]
    assert keys == ["clip", "clap", "roberta_vocab", "roberta_merges"]


def test_paths_inside_a_file_are_relative_to_it(tmp_path):
    (tmp_path / "mine.txt").write_text("a {}\n")
    document = {
        "templates": "mine.txt",
        "clip": {"model": "ViT-B-32", "file": "weights/clip.safetensors"},
        "clap": {"file": "../clap.pt", "audio": "HTSAT-base", "fused": True},
    }
    preset = load_preset(write(tmp_path / "mine.yaml", document))
    assert preset.clip.source.file == tmp_path / "weights" / "clip.safetensors"
    assert preset.clap.source.file == tmp_path.parent / "clap.pt"
    assert preset.clap.fused is True
    assert load_templates(preset.templates).visual == ("a {}",)


def test_all_faults_are_told_at_once(tmp_path):
    clip = {"model": 7, "pretrained": "openai", "mean": [0.5, 0.5], "quick_gelu": "yes", "filee": "x"}
    clap = {"audio": "HTSAT-gigantic", "text": {"type": "roberta", "hidden_size": "wide", "layers": 3}, "joint_dim": 0}
    clap |= {"repository": "not a repository", "checkpoint": "../escape.pt", "sha256": "abc"}
    told = faults(write(tmp_path / "bad.yaml", {"descripton": "x", "clip": clip, "clap": clap}))
    for expected in (
        "descripton: is unknown. Did you mean 'description'?",
        "clip.model: a text is needed, not 7",
        "clip.mean: three numbers",
        "clip.quick_gelu: true or false",
        "clip.filee: is unknown. Did you mean 'file'?",
        "HTSAT-gigantic",
        "clap.text.hidden_size: a whole number",
        "clap.text.layers: is unknown",
        "clap.joint_dim: a whole number",
        "clap.repository",
        "clap.checkpoint: '../escape.pt' is not a file inside the repository",
        "clap.sha256: 64 hexadecimal digits",
    ):
        assert expected in told, expected
    assert told.count(str(tmp_path / "bad.yaml")) == 12


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([], "keys and values are needed"),
        ({"clip": GOOD["clip"]}, "clap: is missing"),
        ({**GOOD, "clip": {"model": "ViT-B-32"}}, "clip: says no weights"),
        ({**GOOD, "clap": {"audio": "HTSAT-tiny"}}, "clap: says no weights"),
        ({**GOOD, "clap": {"repository": "a/b"}}, "clap.checkpoint"),
        ({**GOOD, "clip": {**GOOD["clip"], "repository": "a/b", "file": "c"}}, "exclude each other"),
        ({**GOOD, "clap": {**GOOD["clap"], "text": "bert"}}, "`roberta` is needed"),
        ({**GOOD, "clap": {**GOOD["clap"], "text": "clip"}}, "clap.tokenizer"),
        ({**GOOD, "clap": {**GOOD["clap"], "audio": {"depths": [2], "num_heads": [2, 4]}}}, "depths and num_heads"),
        ({**GOOD, "clap": {**GOOD["clap"], "audio": {"width": 5}}}, "Unknown fields of an HTS-AT: width"),
    ],
)
def test_single_faults(document, expected, tmp_path):
    assert expected in faults(write(tmp_path / "bad.yaml", document))


def test_files_that_are_not_yaml_are_told(tmp_path):
    path = tmp_path / "bad.yaml"
    assert "no such backbone file" in faults(path)
    for content, told in (
        (b"clip: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"clip: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ):
        path.write_bytes(content)
        assert told in faults(path)
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)]
    path.write_text("\n".join([*lines, "clip: *l", "clap: {joint_dim: *l, file: x}"]))
    assert len(faults(path)) < 5000  # a bomb of aliases


OWN = {"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {"layers": 1}}


@pytest.mark.parametrize(
    ("clip", "told"),
    [
        ({"model": "ViT-B-23", "pretrained": "openai"}, "ViT-B-32"),
        ({"model": "ViT-B-32", "pretrained": "openia"}, "laion2b_s34b_b79k"),
        ({"model": OWN, "pretrained": "openai"}, "needs the name of an open_clip model"),
    ],
)
def test_what_open_clip_lacks_is_told_with_what_it_has(tmp_path, clip, told):
    preset = load_preset(write(tmp_path / "x.yaml", {**GOOD, "clip": clip}))
    with pytest.raises(UsageError) as caught:
        preset.files()
    assert told in str(caught.value)
