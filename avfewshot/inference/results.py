"""What a classification returns: plain data without tensors, read by the reports and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from avfewshot.errors import AvfsError
from avfewshot.media.clip import Failure as Failure  # a file that could not be classified

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class SegmentResult:
    """One second of a clip."""

    start: float  # seconds from the beginning of the file
    end: float
    label: str  # the most probable one
    score: float  # its probability
    weights: dict[str, float]  # share of each modality in the fused scores, {"visual": w, "audio": 1 - w}
    scores: list[float] = field(repr=False)  # in the order of the run's labels; for timelines, not part of the JSON
    visual: list[float] | None = field(default=None, repr=False)  # by the picture of this second alone
    audio: list[float] | None = field(default=None, repr=False)  # by its sound alone


@dataclass(frozen=True)
class ClipResult:
    """A classified file."""

    path: str  # as it was named
    duration: float  # seconds
    label: str  # the most probable one
    score: float  # its probability
    scores: dict[str, float]  # fused probability of every label; they sum to 1
    visual: dict[str, float] | None  # probabilities by the picture alone, or None without video
    audio: dict[str, float] | None  # by the sound alone, or None without it
    weights: dict[str, float]  # share of each modality; they sum to 1
    segments: list[SegmentResult]  # one a second
    warnings: list[str]  # what was odd about the file, for people
    labels: list[str] | None = None  # all labels that it carries, the surest first, where several were asked for
    ok: ClassVar[bool] = True


@dataclass(frozen=True)
class RunInfo:
    """What produced a set of results."""

    backbone: str  # preset name or YAML path
    adapter: str | None  # folder of the trained adapter, or None
    labels: list[str]
    wordings: list[str]  # what the text branches read for each label
    device: str
    precision: str
    fusion: str
    pool: str
    warnings: list[str] = field(default_factory=list)  # what concerns the whole run
    multi_label: bool = False  # whether clips are given all labels that they carry
    reject: dict[str, Any] | None = None  # threshold and rates of `unknown`, where it was asked for


class Results(list["ClipResult | Failure"]):
    """The results of several files, in order."""

    def to_pandas(self, *, segments: bool = False) -> pandas.DataFrame:
        """A row a file, or a row a second (`segments`); failures have their error and no label.

        Raises:
            AvfsError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise AvfsError("pandas is not installed.", hint="pip install pandas") from None
        rows = []
        for result in self:
            if isinstance(result, Failure):
                rows.append({"path": result.path, "error": result.error})
                continue
            for part in result.segments if segments else [result]:
                if isinstance(part, SegmentResult):
                    span = {"start": part.start, "end": part.end}
                    scores = dict(zip(result.scores, part.scores, strict=True))
                else:
                    span, scores = {"duration": part.duration}, part.scores
                rows.append(
                    {"path": result.path, **span, "label": part.label, "score": part.score}
                    | {f"weight_{name}": share for name, share in part.weights.items()}
                    | {f"score_{name}": score for name, score in scores.items()}
                )
        first = ["path", *(("start", "end") if segments else ("duration",)), "label", "score", "error"]
        columns = dict.fromkeys([*first, *(name for row in rows for name in row)])
        return pandas.DataFrame(rows, columns=list(columns))
