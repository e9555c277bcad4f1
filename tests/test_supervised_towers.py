"""Backbones without text branches, from their YAML files to `avfs train`; every adapter in every supervised task."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_support import EXACT
from fewshot_worlds import write_ave
from safetensors.torch import save_file

from avfewshot.config import SupervisedTrainingConfig
from avfewshot.data.music_avqa import Question
from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.picture import PICTURES
from avfewshot.encoders.presets import load_preset
from avfewshot.encoders.spectrogram_tower import SpectrogramTower
from avfewshot.encoders.swin import SwinTower, SwinV2Tower, build_swin
from avfewshot.errors import UsageError, WeightsError
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.models.complexity import backbone_cost
from avfewshot.prompts import load_templates
from avfewshot.supervised import avs
from avfewshot.supervised.base import Example, TaskData, load_task, task_names
from avfewshot.supervised.training import HeadTask, SupervisedRun

OPTIONS = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 4, 8]}
SWIN = {"model": "swinv2_tiny_window8_256", "options": OPTIONS, "file": "swin.safetensors"}
CLIP = {
    "model": {
        "embed_dim": 64,
        "vision_cfg": {"layers": 4, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 64},
        "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
    },
    "file": "clip.safetensors",
}
PICTURE = {"mels": 48, "frames": 40, "shift_ms": 20}
PRESETS = {
    "clip-shared": {"clip": CLIP, "spectrogram": PICTURE},
    "swin-shared": {"swin": SWIN, "spectrogram": {"mels": 64, "frames": 64, "shift_ms": 15.0, "channels": "mean"}},
}


def preset(folder, name, **changes):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"description": name, **PRESETS.get(name, {}), **changes}))
    return path


def build(folder, name):
    return build_backbone(preset(folder, name), weights="random", seed=1)


@pytest.mark.parametrize("name", PRESETS)
def test_one_transformer_sees_and_hears_and_speaks_not(name, tmp_path):
    backbone = build(tmp_path, name)
    assert isinstance(backbone.audio, SpectrogramTower)
    assert backbone.audio.image is backbone.visual
    known = load_preset(tmp_path / f"{name}.yaml")
    assert (backbone.wordless, known.walkable) == (True, True)
    again, other = (build_backbone(known, weights="random", seed=seed) for seed in (1, 2))
    frames = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(backbone.visual(frames), again.visual(frames))
    assert not torch.equal(backbone.visual(frames), other.visual(frames))
    with pytest.raises(UsageError, match=f"{name} has no text branches"):
        backbone.visual_text.encode(["dog"])
    cost = backbone_cost(known)
    parameters = {id(p): p.numel() for tower in (backbone.visual, backbone.audio) for p in tower.parameters()}
    assert cost["parameters"] == sum(parameters.values())
    assert cost["flops_per_clip"] > 0


def test_a_swin_reads_its_file_beside_the_hearing_of_clap(tmp_path):
    source = build_swin("swinv2_tiny_window8_256", **{**OPTIONS, "depths": (2, 2, 2), "num_heads": (2, 4, 8)})
    state = dict(source.swin.state_dict())
    file = tmp_path / "swin.safetensors"
    save_file({**state, "head.fc.weight": torch.zeros(5, 96), "head.fc.bias": torch.zeros(5)}, file)
    path = preset(tmp_path, "swin-shared")
    assert [(needed.key, needed.part) for needed in load_preset(path).files()] == [("clip", "Swin weights")]
    backbone = build_backbone(path)
    assert isinstance(backbone.visual, SwinV2Tower)
    assert all(torch.equal(tensor, backbone.visual.swin.state_dict()[name]) for name, tensor in state.items())
    other = {**PRESETS["swin-shared"]["spectrogram"], "std": 3.0}
    assert build_backbone(preset(tmp_path, "swin-shared", spectrogram=other)).identity != backbone.identity
    save_file({name: tensor for name, tensor in state.items() if "patch_embed" not in name}, file)
    with pytest.raises(WeightsError, match=r"timm's swinv2_tiny.*patch_embed"):
        build_backbone(path)
    tiny = load_preset("tiny").path
    heard = yaml.safe_load(tiny.read_text())["clap"]
    heard |= {key: str(tiny.parent / heard[key]) for key in ("file", "tokenizer")}
    both = tmp_path / "both.yaml"
    both.write_text(yaml.safe_dump({"swin": {**SWIN, "model": "swin_tiny_patch4_window7_224"}, "clap": heard}))
    backbone = build_backbone(both, weights="random")
    assert type(backbone.visual) is SwinTower
    assert backbone.audio.output_dim == 128
    assert backbone.wordless


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"swin": SWIN, "clip": CLIP, "spectrogram": "lavish-swin"}, "`clip` and `swin` exclude each other"),
        ({"clip": CLIP, "spectrogram": "mel"}, "lavish-swin, or mels, frames and shift_ms are needed, not 'mel'"),
        ({"clip": CLIP, "spectrogram": {**PICTURE, "shift": 20}}, "spectrogram.shift: is unknown"),
        ({"clip": CLIP, "spectrogram": {**PICTURE, "mels": 0, "channels": 1}}, "mels: a whole.*sum, mean"),
        ({"swin": {"model": "swin"}, "spectrogram": "lavish-swin"}, "give `repository` or `file`"),
        ({"swin": {**SWIN, "options": 3}, "spectrogram": "lavish-swin"}, "sizes by timm's names"),
        ({"swin": SWIN}, "clap: is missing"),
    ],
)
def test_faulty_files_are_told_and_pictures_of_the_papers_go_by_name(document, message, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UsageError, match=f"(?s){message}"):
        load_preset(path)
    for name, picture in PICTURES.items():
        assert load_preset(preset(tmp_path, "clip-shared", spectrogram=name)).sound.picture == picture


def example(name: str, number: int) -> tuple[Example, Clip]:
    """What each task learns from, made up."""
    random = np.random.default_rng(number)
    seconds = random.random((2, 10, 3)) > 0.5
    question = Question(number, f"v{number}", ("Audio", "Counting"), "How many?", (), ("one", "two")[number % 2])
    target = {
        "ave": random.integers(0, 4, 10),
        "avvp": (seconds.any((0, 1)), tuple(seconds)),
        "avs": number,
        "avqa": question,
    }[name]
    length = load_task(name).seconds
    frames = torch.randint(0, 256, (length, 3, 64, 64), dtype=torch.uint8)
    clip = Clip("x", length, 0, frames, 0.1 * torch.randn(length * SAMPLE_RATE))
    return Example(f"{number}", Path(f"{number}"), target, [1, 2] + [0] * 12), clip


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return build(tmp_path_factory.mktemp("shared"), "clip-shared")


@pytest.mark.parametrize("kind", ["lavish", "stg_cma"])
@pytest.mark.parametrize("name", task_names())
def test_every_adapter_is_trained_in_every_task(name, kind, shared, monkeypatch):
    task = load_task(name)
    about = {"classes": ["a", "b", "c"], "wordings": ["a", "b", "c"], "subset": "ms3"}
    about |= {"answers": ["one", "two"], "words": ["<pad>", "How", "many"]}
    monkeypatch.setattr(avs, "read_masks", lambda _, side: (torch.rand(5, side, side) > 0.5, torch.ones(5).bool()))
    config = SupervisedTrainingConfig(adapter=kind, precision="fp32", head=list(task.heads)[-1], lr=1e-2)
    texts = "default", load_templates("default")
    training = SupervisedRun(task, TaskData({}, about), config, shared, texts, torch.device("cpu"))
    loaded = [example(name, number) for number in range(2)]
    examples = [one for one, _ in loaded]
    training._usable = {"train": examples, "val": []}
    model = training.build(1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    learning = HeadTask(training, model, 1)
    for _ in range(2):  # at the first the gates are closed
        step.zero_grad()
        loss = learning.loss(None, loaded)
        assert loss.isfinite()
        loss.backward()
        step.step()
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert not {key for key in changed if key.startswith(("towers.visual_tower", "towers.audio_tower"))}
    adapters, trained = ([key for key in keys if key.startswith("towers.adapters")] for keys in (before, changed))
    assert len(trained) > 0.5 * len(adapters)
    assert any(key.startswith("head.") for key in changed)
    assert len(training.predict(model, [])) == 0
    features = training.features(model.eval(), loaded, "av")
    assert len(model.head.predict(features, examples)) == 2


@pytest.mark.parametrize(("name", "adapter"), [("clip-shared", "stg_cma"), ("swin-shared", "none")])
def test_train_and_evaluate_with_towers_alone(name, adapter, avfs, tmp_path):
    ave, towers = write_ave(tmp_path / "data"), ("--backbone", preset(tmp_path, name), "--weights", "random", *EXACT)
    folder, document = avfs.trained("ave", ave, *towers, "--epochs", "1", "--adapter-kind", adapter)
    assert "cmbs" in document["systems"]
    assert "zero-shot by second" not in document["systems"]
    avfs("eval", folder, "--split", "val")
    assert f"{name} has no text branches" in avfs.refused("zeroshot", ave, "--label", "dog", *towers)
