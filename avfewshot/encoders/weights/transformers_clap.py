"""CLAP checkpoints in the layout of transformers (laion/clap-htsat-unfused), under laion_clap's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_MARK = "audio_model.audio_encoder.patch_embed.proj.weight"
# Sources: laion_clap's clap_module/htsat.py; transformers' convert_clap_original_pytorch_to_hf.py, read backwards.
_NAMES = (
    (r"^text_model\.", "text_branch."),
    (r"^audio_model\.audio_encoder\.", "audio_branch."),
    (r"^(audio_branch)\.batch_norm\.", r"\1.bn0."),
    (r"^(audio_branch\..*)\.layernorm_before\.", r"\1.norm1."),
    (r"^(audio_branch\..*)\.layernorm_after\.", r"\1.norm2."),
    (r"^(audio_branch\..*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(audio_branch\..*)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(audio_branch\..*)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(audio_branch\..*)\.attention\.self\.", r"\1.attn."),
    (r"^(audio|text)_projection\.linear1\.", r"\1_projection.0."),
    (r"^(audio|text)_projection\.linear2\.", r"\1_projection.2."),
)
_COMPUTED = ("text_branch.embeddings.position_ids", "text_branch.embeddings.token_type_ids")


def in_laion_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under laion_clap's names, where they are in the layout of transformers; else as they are."""
    if _MARK not in state:
        return dict(state)
    tensors: dict[str, Tensor] = {}
    for old, tensor in state.items():
        name = old
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    # Three linear maps there are one here.
    for query in [name for name in tensors if name.startswith("audio_branch.") and ".attn.query." in name]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in tensors for part in parts):
            tensors[query.replace(".query.", ".qkv.")] = torch.cat([tensors.pop(part) for part in parts])
    return {name: tensor for name, tensor in tensors.items() if name not in _COMPUTED}
