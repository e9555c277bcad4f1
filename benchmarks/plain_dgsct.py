"""A plain forward pass of DG-SCT on CLIP and CLAP, for comparison: the printed equations in the printed order.

The towers are the libraries' own modules, walked block by block: ``nn.MultiheadAttention`` in open_clip's blocks,
torchlibrosa's spectrogram and the window attention of laion_clap's HTS-AT, and the whole text encoders on texts padded
to their context. The adapters (Eq. 1-7 of Duan et al., arXiv 2311.05152) map the number of tokens before the number of
channels, apply every linear map to every token and pool afterwards. Nothing is rearranged, nothing is computed twice.

It reads the parameters of an `AudioVisualModel` with DG-SCT adapters, so that both sides have the same weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEXT_CONTEXT = 77  # laion_clap pads all texts to it, as open_clip does


class PlainModel:
    """The same function as `model` and the text branches of `backbone`.

    Args:
        backbone: Towers of equal depth and text branches, of `avfewshot.encoders.backbone`.
        model: Holds the trainable parameters: DG-SCT adapters, projectors, temperatures.
    """

    def __init__(self, backbone: Any, model: nn.Module) -> None:
        from avfewshot.encoders.htsat import load_htsat_module

        self.swin = load_htsat_module()
        self.tower = backbone.visual
        self.visual, self.audio = backbone.visual.visual, backbone.audio.audio_branch
        self.audio_projection = backbone.audio.audio_projection
        self.visual_text, self.audio_text = backbone.visual_text, backbone.audio_text
        self.model = model
        self.swin_blocks = [
            (block, layer.downsample if block is layer.blocks[-1] else None)
            for layer in self.audio.layers
            for block in layer.blocks
        ]
        if len(self.swin_blocks) != len(self.visual.transformer.resblocks):
            raise ValueError("The plain model needs towers of equal depth.")

    def embed(self, frames: Tensor, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings ``[B, T, D_v]`` and ``[B, T, D_a]`` of uint8 frames and one-second waveforms."""
        clips, segments = frames.shape[:2]
        pixels = frames.flatten(0, 1).float().div(255)
        mean, std = self.pixel_statistics()
        v = self.visual._embeds((pixels - mean) / std)
        a = self.audio_tokens(waveforms.flatten(0, 1))
        for guides, block, (swin_block, merging) in zip(
            self.model.adapters.layers, self.visual.transformer.resblocks, self.swin_blocks, strict=True
        ):
            to_v, to_a = guidance(guides["attend"], v, a, segments)
            v = v + block.ls_1(block.attention(block.ln_1(v))) + to_v
            a = a + self.window_attention(swin_block, a) + to_a
            to_v, to_a = guidance(guides["feed"], v, a, segments)
            v = v + block.ls_2(block.mlp(block.ln_2(v))) + to_v
            a = a + swin_block.mlp(swin_block.norm2(a)) + to_a
            if merging is not None:
                a = merging(a)
        pooled, _ = self.visual._pool(v)
        seen = F.normalize(pooled @ self.visual.proj, dim=-1)
        heard = F.normalize(self.audio_projection(self.audio.norm(a).mean(1)), dim=-1)
        projectors = self.model.projectors
        return (
            projectors.visual(seen).unflatten(0, (clips, segments)),
            projectors.audio(heard).unflatten(0, (clips, segments)),
        )

    def pixel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation ``[3, 1, 1]`` of pixels in [0, 1], read back from the tower's buffers."""
        scaling = self.tower.scaling
        std = 1 / (255 * scaling.pixel_scale)
        return -(scaling.pixel_shift * std), std

    def audio_tokens(self, waveforms: Tensor) -> Tensor:
        """HTS-AT's own way from waveforms, repeated to the native length, to tokens."""
        audio = self.audio
        native = audio.config.htsat.native_samples
        waveforms = waveforms.repeat(1, native // waveforms.shape[1])
        mels = audio.logmel_extractor(audio.spectrogram_extractor(waveforms))
        mels = audio.bn0(mels.transpose(1, 3)).transpose(1, 3)
        return audio.pos_drop(audio.patch_embed(audio.reshape_wav2img(mels)))

    def window_attention(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """What a Swin block's first half adds: shift, cut into windows, attend, and all of it back."""
        height, width = block.input_resolution
        side, shift = block.window_size, block.shift_size
        count, _, channels = tokens.shape
        grid = block.norm1(tokens).view(count, height, width, channels)
        if shift:
            grid = torch.roll(grid, (-shift, -shift), (1, 2))
        windows = self.swin.window_partition(grid, side).view(-1, side * side, channels)
        attended, _ = block.attn(windows, mask=block.attn_mask)
        grid = self.swin.window_reverse(attended.view(-1, side, side, channels), side, height, width)
        if shift:
            grid = torch.roll(grid, (shift, shift), (1, 2))
        return grid.reshape(count, height * width, channels)

    def tokenize(self, visual_texts: list[str], audio_texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token rows of the texts, padded to the context as the libraries do."""
        audio_tokens = self.audio_text.tokenizer(audio_texts)
        if hasattr(self.audio_text, "model"):  # RoBERTa, whose padding token is 1
            audio_tokens = F.pad(audio_tokens, (0, TEXT_CONTEXT - audio_tokens.shape[1]), value=1)
        return self.visual_text.tokenizer(visual_texts), audio_tokens

    def embed_texts(self, visual_tokens: Tensor, audio_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of the texts ``[K, D_v]`` and ``[K, D_a]``, through the whole text encoders."""
        seen = self.visual_text.tower(visual_tokens)
        if hasattr(self.audio_text, "model"):
            encoded = self.audio_text.model(input_ids=audio_tokens, attention_mask=(audio_tokens != 1).long())
            heard = self.audio_text.projection(encoded.pooler_output)
        else:
            heard = self.audio_text.projection(self.audio_text.tower(audio_tokens))
        return F.normalize(seen, dim=-1), F.normalize(heard, dim=-1)


def guidance(guides: nn.ModuleDict, visual: Tensor, audio: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """What half a layer adds to the visual tokens ``[N, L_v, C_v]`` and to the audio tokens ``[N, L_a, C_a]``."""
    to_visual, to_audio = guides["a2v"], guides["v2a"]
    seen, heard = attended(to_visual, audio, visual), attended(to_audio, visual, audio)
    return output(to_visual, seen, heard, segments), output(to_audio, heard, seen, segments)


def attended(guide: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """Eq. 3, 4 and 6, every map on every token: ``(alpha M_c + beta M_s + 1) * target``."""
    tokens = torch.matmul(guide.tokens, source)  # psi: as many tokens, then as many channels
    adapted = guide.channels(tokens if guide.token_bias is None else tokens + guide.token_bias[:, None])
    pooled = adapted.mean(1, keepdim=True)
    joint = guide.channel_source(pooled) * guide.channel_target(target)
    channel = torch.sigmoid(guide.channel_out(joint.mean(1, keepdim=True)))
    selected = (channel + 1) * target
    spatial = torch.sigmoid(guide.spatial_out(guide.spatial_source(adapted) * guide.spatial_target(selected)))
    return (guide.settings.alpha * channel + guide.settings.beta * spatial + 1) * target


def output(guide: nn.Module, tokens: Tensor, others: Tensor, segments: int) -> Tensor:
    """Eq. 5 and 7 where the layer has the temporal gate, then the output map."""
    if guide.temporal:
        states, _ = guide.rnn(others.mean(1).unflatten(0, (-1, segments)))
        gate = torch.sigmoid(guide.gate_out(states)).flatten(0, 1)[:, None]
        tokens = (guide.settings.gamma * gate + 1) * tokens
    return guide.up(F.relu(guide.down(tokens))) if guide.settings.output == "bottleneck" else tokens * guide.scale
