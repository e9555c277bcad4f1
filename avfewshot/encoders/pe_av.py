"""PE-AV (Vyas et al., arXiv 2512.19687): one model for sight, sound and text, by transformers' own classes, run whole.

Frames are seen as videos of one picture; sounds are heard by PE-AV's audio encoder, and the seconds of a window, where
PE-A-Frame is at hand, by that: one vector every 40 ms in a space of its own. The audio space is then the direct sum of
both: ``[PE-AV; 0]`` for a window, ``[0; PE-A-Frame]`` for a second, and a text is in it with the share of each one's
logit scale, so that products with it are each model's own logits.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.text import TextBranch
from avfewshot.encoders.tokenizer import TextTokenizer
from avfewshot.encoders.tower import Encoder, PixelScaling, whole_seconds
from avfewshot.encoders.weights.load import FETCH_HINT, load_into, read_tensors
from avfewshot.errors import AvfsError, WeightsError

_SAMPLE_RATE = 48_000
_WINDOW = 10  # seconds that are heard at once


class PeVideoTower(Encoder):
    """PE-AV's video encoder, of transformers' ``PeVideoModel``, on single pictures."""

    def __init__(self, video_model: Any, image_size: int) -> None:
        super().__init__()
        self.video_encoder, self.head = video_model.video_encoder, video_model.video_head
        self.image_size = image_size
        self.output_dim = self.head.proj.out_features
        self.scaling = PixelScaling((0.5,) * 3, (0.5,) * 3)
        self._freeze()

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed ``[N, 3, S, S]``, uint8 RGB or floating point and already normalised: ``[N, output_dim]``."""
        pixels = self.scaling(inputs).to(self.head.proj.weight.dtype)
        return self.head(self.video_encoder(pixel_values_videos=pixels[:, None]).pooler_output)

    def _keeps_float32(self, name: str) -> bool:
        return super()._keeps_float32(name) or "inv_freq" in name


class PeAudioTower(Encoder):
    """PE-AV's audio encoder (``PeAudioModel``), and PE-A-Frame's (``PeAudioFrameLevelModel``) for seconds in context.

    Waveforms have `sample_rate` samples a second; windows have up to `window_seconds` seconds, `native_samples`
    samples.
    """

    def __init__(self, audio_model: Any, timeline: Any | None) -> None:
        super().__init__()
        self.sample_rate, self.native_samples, self.window_seconds = _SAMPLE_RATE, _WINDOW * _SAMPLE_RATE, _WINDOW
        self.audio_encoder, self.head = audio_model.audio_encoder, audio_model.audio_head
        self.timeline_encoder: Any = timeline and timeline.audio_encoder
        self.timeline_head: Any = timeline and timeline.audio_head
        self._widths = [head.proj.out_features for head in (self.head, self.timeline_head) if head is not None]
        self.output_dim = sum(self._widths)
        for encoder in filter(None, (self.audio_encoder, self.timeline_encoder)):
            # The codec works in float32 whatever the precision: waveforms in bfloat16 are noise.
            encoder.embedder.bottleneck.register_forward_hook(
                lambda _, __, codes, embedder=encoder.embedder: codes.to(embedder.data_proj.weight.dtype)
            )
        self._freeze()

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed waveforms, float ``[N, S]`` in [-1, 1], each as a whole: ``[N, output_dim]``."""
        whole = self.head(self.audio_encoder(self._sound(inputs, self.audio_encoder)).pooler_output)
        return F.pad(whole, (0, self.output_dim - self._widths[0]))

    def forward_windows(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Embed windows as wholes, ``[N, output_dim]``, and each of their seconds, ``[N, T, output_dim]``.

        Waveforms are ``[N, T * sample_rate]`` with T from 1 to :attr:`window_seconds`, else a ValueError. A second is
        the mean of PE-A-Frame's vectors over it; without PE-A-Frame, PE-AV on the second alone.
        """
        seconds = whole_seconds(waveforms, self.sample_rate, self.window_seconds)
        whole = self(waveforms)
        if self.timeline_encoder is None:
            return whole, self(waveforms.reshape(-1, self.sample_rate)).unflatten(0, (-1, seconds))
        steps = self.timeline_encoder(self._sound(waveforms, self.timeline_encoder)).last_hidden_state
        spots = self.timeline_head(steps).unflatten(1, (seconds, -1)).mean(2)
        return whole, F.pad(spots, (self._widths[0], 0))

    @staticmethod
    def _sound(waveforms: Tensor, encoder: Any) -> Tensor:
        """Waveforms as the encoder takes them, ``[N, 1, S']``: continued by reflection to whole steps."""
        if waveforms.ndim != 2 or not waveforms.shape[1]:
            raise ValueError(f"Waveforms of shape [N, samples] are needed, not {list(waveforms.shape)}.")
        hop = encoder.config.dac_config.hop_length
        return F.pad(waveforms.float()[:, None], (0, -waveforms.shape[1] % hop), mode="reflect")

    def _keeps_float32(self, name: str) -> bool:
        return any(part in name for part in (".dac_encoder.", ".bottleneck.", "inv_freq"))


class PeTextBranch(TextBranch):
    """Texts in the space of pictures or sounds: ModernBERT's first token through a head, for each part of the space.

    `parts` are text model, head and share of each part; the squares of the shares sum to one.
    """

    models: Any
    heads: Any

    def __init__(
        self, parts: Sequence[tuple[nn.Module, Any, float]], tokenizer: TextTokenizer, pad: int, fingerprint: str
    ) -> None:
        models, heads = (nn.ModuleList(modules) for modules in ([p[0] for p in parts], [p[1] for p in parts]))
        width = sum(head.proj.out_features for _, head, _ in parts)
        super().__init__(tokenizer, width, fingerprint, models=models, heads=heads)
        self.shares, self.pad = [share for _, _, share in parts], pad

    def project(self, tokens: Tensor) -> Tensor:
        """See :meth:`TextBranch.project`."""
        mask = (tokens != self.pad).long()
        first = [model(input_ids=tokens, attention_mask=mask).last_hidden_state[:, 0] for model in self.models]
        parts = zip(first, self.heads, self.shares, strict=True)
        return torch.cat([share * F.normalize(head(vector), dim=-1) for vector, head, share in parts], dim=-1)


def pe_av_classes(backbone: str) -> tuple[Any, Any, Any, Any]:
    """Configuration and model of PE-AV, then of PE-A-Frame; an :class:`AvfsError` where transformers lacks them."""
    try:
        from transformers import PeAudioConfig, PeAudioFrameLevelModel, PeAudioVideoConfig, PeAudioVideoModel
    except ImportError:
        message = f"The backbone {backbone!r} needs PE-AV's classes, which came with transformers 5.0."
        raise AvfsError(message, hint="Run `pip install 'avfewshot[peav]'`.") from None
    return PeAudioVideoConfig, PeAudioVideoModel, PeAudioConfig, PeAudioFrameLevelModel


def build_pe_av(config_class: Any, model_class: Any, path: Path | None, sizes: dict[str, Any]) -> Any:
    """A model of transformers by its ``config.json`` or, without one, of these sizes, with random weights.

    A :class:`WeightsError` where the file does not describe one.
    """
    # transformers writes what its own docstrings lack on the standard output, which belongs to results.
    with contextlib.redirect_stdout(io.StringIO()):
        if path is None:
            return model_class(config_class(**sizes)).eval()
        try:
            return model_class(config_class.from_dict(_described(config_class, path))).eval()
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, OSError) as error:
            reason = re.sub(r"\s+", " ", str(error))[:200]
            message = f"{path}: does not describe {model_class.__name__} ({reason})."
            raise WeightsError(message, hint=FETCH_HINT) from None


def _described(config_class: Any, path: Path) -> dict[str, Any]:
    sizes = json.loads(path.read_text(encoding="utf-8"))
    if sizes.get("model_type") != config_class.model_type:
        raise ValueError(f"model_type {sizes.get('model_type')!r}, {config_class.model_type!r} is needed")
    for name in re.findall(r'"architecture": "([^"]*)"', json.dumps(sizes)):
        if not re.fullmatch(r"[\w.]+", name):  # timm would look names of repositories up on the network
            raise ValueError(f"architecture {name[:80]!r} is no name of timm's")
    pictures = sizes.get("audio_video_config", {}).get("video_config", {}).get("vision_config", {})
    if "num_classes" in pictures:  # timm's name of it, which is read at the top of a file alone
        pictures["num_labels"] = pictures.pop("num_classes")
    return sizes


def load_pe_av(model: Any, path: Path) -> None:
    """Copy a file's tensors into a model of :func:`build_pe_av`; parts that share weights may be written down once."""
    state, twins = read_tensors(path), defaultdict(list)
    for name, tensor in model.state_dict().items():
        twins[tensor.data_ptr()].append(name)
    for names in twins.values():
        if given := next((name for name in names if name in state), None):
            state |= dict.fromkeys(names, state[given])
    # Tables of positions are computed.
    load_into(model, state, path=path, architecture=type(model).__name__, optional=lambda name: "rope" in name)


def cosine_scale(logit_scale: Tensor, *heads: Any) -> float:
    """What cosines are to be multiplied with: the model was trained on products of vectors that are not normalised.

    A head is a LayerNorm and a linear map, so the norm of what it gives hardly varies: its expectation over inputs
    without a direction of preference is used. Random weights begin with a scale of zero, to which 1 is preferred.
    """
    scale = logit_scale.item()
    for head in heads:
        weight, norm = head.proj.weight.detach(), head.layer_norm
        squares = (weight * norm.weight.detach()).square().sum() + (weight @ norm.bias.detach()).square().sum()
        scale *= squares.sqrt().item()
    return max(scale, 1.0)
