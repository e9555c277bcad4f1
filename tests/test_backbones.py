"""Every packaged backbone of the hub, shrunk: fetched from a local server, loaded, compared with the library, used."""

import importlib
import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from weights_support import AUDIO, ROBERTA, laion_state, serving, word_tokenizer, write_laion, write_roberta

import avfewshot
from avfewshot.encoders.presets import load_preset, preset_names
from avfewshot.encoders.tower import PlainTower, walkable
from avfewshot.media.clip import Clip
from avfewshot.models.audio_visual import AudioVisualModel

HUB = [name for name in preset_names() if name not in ("peav", "tiny")]
PLAIN = ("pe", "siglip2")
TRUNK = {"depth": 1, "embed_dim": 64, "num_heads": 2}
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *"a photo of dog barking train whistling rain the video".split()]


@pytest.fixture
def shrunk(monkeypatch, tmp_path):
    """Write a packaged preset with all its names and few layers: ``shrunk(name)`` gives the YAML file."""
    import timm

    def create(name, **options):
        size = 32 if "patch16" in name else 28
        reference = {"ref_feat_shape": (2, 2)} if "pe_core" in name else {}
        return made(name, img_size=size, **TRUNK, **reference, **options)

    made = timm.create_model
    monkeypatch.setattr(importlib.import_module("open_clip.timm_model").timm, "create_model", create)

    def write(name: str, vocabulary: int = len(WORDS)) -> Path:
        document = yaml.safe_load((load_preset(name).path).read_text())
        config = json.loads(json.dumps(load_preset(name).clip.configuration()))
        config["text_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
        if "timm_model_name" in config["vision_cfg"]:
            config["vision_cfg"]["image_size"] = 32 if name == "siglip2" else 28
            config["embed_dim"] = 64 if name == "siglip2" else 16  # SigLIP's trunk has no projection
        else:
            config["vision_cfg"] |= {"layers": 1, "width": 32, "head_width": 16, "image_size": 64}
            config["embed_dim"] = 16
        if "hf_tokenizer_name" in config["text_cfg"]:
            config["text_cfg"]["vocab_size"] = vocabulary
        folder = tmp_path / "model_configs"
        folder.mkdir(exist_ok=True)
        (folder / f"{document['clip']['model']}.json").write_text(json.dumps(config))
        for side in ("clip", "clap"):
            document[side].pop("sha256", None)
            document[side].pop("revision", None)
        document["clap"] |= {"audio": AUDIO, "text": ROBERTA, "joint_dim": 16, "tokenizer": "small/roberta"}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        monkeypatch.setattr("avfewshot.encoders.kinds.clip.library_folder", lambda library: tmp_path)
        return path

    return write


def publish(path: Path, folder: Path) -> tuple[dict[str, Path], torch.nn.Module]:
    """The files of a backbone as its repositories hold them, and the library's model with the same CLIP weights."""
    preset = load_preset(path)
    library = importlib.import_module("open_clip.model")
    config = json.loads(json.dumps(preset.clip.configuration()))
    quick, custom = config.pop("quick_gelu", None), config.pop("custom_text", False)
    quick = quick or preset.clip.tag().get("quick_gelu", False)
    torch.manual_seed(1)
    model = (library.CustomTextCLIP if custom else library.CLIP)(**config, quick_gelu=quick).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    weights = folder / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    write_laion(laion_state(preset), folder / "clap.pt")
    write_roberta(folder / "roberta")
    files = {
        f"{preset.clip.source.repository}/open_clip_model.safetensors": weights,
        f"{preset.clap.source.repository}/{preset.clap.source.names[0]}": folder / "clap.pt",
        "small/roberta/vocab.json": folder / "roberta/vocab.json",
        "small/roberta/merges.txt": folder / "roberta/merges.txt",
    }
    if name := config["text_cfg"].get("hf_tokenizer_name"):
        for file in write_words(folder / "words"):
            files[f"{name}/{file.name}"] = file
    return files, model


def write_words(folder: Path) -> list[Path]:
    """A tokenizer of few words as timm's repositories hold one: no ``config.json`` beside it."""
    folder.mkdir()
    word_tokenizer(WORDS, "<unk>").save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return sorted(folder.iterdir())


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path / "hub-cache", {}) as server:
        yield server


@pytest.mark.parametrize("name", HUB)
def test_fetched_loaded_like_the_library_and_used(name, shrunk, hub, avfs, tmp_path):
    path, packaged = shrunk(name), load_preset(name)
    hub.files, library = publish(path, tmp_path)
    assert f"licence: {packaged.clip.source.licence}" in avfs("weights", "fetch", path)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pictures were squashed in the training of two of them
        classifier = avfewshot.load(path, precision="fp32")
    backbone = classifier.backbone
    assert walkable(backbone.visual, backbone.audio) == (name not in PLAIN) == packaged.walkable

    # The library's own forward, with the preset's own mean and deviation.
    torch.manual_seed(2)
    frames = torch.randint(256, (2, 3, backbone.visual.image_size, backbone.visual.image_size), dtype=torch.uint8)
    tag, default = packaged.clip.tag(), importlib.import_module("open_clip.constants")
    mean, std = tag.get("mean", default.OPENAI_DATASET_MEAN), tag.get("std", default.OPENAI_DATASET_STD)
    pixels = (frames / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    texts = ["a photo of a dog barking", "a video of the rain"]
    tokens = backbone.visual_text.tokenizer(texts)
    assert tokens.shape[1] == {"pe": 32, "siglip2": 64}.get(name, 77)
    with torch.no_grad():
        torch.testing.assert_close(backbone.visual(frames), library.encode_image(pixels), rtol=1e-4, atol=1e-5)
        wanted = library.encode_text(tokens, normalize=True)
        torch.testing.assert_close(backbone.visual_text.encode(texts), wanted, rtol=1e-4, atol=1e-5)
        logits, _ = library.get_logits(pixels, tokens)
        visual, _ = AudioVisualModel(backbone)(frames[None], None)
        ours = backbone.visual_scale * visual[0] @ wanted.T + backbone.visual_bias
    torch.testing.assert_close(ours, logits, rtol=1e-3, atol=1e-4)
    assert (backbone.visual_bias != 0) == (name == "siglip2")

    result = classifier.classify([Clip(Path("a.mp4"), 2.0, 0, frames, torch.randn(96_000) * 0.1)], ["dog", "rain"])[0]
    assert result.ok
    assert sum(result.scores.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", [*PLAIN, "peav"])
def test_what_walks_towers_is_refused_before_anything_is_fetched(name, avfs, tmp_path):
    (tmp_path / "dog").mkdir()
    for command in (
        "fewshot --method dgsct --data",
        "fewshot --method maple --data",
        "compare --methods auto,lavish --data",
        "pretrain vggsound40k --root",
        "train ave --root",
    ):
        told = " ".join(avfs.refused(*command.split(), tmp_path, "--backbone", name).split())
        assert f"walked block by block, and those of {name} are run whole" in told
        assert "base, base-plus, large, large-plus, tiny" in told


def test_random_weights_of_a_plain_tower_need_no_file(shrunk):
    backbone = avfewshot.load(shrunk("siglip2", 50_000), weights="random").backbone
    assert isinstance(backbone.visual, PlainTower)
    assert backbone.visual_text.encode(["a dog", "rain"]).shape == (2, 64)


def test_a_plain_tower_passes_gradients_and_stays_frozen(shrunk):
    preset = load_preset(shrunk("pe"))
    model, _ = preset.clip.build(split_text=True)
    tower = PlainTower(model.visual, mean=(0.5,) * 3, std=(0.5,) * 3, output_dim=16).train()
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    pixels = torch.randn(1, 3, 28, 28, requires_grad=True)
    tower(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert tower.to(torch.bfloat16).scaling.pixel_scale.dtype == torch.float32
