"""Two frozen towers walked in lockstep, trainable adapters between them, projectors and temperatures on top."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from avfewshot.adapters.base import (
    HALVES,
    TOWER_BRANCHES,
    TOWER_STEPS,
    CrossModalAdapter,
    Half,
    TemporalStep,
    pair_towers,
)
from avfewshot.adapters.dgsct import DGSCT
from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.tower import Encoder, Pair, Tower
from avfewshot.errors import WeightsError
from avfewshot.models import fusion
from avfewshot.models.anchors import PREFIX as ANCHORS
from avfewshot.models.anchors import Modality, SupportAnchors
from avfewshot.models.projectors import Projectors, Temperatures

_FROZEN = ("visual_tower.", "audio_tower.")


class AudioVisualModel(nn.Module):
    """From the frames and sounds of clips to unit embeddings in the two matching spaces.

    Both towers, frozen, are walked block by block; where blocks are paired (`layers`), the adapter's guidance is added
    after self-attention and after the MLP (Eq. 1 and 2 of Duan et al., arXiv 2311.05152). Without adapters and
    projectors the embeddings are those of the towers alone.

    Args:
        backbone: Holds the two towers and their temperatures.
        adapters: Trainable guidance between the towers, built for ``pair_towers`` of them, or the last of these.
        projectors: Trainable maps on embeddings and label features.
        guided_layers: How many of the pairs that is; None: all.
        checkpointing: Forget the activations inside each half of a layer and compute them again in the backward pass.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: CrossModalAdapter | None = None,
        projectors: Projectors | None = None,
        *,
        guided_layers: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.visual_tower: Any = backbone.visual  # both are towers wherever there are adapters
        self.audio_tower: Any = backbone.audio
        self.adapters = adapters
        self.projectors = projectors
        self.anchors: SupportAnchors | None = None
        self.temperatures = Temperatures(backbone.visual_scale, backbone.audio_scale)
        self.checkpointing = checkpointing
        pairs = pair_towers(self.visual_tower, self.audio_tower) if adapters is not None else ()
        self.layers = pairs[-(guided_layers or len(pairs)) :]
        self._kept: tuple[frozenset[int], dict[int, Tensor]] = frozenset(), {}

    def forward(
        self,
        frames: Tensor | None,
        audio: Tensor | None,
        *,
        visual_present: Tensor | None = None,
        audio_present: Tensor | None = None,
    ) -> Pair:
        """Embed B clips of T segments each: unit vectors ``[B, T, D_v]`` and ``[B, T, D_a]``, float32 or wider.

        Args:
            frames: uint8 ``[B, T, 3, S, S]``, or None when no clip has a picture: the audio tower then runs unguided.
            audio: float32 waveforms ``[B, T, samples]``, or None when no clip has sound.
            visual_present: Bool ``[B]``: False for a clip without a picture among others that have one. Its frames may
                hold anything; they guide nothing, and its visual embedding means nothing.
            audio_present: The same for sound.

        Raises:
            ValueError: Both inputs are None, or they differ in clips or segments.
        """
        given = audio if frames is None else frames
        if given is None:
            raise ValueError("There are neither frames nor audio.")
        clips, segments = given.shape[:2]
        if frames is not None and audio is not None and audio.shape[:2] != frames.shape[:2]:
            raise ValueError(
                f"Frames of {frames.shape[0]} clips x {frames.shape[1]} segments do not fit audio of "
                f"{audio.shape[0]} x {audio.shape[1]}."
            )
        visual = None if frames is None else frames.flatten(0, 1)
        sound = None if audio is None else audio.flatten(0, 1)
        if visual is None or sound is None or self.adapters is None:
            visual, sound = self._embed(self.visual_tower, visual), self._embed(self.audio_tower, sound)
        else:
            masks = _mask(visual_present, segments), _mask(audio_present, segments)
            visual, sound = self._lockstep(visual, sound, segments, *masks)
            visual, sound = self.visual_tower.forward_head(visual), self.audio_tower.forward_head(sound)
        return self._finish(visual, "visual", clips), self._finish(sound, "audio", clips)

    def final_tokens(self, frames: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens behind the last block, not pooled, ``[B * T, L, C]`` each, of inputs as for :meth:`forward`."""
        segments, frames, audio = frames.shape[1], frames.flatten(0, 1), audio.flatten(0, 1)
        if self.adapters is None:
            visual, sound = self.visual_tower.patch_embed(frames), self.audio_tower.patch_embed(audio)
            return self._alone(self.visual_tower, visual), self._alone(self.audio_tower, sound)
        return self._lockstep(frames, audio, segments, None, None)

    @contextlib.contextmanager
    def keeping_tokens(self, blocks: Collection[int]) -> Iterator[dict[int, Tensor]]:
        """Keep tokens ``[B * T, L, C]`` behind blocks of the visual tower, by block.

        Those of forward passes inside the context; none of a pass without a picture.
        """
        tokens: dict[int, Tensor] = {}
        self._kept = frozenset(blocks), tokens
        try:
            yield tokens
        finally:
            self._kept = frozenset(), {}

    def project_texts(self, visual_texts: Tensor | None, audio_texts: Tensor | None) -> Pair:
        """Bring unit vectors of the text branches, ``[K, D_v]`` and ``[K, D_a]`` or None, into the matching spaces."""
        if self.projectors is None:
            return visual_texts, audio_texts
        return (
            None if visual_texts is None else self.projectors.visual_text(visual_texts),
            None if audio_texts is None else self.projectors.audio_text(audio_texts),
        )

    def class_means(self, modality: Modality, leave_out: Sequence[int | None] = (None,)) -> Tensor:
        """What stands beside the projected texts, ``[len(leave_out), K + 1, D]``; zeros without anchors.

        See :meth:`avfewshot.models.anchors.SupportAnchors.means`.
        """
        if self.anchors is None:
            return self.temperatures.visual.new_zeros(len(leave_out), 1, 1)
        project = (lambda unit: unit) if self.projectors is None else getattr(self.projectors, modality)
        return self.anchors.means(modality, project, leave_out=leave_out)

    def logits(
        self, visual: Tensor | None, audio: Tensor | None, visual_texts: Tensor | None, audio_texts: Tensor | None
    ) -> Pair:
        """Scaled cosines ``[..., K]`` of unit embeddings ``[..., D]`` with projected texts ``[K, D]``, or None."""
        seen = heard = None
        if visual is not None and visual_texts is not None:
            seen = fusion.logits(visual, visual_texts, self.temperatures.scale("visual"))
        if audio is not None and audio_texts is not None:
            heard = fusion.logits(audio, audio_texts, self.temperatures.scale("audio"))
        return seen, heard

    def trainable_state(self) -> dict[str, Tensor]:
        """What is not the towers': adapters, projectors, temperatures and anchors, by name, on the CPU."""
        state = self.state_dict()
        return {name: tensor.detach().cpu() for name, tensor in state.items() if not name.startswith(_FROZEN)}

    def check_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuse tensors that are not those of this model, which may be one on torch's ``meta`` device.

        Raises:
            WeightsError: Names or shapes differ.
        """
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(_FROZEN)}
        faults = [f"{name} is missing" for name in own.keys() - state.keys()]
        faults += [f"{name} is not part of the model" for name in state.keys() - own.keys()]
        faults += [
            f"{name} is {list(state[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if faults:
            shown = "; ".join(sorted(faults)[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
            raise WeightsError(
                f"The trained tensors do not fit the model: {shown}.",
                hint="Use the backbone and the settings that they were trained with.",
            )

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`trainable_state` gave; anchors are passed over by a model that has none.

        Raises:
            WeightsError: Names or shapes differ; nothing is loaded then.
        """
        if self.anchors is None:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(ANCHORS)}
        self.check_trainable_state(state)
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if not name.startswith(_FROZEN):
                    tensor.copy_(state[name])

    def _lockstep(
        self, frames: Tensor, audio: Tensor, segments: int, seen: Tensor | None, heard: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens through all blocks of both towers, guided."""
        assert self.adapters is not None
        visual = self._enter(self.visual_tower, frames, self.adapters.position("visual", segments), heard)
        audio = self._enter(self.audio_tower, audio, self.adapters.position("audio", segments), seen)
        for index in range(len(self.layers)):
            for half in HALVES:
                if self.checkpointing and torch.is_grad_enabled():
                    again: Any = checkpoint(
                        self._step, index, half, visual, audio, segments, seen, heard,
                        use_reentrant=False, preserve_rng_state=self.adapters.draws,
                    )  # fmt: skip
                    visual, audio = again
                else:
                    visual, audio = self._step(index, half, visual, audio, segments, seen, heard)
        return visual, audio

    @staticmethod
    def _enter(tower: Any, inputs: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """Embed patches; `position` ``[T, C]`` goes to the segments of clips that have the other modality."""
        if position is None:
            return tower.patch_embed(inputs)
        rows = position.repeat(inputs.shape[0] // position.shape[0], 1)[:, None]
        return tower.patch_embed(inputs, rows if mask is None else rows * mask)

    def _step(
        self, index: int, half: Half, visual: Tensor, audio: Tensor, segments: int, *masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Half of a paired layer (Eq. 1 or 2), with the blocks that stand alone before it or the merging behind it."""
        assert self.adapters is not None
        (seen, heard), layer = masks, self.layers[index]
        v, a = layer.visual_block, layer.audio_block
        if half == "attend":
            previous = self.layers[index - 1] if index else None
            visual = self._alone(self.visual_tower, visual, previous.visual_block + 1 if previous else 0, v)
            audio = self._alone(self.audio_tower, audio, previous.audio_block + 1 if previous else 0, a)
        if self.adapters.reads == "branch":
            if half == "attend":
                steps = self.adapters.temporal(index, "visual"), self.adapters.temporal(index, "audio")
                visual = self._along_time(self.visual_tower, v, visual, segments, steps[0], heard)
                audio = self._along_time(self.audio_tower, a, audio, segments, steps[1], seen)
            by_visual = getattr(self.visual_tower, TOWER_BRANCHES[half])(v, visual)
            by_audio = getattr(self.audio_tower, TOWER_BRANCHES[half])(a, audio)
            windows: Any = self.visual_tower.windows(v)
            others: Any = self.audio_tower.windows(a)
            if half == "feed" or windows is None or others is None or not torch.equal(windows, others):
                to_visual, to_audio = self._guide(index, half, by_visual, by_audio, segments)
            else:
                parts = self._guide(index, half, _cut(by_visual, windows), _cut(by_audio, windows), segments)
                to_visual, to_audio = (_whole(part, windows) for part in parts)
            visual, audio = visual + by_visual, audio + by_audio
        else:
            to_visual, to_audio = self._guide(index, half, visual, audio, segments)
            visual = getattr(self.visual_tower, TOWER_STEPS[half])(v, visual)
            audio = getattr(self.audio_tower, TOWER_STEPS[half])(a, audio)
        visual, audio = _add(visual, to_visual, heard), _add(audio, to_audio, seen)
        if half == "feed":
            return self._downsample(self.visual_tower, v, visual), self._downsample(self.audio_tower, a, audio)
        return visual, audio

    def _along_time(
        self, tower: Tower, block: int, tokens: Tensor, segments: int, step: TemporalStep | None, mask: Tensor | None
    ) -> Tensor:
        """Attention of a block over the segments of a clip, each place alone, added as an adapter's step says."""
        if step is None:
            return tokens
        rows = tokens.reshape(-1, segments, *tokens.shape[1:]).transpose(1, 2).flatten(0, 1)  # [clips x places, T, C]
        with self._adapting(tokens):
            update = step(tower.time_branch(block, rows, step.bias(segments)))
        update = update.reshape(-1, tokens.shape[1], *update.shape[1:]).transpose(1, 2).flatten(0, 1)
        return _add(tokens, update, mask)

    def _guide(self, index: int, half: Half, visual: Tensor, audio: Tensor, segments: int) -> Pair:
        assert self.adapters is not None
        with self._adapting(visual):
            return self.adapters(index, half, visual, audio, segments)

    @staticmethod
    def _adapting(tokens: Tensor) -> contextlib.AbstractContextManager[object]:
        """An adapter's parameters stay in float32 when the towers are cast to a shorter format."""
        kind = tokens.device.type
        if tokens.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(kind):
            return torch.autocast(kind, dtype=tokens.dtype)
        return contextlib.nullcontext()

    def _embed(self, tower: Encoder, inputs: Tensor | None) -> Tensor | None:
        if inputs is None or not isinstance(tower, Tower):
            return None if inputs is None else tower(inputs)
        return tower.forward_head(self._alone(tower, tower.patch_embed(inputs)))

    def _alone(self, tower: Tower, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks of a tower without guidance."""
        for block in range(start, tower.depth if stop is None else stop):
            tokens = self._downsample(tower, block, tower.mlp_block(block, tower.attn_block(block, tokens)))
        return tokens

    def _downsample(self, tower: Tower, block: int, tokens: Tensor) -> Tensor:
        blocks, tokens_of = self._kept
        if tower is self.visual_tower and block in blocks:
            tokens_of[block] = tokens
        return tower.downsample(block, tokens)

    def _finish(self, pooled: Tensor | None, modality: str, clips: int) -> Tensor | None:
        if pooled is None:
            return None
        # Lengths of half-precision vectors are off in the third digit: normalise in float32.
        unit = F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)
        if self.projectors is not None:
            unit = getattr(self.projectors, modality)(unit)
        return unit.unflatten(0, (clips, -1))


def _cut(tokens: Tensor, windows: Tensor) -> Tensor:
    """``[N, L, C]`` to ``[N * windows, area, C]``."""
    return tokens[:, windows.flatten().to(tokens.device)].reshape(-1, windows.shape[1], tokens.shape[-1])


def _whole(parts: Tensor | None, windows: Tensor) -> Tensor | None:
    """What :func:`_cut` took apart."""
    if parts is None:
        return None
    inverse = windows.flatten().argsort().to(parts.device)
    return parts.reshape(-1, len(inverse), parts.shape[-1])[:, inverse]


def _add(tokens: Tensor, guidance: Tensor | None, mask: Tensor | None) -> Tensor:
    """Add guidance, but not what an absent modality would say."""
    if guidance is None:
        return tokens
    guidance = guidance.to(tokens.dtype)
    return tokens + (guidance if mask is None else torch.where(mask, guidance, guidance.new_zeros(())))


def _mask(present: Tensor | None, segments: int) -> Tensor | None:
    """Bool ``[B]`` to ``[B x T, 1, 1]``."""
    return None if present is None else present.repeat_interleave(segments)[:, None, None]


@contextlib.contextmanager
def weighing(towers: AudioVisualModel) -> Iterator[dict[str, Tensor]]:
    """Keep, of a forward pass inside, how the last pair of layers weighs the places of each modality.

    Of DG-SCT that is the spatial attention (Eq. 4); of other adapters, how long what they add to a token is beside the
    token. Filled with maps ``[B * T, rows, columns]`` of ``visual`` and ``audio``, float32 on the CPU.
    """
    maps: dict[str, Tensor] = {}
    adapters: Any = towers.adapters
    last = len(towers.layers) - 1
    blocks = {"visual": towers.layers[last].visual_block, "audio": towers.layers[last].audio_block}
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(adapters.recording()) if isinstance(adapters, DGSCT) else []

        def note(_: Any, inputs: tuple[Any, ...], added: Pair) -> None:
            layer, half, *tokens = inputs[:4]
            if (layer, half) != (last, "feed"):
                return
            spatial = {record.direction: record.spatial for record in records[-2:] if record.layer == last}
            for modality, direction, own, extra in zip(blocks, ("a2v", "v2a"), tokens, added, strict=True):
                weights = spatial.get(direction)
                if weights is None and extra is not None:
                    weights = extra.float().norm(dim=-1) / own.float().norm(dim=-1).clamp(min=1e-6)
                if weights is not None:
                    tower = getattr(towers, f"{modality}_tower")
                    maps[modality] = tower.place_map(blocks[modality], weights.float().cpu())

        stack.callback(adapters.register_forward_hook(note).remove)
        yield maps
