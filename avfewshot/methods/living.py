"""Classes that come and go, and clips of none of them: what a kernel ridge can do beside scoring.

Clips and classes are added and removed by block updates of its inverses. A clip is unknown that is farther from the
clips of the support, in the metric of the ridge, than those are from each other, and for which the kernels speak less.

The metric, the bandwidths and the weights of the experts stay as they were chosen; given these, the result equals a
full fit on the new support.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from avfewshot.errors import UsageError
from avfewshot.media.clip import MODALITIES
from avfewshot.methods import kernel_ridge
from avfewshot.methods.base import Features, Floats, LabelFeatures, Support
from avfewshot.methods.calibration import reject_threshold
from avfewshot.methods.method import Scorer, find_method
from avfewshot.methods.rows import VIEWS, Rows, clip_rows, countable

_REFITS, _REFIT_CLIPS = 10, 2000
_SAME = 1e-4  # squared distance of unit vectors of one clip, embedded in different batches


class LivingRidge:
    """A fitted kernel-ridge scorer that learns on.

    Raises:
        UsageError: The scorer is of another method, or to `learn` on labels seconds.
    """

    def __init__(self, scorer: Scorer, *, learn: bool = True) -> None:
        params = scorer.clip.params.get("params", scorer.clip.params)
        if "rule" not in params or (learn and scorer.second is not None):
            method = scorer.clip.params.get("auto", scorer.method.name)
            why = "labels seconds" if "rule" in params else f"answers by {method}"
            raise UsageError(
                f"Classes can be added to and removed from kernel-ridge runs that label clips; this one {why}.",
                hint="Fit such a run: avfs fewshot --method kernel_ridge --task ave_cls, or --data DIR.",
            )
        self.scorer, self._params, self._arrays = scorer, params, scorer.clip.arrays
        self._inverses: dict[str, Floats] = {}
        if "reject" in params and "spreads" not in params:  # of a run from when nearness alone decided
            self.calibrate_reject(params["reject"]["keep"])

    def add(self, features: Features, labels: npt.NDArray[np.bool_], texts: LabelFeatures) -> None:
        """Learn clips, of old classes or new ones.

        Args:
            features: M clips.
            labels: Bool ``[M, K']`` over the labels of `texts`; a clip without any shows "none of these".
            texts: The labels from now on: all that the scorer knows in any order, and new ones.

        Raises:
            UsageError: `texts` lack a known label, or `labels` have another shape.
        """
        scorer = self.scorer
        missing = [name for name in scorer.texts.names if name not in texts.names]
        if missing:
            raise UsageError(f"The new label texts lack {', '.join(missing)}.", hint="Give old and new labels.")
        if labels.shape != (len(features), len(texts.names)):
            raise UsageError("Every clip to learn needs a row of labels over the texts.")
        position = [texts.names.index(name) for name in scorer.texts.names]
        old_columns = [position[column] for column in np.flatnonzero(scorer.trained)]
        trained = labels.any(0)
        trained[old_columns] = True
        columns = np.flatnonzero(trained)
        new_rows = clip_rows(features, texts)
        old = self._arrays["targets"]
        none = ~labels.any(1)
        negatives = scorer.negatives or bool(none.any())

        def spread(values: npt.NDArray[Any], rows: int = 0) -> npt.NDArray[Any]:
            """What there is of the old columns in the new ones, and empty rows below."""
            result = np.zeros((len(values) + rows, len(columns) + negatives), dtype=values.dtype)
            result[: len(values), np.searchsorted(columns, old_columns)] = values[:, : len(old_columns)]
            if scorer.negatives:
                result[: len(values), -1] = values[:, -1]
            return result

        targets = spread(old, len(features))
        targets[len(old) :, : len(columns)] = labels[:, columns] / np.maximum(labels.sum(1, keepdims=True), 1)
        if negatives:
            targets[len(old) :, -1] = none
        if "not of" in self._arrays:
            self._arrays["not of"] = spread(self._arrays["not of"])
        self._inverses = {name: self._grown(name, new_rows) for name in self._params.get("experts", {})}
        for key, values in new_rows.vectors.items():
            name = ".".join(key)
            if name in self._arrays:
                self._arrays[name] = np.concatenate((self._arrays[name], values))
        scorer.texts, scorer.trained, scorer.negatives = texts, trained, negatives
        self._finish(targets)

    def learnt_as(self, features: Features) -> list[set[str | None]]:
        """The classes as which each clip is learnt already, by its vectors; None is "none of these"."""
        scorer = self.scorer
        pairs = zip(scorer.texts.names, scorer.trained, strict=True)
        columns = [*(label for label, trained in pairs if trained), *([None] if scorer.negatives else [])]
        classes = self._same(scorer.rows(features)) @ (self._arrays["targets"] > 0)
        return [{columns[column] for column in np.flatnonzero(row)} for row in classes]

    def _same(self, rows: Rows | None = None) -> npt.NDArray[np.bool_]:
        """Which clips of the support rows (None: the support's own) are: ``[M, n]``."""
        known = {modality: self._arrays[f"mean.{modality}"] for modality in MODALITIES}
        asked = known if rows is None else {modality: rows.vectors["mean", modality] for modality in MODALITIES}
        return np.all([kernel_ridge.distances(asked[m], known[m]) < _SAME / 2 for m in MODALITIES], axis=0)

    def remove(self, name: str | None) -> None:
        """Forget a class and the clips that carry no other; its label goes too. None: "none of these".

        A :class:`UsageError` where there is no such class, or where less than two would stay.
        """
        scorer = self.scorer
        if name is None:
            if not scorer.negatives:
                raise UsageError('No clip was learnt as "none of these".')
            if scorer.trained.sum() < 2:
                raise UsageError('"None of these" cannot go: two classes have to stay.')
            scorer.negatives = False
            self._finish(self._without(len(self._arrays["targets"][0]) - 1))
            return
        if name not in scorer.texts.names:
            raise UsageError(f"There is no class {name!r}.", hint=f"Classes: {', '.join(scorer.texts.names)}.")
        index = scorer.texts.names.index(name)
        if len(scorer.texts.names) == 1 or (scorer.trained[index] and scorer.trained.sum() + scorer.negatives <= 2):
            raise UsageError(f"{name!r} cannot go: two classes have to stay.")
        others = np.array([row for row in range(len(scorer.texts.names)) if row != index])
        targets = self._arrays["targets"]
        if scorer.trained[index]:
            targets = self._without(int(scorer.trained[:index].sum()))
        scorer.texts, scorer.trained = scorer.texts.take(others), scorer.trained[others]
        self._finish(targets)

    def _without(self, column: int) -> Floats:
        """Targets without a column, rows that are left with none taken out of everything that is kept."""
        targets = np.delete(self._arrays["targets"], column, axis=1)
        if "not of" in self._arrays:
            self._arrays["not of"] = np.delete(self._arrays["not of"], column, axis=1)
        kept = np.flatnonzero(targets.any(1))
        gone = np.setdiff1d(np.arange(len(targets)), kept)
        for expert in self._params.get("experts", {}):
            inverse = self.inverse(expert)
            cross = inverse[np.ix_(kept, gone)]
            down = np.linalg.solve(inverse[np.ix_(gone, gone)], cross.T) if len(gone) else cross.T
            self._inverses[expert] = inverse[np.ix_(kept, kept)] - cross @ down
        for name in (f"{view}.{modality}" for view in VIEWS for modality in MODALITIES):
            if name in self._arrays:
                self._arrays[name] = self._arrays[name][kept]
        return targets[kept] / targets[kept].sum(1, keepdims=True)

    def left_out(self, together: npt.NDArray[np.bool_] | None = None) -> Floats:
        """What the kernels say of the support's clips ``[n, C]``, each without itself, or without those of `together`.

        `together` is bool ``[n, n]``: in each row the clips that are left out with it, itself among them.
        """
        targets = self._arrays["targets"]
        centred, evidence = targets - 1 / targets.shape[1], np.zeros_like(targets)
        parts = []
        if together is not None:
            patterns, which = np.unique(together, axis=0, return_inverse=True)
            parts = [(np.flatnonzero(row), np.flatnonzero(which.ravel() == i)) for i, row in enumerate(patterns)]
        for name, weight in self._params["weights"]["both"].items():
            if name not in self._params["experts"]:
                continue
            inverse = self.inverse(name)
            dual = inverse @ centred
            if together is None:
                evidence += weight * kernel_ridge.leave_out(inverse, dual, centred, np.arange(len(targets)))
            for out, own in parts:
                left = kernel_ridge.without(inverse, dual, centred, out)
                evidence[own] += weight * left[np.searchsorted(out, own)]
        return evidence

    def calibrate_reject(self, keep: float = 0.95, *, unseen: Sequence[bool] = ()) -> dict[str, Any]:
        """The familiarity below which a clip is "unknown", by leaving out clips.

        Familiarity is the nearness to the two closest clips of the support plus the largest output of the kernels, each
        in units of its spread over known clips. A clip of the support, left out, is known; with all clips that share a
        class left out, it is unknown. Clips of "none of these" take no part.

        The metric has seen the classes that are left out, and one is compared with all others but itself. `unseen`,
        whether fits on other classes accept clips of a class, tells how much more that is of classes that were never
        seen; what it adds to the log-odds is kept for later supports. Of n clips a that are accepted are a share of
        (a + 1/2) / (n + 1): few tell little. Of two classes one would be left, and its metric would be of no use:
        ``false_accepts`` is None then.

        Returns:
            See :func:`~avfewshot.methods.calibration.reject_threshold`.

        Raises:
            UsageError: One clip a class: nothing can be left out.
        """
        if not self.leaves_out:
            raise UsageError(
                "With one clip a class nothing can be left out, so no threshold for `unknown` can be calibrated.",
                hint="Learn from at least two clips a class.",
            )
        labels = self._arrays["targets"][:, : int(self.scorer.trained.sum())]
        shared = labels @ labels.T > 0
        rows = np.flatnonzero(labels.any(1))
        judged = self._can_be_left_out()[rows]
        same = self._same()  # the clip itself, and under another class as well
        near = np.where(same, -np.inf, self._nearness(None))
        alone = None if same.sum() == len(same) else same
        said = [self.left_out(out)[:, : labels.shape[1]].max(1) for out in (alone, shared | same)]
        known, unknown = (
            np.stack((_two_largest(gaps[np.ix_(rows, rows)]), says[rows]))
            for gaps, says in zip((near, np.where(shared, -np.inf, near)), said, strict=True)
        )
        known, unknown = known[:, judged], unknown[:, np.isfinite(unknown).all(0)]
        scales = np.maximum(known.std(1), 1e-9)
        result = reject_threshold((known.T / scales).sum(1), (unknown.T / scales).sum(1), keep)
        share, classes = result["false_accepts"], labels.any(0).sum()
        if share is None or classes < 3:
            result["false_accepts"] = None
        else:
            odds = _log_odds_of_all(share * unknown.shape[1], unknown.shape[1], classes)
            if len(unseen):
                self._params["unseen"] = _log_odds_of_all(sum(unseen), len(unseen), classes) - odds
            result["false_accepts"] = float(expit(odds + self._params.get("unseen", 0.0)))
        self._params |= {"reject": result, "spreads": scales.tolist()}
        self.scorer.diagnostics["reject"] = result
        return result

    @property
    def leaves_out(self) -> bool:
        """Whether clips can be left out: of one clip a class nothing would be left."""
        return self._params["rule"] == "ridge" and bool(self._can_be_left_out().any())

    @property
    def outgrown(self) -> bool:
        """Whether it goes by the rule of one clip a class, though a fit on what it has learnt would leave clips out."""
        targets, judged = self._arrays["targets"], self._can_be_left_out()
        return self._params["rule"] != "ridge" and bool((targets[judged] > 0).any(0).mean() >= 0.5)

    def _can_be_left_out(self) -> npt.NDArray[np.bool_]:
        """Which clips carry labels, and only such that another clip has, too: ``[n]``."""
        labels = self._arrays["targets"][:, : int(self.scorer.trained.sum())]
        return labels.any(1) & countable(labels, np.arange(len(labels)))

    @property
    def reject(self) -> dict[str, Any] | None:
        """What :meth:`calibrate_reject` gave when it was fitted, if it was."""
        return self._params.get("reject")

    def unknown(self, features: Features, names: Collection[str] | None = None) -> npt.NDArray[np.bool_]:
        """Which clips are below the threshold of :meth:`calibrate_reject`, bool ``[N]``; `names`: of some classes."""
        known, rows = np.flatnonzero(self.scorer.trained), self.scorer.rows(features)
        columns = [i for i, row in enumerate(known) if names is None or self.scorer.texts.names[row] in names]
        clips = self._arrays["targets"][:, columns].any(1)
        says = kernel_ridge.evidence(replace(self.scorer.clip, params=self._params), rows, with_text=False)
        says = says[:, columns].max(1)
        near, spreads = _two_largest(self._nearness(rows)[:, clips]), self._params["spreads"]
        return near / spreads[0] + says / spreads[1] < self._params["reject"]["threshold"]

    def _nearness(self, rows: Rows | None) -> Floats:
        """Of rows (None: the support's own) to each clip of the support: minus the distances, by what a row has."""
        experts = self._params["experts"]
        name = next((name for name in ("event product", "mean product") if name in experts), next(iter(experts)))
        setting, clip, parts, present = experts[name], self.scorer.clip, [], []
        asked = "" if rows is None else rows
        for modality in MODALITIES:
            vectors, support = (kernel_ridge.in_metric(clip, setting, side, modality) for side in (asked, ""))
            parts.append(setting["bandwidths"][modality] * kernel_ridge.distances(vectors, support))
            present.append(self._arrays[f"mean.{modality}"].any(-1) if rows is None else rows.present(modality))
        shares = np.array(present) / np.sum(present, axis=0)
        return -(shares[0][:, None] * parts[0] + shares[1][:, None] * parts[1])

    def inverse(self, expert: str) -> Floats:
        """``inv(K + lambda I)`` of an expert, ``[n, n]``; computed when first needed."""
        if expert not in self._inverses:
            setting = self._params["experts"][expert]
            kernel = kernel_ridge.kernel_between(self.scorer.clip, setting, "")
            self._inverses[expert] = np.linalg.inv(kernel + setting["penalty"] * np.eye(len(kernel)))
        return self._inverses[expert]

    def _grown(self, expert: str, rows: Rows) -> Floats:
        setting, clip = self._params["experts"][expert], self.scorer.clip
        inverse, cross = self.inverse(expert), kernel_ridge.kernel_between(clip, setting, "", rows)
        corner = kernel_ridge.kernel_between(clip, setting, rows, rows)
        corner += setting["penalty"] * np.eye(len(corner))
        moved = inverse @ cross
        schur = np.linalg.inv(corner - cross.T @ moved)
        return np.block([[inverse + moved @ schur @ moved.T, -moved @ schur], [-schur @ moved.T, schur]])

    def _finish(self, targets: Floats) -> None:
        self._arrays["targets"] = targets
        centred = targets - 1 / targets.shape[1]
        for expert, setting in self._params.get("experts", {}).items():
            self._arrays[f"dual.{expert}"] = np.ascontiguousarray(self.inverse(expert) @ centred)
            if "not of" in self._arrays:
                kernel = kernel_ridge.kernel_between(self.scorer.clip, setting, "")
                single = np.arange(len(targets))
                kernel_ridge.fit_counter_examples(
                    self._arrays, expert, setting, kernel, centred, single, np.ones(len(targets))
                )
        known = self.scorer.thresholds
        if known:  # a class that came later has the mean of the others
            other, trained = sum(known.values()) / len(known), self.scorer.trained
            pairs = zip(self.scorer.texts.names, trained, strict=True)
            self.scorer.thresholds = {name: known.get(name, other) for name, learnt in pairs if learnt}
        self.scorer.clip.loo = None  # of another support
        self.scorer.diagnostics = {**self.scorer.diagnostics, "classes": list(self.scorer.texts.names)}
        self.scorer.diagnostics.pop("reject", None)
        self._params.pop("reject", None)
        if self.leaves_out:
            self.calibrate_reject()


def _two_largest(values: Floats) -> Floats:
    """The mean of the two largest of each row, or the largest where there is no other."""
    largest = -np.sort(-values, axis=1)[:, :2]
    return np.where(np.isfinite(largest[:, -1]), largest.mean(1), largest[:, 0])


def _log_odds_of_all(accepted: float, clips: int, classes: int) -> float:
    """That a clip is accepted by one of the classes, given how many all but one accept."""
    rest = (clips - accepted + 0.5) / (clips + 1)
    return float(logit(1 - rest ** (classes / (classes - 1))))


def _accepted_unseen(support: Support, texts: LabelFeatures, seed: int) -> list[bool]:
    """Whether fits on the other classes accept the clips of a class; none where nothing can tell.

    Over ten classes, or fewer of a large support: as many fits as two thousand clips are.
    """
    accepted: list[bool] = []
    classes = np.flatnonzero(support.labels.any(0))
    count = min(_REFITS, _REFIT_CLIPS // len(support)) if len(classes) > 2 else 0
    for one in np.random.default_rng(seed).permutation(classes)[:count]:
        out, others = support.labels[:, one], classes[classes != one]
        rest = Support(support.features.take(np.flatnonzero(~out)), support.labels[~out][:, others])
        with contextlib.suppress(UsageError):  # one clip a class is left
            ridge = LivingRidge(find_method("kernel_ridge").fit(rest, texts.take(others), seed=seed), learn=False)
            ridge.calibrate_reject()
            accepted += (~ridge.unknown(support.features.take(np.flatnonzero(out)))).tolist()
    return accepted


def learn_to_reject(scorer: Scorer, support: Support, *, seed: int = 1) -> None:
    """Calibrate when a clip is "unknown"; where the method is no kernel ridge, one stands beside it for that."""
    if not scorer.clip.arrays:
        return
    if "rule" not in scorer.clip.params.get("params", scorer.clip.params):
        plain = replace(support, segments=None)
        ridge = find_method("kernel_ridge")
        tried = ridge.name in scorer.clip.parts
        scorer.rejector = scorer.part(ridge.name, plain) if tried else ridge.fit(plain, scorer.texts, seed=seed)
    ridge = LivingRidge(scorer.rejector or scorer, learn=False)
    if ridge.leaves_out:
        unseen = _accepted_unseen(support, scorer.texts, seed)
        scorer.diagnostics["reject"] = ridge.calibrate_reject(unseen=unseen)
