"""open_clip models whose text tower and tokenizer are transformers': all their files come through `fetch` as well."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import ClapConfig, ClapModel, PreTrainedTokenizerFast, RobertaConfig
from weights_support import CLIP_MODEL, make_hub, serving, word_tokenizer, write_preset

from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.fetch import fetch
from avfewshot.encoders.presets import load_preset
from avfewshot.errors import UsageError

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "dog", "is", "barking", "the", "sound", "of", "rain"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    text = tmp_path / "text"
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = word_tokenizer(WORDS, "<unk>", ("<s>", "</s>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(text))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    RobertaConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes).save_pretrained(str(text))
    (tmp_path / "rest").mkdir()
    files = make_hub(tmp_path / "rest")
    files |= {f"someone/text/{path.name}": path for path in text.iterdir()}
    with serving(monkeypatch, tmp_path / "hub-cache", files) as server:
        yield server


def test_the_text_tower_is_fetched_loaded_and_told_apart(hub, tmp_path):
    text = {"hf_model_name": "someone/text", "hf_tokenizer_name": "someone/text", "context_length": 12}
    model = {**CLIP_MODEL, "text_cfg": {**text, "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}}
    path = write_preset(tmp_path, clip={"model": model, "repository": None, "file": "clip.safetensors"})
    preset = load_preset(path)
    fetched = {needed.key: fetch(preset, needed) for needed in preset.files() if needed.key != "clip"}
    files = {key: entry.path for key, entry in fetched.items() if key.startswith("clip_text") and entry}
    assert {"clip_text_tokenizer", "clip_text_tokenizer_type", "clip_text_config"} <= set(files)
    torch.manual_seed(0)
    reference, _ = preset.clip.build(files)
    state = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    hub.requests.clear()
    features = build_backbone(path).visual_text.encode(["a dog is barking", "the sound of rain"])
    assert hub.requests == []
    tokens = torch.tensor([[0, 4, 5, 6, 7, 2, 1, 1, 1, 1, 1, 1], [0, 8, 9, 10, 11, 2, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(reference.eval().text(tokens), dim=-1)
    assert torch.allclose(features, expected, atol=1e-5)
    assert not torch.allclose(features[0], features[1], atol=1e-4)


def test_random_weights_say_that_the_hub_describes_such_a_tower(tmp_path):
    model = {**CLIP_MODEL, "text_cfg": {"hf_model_name": "someone/text"}}
    with pytest.raises(UsageError, match="described by files from the hub"):
        build_backbone(write_preset(tmp_path, clip={"model": model}), weights="random")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_clap_of_transformers_gives_what_transformers_computes(form, tmp_path):

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    depths = {"depths": [2, 2, 2, 2], "num_hidden_layers": 4}
    torch.manual_seed(0)
    config = ClapConfig(text_config={**small, "vocab_size": 100}, audio_config=depths, projection_dim=16)
    theirs = ClapModel(config).eval()
    for name, tensor in theirs.named_parameters():
        if "relative_position_bias_table" in name or tensor.ndim == 1:  # zeros and ones would hide a mistake
            torch.nn.init.normal_(tensor, std=0.2)
    theirs.audio_model.audio_encoder.batch_norm.running_mean.normal_()
    file = tmp_path / f"model.{form}"
    if form == "bin":
        torch.save(theirs.state_dict(), file)
    else:
        theirs.save_pretrained(tmp_path)
    audio = {"depths": [2, 2, 2, 2], "embed_dim": 96, "num_heads": [4, 8, 16, 32]}
    text = {"type": "roberta", "vocab_size": 100, **small}
    preset = load_preset(write_preset(tmp_path, clap={"audio": audio, "text": text}))
    ours, _, tower = preset.clap.load({"clap": file})
    ours.eval()
    assert tower.config.front_end == "slaney"
    branch, waveform = ours.audio_branch, 0.1 * torch.randn(1, 480_000)
    ids = torch.tensor([[0, 5, 9, 2, 1], [0, 7, 8, 9, 2]])
    with torch.no_grad():
        mel = branch.logmel_extractor(branch.spectrogram_extractor(waveform))
        heard = ours.audio_projection(branch({"waveform": waveform}, device="cpu")["embedding"])
        expected = theirs.audio_projection(theirs.audio_model(mel, is_longer=None).pooler_output)
        torch.testing.assert_close(heard, expected, rtol=1e-4, atol=1e-5)
        read = ours.text_projection(ours.text_branch(ids, ids != 1).pooler_output)
        expected = theirs.text_projection(theirs.text_model(ids, ids != 1).pooler_output)
        torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-5)
    assert ours.logit_scale_a == theirs.logit_scale_a
