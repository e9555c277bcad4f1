"""What a classification returns: plain data without tensors, read by the reports and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from avfewshot.media.clip import Failure as Failure  # a file that could not be classified


@dataclass(frozen=True)
class SegmentResult:
    """One second of a clip.

    Attributes:
        start: Seconds from the beginning of the file.
        end: Seconds from the beginning of the file.
        label: The most probable label.
        score: Its probability.
        weights: Share of each modality in the fused scores, ``{"visual": w, "audio": 1 - w}``.
        scores: Fused probabilities in the order of the run's labels; for timelines, not part of the JSON.
    """

    start: float
    end: float
    label: str
    score: float
    weights: dict[str, float]
    scores: list[float] = field(repr=False)


@dataclass(frozen=True)
class ClipResult:
    """A classified file.

    Attributes:
        path: The file as it was named.
        duration: Seconds.
        label: The most probable label.
        score: Its probability.
        scores: Fused probability of every label; they sum to 1.
        visual: Probabilities by sight alone, or None without video.
        audio: Probabilities by hearing alone, or None without sound.
        weights: Share of each modality; they sum to 1.
        segments: One entry a second.
        warnings: What was odd about the file, for people.
    """

    path: str
    duration: float
    label: str
    score: float
    scores: dict[str, float]
    visual: dict[str, float] | None
    audio: dict[str, float] | None
    weights: dict[str, float]
    segments: list[SegmentResult]
    warnings: list[str]


@dataclass(frozen=True)
class RunInfo:
    """What produced a set of results.

    Attributes:
        backbone: Preset name or YAML path.
        adapter: Folder of the trained adapter, or None.
        labels: Labels in order.
        wordings: What the text branches read for each label.
        device: Torch device, for example ``"cpu"``.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        fusion: How the modalities were joined.
        pool: How segments were pooled.
        warnings: What concerns the whole run, for example words that the backbone does not know.
    """

    backbone: str
    adapter: str | None
    labels: list[str]
    wordings: list[str]
    device: str
    precision: str
    fusion: str
    pool: str
    warnings: list[str] = field(default_factory=list)
