"""Methods that add evidence from the support to the text: ``w_e e(x) + w_t log p_text(x)``; and the text alone.

Their papers search w_e on a validation split, or on the test split. Here both weights minimise the log-loss of clips
that were left out: the support is cut into folds by clip, every class keeping clips in each training part. With one
clip a class there is nothing to leave out, and the weights are fixed. All learn on the *joint* vectors of sight and
sound: a head a modality falls below zero-shot wherever a look or a sound belongs to several classes.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from avfewshot.methods.base import MODALITIES, Floats, log_softmax, unit
from avfewshot.methods.calibration import stack, text_is_useful
from avfewshot.methods.method import Method
from avfewshot.methods.rows import Head, Rows, countable

STEPS = 200  # of full-batch training


class ZeroShot(Method):
    """The zero-shot prediction behind the protocol of the few-shot methods."""

    name = "zero_shot"

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """Nothing is fitted: a clip's own label changes nothing, so the left-out prediction is the prediction."""
        return Head({"targets": targets[:0]}, loo=rows.text["fused"])

    def score_head(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`Method.score_head`."""
        return rows.text["fused"]


class EvidenceMethod(Method):
    """A method in two parts; subclasses give :meth:`fit_evidence`, and :meth:`evidence` where it is not linear."""

    folds: ClassVar[int] = 4
    with_text: ClassVar[bool] = True  # False: the text is inside the evidence, or has no part

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """Fit the part that learns."""
        raise NotImplementedError

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """Its logits ``[n, C]``: here of ``weights`` ``[C, D]`` and ``bias`` ``[C]``."""
        return rows.joint()[0] @ head.arrays["weights"].T + head.arrays["bias"]

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`Method.fit_head`."""
        head = self.fit_evidence(rows, targets, seed=seed)
        use_text = self.with_text and text_is_useful(rows.text["fused"], targets)
        weights = np.array([1.0, float(use_text)])
        out, judged = self._cross_fit(rows, targets, seed)
        if judged.any():
            experts = [out] + [rows.text["fused"]] * use_text
            chosen = stack([e[judged] for e in experts], targets[judged], rows.weights[judged])
            weights = np.array([*chosen, *[0.0] * (not use_text)])
            loo = log_softmax(weights[0] * out + weights[1] * rows.text["fused"])
            # A clip that is the only one of its class cannot be left out: nothing is known of it.
            head.loo = np.where(judged[:, None], loo, -np.log(targets.shape[1]))
        head.params["weights"] = weights.tolist()
        rule = "cross-fitting" if judged.any() else "fixed: one clip a class"
        head.diagnostics |= {"rule": rule, "weights": weights.tolist(), "text gate": use_text}
        return head

    def score_head(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`Method.score_head`."""
        weights = head.params["weights"]
        return log_softmax(weights[0] * self.evidence(head, rows) + weights[1] * rows.text["fused"])

    def _cross_fit(self, rows: Rows, targets: Floats, seed: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Evidence of each row from parts without its clip, and which rows could be left out."""
        judged, out = countable(targets, rows.groups), np.zeros_like(targets)
        if (targets[judged] > 0).any(0).mean() < 0.5 or not judged.any():
            return out, np.zeros(len(targets), dtype=bool)
        of_group: dict[int, int] = {}
        for column in targets.T:  # the clips of each class are dealt out in turn
            members = [group for group in dict.fromkeys(rows.groups[column > 0].tolist()) if group not in of_group]
            of_group |= {group: index % self.folds for index, group in enumerate(members)}
        folds = np.array([of_group.get(group, 0) for group in rows.groups.tolist()])
        folds[~judged] = -1
        for fold in range(folds.max() + 1):
            inside, outside = folds != fold, folds == fold
            if not (targets[inside] > 0).any(0).all():  # clips of several classes: a class may leave with the others
                judged = judged & ~outside
            elif outside.any():
                head = self.fit_evidence(rows.take(inside), targets[inside], seed=seed)
                out[outside] = self.evidence(head, rows.take(outside))
        return out, judged


def class_means(vectors: Floats, targets: Floats, weights: Floats) -> Floats:
    """Weighted means ``[C, D]`` of the rows of each class."""
    shares = targets * weights[:, None]
    return shares.T @ vectors / np.maximum(shares.sum(0), 1e-12)[:, None]


class NearestMean(EvidenceMethod):
    """Cosine to the class means in the joint space, centred on the support (Wang et al., SimpleShot, 2019)."""

    name = "nearest_mean"
    with_text = False

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        vectors = rows.joint()[0]
        centre = vectors.mean(0) if len(vectors) > 1 else np.zeros(vectors.shape[1])
        return Head({"centre": centre, "means": unit(class_means(unit(vectors - centre), targets, rows.weights))})

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        return 10.0 * unit(rows.joint()[0] - head.arrays["centre"]) @ head.arrays["means"].T


class Logistic(EvidenceMethod):
    """Multinomial logistic regression with scikit-learn, what anybody would try first; the text has no part in it."""

    name = "logistic"
    with_text = False

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        from sklearn.linear_model import LogisticRegression

        row, label = np.nonzero(targets)  # a clip with several labels counts once for each, with its share
        model: Any = LogisticRegression(C=10.0, max_iter=300)
        with warnings.catch_warnings():  # "might be a regression": one clip a class is what we are here for
            warnings.simplefilter("ignore", UserWarning)
            model.fit(rows.joint()[0][row], label, sample_weight=targets[row, label] * rows.weights[row])
        weights, bias = model.coef_, model.intercept_
        if targets.shape[1] == 2:  # scikit-learn keeps one row for two classes
            weights, bias = np.concatenate((-weights / 2, weights / 2)), np.concatenate((-bias / 2, bias / 2))
        return Head({"weights": weights, "bias": bias}, trainable=weights.size + bias.size)


class GDA(EvidenceMethod):
    """Gaussian discriminant analysis as a training-free classifier (Wang et al., ICLR 2024).

    Class means mu_c, covariance S of the centred support: ``P = D pinv((n - 1) S + tr(S) I)``, ``W = P mu``, ``b_c =
    -log C - mu_c' P mu_c / 2``. Where a class has one clip its scatter is not known: that about the common mean takes
    its place.
    """

    name = "gda"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        return _discriminant(rows.joint()[0], targets, rows.weights)


def _discriminant(vectors: Floats, targets: Floats, weights: Floats) -> Head:
    """Weights ``[C, D]`` and biases ``[C]``, scaled such that the support's evidence has a spread of one."""
    means = class_means(vectors, targets, weights)
    centred = vectors - targets @ means
    if (centred**2).sum() < 1e-6 * (vectors**2).sum():
        centred = vectors - vectors.mean(0)
    rows, width = vectors.shape
    scatter = centred.T @ (centred * weights[:, None])
    trace = max(np.trace(scatter) / max(rows - 1, 1), 1e-9)
    # D pinv(scatter + trace I) mu, in the space of the rows where those are fewer than the dimensions.
    weighted = width * np.linalg.solve(scatter + trace * np.eye(width), means.T).T
    bias = -np.log(len(means)) - (weighted * means).sum(1) / 2
    evidence = vectors @ weighted.T + bias
    spread = max(float((evidence - evidence.mean(1, keepdims=True)).std()), 1e-9)
    return Head({"weights": weighted / spread, "bias": bias / spread})


class TIMO(GDA):
    """GDA with the texts as further samples; prompts weighted by the support (Li et al., AAAI 2025).

    ``q_{c,p} = m_c . u_{c,p}`` divided by the norm of ``q_c``, weights ``softmax(gamma q_c)``: prompts that lie near
    the class's clips stand for it. Without single prompts their mean stands for each.
    """

    name = "timo"
    gamma = 50.0

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        vectors, texts, _ = rows.joint()
        means = class_means(vectors, targets, rows.weights)
        total, end = sum(rows.scales), 0
        parts = []
        for modality, scale in zip(MODALITIES, rows.scales, strict=True):
            columns = slice(end, end := end + rows.labels[modality].shape[1])
            prompts = rows.templates.get(modality)  # as many in each modality as it has templates
            if prompts is None:
                parts.append(texts[:, columns])
                continue
            near = np.einsum("cd,cpd->cp", means[:, columns], prompts)
            near = self.gamma * near / np.maximum(np.linalg.norm(near, axis=1, keepdims=True), 1e-9)
            shares = np.exp(near - near.max(1, keepdims=True))
            weighted = np.einsum("cp,cpd->cd", shares / shares.sum(1, keepdims=True), prompts)
            parts.append(np.sqrt(scale / total) * weighted)
        texts = np.concatenate(parts, -1)
        # Texts and clips lie in different cones: the texts are moved to where the clips are before they join them.
        moved = unit(texts - texts.mean(0) + vectors.mean(0))
        return _discriminant(
            np.concatenate((vectors, moved)),
            np.concatenate((targets, np.eye(len(texts)))),
            np.concatenate((rows.weights, np.ones(len(texts)))),
        )


def _train(rows: Rows, targets: Floats, optimizer: Any, logits: Any, *, steps: int = STEPS, penalty: Any = None):
    """Minimise cross-entropy plus a penalty over full-batch steps with a cosine schedule."""
    import torch

    truth, weights = torch.from_numpy(targets), torch.from_numpy(rows.weights)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = -(weights * (truth * logits().log_softmax(-1)).sum(-1)).sum() / weights.sum()
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        schedule.step()


class TipAdapter(EvidenceMethod):
    """A cache of the support beside the text, without training (Zhang et al., ECCV 2022).

    ``alpha exp(-beta (1 - x F^T)) Y``, Y divided by the clips of each class so that alpha does not grow with the shots;
    beta = 5.5 as published, alpha by left-out clips.
    """

    name = "tip_adapter"
    beta = 5.5

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        shares = targets * rows.weights[:, None]
        return Head({"keys": rows.joint()[0], "values": shares / np.maximum(shares.sum(0), 1e-12)})

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        affinity = np.exp(self.beta * (rows.joint()[0] @ head.arrays["keys"].T - 1))
        return head.params.get("alpha", 1.0) * affinity @ head.arrays["values"]


class TipAdapterF(TipAdapter):
    """The keys are trained: AdamW, cosine, 20 full-batch epochs, the last one kept."""

    name = "tip_adapter_f"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        import torch

        head = super().fit_evidence(rows, targets, seed=seed)
        vectors, values, text = map(torch.from_numpy, (rows.joint()[0], head.arrays["values"], rows.text["fused"]))
        keys = torch.from_numpy(head.arrays["keys"].copy()).requires_grad_()
        _train(
            rows, targets, torch.optim.AdamW([keys], lr=1e-3, eps=1e-4),
            lambda: text + torch.exp(self.beta * (vectors @ keys.T - 1)) @ values,
            steps=20,
        )  # fmt: skip
        head.arrays["keys"] = keys.detach().numpy()
        head.trainable = keys.numel()
        return head


class Probe(EvidenceMethod):
    """A probe that starts at the texts, trained full-batch with published settings."""

    with_text = False
    folds = 2  # they train for seconds


class LPPlusPlus(Probe):
    """LP++ (Huang et al., CVPR 2024): ``f.w_c + alpha_c f.t_c``, step sizes from Lipschitz bounds."""

    name = "lp_plus_plus"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        vectors, texts, _ = rows.joint()
        weights = class_means(vectors, targets, rows.weights)
        shots = max(targets.sum() / targets.shape[1], 1.0)
        alpha = np.full(len(texts), max(250 / shots * float((weights * texts).sum(1).mean()), 0.0))
        number = len(vectors)
        rate = 4 * number / max(np.linalg.eigvalsh(vectors @ vectors.T)[-1], 1e-9)
        alpha_rate = number / (4 * max(float(((vectors @ texts.T) ** 2).sum(0).max()), 1e-9))
        bias, momentum = np.zeros(len(texts)), [0.0, 0.0, 0.0]
        cosines, total = vectors @ texts.T, rows.weights.sum()
        for step in range(STEPS):
            logits = vectors @ weights.T + bias + alpha * cosines
            logits -= logits.max(1, keepdims=True)
            error = np.exp(logits)
            error = (error / error.sum(1, keepdims=True) - targets) * rows.weights[:, None] / total
            for index, slope in enumerate((error.T @ vectors, error.sum(0), (error * cosines).sum(0))):
                momentum[index] = 0.9 * momentum[index] + slope
            weights, bias = weights - rate * momentum[0] * 0.1, bias - rate * momentum[1] * 0.1
            if step % 10 == 0:
                alpha = alpha - alpha_rate * momentum[2]
        return Head({"weights": weights, "bias": bias, "alpha": alpha}, trainable=weights.size + bias.size + alpha.size)

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        vectors, texts, _ = rows.joint()
        return super().evidence(head, rows) + head.arrays["alpha"] * (vectors @ texts.T)


class ClassAdaptive(Probe):
    """CLAP (Silva-Rodriguez et al., CVPR 2024): prototypes that start at the texts and are held to them.

    Penalty ``lambda_c |w_c - t_c|^2``, lambda_c the mean zero-shot probability of the class on its own clips: classes
    that the text knows move little.
    """

    name = "class_adaptive"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        import torch
        from torch.nn.functional import normalize

        vectors, texts, scale = rows.joint()
        shares = targets * rows.weights[:, None]
        trust = (shares * np.exp(rows.text["fused"])).sum(0) / np.maximum(shares.sum(0), 1e-12)
        features, start, held = map(torch.from_numpy, (vectors, texts, trust))
        prototypes = start.clone().requires_grad_()
        _train(
            rows, targets, torch.optim.SGD([prototypes], lr=0.1, momentum=0.9),
            lambda: scale * features @ normalize(prototypes, dim=-1).T,
            penalty=lambda: (held * (prototypes - start).square().sum(-1)).mean(),
        )  # fmt: skip
        return Head({"prototypes": prototypes.detach().numpy()}, {"scale": scale}, trainable=prototypes.numel())

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        return head.params["scale"] * rows.joint()[0] @ unit(head.arrays["prototypes"]).T


class ClipAdapter(Probe):
    """CLIP-Adapter (Gao et al., IJCV 2024): ``f' = 0.2 ReLU(W2 ReLU(W1 f)) + 0.8 f`` against the texts."""

    name = "clip_adapter"
    share = 0.2

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        import torch

        vectors, texts, scale = rows.joint()
        generator = torch.Generator().manual_seed(seed)
        width, inner = vectors.shape[1], max(vectors.shape[1] // 4, 1)
        down, up = (
            ((torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) / shape[1] ** 0.5).requires_grad_()
            for shape in ((inner, width), (width, inner))
        )
        features, labels = torch.from_numpy(vectors), torch.from_numpy(texts)

        def logits() -> torch.Tensor:
            moved = (features @ down.T).relu() @ up.T
            adapted = self.share * moved.relu() + (1 - self.share) * features
            return scale * torch.nn.functional.normalize(adapted, dim=-1) @ labels.T

        _train(rows, targets, torch.optim.Adam([down, up], lr=1e-3), logits)
        arrays = {"down": down.detach().numpy(), "up": up.detach().numpy()}
        return Head(arrays, {"scale": scale}, trainable=down.numel() + up.numel())

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        vectors, texts, _ = rows.joint()
        moved = np.maximum(np.maximum(vectors @ head.arrays["down"].T, 0) @ head.arrays["up"].T, 0)
        return head.params["scale"] * unit(self.share * moved + (1 - self.share) * vectors) @ texts.T
