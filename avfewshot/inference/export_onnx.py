"""A classifier as ONNX graphs: what ONNX Runtime needs to classify clips on a machine without torch.

Up to six graphs, all with a free number of seconds T, and one manifest::

    visual.onnx    frames uint8 [T, 3, S, S]            -> visual [T, D_v]     normalisation of pixels is inside
    audio.onnx     waveform float32 [T, 48000]          -> audio [T, D_a]      the mel front end is inside
    joint.onnx     frames, waveform of one window       -> visual, audio       only with adapters between the towers
    classify.onnx  visual, audio                        -> probabilities [K], seconds [T, K], weights [2]; of a run on
                                                           labelled seconds [T, K + 1], "background" last
    classify-visual.onnx, classify-audio.onnx           the same of clips without sound, without a picture
    texts.npz      text features of the labels and of the background (the last row), in each matching space

The towers and the head are those of :class:`~avfewshot.inference.classifier.Classifier`, traced; so is a fitted
few-shot method, whose NumPy code runs on arrays that are tensors. Each graph is run by ONNX Runtime on other inputs
than it was traced with, and compared, before it is put in its place.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.errors import AvfsError, UsageError
from avfewshot.inference.classifier import Classifier
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.head import BACKGROUND, LearnedHead, ZeroShotHead
from avfewshot.inference.inputs import Labels, label_set
from avfewshot.inference.traced import Traced
from avfewshot.io import atomic_path, naming, sha256_file, write_text
from avfewshot.media.clip import MODALITIES, SAMPLE_RATE
from avfewshot.methods.base import LEAST, SMALLEST
from avfewshot.methods.method import Scores
from avfewshot.methods.rows import compared_rows, pooled_rows
from avfewshot.methods.seconds import join_seconds, score_rows
from avfewshot.models.fusion import predict_clips, predict_events
from avfewshot.version import __version__

FORMAT, OPSET, TOLERANCE = 1, 18, 1e-4
MANIFEST = "manifest.json"
_INPUTS = {"visual": "frames", "audio": "waveform"}


def export_onnx(classifier: Classifier, labels: Labels, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Write a classifier of these labels; a folder that holds an earlier export is replaced file by file.

    It is on the CPU, in float32; where a few-shot method was fitted, the labels are those of its run. The folder gets
    the graphs, ``texts.npz`` and, last, ``manifest.json``, which is given.

    Raises:
        AvfsError: onnx or onnxruntime is missing, or a graph does not answer as the classifier does.
        UsageError: The run hears whole clips.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise AvfsError(f"{error.name} is not installed.", hint="pip install 'avfewshot[onnx]'") from None
    names, folder = label_set(labels), Path(folder)
    head = classifier.head(names)
    if classifier.audio_context != "second" and classifier._scored is classifier._plain:
        raise UsageError(
            "What hears whole clips (--audio-context clip) cannot be exported: its windows are no graph of seconds.",
            hint="Fit the run again with --audio-context second.",
        )
    model, size = classifier._scored.eval(), int(classifier.backbone.visual.image_size)
    seconds = 3
    noise = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2 * seconds, 3, size, size), dtype=torch.uint8, generator=noise)
    sound = torch.randn(2 * seconds, SAMPLE_RATE, generator=noise) * torch.linspace(0.01, 0.3, 2 * seconds)[:, None]
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}

    def write(name: str, module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> None:
        files[name] = _write_graph(folder / f"{name}.onnx", module, inputs, outputs, seconds)

    with torch.no_grad():
        given = {"visual": frames, "audio": sound}
        for modality in MODALITIES:
            write(modality, _Tower(model, (modality,)), {_INPUTS[modality]: given[modality]}, [modality])
        if model.adapters is not None:
            inputs = {_INPUTS[modality]: given[modality] for modality in MODALITIES}
            write("joint", _Tower(model, MODALITIES), inputs, MODALITIES)
        embedded: dict[str, Any] = dict(zip(MODALITIES, model(frames[None], sound[None]), strict=True))
        answers = ["probabilities", "seconds", "weights"]
        for name, present in (("", MODALITIES), ("-visual", ("visual",)), ("-audio", ("audio",))):
            inputs = {modality: embedded[modality][0] for modality in present}
            write(f"classify{name}", _Answers(head, present), inputs, answers)
    zero_shot = head._zero_shot if isinstance(head, LearnedHead) else head
    spaces = ["frozen", "trained"] if len(zero_shot._spaces) == 2 else ["trained" if classifier.blend else "frozen"]
    arrays = {
        f"{space}_{modality}": getattr(texts, modality).numpy()
        for space, (texts, _) in zip(spaces, zero_shot._spaces, strict=False)
        for modality in MODALITIES
    }
    with atomic_path(folder / "texts.npz") as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)
    manifest = {
        "format": FORMAT,
        "made_by": f"avfewshot {__version__}",
        "backbone": classifier.name,
        "identity": classifier.backbone.identity,
        "adapter": classifier.adapter,
        "method": head._scorer.method.name if isinstance(head, LearnedHead) else None,
        "labels": list(names.names),
        "wordings": list(names.wordings),
        "seconds": [*names.names, BACKGROUND] if _labels_seconds(head) else list(names.names),
        "fusion": classifier.fusion,
        "pool": classifier.pool,
        "scales": {
            space: dict(zip(MODALITIES, map(float, scales), strict=True))
            for space, (_, scales) in zip(spaces, zero_shot._spaces, strict=False)
        },
        "image_size": size,
        # In the graph already, for whoever feeds pixels to a tower of his own.
        "mean": [-float(b / a) / 255 for a, b in _pixels(classifier)],
        "std": [1 / (255 * float(a)) for a, _ in _pixels(classifier)],
        "sample_rate": SAMPLE_RATE,
        "window": classifier.window if model.adapters is not None else None,
        "opset": OPSET,
        "graphs": files,
        "texts": {"file": "texts.npz", "sha256": sha256_file(folder / "texts.npz"), "arrays": sorted(arrays)},
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
    return manifest


def _labels_seconds(head: ZeroShotHead) -> bool:
    return isinstance(head, LearnedHead) and head._scorer.second is not None


def _pixels(classifier: Classifier) -> list[tuple[Tensor, Tensor]]:
    tower: Any = classifier.backbone.visual
    return list(zip(tower.scaling.pixel_scale.flatten(), tower.scaling.pixel_shift.flatten(), strict=True))


def _write_graph(
    path: Path, module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], seconds: int
) -> dict[str, Any]:
    """Trace on the first seconds, compare on all of them and on one, and put the graph in its place."""
    import onnxruntime

    module.eval()  # torch puts a module back into the mode that it found it in
    free = {name: {0: "T"} for name in (*inputs, *outputs) if name not in ("probabilities", "weights")}
    worst = 0.0
    with naming(path), tempfile.TemporaryDirectory(dir=path.parent) as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tracing says about sizes that are fixed; they are compared below
        graph = Path(place) / path.name
        try:
            torch.onnx.export(
                module, tuple(values[:seconds] for values in inputs.values()), str(graph), opset_version=OPSET,
                input_names=list(inputs), output_names=list(outputs), dynamic_axes=free, dynamo=False,
            )  # fmt: skip
            session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
            for count in (None, 1):
                part = {name: values[:count] for name, values in inputs.items()}
                found = session.run(list(outputs), {name: values.numpy() for name, values in part.items()})
                wanted = getattr(module, "reference", module)(*part.values())
                worst = max(worst, *(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, wanted, strict=True)))
        except OSError:  # a full disk
            raise
        except Exception as error:  # a graph that cannot be made: torch and ONNX Runtime raise whatever they like
            reason = str(error).strip().partition("\n")[0]
            raise AvfsError(
                f"{path.name}: cannot be made: {reason}.", hint="`avfs --debug export ...` shows all of it."
            ) from error
        if not worst <= TOLERANCE:
            raise AvfsError(
                f"{path.name}: ONNX Runtime's answers differ from torch's by {worst:.1e}, more than {TOLERANCE:.0e}.",
                hint="Please report it, with the method and the adapters of the run.",
            )
        os.replace(graph, path)
    return {
        "file": path.name,
        "sha256": sha256_file(path),
        "inputs": list(inputs),
        "outputs": list(outputs),
        "largest_difference": worst,
    }


class _Tower(nn.Module):
    """Seconds of the modalities that are there to their unit vectors."""

    def __init__(self, model: nn.Module, present: Sequence[str]) -> None:
        super().__init__()
        self.model, self.present = model, present

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.present, inputs, strict=True))
        frames, sound = (given[name][None] if name in given else None for name in MODALITIES)
        return tuple(found[0] for found in self.model(frames, sound) if found is not None)


class _Answers(nn.Module):
    """Embedded seconds of one clip to what :meth:`ZeroShotHead.result` says of it."""

    def __init__(self, head: Any, present: Sequence[str]) -> None:
        super().__init__()
        self.head, self.present = head, present

    def forward(self, *embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = dict(zip(self.present, embedded, strict=True))
        file = EmbeddedFile("", 0.0, given.get("visual"), given.get("audio"), ())
        head = self.head
        zero_shot = head._zero_shot if isinstance(head, LearnedHead) else head
        logits = zero_shot.logits(file)
        said = predict_events(logits.visual, logits.audio, **zero_shot._options)
        if not isinstance(head, LearnedHead):
            return said.probabilities, said.segment_probabilities, said.weights
        columns = [row for row in range(len(head._labels)) if row != head._none]
        both = zero_shot.both_ways(file) if head._scorer.is_tuned else ()
        tuned = [Traced(one[None][:, columns]) for one, _ in both] or None
        dims: dict[str, int] = dict(zip(MODALITIES, head._dims, strict=True))
        frozen = {name: values[:, : dims[name]].double() for name, values in given.items()}
        whole = {name: values[None] for name, values in frozen.items()}
        clip = _columns(head, self._scores(whole, tuned).joined)
        if _labels_seconds(head):
            seconds = self._seconds(frozen, self._scores(whole, None).fused)
            if (weights := head._scorer.second_weights) is not None:
                parts: Any = [Traced(seconds), *(Traced(one) for _, one in both)]
                joined: Any = join_seconds(parts, weights)
                seconds = joined.tensor
            seconds = seconds.exp()
        else:
            tuned = [Traced(one[:, columns]) for _, one in both] or None
            seconds = _columns(head, self._scores({n: values[:, None] for n, values in frozen.items()}, tuned).joined)
        return clip[0], seconds, said.weights

    def reference(self, *embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same by the head itself, for comparison."""
        given = dict(zip(self.present, embedded, strict=True))
        file = EmbeddedFile("", float(len(embedded[0])), given.get("visual"), given.get("audio"), ())
        result = self.head.result(file, segments=True)
        seconds = [second.scores for second in result.segments]
        if _labels_seconds(self.head):
            tuned = self.head._tuned(file)[1]
            seconds = np.exp(self.head._scorer.segment_logits(self.head._features(file), tuned=tuned)[0]).tolist()
        rows = list(result.scores.values()), seconds, result.weights.values()
        return tuple(torch.tensor(list(values), dtype=torch.float64) for values in rows)  # type: ignore[return-value]

    def _compared(self, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any, Tensor | None]:
        """Of n clips of T seconds: unit vectors, what the text says, and how sure it is of each second ``[n, T]``."""
        texts: Any = self.head._scorer.texts
        vectors = {name: F.normalize(values, dim=-1, eps=1e-12) for name, values in given.items()}
        logits: list[Any] = []
        for name, scale in zip(MODALITIES, texts.scales, strict=True):
            for rows in (getattr(texts, name), getattr(texts, f"{name}_background")):
                there = None if rows is None or name not in vectors else vectors[name] @ torch.from_numpy(rows.T)
                logits.append(None if there is None else scale * there)
        sure = texts.visual_background is not None and texts.audio_background is not None
        options = {"fusion": texts.fusion, "pool": texts.pool if sure else "mean"}
        said = predict_clips(logits[0], logits[2], backgrounds=(logits[1], logits[3]), **options)
        if not sure:
            return vectors, said, None
        best = said.segment_probabilities.argmax(-1, keepdim=True)
        gaps = [logits[row].gather(-1, best)[..., 0] - logits[row + 1] for row in (0, 2) if logits[row] is not None]
        return vectors, said, gaps[0] if len(gaps) == 1 else torch.minimum(gaps[0], gaps[1])

    def _scores(self, given: dict[str, Tensor], tuned: Any) -> Scores:
        """Log-posteriors of n clips of T seconds each by the fitted method."""
        scorer = self.head._scorer
        texts: Any = scorer.texts
        vectors, said, salience = self._compared(given)
        some = next(iter(vectors.values()))
        fused = said.log_probabilities.clamp(min=LEAST)
        uniform = torch.full_like(fused, -float(np.log(len(texts.names))))
        alone = (said.visual_log_probabilities, said.audio_log_probabilities)
        zero_shot: dict[str, Any] = {"fused": Traced(fused)}
        for name, values in zip(MODALITIES, alone, strict=True):
            zero_shot[name] = Traced(uniform if values is None else values.clamp(min=LEAST))
        shares = {"mean": torch.full_like(some[..., 0], 1.0).softmax(-1)}
        if salience is not None:
            weights = salience.clamp(-30, 30).sigmoid()
            shares["event"] = weights / weights.sum(-1, keepdim=True)
        pooled: dict[Any, Any] = {}
        for view, weights in shares.items():
            for name in MODALITIES:
                made = some.new_zeros(1, getattr(texts, name).shape[1]).expand(some.shape[0], -1)
                if name in vectors:
                    made = F.normalize((weights[..., None] * vectors[name]).sum(1), dim=-1, eps=1e-12)
                pooled[view, name] = Traced(made)
        rows = pooled_rows(pooled, zero_shot, texts, np.flatnonzero(scorer.trained), none=scorer.negatives)
        return scorer.joined(rows, zero_shot, texts, tuned)

    def _seconds(self, given: dict[str, Tensor], clip: Any) -> Tensor:
        """Log-posteriors ``[T, K + 1]`` of the seconds of a clip, the background last; `clip`: its log-posteriors."""
        scorer = self.head._scorer
        vectors, said, salience = self._compared({name: values[None] for name, values in given.items()})
        events = said.segment_probabilities[0].clamp(min=SMALLEST).log()
        sure: Any = Traced(torch.zeros_like(events[:, 0]) if salience is None else salience[0])
        pooled: dict[Any, Any] = {}
        for name in MODALITIES:
            absent = events.new_zeros(1, getattr(scorer.texts, name).shape[1]).expand(events.shape[0], -1)
            pooled["mean", name] = Traced(vectors[name][0] if name in vectors else absent)
        traced: Any = Traced(events)
        rows = compared_rows(pooled, traced, sure, scorer.texts, np.flatnonzero(scorer.trained))
        method, alone = scorer.method.for_seconds(), np.ones(1, np.int64)
        found: Any = score_rows(method, scorer.second, scorer.trained, rows, sure, clip, alone)
        return found.tensor


def _columns(head: LearnedHead, joined: Any) -> Tensor:
    """Probabilities ``[n, K]`` of the labels, as :meth:`LearnedHead._columns` has them."""
    known = len(head._texts.names)
    order = list(range(known))
    if head._none is not None:
        order.insert(head._none, known)
    return joined.tensor[:, order].softmax(-1)
