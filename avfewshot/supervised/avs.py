"""AVS: masks of what sounds, second by second (AVSBench, Zhou et al., ECCV 2022)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from avfewshot.data.avsbench import SECONDS, MaskedClip, frames_of, load_avsbench, read_masks, read_stills
from avfewshot.data.dataset import SPLITS
from avfewshot.errors import UsageError
from avfewshot.evaluation.masks import MaskScores, jaccard
from avfewshot.media.clip import Clip
from avfewshot.supervised.base import Example, Features, Recipe, SupervisedTask, TaskData, ZeroShot

_CHANNELS = {"tpavi": 256, "tpavi-small": 32}
_PICTURES = 8
_REFERENCE_SIDE = 64


class SegmentationTask(SupervisedTask):
    """A target is a :class:`MaskedClip`, a prediction is float16 ``[5, S, S]`` in 0..1, S the side of the frames.

    A vision transformer has one scale: the four maps that the decoder reads are those of four depths.
    """

    name = "avs"
    title = "audio-visual segmentation (AVSBench)"
    dataset = "avs"
    headline = "MJ"
    seconds = window = SECONDS
    heads: ClassVar[Mapping[str, Recipe]] = {
        "tpavi": Recipe(1e-4, 4, 30),
        "tpavi-small": Recipe(1e-3, 8, 30, (20,), 0.3),
    }

    def needs(self, head: str) -> frozenset[str]:
        """Maps of four scales, and the sound."""
        return frozenset({"stages", "audio"})

    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """See :meth:`SupervisedTask.read`; subsets are ``s4``, the default, and ``ms3``."""
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

    def build_head(self, head: str, widths: Mapping[str, Any], about: Mapping[str, Any]) -> nn.Module:
        """The decoder with TPAVI."""
        from avfewshot.heads.segmentation import MATCH_WEIGHT, MaskDecoder

        built: Any = MaskDecoder(widths["stages"], widths["audio"], channels=_CHANNELS[head], size=widths["frame"])
        built.match_weight = MATCH_WEIGHT if about["subset"] == "ms3" else 0.0
        return built

    def loss(self, head: Any, features: Features, examples: Sequence[Example]) -> Tensor:
        """See :func:`~avfewshot.heads.segmentation.mask_loss`."""
        from avfewshot.heads.segmentation import mask_loss

        logits, stages = head(_maps(features), features["audio"])
        masks = [read_masks(example.target, head.size) for example in examples]
        truth, labelled = (torch.stack(part).to(logits.device) for part in zip(*masks, strict=True))
        return mask_loss(logits, truth, labelled, stages, head.match_weight)

    def predict(self, head: Any, features: Features, examples: Sequence[Example]) -> list[Any]:
        """Probabilities of pixels."""
        logits, _ = head(_maps(features), features["audio"])
        return list(torch.sigmoid(logits).half().cpu())

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


def _maps(features: Features) -> list[Tensor]:
    return [features[f"stage{index}"] for index in range(4)]


def centre_prior(clips: Sequence[MaskedClip], side: int) -> Tensor:
    """How often each pixel sounds in labelled training frames, scaled so that 0.5 is the best threshold there."""
    parts = [masks[labelled] for masks, labelled in (read_masks(clip, side) for clip in clips)]
    truth = torch.cat(parts)
    mean = truth.float().mean(0)
    levels = torch.linspace(0, float(mean.max()), 26)[:-1]
    figures = [jaccard((mean > level).float().expand(truth.shape), truth).mean() for level in levels]
    best = float(levels[int(torch.stack(figures).argmax())])
    above = 0.5 + 0.5 * (mean - best) / max(1e-6, float(mean.max()) - best)
    return torch.where(mean > best, above, 0.5 * mean / max(1e-6, best)).clamp(0, 1)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, the first one outside of the mask: COCO's uncompressed form."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    edges = np.flatnonzero(np.diff(flat, append=~flat[-1:]))
    return np.diff(edges, prepend=0).tolist()


def drawn(said: Tensor, clip: MaskedClip) -> bytes:
    """A PNG file: the frames of a clip side by side, the prediction in orange, the edge of the truth in white."""
    from PIL import Image

    side = said.shape[-1]
    stills = read_stills(clip.frames, None, side).frames
    truth, labelled = read_masks(clip, side)
    assert stills is not None
    panels = stills.movedim(1, -1).float()
    found = (said > 0.5)[..., None]
    panels = torch.where(found, 0.45 * panels + 0.55 * torch.tensor([255.0, 130.0, 0.0]), panels)
    shrunk = -torch.nn.functional.max_pool2d(-truth.float(), 3, 1, 1) > 0
    panels[truth & ~shrunk & labelled[:, None, None]] = 255.0
    picture = Image.fromarray(torch.cat(list(panels), 1).byte().numpy())
    stream = io.BytesIO()
    factor = max(1, 160 // side)
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()
