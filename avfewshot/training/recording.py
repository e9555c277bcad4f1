"""Everything that the report of a few-shot run shows, gathered: figures, curves, examples, where the adapters look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import Any

import torch
from torch.nn import functional as F

from avfewshot.adapters.dgsct import DGSCT
from avfewshot.data.dataset import Sample
from avfewshot.data.sampler import describe_short
from avfewshot.evaluation.predictions import clip_probabilities, second_probabilities
from avfewshot.evaluation.results import Comparison
from avfewshot.inference.logits import ClipLogits
from avfewshot.media.thumbnails import grey_source, jpeg_source, thumbnails
from avfewshot.models.audio_visual import AudioVisualModel, weighing
from avfewshot.training.fewshot import FewShot, SeedResult
from avfewshot.training.metrics_log import MetricsLogger
from avfewshot.training.plan import Plan
from avfewshot.training.record import AttentionExample, Curve, Example, Heatmap, RunRecord, Second
from avfewshot.version import __version__

_EXAMPLES = 12
_PICTURES = 5
_LOOKS = 3
_LEFT = 50
_ANSWERS = 5


def collect(
    run: FewShot,
    plan: Plan,
    results: Sequence[SeedResult],
    comparison: Comparison,
    *,
    command: str,
    settings: Sequence[tuple[str, str, str]],
    roles: Mapping[str, str],
) -> RunRecord:
    """Gather everything for the report; runs the best model of the first seed on a few test clips."""
    usage, first = run.evaluator.usage, results[0]
    assert first.progress is not None
    model = run.best_model(first.seed)
    chosen = _spread(run.evaluator.scored("test").samples)
    config = run.config
    return RunRecord(
        title=f"{config.task}, {config.shots} {'shot' if config.shots == 1 else 'shots'}",
        task=config.task,
        dataset=run.dataset.description.title,
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
        settings=tuple(settings),
        components=plan.parameters,
        data=tuple((*count, roles.get(count[0], "")) for count in usage.counts(run.dataset)),
        left=tuple(usage.left[:_LEFT]),
        left_total=len(usage.left),
        supports=tuple((result.seed, _support_lines(result)) for result in results),
        comparison=comparison,
        results=first.results,
        curves=tuple(_curve(result) for result in results),
        examples=_examples(run, model, first, chosen),
        looks=_looks(run, model, chosen),
        notes=()
        if run.evaluator.scored("val").samples
        else (
            "There were no validation clips: the last epoch was taken, with "
            f"{first.progress.best.blend:g} of the trained logits.",
        ),
    )


def _support_lines(result: SeedResult) -> tuple[str, ...]:
    support = result.support
    lines = [f"{support['clips']} clips, sampler {support['sampler']}, fingerprint {support['fingerprint']}"]
    if support["pinned"] is not None:
        same = support["pinned"] == support["fingerprint"]
        lines.append("The published support." if same else "Not the published support: other clips are available here.")
    lines += describe_short(support["short"], support["shots"])
    if support["replaced"]:
        lines.append(f"{len(support['replaced'])} clips without media were replaced by the next in rank.")
    return tuple(lines)


def _curve(result: SeedResult) -> Curve:
    assert result.progress is not None
    entries = list(MetricsLogger(result.folder / "metrics.jsonl").entries())
    steps, epochs = ([entry for entry in entries if entry["kind"] == kind] for kind in ("step", "epoch"))
    return Curve(result.seed, steps, epochs, result.progress.finished)


def _spread(samples: Sequence[Sample], count: int = _EXAMPLES) -> list[int]:
    """Numbers of test clips of as many classes as possible, the same ones for every run on the data set."""
    by_class: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        by_class.setdefault(sample.label, []).append(index)
    queues = [rows for _, rows in sorted(by_class.items())]
    step = max(1, len(queues) // count)
    queues = queues[::step] + [queue for number, queue in enumerate(queues) if number % step]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue][: count - len(chosen)]
    return sorted(chosen)


def _examples(run: FewShot, model: AudioVisualModel, result: SeedResult, chosen: Sequence[int]) -> tuple[Example, ...]:
    test = run.evaluator.scored("test")
    samples, zero = [test.samples[index] for index in chosen], [test.logits[index] for index in chosen]
    assert result.progress is not None
    share = result.progress.best.blend
    trained = zero
    if share:
        adapted = run.evaluator.logits_of(model, [sample.path for sample in samples if sample.path is not None])
        trained = [before.ensemble(after, share) for before, after in zip(zero, adapted, strict=True)]
    fusions = result.progress.best.fitted.fusion or run.evaluator.decision.fusion, run.evaluator.decision.fusion
    return tuple(_example(run, sample, pair, fusions) for sample, *pair in zip(samples, trained, zero, strict=True))


def _example(run: FewShot, sample: Sample, pair: Sequence[ClipLogits], fusions: Sequence[str]) -> Example:
    """What the trained model and zero-shot say of a clip."""
    decision, known = run.evaluator.decision, run.dataset.classes
    tops, rights = [], []
    for logits, fusion in zip(pair, fusions, strict=True):
        scores = clip_probabilities([logits], len(known), fusion=fusion, pool=decision.pool)[0]
        order = scores.argsort()[::-1][:_ANSWERS]
        tops.append(tuple((known[index], float(scores[index])) for index in order))
        rights.append(int(order[0]) in sample.labels)
    seconds = _seconds(run, sample, pair, fusions)
    if decision.per_second and seconds and seconds[0].truth is not None:
        for place, name in enumerate(("trained", "zero_shot")):
            right = [getattr(second, name)[0] in (second.truth or ("background",)) for second in seconds]
            rights[place] = sum(right) > len(seconds) / 2
    return Example(
        name=sample.id,
        truth=tuple(known[label] for label in sample.labels),
        trained=tops[0],
        zero_shot=tops[1],
        right=rights[0],
        was_right=rights[1],
        thumbnails=tuple((picture.second, picture.source) for picture in thumbnails(str(sample.path), _PICTURES)),
        seconds=seconds,
    )


def _seconds(run: FewShot, sample: Sample, pair: Sequence[ClipLogits], fusions: Sequence[str]) -> tuple[Second, ...]:
    """The most probable of the classes and the background, second by second."""
    names = (*run.dataset.classes, "background")
    length = min(pair[0].num_segments, max(run.dataset.num_segments or 10, 1))
    rows = [
        second_probabilities([logits], len(names) - 1, length, fusion=fusion)[0]
        for logits, fusion in zip(pair, fusions, strict=True)
    ]
    truths = _truths(run, sample, length)
    return tuple(
        Second(
            truths[index] if truths is not None else None,
            *((names[int(row[index].argmax())], float(row[index].max())) for row in rows),
        )
        for index in range(length)
    )


def _truths(run: FewShot, sample: Sample, length: int) -> list[tuple[str, ...]] | None:
    """Names of what is annotated in each second; None where seconds are not annotated."""
    names = run.dataset.classes
    if sample.segments is not None:
        labels = run.dataset.segment_labels(sample, length)
        return [(names[label],) if label < len(names) else () for label in labels]
    if sample.events:
        happens = run.dataset.event_matrix(sample, "audio", length) | run.dataset.event_matrix(sample, "visual", length)
        return [tuple(names[label] for label in row.nonzero()[0]) for row in happens]
    return None


def _looks(run: FewShot, model: AudioVisualModel, chosen: Sequence[int]) -> tuple[AttentionExample, ...]:
    """Maps for the first clips that have picture and sound; nothing where there are no adapters to look into."""
    if model.adapters is None:
        return ()
    looks = []
    for sample in (run.evaluator.scored("test").samples[index] for index in chosen):
        clip = None if sample.path is None else run.evaluator.read(sample.path)
        if clip is not None and clip.frames is not None and clip.audio_segments is not None:
            looks.append(_look(run, model, sample, clip.frames, clip.audio_segments))
        if len(looks) == _LOOKS:
            break
    return tuple(looks)


@torch.inference_mode()
def _look(
    run: FewShot, model: AudioVisualModel, sample: Sample, frames: torch.Tensor, audio: torch.Tensor
) -> AttentionExample:
    frames, audio = frames[: run.config.window], audio[: run.config.window]
    truths = _truths(run, sample, len(frames))
    happens = None if truths is None else tuple(bool(names) for names in truths)
    second = happens.index(True) if happens and any(happens) else len(frames) // 2
    second = min(second + 1, len(frames) - 1) if happens and happens[min(second + 1, len(frames) - 1)] else second
    batch = frames[None].to(run.device), audio[None].to(run.device)
    heats = []
    for title, one in (("unadapted", run.evaluator.zero_shot), ("adapted", model)):
        tokens, _ = one.final_tokens(*batch)
        tower: Any = one.visual_tower
        places = tower.place_embeddings(tokens[second : second + 1])
        if places is not None:
            places = F.normalize(places[0].float(), dim=-1)
            if one.projectors is not None:
                places = one.projectors.visual(places)
            texts = run.evaluator.texts.projected(one).visual[sample.label]
            heats.append(Heatmap(f"{title}: where the label is", _rows(places @ texts)))
    adapters: Any = model.adapters
    guided = isinstance(adapters, DGSCT)
    with adapters.recording() if guided else nullcontext([]) as records, weighing(model) as maps:
        model(*batch)
    what = "spatial attention, last layer" if guided else "what is added, last layer"
    if "visual" in maps:
        heats.append(Heatmap(what, _rows(maps["visual"][second])))
    if "audio" in maps:
        hearing: Any = model.audio_tower
        heard = grey_source(hearing.spectrogram(batch[1][0, second : second + 1])[0].float().cpu().numpy())
        heats.append(Heatmap(f"{what}, of sound", _rows(maps["audio"][second]), heard))
    gates = []
    for record in records:
        if record.temporal is not None and record.half == "feed":
            title = "sound to sight" if record.direction == "a2v" else "sight to sound"
            gates.append((f"temporal gate, {title}", tuple(record.temporal.flatten().tolist())))
    return AttentionExample(
        name=sample.id,
        second=second,
        label=run.dataset.classes[sample.label],
        frame=jpeg_source(frames[second].permute(1, 2, 0).numpy()),
        heats=tuple(heats),
        gates=tuple(gates),
        truth=happens,
    )


def _rows(values: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.float().cpu().tolist())
