"""open_clip models whose text tower and tokenizer are transformers': all their files come through `fetch` as well."""

from __future__ import annotations

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from weights_support import CLIP_MODEL, HubServer, make_hub, write_preset

from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.clip_model import build_clip_model
from avfewshot.encoders.presets import load_preset
from avfewshot.encoders.weights.fetch import fetch
from avfewshot.encoders.weights.locate import needed_files
from avfewshot.errors import UsageError

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "dog", "is", "barking", "the", "sound", "of", "rain"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    text = tmp_path / "text"
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(text))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    RobertaConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes).save_pretrained(str(text))
    (tmp_path / "rest").mkdir()
    files = make_hub(tmp_path / "rest")
    files |= {f"someone/text/{path.name}": path for path in text.iterdir()}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HubServer(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def test_the_text_tower_is_fetched_loaded_and_told_apart(hub, tmp_path):
    names = {"hf_model_name": "someone/text", "hf_tokenizer_name": "someone/text"}
    model = {
        **CLIP_MODEL,
        "text_cfg": {**names, "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp", "context_length": 12},
    }
    path = write_preset(tmp_path, clip={"model": model, "repository": None, "file": "clip.safetensors"})
    preset = load_preset(path)
    needed = needed_files(preset)
    files = {}
    for entry in needed:
        if entry.key.startswith("clip_text"):
            fetched = fetch(preset, entry)
            if fetched is not None:
                files[entry.key] = fetched.path
        elif entry.key != "clip":
            fetch(preset, entry)
    assert {"clip_text_tokenizer", "clip_text_tokenizer_type", "clip_text_config"} <= set(files)
    torch.manual_seed(0)
    reference, _ = build_clip_model(preset, files)
    save_file(
        {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}, tmp_path / "clip.safetensors"
    )
    hub.requests.clear()
    branch = build_backbone(path).visual_text
    features = branch.encode(["a dog is barking", "the sound of rain"])
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
