"""The preset `peav`, shrunk: fetched from a local server, loaded, compared with transformers' own classes, used."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch.nn import functional as F
from transformers import PeAudioConfig, PeAudioFrameLevelModel, PeAudioVideoConfig, PeAudioVideoModel
from weights_support import serving, word_tokenizer

import avfewshot
from avfewshot.encoders import presets
from avfewshot.encoders.backbone import build_backbone
from avfewshot.errors import AvfsError, UsageError, WeightsError
from avfewshot.media.clip import Clip

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "head_dim": 16}
TEXT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 22}
TEXT |= {"model_type": "modernbert", "pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
AUDIO = {"model_type": "pe_audio_encoder", **SIZES, "num_hidden_layers": 1}
AUDIO["dac_config"] = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 8, 10, 12], "codebook_dim": 8}
PICTURES = {"architecture": "vit_pe_core_tiny_patch16_384", "num_labels": 1024}
PICTURES["model_args"] = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32, "ref_feat_shape": [2, 2]}
VIDEO = {"model_type": "pe_video_encoder", "vision_config": PICTURES, **SIZES, "num_hidden_layers": 1}
CONFIG = {
    "text_config": TEXT,
    "audio_video_config": {**SIZES, "num_hidden_layers": 1, "audio_config": AUDIO, "video_config": VIDEO},
}
WORDS = "a dog is barking the sound of rain video photo this train whistling . in seconds".split()
TEXTS = ["a video of a dog", "the sound of rain in a train ."]
SIDE = 32


def randomised(model: torch.nn.Module, seed: int, scale: float) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" in name:
                parameter.fill_(scale if "scale" in name else -2.0)
            elif parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif "alpha" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> tuple[PeAudioVideoModel, PeAudioFrameLevelModel]:
    timeline = PeAudioFrameLevelModel(PeAudioConfig(text_config=TEXT, audio_config=AUDIO))
    return randomised(PeAudioVideoModel(PeAudioVideoConfig(**CONFIG)), 1, 1.5), randomised(timeline, 2, 4.0)


@pytest.fixture(scope="module")
def published(models, tmp_path_factory) -> Path:
    """Both repositories as transformers writes them."""
    folder = tmp_path_factory.mktemp("published")
    for model, name in zip(models, ("av", "frame"), strict=True):
        model.save_pretrained(folder / name)
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *WORDS]
    word_tokenizer(names, "[UNK]", ("[CLS]", "[SEP]")).save(str(folder / "av/tokenizer.json"))
    return folder


@pytest.fixture
def preset(tmp_path) -> Path:
    document = yaml.safe_load((Path(presets.__file__).parent / "presets/peav.yaml").read_text())
    document["peav"] |= {"image_size": SIDE, "config": CONFIG}
    del document["peav"]["revision"]
    path = tmp_path / "peav.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path, published):
    names = ("model.safetensors", "config.json")
    files = {f"facebook/pe-a-frame-small/{name}": published / "frame" / name for name in names}
    for name in (*names, "tokenizer.json"):
        files[f"facebook/pe-av-small-16-frame/{name}"] = published / "av" / name
    with serving(monkeypatch, tmp_path / "hub-cache", files) as server:
        yield server


def own(path: Path, published: Path, **peav) -> Path:
    document = yaml.safe_load(path.read_text())
    document["peav"] = {"image_size": SIDE, "file": str(published / "av/model.safetensors"), **peav}
    path.write_text(yaml.safe_dump(document))
    return path


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8), torch.randn(1, 96_000) * 0.1


def test_fetched_loaded_like_the_library_and_used(preset, hub, models, avfs):
    told = avfs("weights", "fetch", preset)[1]
    assert "PE-A-Frame weights: fetching facebook/pe-a-frame-small/model.safetensors" in told
    classifier = avfewshot.load(preset, precision="fp32", audio_context="clip")
    backbone = classifier.backbone
    library, timeline = models

    frames, sound = inputs()
    tokens = backbone.visual_text.tokenizer(TEXTS)
    assert (tokens[0] == 3).any(), "the shorter text is padded"
    texts = {"input_ids": tokens, "attention_mask": (tokens != 3).long()}
    with torch.no_grad():
        pictures = (frames / 255 - 0.5) / 0.5
        of_library = library(**texts, pixel_values_videos=pictures[:, None], input_values=sound.expand(2, 1, -1))
        torch.testing.assert_close(backbone.visual(frames), of_library.video_embeds, rtol=1e-4, atol=1e-5)
        wanted = F.normalize(of_library.text_video_embeds, dim=-1)
        torch.testing.assert_close(backbone.visual_text.encode(TEXTS), wanted, rtol=1e-4, atol=1e-5)

        # Products with texts are the logits of each model, but for norms.
        spots = timeline(**texts, input_values=sound.expand(2, 1, -1))
        whole, seconds = backbone.audio.forward_windows(sound)
        heard = backbone.audio_text.encode(TEXTS)
        width = TEXT["hidden_size"]
        torch.testing.assert_close(whole[:, :width], of_library.audio_embeds[:1], rtol=1e-4, atol=1e-5)
        assert not whole[:, width:].any()
        each = spots.audio_embeds[0].unflatten(0, (2, 25)).mean(1)
        torch.testing.assert_close(seconds[0, :, width:], each, rtol=1e-4, atol=1e-5)
        assert not seconds[..., :width].any()
        ratio = heard[:, :width].norm(dim=1) / heard[:, width:].norm(dim=1)
        for part, model in ((heard[:, :width], of_library), (heard[:, width:], spots)):
            unit = F.normalize(model.text_audio_embeds, dim=-1)
            torch.testing.assert_close(F.normalize(part, dim=-1), unit, rtol=1e-4, atol=1e-5)
    for scale, cosine_logits in (
        (backbone.visual_scale, of_library.logits_video_text + 2),
        (backbone.audio_scale * heard[0, :width].norm(), of_library.logits_audio_text + 2),
        (backbone.audio_scale * heard[0, width:].norm(), spots.logits_audio_text[:, :, 0] + 2),
    ):
        assert cosine_logits.abs().max() <= 2.5 * float(scale)
    torch.testing.assert_close(ratio[0], ratio[1])
    assert backbone.visual_bias == -2

    for context in ("clip", "second"):
        classifier = avfewshot.load(preset, precision="fp32", audio_context=context)
        clip = Clip(Path("a.mp4"), 2.0, 0, frames, sound[0])
        result = classifier.classify([clip], ["dog", "rain"])[0]
        assert result.ok
        assert sum(result.scores.values()) == pytest.approx(1, abs=1e-5)


def test_scales_are_the_logit_scale_times_the_norms_of_the_vectors(preset, models, published):
    def expected(scale: float, *heads: torch.nn.Module) -> float:
        inputs = [torch.randn(500, head.proj.in_features) for head in heads]
        norms = [head(given).norm(dim=1).mean().item() for head, given in zip(heads, inputs, strict=True)]
        return scale * norms[0] * norms[1]

    timeline = {"timeline": {"file": str(published / "frame/model.safetensors")}}
    backbone, (library, frame) = build_backbone(own(preset, published, **timeline)), models
    torch.manual_seed(4)
    with torch.no_grad():
        sight = expected(1.5, library.video_model.video_head, library.video_model.text_video_head)
        heard = [
            expected(scale, model.audio_head, model.text_audio_head)
            for scale, model in ((1.5, library.audio_model), (4.0, frame))
        ]
    assert backbone.visual_scale == pytest.approx(sight, rel=0.05)
    shares = backbone.audio_text.encode(TEXTS).view(2, 2, -1).norm(dim=-1)
    for part, scale in enumerate(heard):
        assert (backbone.audio_scale * shares[:, part]).tolist() == pytest.approx([scale] * 2, rel=0.05)


def test_without_pe_a_frame_each_second_is_heard_alone(preset, published):
    tower = build_backbone(own(preset, published)).audio
    _, sound = inputs()
    with torch.no_grad():
        whole, seconds = tower.forward_windows(sound)
        torch.testing.assert_close(whole, tower(sound))
        torch.testing.assert_close(seconds[0], tower(sound.view(2, -1)), rtol=1e-4, atol=1e-5)
    assert whole.shape[1] == TEXT["hidden_size"]
    with pytest.raises(ValueError, match="1 to 10 whole seconds"):
        tower.forward_windows(sound[:, :-1])


def test_random_weights_need_no_file_and_are_told_apart(preset):
    one, other = (build_backbone(preset, weights="random", seed=seed) for seed in (0, 1))
    assert one.visual_text.fingerprint != other.visual_text.fingerprint != other.audio_text.fingerprint
    assert one.audio_text.encode(TEXTS).shape == (2, 2 * TEXT["hidden_size"])
    assert one.visual_scale >= 1


def test_in_bfloat16_codec_and_positions_stay_in_float32(preset, published):
    frame = {"timeline": {"file": str(published / "frame/model.safetensors")}}
    exact, short = (build_backbone(own(preset, published, **frame)) for _ in range(2))
    short.to("cpu", torch.bfloat16)
    kept = {name for name, tensor in short.audio.named_parameters() if tensor.dtype == torch.float32}
    assert kept
    assert all("dac_encoder" in name or "bottleneck" in name for name in kept)
    frames, sound = inputs()
    with torch.no_grad():
        for ours, theirs in (
            (exact.visual(frames), short.visual(frames)),
            *zip(exact.audio.forward_windows(sound), short.audio.forward_windows(sound), strict=True),
        ):
            assert theirs.dtype == torch.bfloat16
            assert F.cosine_similarity(ours, theirs.float(), dim=-1).min() > 0.99


def test_an_older_transformers_is_told_with_what_to_install(preset, avfs, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    for weights in ("random", "pretrained"):  # before files are asked for
        with pytest.raises(AvfsError, match=r"transformers 5\.0.*avfewshot\[peav\]"):
            build_backbone(preset, weights=weights)
    assert "transformers 5.0" in avfs.refused("weights", "fetch", preset, status=1)
    monkeypatch.setenv("AVFS_CACHE", str(preset.parent / "cache"))
    listed = avfs("weights", "list", preset)[0]
    assert "needs transformers 5.0 or later: pip install 'avfewshot[peav]'" in listed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "clap"}, "pe_audio_video"),
        ({"audio_video_config": 7}, "does not describe PeAudioVideoModel"),
        ("{", "does not describe PeAudioVideoModel"),
        ("architecture", "hf-hub:a/b"),
    ],
)
def test_a_damaged_or_foreign_configuration_is_refused(change, told, preset, published, tmp_path):
    sizes = json.loads((published / "av/config.json").read_text())
    if change == "architecture":
        sizes["audio_video_config"]["video_config"]["vision_config"]["architecture"] = "hf-hub:a/b"
    text = change if change == "{" else json.dumps(sizes if isinstance(change, str) else sizes | change)
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(published / "av" / name, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=told):
        build_backbone(own(preset, published, file=str(tmp_path / "model.safetensors")))


def test_files_given_by_path_what_has_no_use_and_faults_of_a_file(preset, published, tmp_path):
    loaded = presets.load_preset(preset)
    files = loaded.files(clip_weights=published / "av/model.safetensors", clap_weights="other/model.safetensors")
    assert [needed.source.file is not None for needed in files] == [True] * 5
    assert [needed.optional for needed in files] == [False] * 5
    assert [needed.optional for needed in loaded.files()] == [False, False, False, True, True]
    with pytest.raises(UsageError, match="no RoBERTa"):
        loaded.files(roberta="folder")
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"clip": {}, "peav": {"config": 3, "timeline": {"reposit": "a"}}}))
    with pytest.raises(UsageError) as caught:
        presets.load_preset(path)
    for told in (
        "peav: takes the place of clip",
        "peav: says no weights",
        "peav.image_size: a whole number",
        "peav.config: the fields",
        "peav.timeline.reposit: is unknown",
    ):
        assert told in str(caught.value)
