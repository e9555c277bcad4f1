"""AVS: masks of what sounds, second by second (AVSBench, Zhou et al., ECCV 2022).

The head is their decoder, from maps of four scales and the sound. Frames are numbered through clips, ``N = B * T``. Two
things are not as in the released code: its in-place ReLU makes the skips of :class:`Refine` add ``relu(x)`` instead of
``x``, and it holds a unit for the coarsest map that it never calls.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.data.avsbench import SECONDS, MaskedClip, frames_of, load_avsbench
from avfewshot.data.dataset import SPLITS
from avfewshot.data.stills import read_masks, read_stills
from avfewshot.errors import UsageError
from avfewshot.evaluation.masks import MaskScores, jaccard
from avfewshot.media.clip import Clip
from avfewshot.supervised.base import Example, Features, Recipe, SupervisedTask, TaskData, TaskHead, ZeroShot

_PICTURES = 8
_REFERENCE_SIDE = 64
STAGE_WIDTHS = (64, 128, 320, 512)  # channels of the maps, from fine to coarse, that the decoder reads: PVT-v2's
AUDIO_WIDTH = 128  # channels of a second of sound that it reads: VGGish's
_MATCH_WEIGHT = 0.5  # of the audio-visual matching term beside the masks' loss, where there are several sources


class TPAVI(nn.Module):
    """Temporal pixel-wise audio-visual interaction: every place of every second attends to the sound of all seconds.

    With no softmax, ``y_p = sum_q (theta_p . phi_q) g_q / (T H W)`` over places and seconds q. phi is the same all
    over a picture, so that the sum over q is an ``inner x inner`` matrix (:meth:`attend`), not a ``THW x THW`` one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.audio = nn.Linear(AUDIO_WIDTH, channels)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Linear(channels, inner)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        self.batch_norm = nn.BatchNorm2d(channels)
        self.layer_norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.batch_norm.weight)
        nn.init.zeros_(self.batch_norm.bias)

    def forward(self, maps: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, C, H, W]`` and ``[B, T, 128]`` to maps of the same shape, and the sound as ``[N, C]``."""
        sound = self.audio(audio)
        attended = self.attend(self.theta(maps), self.phi(sound), self.g(maps))
        maps = maps + self.batch_norm(self.out(attended))
        return self.layer_norm(maps.movedim(1, -1)).movedim(-1, 1), sound.flatten(0, 1)

    @staticmethod
    def attend(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """The sum above for ``[N, D, H, W]``, ``[B, T, D]`` and ``[N, D, H, W]``: ``[N, D, H, W]``, N = B T."""
        clips, seconds, _ = phi.shape
        sums = g.sum((-2, -1)).unflatten(0, (clips, seconds))
        matrix = torch.einsum("btc,btd->bcd", phi, sums) / (seconds * g.shape[-2] * g.shape[-1])
        return torch.einsum("btchw,bcd->btdhw", theta.unflatten(0, (clips, seconds)), matrix).flatten(0, 1)


class Refine(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return maps + self.second(F.relu(self.first(F.relu(maps))))


class MaskDecoder(TaskHead):
    """The head, for masks of side `size`; inside it is `channels` wide, 256 as published.

    Before four maps, from fine to coarse, and sound of other widths than :data:`STAGE_WIDTHS` and :data:`AUDIO_WIDTH`
    stand linear maps.
    """

    recipe = Recipe(1e-4, 4, 30)
    needs = frozenset({"stages", "audio"})
    channels, match_weight = 256, 0.0

    def __init__(
        self, widths: Sequence[int], audio_width: int, *, channels: int | None = None, size: int = 224
    ) -> None:
        super().__init__()
        same, channels = tuple(widths) == STAGE_WIDTHS, channels or self.channels
        self.size = size
        self.project = nn.ModuleList(
            nn.Identity() if same else nn.Conv2d(width, own, 1) for width, own in zip(widths, STAGE_WIDTHS, strict=True)
        )
        self.audio = nn.Identity() if audio_width == AUDIO_WIDTH else nn.Linear(audio_width, AUDIO_WIDTH)
        self.context = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, channels, 3, padding=d, dilation=d) for d in (3, 6, 12, 18))
            for width in STAGE_WIDTHS
        )
        for conv in (conv for convs in self.context for conv in convs):  # pyright: ignore[reportGeneralTypeIssues]
            nn.init.normal_(conv.weight, std=0.01)
        self.interact = nn.ModuleList(TPAVI(channels) for _ in STAGE_WIDTHS)
        self.skip = nn.ModuleList(Refine(channels) for _ in STAGE_WIDTHS[:-1])
        self.path = nn.ModuleList(Refine(channels) for _ in STAGE_WIDTHS)
        self.near = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(channels // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1))

    @classmethod
    def build(cls, widths: Mapping[str, Any], about: Mapping[str, Any]) -> MaskDecoder:
        """See :meth:`TaskHead.build`."""
        built = cls(widths["stages"], widths["audio"], size=widths["frame"])
        built.match_weight = _MATCH_WEIGHT if about["subset"] == "ms3" else 0.0
        return built

    def loss(self, features: Features, examples: Sequence[Example]) -> Tensor:
        """See :func:`mask_loss`."""
        logits, stages = self._said(features)
        masks = [read_masks(example.target, self.size) for example in examples]
        truth, labelled = (torch.stack(part).to(logits.device) for part in zip(*masks, strict=True))
        return mask_loss(logits, truth, labelled, stages, self.match_weight)

    def predict(self, features: Features, examples: Sequence[Example]) -> list[Any]:
        """Probabilities of pixels: for each clip float16 ``[T, size, size]``, on the CPU."""
        return list(torch.sigmoid(self._said(features)[0]).half().cpu())

    def _said(self, features: Features) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        return self([features[f"stage{index}"] for index in range(4)], features["audio"])

    def forward(self, maps: Sequence[Tensor], audio: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits ``[B, T, size, size]``, and maps and sound of each scale for :func:`mask_loss`.

        Maps are ``[B, T, C_i, H_i, W_i]`` from fine to coarse, brought to a quarter, an eighth, a sixteenth and a 32nd
        of `size`; sound is ``[B, T, C_a]``.
        """
        clips, coarsest = len(audio), max(1, self.size // 32)
        sound = self.audio(audio)
        stages = []
        for index, stage in enumerate(maps):
            own = _resize(self.project[index](stage.flatten(0, 1)), coarsest * 2 ** (len(maps) - 1 - index))
            context = sum(conv(own) for conv in self.context[index])  # pyright: ignore[reportGeneralTypeIssues]
            stages.append(self.interact[index](context, sound))
        out = _double(self.path[-1](stages[-1][0]))
        for index in reversed(range(len(self.skip))):
            out = _double(self.path[index](out + self.skip[index](stages[index][0])))
        logits = self.last(F.interpolate(self.near(out), scale_factor=2, mode="bilinear"))
        if logits.shape[-1] != self.size:
            logits = F.interpolate(logits, (self.size, self.size), mode="bilinear")
        return logits[:, 0].unflatten(0, (clips, -1)), stages


class SmallMaskDecoder(MaskDecoder):
    """The same, narrow."""

    recipe = Recipe(1e-3, 8, 30, (20,), 0.3)
    channels = 32


def mask_loss(
    logits: Tensor, truth: Tensor, labelled: Tensor, stages: Sequence[tuple[Tensor, Tensor]], match_weight: float = 0.0
) -> Tensor:
    """Binary cross-entropy of the labelled frames, plus the audio-visual matching term.

    The term is the divergence of ``softmax(sound)`` from ``softmax(masked maps)`` summed over frames and channels, as
    published, and averaged over the scales; masked maps are those under the predicted mask, averaged over places. With
    a single source its weight is 0, and in training the first frame alone is labelled. Logits and truth are
    ``[B, T, S, S]``, the truth bool, `labelled` is bool ``[B, T]``; the stages are those of :class:`MaskDecoder`.
    """
    loss = F.binary_cross_entropy_with_logits(logits[labelled], truth[labelled].to(logits.dtype))
    if not match_weight:
        return loss
    terms = []
    for maps, sound in stages:
        mask = torch.sigmoid(F.adaptive_avg_pool2d(logits.flatten(0, 1)[:, None], maps.shape[-1]))
        masked = (maps * mask).mean((-2, -1))
        terms.append(F.kl_div(masked.log_softmax(-1), sound.softmax(-1), reduction="sum"))
    return loss + match_weight * torch.stack(terms).mean()


def _double(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


def _resize(maps: Tensor, side: int) -> Tensor:
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps, (side, side), mode="bicubic", antialias=True)


class SegmentationTask(SupervisedTask):
    """A target is a :class:`MaskedClip`, a prediction is float16 ``[5, S, S]`` in 0..1, S the side of the frames.

    A vision transformer has one scale: the four maps that the decoder reads are those of four depths.
    """

    name = "avs"
    title = "audio-visual segmentation (AVSBench)"
    dataset = "avs"
    headline = "MJ"
    seconds = window = SECONDS
    heads: ClassVar = {"tpavi": MaskDecoder, "tpavi-small": SmallMaskDecoder}

    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """See :meth:`SupervisedTask.read`; subsets are ``s4``, the default, and ``ms3``.

        A :class:`UsageError` where `media` are given: they lie beside the lists.
        """
        if media:
            raise UsageError("--media: the files of AVSBench lie beside its lists.", hint="Give --root alone.")
        dataset = load_avsbench(root, subset or "s4")
        splits = {
            split: [
                Example(clip.name, clip.audio, clip, clip.name in dataset.leaked(split) if split != "train" else None)
                for clip in dataset.clips[split]
            ]
            for split in SPLITS
        }
        return TaskData(splits, {"subset": dataset.subset}, dataset.report.describe())

    def read_clip(self, path: Path, frame_size: int, frame_backend: str = "auto") -> Clip:
        """The stills and the sound of a clip, by the path of its sound."""
        return read_stills(frames_of(path), path, frame_size)

    def metrics(
        self, predictions: Sequence[Any], examples: Sequence[Example], about: Mapping[str, Any]
    ) -> dict[str, float]:
        """MJ and MF; the same on clips whose video is not in training, where some are; MF as published last."""
        scores, clean = MaskScores(), MaskScores()
        for said, example in zip(predictions, examples, strict=True):
            truth, labelled = read_masks(example.target, said.shape[-1])
            for part in [scores] if example.given else [scores, clean]:
                part.add(said[labelled].float(), truth[labelled])
        result = scores.result()
        leaked = sum(bool(example.given) for example in examples)
        if 0 < leaked < len(examples):
            own = clean.result()
            result |= {"MJ_clean": own["MJ"], "MF_clean": own["MF"]}
        return {**result, "MF_published": result["MF_published"]}

    def reference_lines(self, data: TaskData, zero_shot: ZeroShot | None) -> dict[str, list[Any]]:
        """Nothing, everything, and where training masks lie on average, cut where it fits these best."""
        test = data.splits["test"]
        prior = centre_prior([example.target for example in data.splits["train"]], _REFERENCE_SIDE)
        shape = (SECONDS, _REFERENCE_SIDE, _REFERENCE_SIDE)
        return {
            "nothing": [torch.zeros(shape) for _ in test],
            "everything": [torch.ones(shape) for _ in test],
            "centre prior": [prior.expand(shape) for _ in test],
        }

    def describe(self, prediction: Any, example: Example, about: Mapping[str, Any]) -> dict[str, Any]:
        """By second: share of the picture, box (left, top, right, bottom as shares), and the mask as COCO's counts."""
        seconds = []
        for mask in (prediction > 0.5).numpy():
            rows, columns = np.nonzero(mask)
            side = len(mask)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else []
            seconds.append(
                {
                    "share": round(float(mask.mean()), 4),
                    "box": [round(float(edge) / side, 3) for edge in box],
                    "size": [side, side],
                    "counts": run_lengths(mask),
                }
            )
        return {"share": [second["share"] for second in seconds], "masks": seconds}

    def class_of(self, example: Example, about: Mapping[str, Any]) -> str | None:
        """What sounds, as far as the list says."""
        return example.target.category or None

    def pictures(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[tuple[str, bytes]]:
        """Frames with what was found drawn over them, and the truth as an outline."""
        chosen = list(zip(predictions, examples, strict=True))[:_PICTURES]
        return [(f"{example.id} ({example.target.category})", drawn(said, example.target)) for said, example in chosen]


def centre_prior(clips: Sequence[MaskedClip], side: int) -> Tensor:
    """How often each pixel sounds in labelled training frames, scaled so that 0.5 is the best threshold there.

    Float32 ``[side, side]`` in [0, 1].
    """
    parts = [masks[labelled] for masks, labelled in (read_masks(clip, side) for clip in clips)]
    truth = torch.cat(parts)
    mean = truth.float().mean(0)
    levels = torch.linspace(0, float(mean.max()), 26)[:-1]
    figures = [jaccard((mean > level).float().expand(truth.shape), truth).mean() for level in levels]
    best = float(levels[int(torch.stack(figures).argmax())])
    above = 0.5 + 0.5 * (mean - best) / max(1e-6, float(mean.max()) - best)
    return torch.where(mean > best, above, 0.5 * mean / max(1e-6, best)).clamp(0, 1)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns of a mask, bool ``[H, W]``, outside of it first: COCO's uncompressed form."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    edges = np.flatnonzero(np.diff(flat, append=~flat[-1:]))
    return np.diff(edges, prepend=0).tolist()


def drawn(said: Tensor, clip: MaskedClip) -> bytes:
    """A PNG file: the frames of a clip side by side, the prediction in orange, the edge of the truth in white.

    The prediction is of probabilities, ``[T, S, S]``.
    """
    from PIL import Image

    side = said.shape[-1]
    stills = read_stills(clip.frames, None, side).frames
    truth, labelled = read_masks(clip, side)
    assert stills is not None
    panels = stills.movedim(1, -1).float()
    found = (said > 0.5)[..., None]
    panels = torch.where(found, 0.45 * panels + 0.55 * torch.tensor([255.0, 130.0, 0.0]), panels)
    shrunk = -F.max_pool2d(-truth.float(), 3, 1, 1) > 0
    panels[truth & ~shrunk & labelled[:, None, None]] = 255.0
    picture = Image.fromarray(torch.cat(list(panels), 1).byte().numpy())
    stream = io.BytesIO()
    factor = max(1, 160 // side)
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()
