"""A record of a few-shot run made up for tests of its report, judged by the real evaluation."""

import dataclasses

import numpy as np
from scipy.special import softmax

from avfewshot.evaluation.evaluate import average_comparisons, evaluate_systems
from avfewshot.evaluation.targets import BackgroundRule, Predictions, Targets
from avfewshot.media.thumbnails import jpeg_source
from avfewshot.models.complexity import ParameterCount
from avfewshot.training.record import AttentionExample, Curve, Example, Heatmap, RunRecord, Second

SYSTEMS = (("CLIP only", 1.0), ("CLAP only", 0.6), ("zero-shot", 1.6), ("trained", 2.4))
NAMES = ("Speech", "Dog", "Violin, fiddle", "Frying (food)", "Chainsaw", "Baby laughter", "Car", "Cheering")


def judged(task, *, classes=None, clips=60, seed=0, replicates=60, systems=SYSTEMS):
    """Results and comparison of made-up systems, each as good as its number says."""
    rng = np.random.default_rng(seed)
    names = NAMES if classes is None else tuple(classes)
    count, rows = len(names), np.arange(clips)
    labels = np.zeros((clips, count), bool)
    labels[rows, rng.integers(count, size=clips)] = True
    several = task == "llp_cls"
    if several:
        labels[rows, rng.integers(count, size=clips)] = True
    segments = None
    if task == "ave":
        segments = np.where(rng.random((clips, 10)) < 0.8, labels.argmax(1)[:, None], count)
    targets = Targets(tuple(f"clip-{row}" for row in rows), names, labels, segments, several)
    said = {}
    truth = labels if segments is None else np.eye(count + 1)[segments]
    for name, strength in systems:
        scores = softmax(strength * truth + rng.normal(size=truth.shape), axis=-1)
        rule = None if segments is None else BackgroundRule("prompt")
        said[name] = Predictions(scores, rule, label_threshold=0.3 if several else None)
    return evaluate_systems(task, targets, said, replicates=replicates, seed=seed)


def picture(size, seed=0):
    rng = np.random.default_rng(seed)
    across = np.linspace(0, 255, size)[None, :, None] * np.ones((size, 1, 3))
    return jpeg_source((0.6 * across + 60 * rng.random((size, size, 3))).astype(np.uint8))


def curve(seed):
    steps, epochs = 120, 8
    rng = np.random.default_rng(seed)
    sight = 2.5 * np.exp(-np.arange(steps) / 40) + 0.3 * rng.random(steps)
    hearing = 2.0 * np.exp(-np.arange(steps) / 60) + 0.4 * rng.random(steps)
    total = 0.6 * sight + 0.4 * hearing
    losses = {"loss": total, "visual_loss": sight, "audio_loss": hearing}
    rows = [{"step": step + 1, "lr": 3e-4} | {k: float(v[step]) for k, v in losses.items()} for step in range(steps)]
    figures = [0.41, *(0.41 + 0.2 * (1 - np.exp(-np.arange(1, epochs + 1) / 3)) + 0.03 * rng.normal(size=epochs))]
    told, best = [], -1.0
    for epoch, figure in enumerate(figures):
        place = {"epoch": epoch, "step": epoch * 15, "best": figure > best}
        told.append(
            place
            | {"figure": float(figure), "loss": 2 - 0.1 * epoch, "blend": 0.5 if epoch else 0.0, "gate": 0.001 * epoch}
        )
        best = max(best, figure)
    return Curve(seed, rows, told, f"ended after {epochs} epochs")


def example(name="clip-1", *, right=True, was_right=False, per_second=True, labels=("Dog",)):
    answers = ["Dog"] * 4 + ["Speech"] * 2 + ["Dog"] * 4
    seconds = tuple(
        Second(
            (("Dog",) if 2 <= index < 8 else ()) if per_second else None,
            (answers[index], 0.7),
            ("Car" if index % 3 else "Dog", 0.4),
        )
        for index in range(10)
    )
    top = (("Dog", 0.712), ("Speech", 0.151), ("Car", 0.08), ("Cheering", 0.03), ("Chainsaw", 0.02))
    before = (("Car", 0.433), ("Dog", 0.302), ("Speech", 0.1), ("Cheering", 0.09), ("Chainsaw", 0.02))
    pictures = tuple((second, picture(64, second)) for second in range(10))
    return Example(name, labels, top, before, right, was_right, pictures, seconds)


def look(name="clip-1"):
    y, x = np.mgrid[0:7, 0:7]

    def bump(row, column):
        heights = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 4)
        return tuple(tuple(float(value) for value in line) for line in heights)

    heats = (
        Heatmap("unadapted: where “Dog” is", bump(1, 1)),
        Heatmap("adapted: where “Dog” is", bump(3, 4)),
        Heatmap("spatial attention of the adapters", bump(3, 3)),
        Heatmap("the same, of sound", bump(3, 3), picture(64)),
    )
    gates = (("visual, last layer", tuple(0.5 + 0.02 * np.sin(second) for second in range(10))),)
    return AttentionExample(name, 4, "Dog", picture(224), heats, gates, tuple(2 <= second < 8 for second in range(10)))


def record(task="llp_cls", *, seeds=1, **changes):
    """A whole record; keywords replace its fields, and ``classes``, ``clips``, ``replicates`` go to the evaluation."""
    asked = {name: changes.pop(name) for name in ("classes", "clips", "replicates", "systems") if name in changes}
    found = [judged(task, seed=seed, **asked) for seed in range(seeds)]
    made = RunRecord(
        title=f"{task}, 16 shots",
        task=task,
        dataset="LLP" if task == "llp_cls" else "AVE",
        command=f"avfs fewshot --shots 16 --task {task}",
        created="2025-03-01T12:00:00+00:00",
        version="0.1.0",
        settings=(("shots", "16", "flag"), ("lr", "0.0003", "default"), ("backbone", "tiny", "avfs.toml")),
        components=(
            ParameterCount("visual tower", 0, 87849216, 88_000_000_000),
            ParameterCount("adapters", 2_345_678, 2_345_678, 4_200_000_000),
            ParameterCount("temperatures", 2, 2, None),
            ParameterCount("all", 2_345_680, 90_194_896, 92_200_000_000),
        ),
        data=(
            ("train", 10000, 384, 0, "support"),
            ("val", 649, 640, 9, "selection"),
            ("test", 1200, 1195, 5, "figures"),
        ),
        left=(("test", "abc_0_10", "no audio track in it"), ("val", "def_10_20", "the file is damaged")),
        left_total=14,
        supports=tuple(
            (seed, ("384 clips, 16 of each of 24 classes", f"fingerprint 1a2b3c{seed}")) for seed in range(seeds)
        ),
        comparison=average_comparisons([comparison for _, comparison in found]),
        results=found[0][0],
        curves=tuple(curve(seed) for seed in range(seeds)),
        examples=(
            example("clip-1"),
            example("clip-2", right=False, was_right=True, labels=("Speech", "Car")),
            example("clip-3", right=False, per_second=False),
            example("clip-4", right=True, was_right=True),
        ),
        looks=(look(),),
        notes=("9 validation clips could not be read.",),
    )
    return dataclasses.replace(made, **changes)
