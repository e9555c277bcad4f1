"""Kernel ridge regression on sight and sound, hyper-parameters by exact leave-one-clip-out, text as one more expert.

Four Gaussian kernels are fitted side by side: of sight, of sound, their product (both must agree), their mean (either
may). Each chooses its metric (:mod:`~avfewshot.methods.metric`), bandwidth and penalty by the log-loss of its
leave-one-clip-out predictions, which have a closed form: with ``A = inv(K + lam W^-1)`` and ``a = A Y``, the rows B of
a clip, had they not been in the support, would have got ``Y_B - inv(A_BB) a_B``. Then the log-posterior is ``sum_e w_e
f_e + w_t log p_text``: a product of experts whose weights (>= 0) minimise the log-loss of the left-out clips. The text
takes part only where it beats chance on the support.

Counter-examples of a class (clips that are known not to be of it) are rows of that class's column alone, with the
target -1: as far below indifference as its own clips are above it, since the text may well speak for them. Where the
weights of the experts are chosen they count as clips of any other class.

With one clip a class, where nothing can be left out, :mod:`~avfewshot.methods.one_clip` takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import get_lapack_funcs

from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import Floats, log_loss, log_softmax
from avfewshot.methods.calibration import stack, text_is_useful
from avfewshot.methods.method import Method
from avfewshot.methods.metric import Arrays, Metric, centre_of, keep_metric, metric_of, text_experts
from avfewshot.methods.one_clip import fit_one_clip, one_clip_evidence
from avfewshot.methods.rows import Head, Rows, countable

KERNELS = ("visual", "audio", "product", "mean")
BETAS = (0.02, 0.1, 0.3, 1.0)  # in units of the typical eigenvalue of the scatter within clips
SHARPNESS = (0.1, 0.3, 1.0)  # b = sharpness ln 10 / median distance of different classes
PENALTIES = (0.01, 0.1)
SCALES = (4.0, 8.0, 16.0, 32.0)  # only while an expert is chosen; the weights end as a continuous scale
PULL = 0.1  # of the experts' weights to equal ones: clips of few classes, left out, say little and lean the wrong way
SELECTION_ROWS = 450  # more rows: hyper-parameters are chosen on a subset of the classes


def distances(left: Floats, right: Floats) -> Floats:
    """Half the squared distances of rows, ``[n, m]``: 1 - cosine of unit vectors, 1/2 to a missing one (the centre)."""
    halves = ((left**2).sum(1)[:, None] + (right**2).sum(1)[None]) / 2
    return np.maximum(halves - left @ right.T, 0)


def joint_kernel(kind: str, visual: Floats, audio: Floats) -> Floats:
    """One of :data:`KERNELS` from the kernels of the modalities, all ``[n, m]``."""
    if kind == "product":
        return visual * audio
    if kind == "mean":
        return (visual + audio) / 2
    return visual if kind == "visual" else audio


def solve(
    kernel: Floats, targets: Floats, groups: npt.NDArray[np.int64], weights: Floats, penalty: float
) -> tuple[Floats, Floats, Floats]:
    """Ridge and its exact leave-one-clip-out.

    Args:
        kernel: ``[n, n]``.
        targets: ``[n, C]``.
        groups: ``[n]``; rows of one group are left out together.
        weights: ``[n]``; a row of weight w counts as w rows.
        penalty: lambda.

    Returns:
        ``inv(K + lambda W^-1)``, dual coefficients ``[n, C]``, left-out predictions ``[n, C]``.
    """
    ridge = kernel.copy()
    np.einsum("ii->i", ridge)[:] += penalty / weights
    inverse = invert(ridge)
    dual = inverse @ targets
    return inverse, dual, leave_out(inverse, dual, targets, groups)


def invert(matrix: Floats) -> Floats:
    """The inverse of a symmetric positive definite ``[n, n]``, by Cholesky: half the work of the general one."""
    potrf, potri = get_lapack_funcs(("potrf", "potri"), (matrix,))
    factor, fault = potrf(matrix)
    if fault:  # not positive definite to the last digit
        return np.linalg.inv(matrix)
    upper: Any = potri(factor)[0]  # zero below the diagonal
    full = upper + upper.T
    np.fill_diagonal(full, np.diag(upper))
    return full


def leave_out(inverse: Floats, dual: Floats, targets: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    """What each group's rows would be predicted without them, ``[n, C]``; `dual` is ``inverse @ targets``.

    Arguments are as :func:`solve` takes and gives them.
    """
    if len(np.unique(groups)) == len(groups):
        return targets - dual / np.diag(inverse)[:, None]
    result = np.empty_like(targets)
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.unique(groups[order], return_index=True)[1][1:]):
        result[rows] = without(inverse, dual, targets, rows)
    return result


def without(inverse: Floats, dual: Floats, targets: Floats, rows: npt.NDArray[np.int64]) -> Floats:
    """What some rows would be predicted without all of them, ``[len(rows), C]``; see :func:`leave_out`."""
    return targets[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], dual[rows])


def _fit_ridge(
    rows: Rows, targets: Floats, judged: npt.NDArray[np.bool_], within: Any, arrays: Arrays, *, use_text: bool
) -> Head:
    part = _selection(rows, targets, judged)
    chosen, left = _choose(*part, within)
    if len(part[0]) < len(rows):  # the large inverses only of experts that have a say
        weights = stack(list(left.values()), part[1][part[2]], part[0].weights[part[2]])
        chosen = {
            name: chosen[name] for name, weight in zip(left, weights, strict=True) if weight > 0.01 * weights.sum()
        }
    centred = targets - 1 / targets.shape[1]
    loo, counter = {}, {}
    for name, setting in chosen.items():
        for modality in MODALITIES:
            metric = Metric.fit(rows.vectors[setting["view"], modality], within[modality], setting["beta"])
            keep_metric(arrays, f"{setting['view']}.{modality}.{setting['beta']}", metric)
        kernel = kernel_between(Head(arrays), setting, "")
        _, arrays[f"dual.{name}"], loo[name] = solve(kernel, centred, rows.groups, rows.weights, setting["penalty"])
        if rows.counter is not None:
            counter[name] = fit_counter_examples(
                arrays, name, setting, kernel, centred, rows.groups, rows.weights, loo[name]
            )
    text = text_experts(rows, arrays) if use_text else {}
    wanted, row_weights = targets[judged], rows.weights[judged]
    if rows.counter is not None:
        counter |= text_experts(rows.counter[0], arrays) if use_text else {}
        others = ~rows.counter[1]
        wanted = np.concatenate((wanted, others / others.sum(1, keepdims=True)))
        row_weights = np.append(row_weights, rows.counter[0].weights)
    # Which experts speak for a clip that has both modalities, or only one of them.
    weights = {}
    for pattern in ("both", *MODALITIES):
        experts = {n: loo[n] for n, setting in chosen.items() if pattern in ("both", setting["kernel"])}
        own = {n: values for n, values in text.items() if pattern == "both" or n.endswith(pattern)}
        if not experts and not own:
            continue
        start = np.array([8.0 / max(len(experts), 1)] * len(experts) + [1.0 / max(len(own), 1)] * len(own))
        experts |= own
        left = [
            np.concatenate((values[judged], counter[n])) if counter else values[judged] for n, values in experts.items()
        ]
        found = stack(left, wanted, row_weights, start, pull=PULL)
        weights[pattern] = {n: weight for n, weight in zip(experts, found.tolist(), strict=True) if weight > 1e-6}
    both = {**loo, **text}
    left_out = sum((weight * both[n] for n, weight in weights["both"].items()), np.zeros_like(targets))
    diagnostics = {"rule": "leave-one-clip-out", "experts": chosen, "weights": weights["both"], "text gate": use_text}
    return Head(arrays, {"rule": "ridge", "experts": chosen, "weights": weights}, log_softmax(left_out), diagnostics)


def fit_counter_examples(
    arrays: Arrays,
    expert: str,
    setting: Mapping[str, Any],
    kernel: Floats,
    targets: Floats,
    groups: npt.NDArray[np.int64],
    weights: Floats,
    loo: Floats | None = None,
) -> Floats:
    """Fit the columns that have counter-examples anew, with these as further rows; `loo` follows in place.

    Gives what the expert says about each counter-example without itself, ``[M, C]``; `loo` is ``[n, C]``, the others
    are as :func:`solve` takes them.
    """
    part = Head(arrays)
    cross, corner = (kernel_between(part, setting, rows, "counter.") for rows in ("", "counter."))
    extra, predicted = np.zeros(arrays["not of"].shape), cross.T @ arrays[f"dual.{expert}"]
    for column in np.flatnonzero(arrays["not of"].any(0)):
        own = np.flatnonzero(arrays["not of"][:, column])
        whole = np.block([[kernel, cross[:, own]], [cross[:, own].T, corner[np.ix_(own, own)]]])
        wanted = np.append(targets[:, column], np.full(len(own), -1.0))[:, None]
        of = np.append(groups, groups.max() + 1 + np.arange(len(own)))
        _, dual, left = solve(whole, wanted, of, np.append(weights, np.ones(len(own))), setting["penalty"])
        arrays[f"dual.{expert}"][:, column], extra[own, column] = dual[: len(kernel), 0], dual[len(kernel) :, 0]
        predicted[own, column] = left[len(kernel) :, 0]
        if loo is not None:
            loo[:, column] = left[: len(kernel), 0]
    arrays[f"dual of counter-examples.{expert}"] = extra
    return predicted


def kernel_between(head: Head, setting: Mapping[str, Any], left: Rows | str, right: Rows | str = "") -> Floats:
    """An expert's kernel ``[n, m]`` of rows, given or kept ("": the support, "counter.": counter-examples)."""
    kernels = []
    for modality in MODALITIES:
        gaps = distances(*(in_metric(head, setting, rows, modality) for rows in (left, right)))
        kernels.append(np.exp(-setting["bandwidths"][modality] * gaps))
    return joint_kernel(setting["kernel"], *kernels)


def in_metric(head: Head, setting: Mapping[str, Any], rows: Rows | str, modality: str) -> Floats:
    """Rows of :func:`kernel_between` in the expert's metric, ``[n, D]``; given ones that lack its view have the mean.

    Those that the head keeps are moved once: at every clip that is scored they would cost more than the clip.
    """
    name = f"{setting['view']}.{modality}"
    metric = metric_of(head, f"{name}.{setting['beta']}")
    if not isinstance(rows, str):
        return metric(rows.vectors[setting["view"] if setting["view"] in rows.views else "mean", modality])
    vectors, key = head.arrays[rows + name], (rows + name, setting["beta"])
    if key not in head.kept or head.kept[key][0] is not vectors:  # classes come and go
        head.kept[key] = vectors, metric(vectors)
    return head.kept[key][1]


def _selection(
    rows: Rows, targets: Floats, judged: npt.NDArray[np.bool_]
) -> tuple[Rows, Floats, npt.NDArray[np.bool_]]:
    """All rows, or those of as many classes, evenly spaced, as keep the inverses small."""
    if len(rows) <= SELECTION_ROWS:
        return rows, targets, judged
    classes = targets.shape[1]
    number = max(2, classes * SELECTION_ROWS // len(rows))
    columns = np.unique(np.linspace(0, classes - 1, number).round().astype(np.int64))
    kept = np.flatnonzero(targets[:, columns].any(1))[: 2 * SELECTION_ROWS]
    part = targets[np.ix_(kept, columns)]
    return rows.take(kept, columns), part / part.sum(1, keepdims=True), judged[kept]


def _choose(
    rows: Rows, targets: Floats, judged: npt.NDArray[np.bool_], within: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, Floats]]:
    """The best setting of each kernel by the log-loss of the rows left out, and its predictions of them."""
    centred = targets - 1 / targets.shape[1]
    has = {modality: rows.present(modality) for modality in MODALITIES}
    kinds = [kind for kind in KERNELS if all(has[m].any() for m in MODALITIES if kind in (m, "product", "mean"))]
    different = ~((targets @ targets.T) > 0)
    best: dict[str, dict[str, Any]] = {}
    kept: dict[str, Floats] = {}
    for view in rows.views:
        for beta in BETAS:
            gaps, medians = {}, {}
            for modality in MODALITIES:
                raw = rows.vectors[view, modality]
                vectors = Metric.fit(raw, within[modality], beta)(raw)
                gaps[modality] = distances(vectors, vectors)
                between = gaps[modality][different & has[modality][:, None] & has[modality][None]]
                medians[modality] = max(float(np.median(between)), 1e-6) if between.size else 1.0
            for sharpness in SHARPNESS:
                bandwidths = {modality: sharpness * np.log(10) / medians[modality] for modality in MODALITIES}
                kernels = [np.exp(-bandwidths[modality] * gaps[modality]) for modality in MODALITIES]
                for kind in kinds:
                    kernel, name = joint_kernel(kind, *kernels), f"{view} {kind}"
                    for penalty in PENALTIES:
                        left = solve(kernel, centred, rows.groups, rows.weights, penalty)[2][judged]
                        loss = min(
                            float(
                                np.average(
                                    log_loss(log_softmax(scale * left), targets[judged]), weights=rows.weights[judged]
                                )
                            )
                            for scale in SCALES
                        )
                        if name not in best or loss < best[name]["log-loss"]:
                            kept[name] = left
                            best[name] = {
                                "view": view, "kernel": kind, "beta": beta, "sharpness": sharpness,
                                "bandwidths": bandwidths, "penalty": penalty, "log-loss": loss,
                            }  # fmt: skip
    return best, kept


def evidence(head: Head, rows: Rows, *, with_text: bool = True) -> Floats:
    """Logits ``[n, C]``, of the kernels and the text, or of the kernels alone; a ValueError for an unknown rule."""
    text = text_experts(rows, head.arrays) if with_text else {}
    if head.params["rule"] == "one-shot":
        return one_clip_evidence(head, rows, text)
    if head.params["rule"] != "ridge":
        raise ValueError(f"its rule {head.params['rule']!r} is unknown")
    has = {modality: rows.present(modality) for modality in MODALITIES}
    experts = dict(text)
    for name, setting in head.params["experts"].items():
        experts[name] = kernel_between(head, setting, rows) @ head.arrays[f"dual.{name}"]
        if "not of" in head.arrays:
            counter = head.arrays[f"dual of counter-examples.{name}"]
            experts[name] += kernel_between(head, setting, rows, "counter.") @ counter
    result = np.zeros_like(rows.text["fused"])
    for pattern, members in (
        ("both", has["visual"] & has["audio"]),
        ("visual", has["visual"] & ~has["audio"]),
        ("audio", has["audio"] & ~has["visual"]),
    ):
        for name, weight in head.params["weights"].get(pattern, {}).items():
            if name in experts:
                result = result + np.where(members[:, None], weight * experts[name], 0.0)
    return result


class KernelRidge(Method):
    """Joint kernel ridge with exact leave-one-clip-out and the text as an expert."""

    name = "kernel_ridge"
    uses_counter_examples = True

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`Method.fit_head`."""
        judged = countable(targets, rows.groups)
        covered = (targets[judged] > 0).any(0).mean() if judged.any() else 0
        arrays: Arrays = {f"{view}.{modality}": values for (view, modality), values in rows.vectors.items()}
        arrays["targets"] = targets
        arrays |= {f"text centre.{modality}": centre_of(rows.vectors["mean", modality]) for modality in MODALITIES}
        if rows.counter is not None:
            counter, arrays["not of"] = rows.counter
            arrays |= {f"counter.{view}.{modality}": v for (view, modality), v in counter.vectors.items()}
        scatters: dict[str, Any] = rows.within
        within = {m: None if scatters[m] is None else np.linalg.eigh(scatters[m]) for m in MODALITIES}
        use_text = text_is_useful(rows.text["fused"], targets)
        if covered < 0.5:
            return fit_one_clip(rows, targets, within, arrays, use_text=use_text)
        return _fit_ridge(rows, targets, judged, within, arrays, use_text=use_text)

    def score_head(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`Method.score_head`."""
        return log_softmax(evidence(head, rows))
