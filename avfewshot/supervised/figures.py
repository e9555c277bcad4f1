"""What the papers draw, for a supervised run: embeddings by t-SNE, where adapters look, what is said when.

DG-SCT (arXiv 2311.05152), Fig. 5, 3 and 11. Clips are spread evenly over the split: none is chosen by its result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.errors import AvfsError
from avfewshot.evaluation.parsing import runs
from avfewshot.media.clip import MODALITIES
from avfewshot.media.thumbnails import grey_source, jpeg_source, spread
from avfewshot.models.audio_visual import weighing
from avfewshot.supervised.base import Example
from avfewshot.supervised.features import clip_features
from avfewshot.supervised.training import SupervisedModel, SupervisedRun

MOST_POINTS = 1000
MOST_CLIPS = 8  # with a timeline
_LOOKS, _SECONDS = 4, 5  # clips, and seconds of each, with maps
_EMBEDDINGS = frozenset({"visual", "audio"})


@dataclass(frozen=True)
class Embedded:
    """Clips in the plane."""

    title: str
    points: np.ndarray  # [n, 2]
    classes: list[str]
    neighbours: float  # share of clips whose nearest other clip, before t-SNE, is of their class


@dataclass(frozen=True)
class Look:
    """A second of a clip, and how the adapters of the last layer weigh its places."""

    clip: str
    label: str | None
    second: int
    frame: str  # address of the picture
    seen: list[list[float]]  # how sound weighs the places of the picture
    spectrogram: str  # address of the picture
    heard: list[list[float]]  # how sight weighs times and frequencies


@dataclass(frozen=True)
class Parsed:
    """What happens when in a clip."""

    clip: str
    seconds: int
    # modality -> class -> who says so (truth first) -> stretches [start, stop); classes that nobody names are left out
    streams: dict[str, dict[str, dict[str, list[tuple[int, int]]]]]
    systems: tuple[str, ...]  # who says so


def embed(run: SupervisedRun, model: SupervisedModel, examples: Sequence[Example], seed: int = 0) -> list[Embedded]:
    """Clips of one class by t-SNE of their mean embeddings of sight and sound, of the frozen and the adapted towers."""
    from sklearn.manifold import TSNE

    about = run.data.about
    named = [(example, run.task.class_of(example, about)) for example in examples]
    named = [(example, name) for example, name in named if name is not None]
    named = [named[index] for index in spread(len(named), MOST_POINTS)]
    if len({name for _, name in named}) < 2 or len(named) < 5:
        return []
    classes = [name for _, name in named]
    store = run.store if run.store.kinds >= _EMBEDDINGS else run.feature_store(_EMBEDDINGS)
    kept = [example for example, _ in named]
    store.usable(kept, "embeddings for t-SNE")
    towers = {"frozen towers": [store.get(example.path) for example in kept]}
    if run.adapted:
        run.observer.begin("embeddings of the adapted towers", len(kept))
        towers["with adapters"] = []
        for example in kept:
            clip = run.store.read(example.path)
            with torch.inference_mode():
                features = clip_features(model.towers, _EMBEDDINGS, clip, run.task.seconds, "av", run.device)
            towers["with adapters"].append(features)
            run.observer.advance()
    result = []
    for title, features in towers.items():
        joined = torch.stack([_mean(one) for one in features]).cpu().numpy()
        nearest = (joined @ joined.T - 4 * np.eye(len(joined))).argmax(1)
        neighbours = float(np.mean([classes[other] == own for other, own in zip(nearest, classes, strict=True)]))
        perplexity = min(30.0, (len(joined) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(joined)
        result.append(Embedded(title, points, classes, neighbours))
    return result


def _mean(features: Mapping[str, Tensor]) -> Tensor:
    """Mean directions of sight and of sound side by side."""
    means = [F.normalize(features[kind].float(), dim=-1).mean(0) for kind in MODALITIES]
    return torch.cat([F.normalize(mean, dim=-1) for mean in means])


def look(run: SupervisedRun, model: SupervisedModel, examples: Sequence[Example]) -> list[Look]:
    """Where the adapters of the last layer look, in some seconds of some clips that have picture and sound."""
    if not run.adapted:
        return []
    looks = []
    for example in (examples[index] for index in spread(len(examples), _LOOKS)):
        try:
            clip = run.store.read(example.path)
        except AvfsError:
            continue
        frames, audio = clip.frames, clip.audio_segments
        if frames is None or audio is None:
            continue
        frames, audio = frames[: run.task.seconds], audio[: run.task.seconds]
        with torch.inference_mode(), weighing(model.towers) as maps:
            model.towers(frames[None].to(run.device), audio[None].to(run.device))
            spectrograms = model.towers.audio_tower.spectrogram(audio.to(run.device)).cpu()
        if maps.keys() != {"visual", "audio"}:  # one direction is switched off
            continue
        label = run.task.class_of(example, run.data.about)
        looks += [
            Look(
                example.id,
                label,
                second,
                jpeg_source(frames[second].permute(1, 2, 0).numpy()),
                maps["visual"][second].tolist(),
                grey_source(spectrograms[second].float().numpy()),
                maps["audio"][second].tolist(),
            )
            for second in spread(len(frames), _SECONDS)
        ]
    return looks


def parse(run: SupervisedRun, examples: Sequence[Example], said: Mapping[str, Sequence[Any]]) -> list[Parsed]:
    """What happens when, in truth and as the systems of `said` have it (by name, a prediction an example)."""
    task, about = run.task, run.data.about
    result = []
    for index in spread(len(examples), MOST_CLIPS):
        answers = {"truth": task.truth(examples[index])} | {name: answers[index] for name, answers in said.items()}
        by_system = {name: task.streams(answer, about) for name, answer in answers.items()}
        streams: dict[str, dict[str, dict[str, list[tuple[int, int]]]]] = {}
        for stream in by_system["truth"]:
            told = {who: said_of[stream] for who, said_of in by_system.items()}
            active = np.flatnonzero(np.any([one.any(0) for one in told.values()], axis=0))
            streams[stream] = {
                about["classes"][label]: {who: runs(one[:, label]) for who, one in told.items()} for label in active
            }
        if streams:
            result.append(Parsed(examples[index].id, task.seconds, streams, tuple(answers)))
    return result
