"""One protocol for all few-shot methods: ``Method.fit(support, texts) -> Scorer``, saved, loaded, found by name."""

from __future__ import annotations

import json
import pkgutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from avfewshot.errors import AvfsError, DataError, UsageError
from avfewshot.io import write_bytes, write_text
from avfewshot.methods.base import (
    MODALITIES,
    SMALLEST,
    Features,
    Floats,
    LabelFeatures,
    Support,
    check_width,
    log_loss,
    log_softmax,
)
from avfewshot.methods.calibration import label_thresholds, temperature
from avfewshot.methods.rows import Head, Rows, clip_rows, countable, second_rows
from avfewshot.methods.seconds import PARTS, fit_seconds, join_seconds, score_rows

ENTRY_POINTS = "avfewshot.methods"
FORMAT = 1
TENSORS_NAME, CONFIG_NAME = "scorer.safetensors", "scorer.json"


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-posteriors of N clips over K classes."""

    fused: Floats  # [N, K]; with `none`, the probabilities of both sum to 1
    visual: Floats  # [N, K], zero-shot by sight alone; uniform where there is no picture
    audio: Floats  # [N, K]
    none: Floats | None = None  # [N], "none of these", where the support had negatives

    @property
    def joined(self) -> Floats:
        """Fused log-posteriors, "none of these" last where it is known: ``[N, K]`` or ``[N, K + 1]``."""
        return self.fused if self.none is None else np.concatenate((self.fused, self.none[:, None]), 1)


class Method:
    """A few-shot method; subclasses give :meth:`fit_head`, :meth:`score_head`."""

    name: ClassVar[str]
    uses_counter_examples: ClassVar[bool] = False

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """Fit on n rows; targets are distributions ``[n, C]``, C >= 2, and every column has a row."""
        raise NotImplementedError

    def score_head(self, head: Head, rows: Rows) -> Floats:
        """Log-posteriors ``[n, C]`` of rows."""
        raise NotImplementedError

    def for_seconds(self) -> Method:
        """The method of the head of seconds."""
        return self

    def fit(
        self, support: Support, texts: LabelFeatures, *, seed: int = 1, validation: Support | None = None
    ) -> Scorer:
        """Learn from a support.

        Args:
            support: Clips with labels; classes without clips are left to the text.
            texts: The classes, K as in the support.
            seed: Of whatever is random.
            validation: Labelled clips that may be learnt from as well: they join the support, and are counted in
                ``diagnostics["labels_used"]``.

        Raises:
            DataError: Support and texts do not belong together.
        """
        begun = time.perf_counter()
        if support.num_classes != len(texts.names):
            raise DataError(f"The support has {support.num_classes} classes, the texts {len(texts.names)}.")
        check_width(support.features, texts)
        used, against = {"support": len(support), "validation": 0}, {}
        if support.counter is not None and self.uses_counter_examples:
            used["counter-examples"] = len(support.counter[0])
            counts = zip(texts.names, support.counter[1].sum(0).tolist(), strict=False)
            against = {"counter_examples": {name: count for name, count in counts if count}}
        if validation is not None:
            used["validation"] = len(validation)
            support = support + validation
        # In the order of their ids, so that the order in which clips come changes nothing.
        order = in_order(support.features.ids)
        given, support = support, support.take(order)
        trained = support.labels.any(0)
        negatives = not support.labels.any(1).all()
        scorer = Scorer(self, texts, trained, negatives, Head({}), None)
        if trained.sum() + negatives >= 2:
            targets = np.concatenate((support.labels[:, trained], ~support.labels.any(1, keepdims=True)), 1)
            targets = targets[:, : trained.sum() + negatives].astype(np.float64)
            rows = scorer.rows(support.features, support.groups)
            if support.counter is not None:
                features, not_of = support.counter
                not_of = np.pad(not_of[:, trained], ((0, 0), (0, int(negatives))))
                rows = replace(rows, counter=(scorer.rows(features), not_of))
            scorer.clip = self.fit_head(rows, targets / targets.sum(1, keepdims=True), seed=seed)
        for head in (scorer.clip, *scorer.clip.parts.values()):
            if head.loo is not None:
                head.loo = head.loo[np.argsort(order)]
        left_out = scorer.left_out(given)
        if support.segments is not None:
            loo = None if scorer.clip.loo is None else scorer.clip.loo[order]
            scorer.second = fit_seconds(self.for_seconds(), support, texts, trained, loo, seed)
        for head in (scorer.clip, scorer.second):
            if head is not None:  # one layout in memory, as loaded: products of matrices differ by it in the last bit
                head.arrays = {name: np.ascontiguousarray(values) for name, values in head.arrays.items()}
                head.kept.clear()
        scorer.diagnostics = {
            **scorer.clip.diagnostics,
            **left_out,
            "calibration_seconds": scorer.second and scorer.second.params.get("calibration"),
            "seconds_by": list(scorer.second.params.get("weights", {})) if scorer.second else [],
            "method": self.name,
            "labels_used": used,
            **against,
            "trainable": scorer.clip.trainable,
            "seconds": time.perf_counter() - begun,
        }
        return scorer


def in_order(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Rows in the order of their ids."""
    return np.array(sorted(range(len(ids)), key=lambda row: (ids[row], row)), dtype=np.int64)


@dataclass(frozen=True)
class _Made:
    """A method whose head of seconds was fitted before."""

    head: Head
    method: Method

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        return replace(self.head, params=dict(self.head.params))

    def score_head(self, head: Head, rows: Rows) -> Floats:
        return self.method.score_head(head, rows)


@dataclass(eq=False)
class Scorer:
    """A fitted method: scores clips it has not seen."""

    method: Method
    texts: LabelFeatures
    trained: npt.NDArray[np.bool_]  # [K], classes that had clips
    negatives: bool  # the support had clips of "none of these"
    clip: Head
    second: Head | None  # where the support labelled seconds
    temperature: float = 1.0  # of the head's posterior, by left-out clips
    tuned: dict[str, Any] | None = None  # weights of a tuned part, see avfewshot.methods.joining
    diagnostics: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)  # class -> from which probability on a clip carries it
    rejector: Scorer | None = None  # a kernel ridge that tells unknown clips, where this method is another

    def decide_labels(self, support: Support) -> None:
        """Choose, by leaving out clips of the support, from which probability on a clip carries a label."""
        names, left_out = self.texts.names, self.loo(support)
        judged = countable(support.labels, support.groups) & support.labels.any(1)
        if left_out is not None and judged.any():
            values = label_thresholds(left_out[judged], support.labels[judged])
            self.thresholds = {name: float(values[row]) for row, name in enumerate(names) if self.trained[row]}

    def part(self, name: str, support: Support, *, seed: int = 1) -> Scorer:
        """A method that was tried beside this one (:attr:`Head.parts`), given what this one was fitted with."""
        head = self.clip.parts[name]
        scorer = Scorer(find_method(name), self.texts, self.trained, self.negatives, head, None)
        about = {"method": name, "labels_used": dict(self.diagnostics["labels_used"]), "trainable": head.trainable}
        if not scorer.method.uses_counter_examples:
            about["labels_used"].pop("counter-examples", None)
        elif "counter_examples" in self.diagnostics:
            about["counter_examples"] = self.diagnostics["counter_examples"]
        left_out = scorer.left_out(support)
        if support.segments is not None:
            made = {} if self.second is None else self.second.parts
            method: Any = _Made(made[name], scorer.method) if name in made else scorer.method
            order = in_order(support.features.ids)
            loo = None if head.loo is None else head.loo[order]
            scorer.second = fit_seconds(method, support.take(order), self.texts, self.trained, loo, seed)
        calibration = scorer.second and scorer.second.params.get("calibration")
        scorer.diagnostics = {**head.diagnostics, **left_out, "calibration_seconds": calibration, **about}
        return scorer

    def rows(self, features: Features, groups: npt.NDArray[np.int64] | None = None) -> Rows:
        """Clips as rows over the classes that the head knows."""
        return clip_rows(features, self.texts, groups, np.flatnonzero(self.trained), none=self.negatives)

    def head_scores(self, rows: Rows) -> Floats:
        """Log-posteriors over the head's columns ``[n, C]``."""
        if not self.clip.arrays:
            return rows.text["fused"]
        return log_softmax(self.method.score_head(self.clip, rows) / self.temperature)

    def scores(
        self, features: Features, texts: LabelFeatures | None = None, *, tuned: Sequence[Floats] | None = None
    ) -> Scores:
        """Score clips.

        Args:
            features: N clips, of the backbone that the support was embedded with.
            texts: Other labels than those that were trained with: what was learnt serves those of the same name, the
                others are left to the text.
            tuned: Two log-posteriors ``[N, K]`` of the tuned part, if one was joined: its modalities joined as in its
                own answers, and the other way.
        """
        texts = self.texts if texts is None else texts
        return self.joined(self.rows(features), texts.clip_log_posteriors(features), texts, tuned)

    def joined(
        self,
        rows: Rows,
        zero_shot: Mapping[str, Floats],
        texts: LabelFeatures,
        tuned: Sequence[Floats] | None = None,
    ) -> Scores:
        """:meth:`scores` of clips that are rows already, with the zero-shot log-posteriors of `texts`."""
        scores = self._spread(self.head_scores(rows), zero_shot, texts)
        if tuned is None or not self.tuned or not self.is_tuned:
            return scores
        weights = [self.tuned.get(name, 0.0) for name in PARTS]  # a run of before knows one way alone
        own, other = (weight * log_softmax(said) for weight, said in zip(weights[1:], tuned, strict=True))
        joined = log_softmax(weights[0] * scores.fused + own + other)
        known = 0.0 if scores.none is None else np.log1p(-np.minimum(np.exp(scores.none), 1 - SMALLEST))[:, None]
        return replace(scores, fused=joined + known)

    @property
    def is_tuned(self) -> bool:
        """Whether a tuned part was joined, without which it does not answer."""
        return bool(self.tuned and (self.tuned["tuned"] or self.tuned.get("other")))

    def logits(
        self, features: Features, texts: LabelFeatures | None = None, *, tuned: Sequence[Floats] | None = None
    ) -> Floats:
        """Fused log-posteriors ``[N, K]``; see :meth:`scores`."""
        return self.scores(features, texts, tuned=tuned).fused

    @property
    def second_weights(self) -> dict[str, Any] | None:
        """What :func:`join_seconds` takes, where the tuned part that was joined labels seconds too."""
        return self.tuned.get("seconds") if self.tuned and self.is_tuned and self.second is not None else None

    def segment_logits(self, features: Features, *, tuned: Sequence[Sequence[Floats]] | None = None) -> list[Floats]:
        """Log-posteriors of each second of each clip: ``[T_i, K + 1]``, the background last, if seconds were labelled.

        Else every second is scored as if it were a clip: ``[T_i, K]``, or ``[T_i, K + 1]`` with "none of these" last.

        Args:
            features: N clips.
            tuned: What the tuned part says of the seconds, if one was joined: two times N log-posteriors
                ``[T_i, K + 1]``, the background last, its modalities joined as in its own answers, and the other way.
        """
        if self.second is not None:
            rows, salience = second_rows(features, self.texts, np.arange(len(features)), np.flatnonzero(self.trained))
            lengths, clips = features.seconds, np.repeat(self.logits(features), features.seconds, 0)
            method = self.method.for_seconds()
            made = score_rows(method, self.second, self.trained, rows, salience, clips, lengths)
            if tuned is not None and (weights := self.second_weights) is not None:
                made = join_seconds([made, *map(np.concatenate, tuned)], weights)
            return np.split(made, np.cumsum(lengths)[:-1])
        cut: Any = [
            (f"{name}#{second}", *(None if clip is None else clip[second : second + 1] for clip in (visual, audio)))
            for name, visual, audio, seconds in zip(
                features.ids, features.visual, features.audio, features.seconds, strict=True
            )
            for second in range(seconds)
        ]
        said = None if tuned is None else [np.concatenate(one)[:, :-1] for one in tuned]
        return np.split(self.scores(Features.of(cut), tuned=said).joined, np.cumsum(features.seconds)[:-1])

    def left_out(self, support: Support) -> dict[str, Any]:
        """Calibrate on the support's clips, each without itself; their accuracy, log-loss and ECE, None without."""
        if self.clip.loo is None:
            return {"loo_accuracy": None, "loo_log_loss": None, "calibration": None}
        labels = support.labels[:, self.trained]
        if self.negatives:
            labels = np.concatenate((labels, ~support.labels.any(1, keepdims=True)), 1)
        targets = labels / labels.sum(1, keepdims=True)
        known = countable(targets, support.groups)
        calibration = None
        if known.any() and self.method.name != "zero_shot":
            calibration = temperature(self.clip.loo[known], labels[known])
            self.temperature = calibration["temperature"]
            self.clip.loo = log_softmax(self.clip.loo / self.temperature)
        hits = labels[np.arange(len(labels)), self.clip.loo.argmax(1)]
        losses = log_loss(self.clip.loo, targets)
        return {
            "loo_accuracy": float(hits.mean()),
            "loo_log_loss": float(losses.mean()),
            "loo_clips": int(known.sum()),
            "calibration": calibration,
        }

    def uncalibrated(self) -> Scorer:
        """The same without what left-out clips gave: the temperature, or of seconds the weights of :meth:`fit`."""
        if self.second is None:
            return replace(self, temperature=1.0)
        return replace(self, second=replace(self.second, params={**self.second.params, "alone": True}))

    def loo(self, support: Support) -> Floats | None:
        """Log-posteriors ``[N, K]`` of the support's clips, each without itself; None where the method has none."""
        if self.clip.loo is None:
            return None
        zero_shot = self.texts.clip_log_posteriors(support.features)
        return self._spread(self.clip.loo, zero_shot, self.texts).fused

    def _spread(self, head: Floats, zero_shot: Mapping[str, Floats], texts: LabelFeatures) -> Scores:
        """Put the head's columns where they belong; the text divides between them and the labels not trained on."""
        known = np.flatnonzero(self.trained)
        names = {self.texts.names[column]: index for index, column in enumerate(known)}
        columns = [names.get(name) for name in texts.names]
        old = np.array([column is not None for column in columns])
        text = zero_shot["fused"]
        fused = text.copy()
        taken = np.log(np.maximum(np.exp(text[:, old]).sum(1, keepdims=True), SMALLEST)) if old.any() else None
        if taken is not None:
            kept = head[:, [column for column in columns if column is not None]]
            total = np.concatenate((kept, head[:, len(known) :]), 1)
            norm = np.log(np.maximum(np.exp(total).sum(1, keepdims=True), SMALLEST))
            fused[:, old] = kept - norm + (0.0 if old.all() else taken)
        none = None
        if self.negatives:
            none = head[:, -1]
            if taken is not None:
                none = none - norm[:, 0] + (0.0 if old.all() else taken[:, 0])
        return Scores(fused, zero_shot["visual"], zero_shot["audio"], none)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write ``scorer.safetensors`` and ``scorer.json``; what :meth:`load` gives scores alike, to the bit."""
        folder, arrays = Path(folder), {"trained": self.trained}
        config: dict[str, Any] = {
            "format": FORMAT,
            "method": self.method.name,
            "negatives": self.negatives,
            "temperature": self.temperature,
            "thresholds": self.thresholds,
            "tuned": self.tuned,
            "diagnostics": self.diagnostics,
            "texts": {},
        }
        for part, head in (("clip", self.clip), ("second", self.second)):
            config[part] = None
            if head is not None:
                config[part] = {"params": head.params, "trainable": head.trainable}
                arrays |= {f"{part}/{name}": values for name, values in head.arrays.items()}
                arrays |= {} if head.loo is None else {f"{part}.loo": head.loo}
        for name, value in vars(self.texts).items():
            if isinstance(value, np.ndarray):
                arrays[f"texts/{name}"] = value
            else:
                config["texts"][name] = value
        write_bytes(folder / TENSORS_NAME, save_tensors({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
        write_text(folder / CONFIG_NAME, json.dumps(config, indent=1))
        if self.rejector is not None:
            self.rejector.save(folder / "rejector")
        return folder

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Scorer:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: A file is missing, damaged, or not of this form, or there is no such method.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
            arrays = {k: np.array(v) for k, v in load_tensors((folder / TENSORS_NAME).read_bytes()).items()}
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}.", hint="Give the folder of a finished run.") from None
        except (ValueError, RecursionError, SafetensorError) as error:
            raise DataError(f"{folder}: holds a damaged scorer ({error}).", hint="Fit it again.") from None
        try:
            return cls._from_files(folder, config, arrays)
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AvfsError) as error:
            reason = str(error).rstrip(".")  # parts of another form
            raise DataError(f"{folder / CONFIG_NAME}: is not a scorer's ({reason}).", hint="Fit it again.") from None

    @classmethod
    def _from_files(cls, folder: Path, config: Any, arrays: dict[str, npt.NDArray[Any]]) -> Scorer:
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']}, this program reads {FORMAT}")
        if any(a.dtype.kind not in "fbi" or not np.isfinite(a).all() for a in arrays.values()):
            raise ValueError("a value is not finite")
        below: dict[str, dict[str, npt.NDArray[Any]]] = {"clip": {}, "second": {}, "texts": {}}
        for name, values in arrays.items():
            part, _, key = name.partition("/")
            if key:
                below[part][key] = values

        def head(part: str) -> Head:
            params, trainable = config[part]["params"], int(config[part]["trainable"])
            return Head(below[part], params, arrays.get(f"{part}.loo"), trainable=trainable)

        names, scales = tuple(map(str, config["texts"]["names"])), tuple(map(float, config["texts"]["scales"]))
        texts = LabelFeatures(**{**config["texts"], **below["texts"], "names": names, "scales": scales})
        for name, values in below["texts"].items():  # as they were: normalising twice may change the last bit
            object.__setattr__(texts, name, values)
        trained = arrays["trained"].astype(bool)
        if trained.shape != (len(names),):
            raise ValueError("labels and classes differ in number")
        if config["clip"] is None:
            raise ValueError("the head of clips is missing")
        if not float(config["temperature"]) > 0:
            raise ValueError("its temperature is not more than 0")
        scorer = cls(
            find_method(config["method"]), texts, trained, bool(config["negatives"]), head("clip"),
            None if config["second"] is None else head("second"),
            float(config["temperature"]), config["tuned"], dict(config["diagnostics"]),
            {str(name): float(value) for name, value in config.get("thresholds", {}).items()},
            cls.load(folder / "rejector") if (folder / "rejector" / CONFIG_NAME).is_file() else None,
        )  # fmt: skip
        scorer._try_out()
        return scorer

    def _try_out(self) -> None:
        """Score made-up clips: parts that do not belong together say so before a clip has been decoded."""
        float(self.diagnostics.get("loo_log_loss") or 0)
        sight, sound = (np.ones((2, getattr(self.texts, name).shape[1])) for name in MODALITIES)
        clips = Features.of([("both", sight, sound), ("sight", sight, None), ("sound", None, sound)])
        tuned = [np.zeros((len(clips), len(self.texts.names)))] * 2
        with np.errstate(all="ignore"):
            seconds = [[np.zeros((2, len(self.texts.names) + 1))] * len(clips)] * 2
            made = [self.logits(clips, tuned=tuned), *self.segment_logits(clips, tuned=seconds)]
        if any(np.isnan(rows).any() for rows in made):
            raise ValueError("its scores are not numbers")


METHODS = {
    "zero_shot": "zero_shot:ZeroShot",
    "nearest_mean": "nearest_mean:NearestMean",
    "logistic": "logistic:Logistic",
    "tip_adapter": "tip_adapter:TipAdapter",
    "tip_adapter_f": "tip_adapter:TipAdapterF",
    "gda": "gda:GDA",
    "timo": "gda:TIMO",
    "lp_plus_plus": "probes:LPPlusPlus",
    "class_adaptive": "probes:ClassAdaptive",
    "clip_adapter": "probes:ClipAdapter",
    "kernel_ridge": "kernel_ridge:KernelRidge",
    "auto": "auto:Auto",
}
"""Methods by name: module of this room and class, imported when they are first used."""


def method_names() -> tuple[str, ...]:
    """Names that :func:`find_method` knows, those of other packages (entry points) last."""
    return tuple(dict.fromkeys((*METHODS, *(point.name for point in entry_points(group=ENTRY_POINTS)))))


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        UsageError: There is none; the message lists those there are.
    """
    if name in METHODS:
        return pkgutil.resolve_name(f"avfewshot.methods.{METHODS[name]}")()
    try:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            return point.load()()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"The method {name!r} cannot be imported: {error}.") from error
    raise UsageError(f"There is no method {name!r}.", hint=f"Choose from: {', '.join(method_names())}.")
