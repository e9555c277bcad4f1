"""Finished few-shot runs side by side, clip by clip: paired differences over seeds and the test clips they share."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avfewshot.config import ADAPTER_METHODS
from avfewshot.errors import DataError, UsageError
from avfewshot.evaluation.bootstrap import REPLICATES, estimate, over_runs, resample
from avfewshot.evaluation.evaluate import with_differences
from avfewshot.evaluation.results import Comparison, Estimate

RESULTS_NAME, ANSWERS_NAME = "results.json", "answers.jsonl"
_HINT = "Give folders of finished runs: runs/TASK/TIME-NAME."

Clip = tuple[str, tuple[str, ...]]
"""What makes a test clip of two runs the same: its id and what is true of it (of each second, where those count)."""


@dataclass(frozen=True)
class FinishedRun:
    """A run with the answers of what stands for it: its method, or the adapter that was trained."""

    name: str
    task: str
    headline: str
    method: str
    seeds: dict[int, dict[Clip, Any]]  # seed -> clip -> its answer, or those to its seconds
    methods: list[dict[str, Any]]  # what that system says of itself, a seed

    def right(self, seed: int, clip: Clip) -> float:
        """Whether the answer to a clip is right, or the share of its seconds."""
        truth, answer = clip[1], self.seeds[seed][clip]
        return float(answer in truth) if isinstance(answer, str) else float(np.mean(np.array(truth) == answer))


def read_finished(folder: Path) -> FinishedRun:
    """Read a run; a :class:`UsageError` where it is none with test clips, a :class:`DataError` if it is damaged."""
    path, hint = folder / RESULTS_NAME, _HINT
    if not path.is_file():
        problem = "holds no results.json, so it is no finished run" if folder.is_dir() else "there is no such folder"
        if (folder / "run.json").is_file():
            hint = f"If it is a few-shot run, finish it: avfs fewshot --resume {shlex.quote(str(folder))}"
        raise UsageError(f"{folder}: {problem}.", hint=hint)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "comparison" not in document:
            raise UsageError(f"{folder}: is not the folder of a few-shot run.", hint=_HINT)
        method, comparison = document["config"]["method"], document["comparison"]
        system = "trained" if method in ADAPTER_METHODS else method
        if comparison is None or not document["seeds"]:
            raise UsageError(f"{folder}: had no test clip, so nothing can be compared.", hint=_HINT)
        runs = sorted(document["seeds"], key=lambda one: one["seed"])
        seeds, methods = {}, [seed["methods"][system] for seed in runs]
        for seed in runs:
            path = folder / f"seed-{seed['seed']}" / ANSWERS_NAME
            if not path.is_file():
                hint = "It was made by an earlier version: give its command again."
                raise UsageError(f"{folder}: does not say what was answered to each clip.", hint=hint)
            answers = {}
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                answers[str(record["id"]), tuple(record["truth"])] = record["answers"][system]
            seeds[int(seed["seed"])] = answers
        config = document["config"]
        called = config["adapter"] if system == "trained" else system
        return FinishedRun(folder.name, config["task"], comparison["headline"], called, seeds, methods)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: is damaged ({what}).", hint="Give the command again that made the run.") from None


def compare_finished(runs: Sequence[FinishedRun]) -> tuple[Comparison, list[Clip]]:
    """Runs as the systems of a table on the test clips that all of them have, and the clips on which they differ.

    Intervals are by a hierarchical bootstrap over seeds and clips; those of differences are paired in the clips, and in
    the seeds where both runs have the same. Runs without a common clip, or of other figures, are a :class:`DataError`.
    """
    if len({run.headline for run in runs}) > 1:
        told = ", ".join(f"{run.name}: {run.headline}" for run in runs)
        raise DataError(f"The runs are judged by different figures ({told}).", hint="Compare runs of one task.")
    shared = [
        clip for clip in next(iter(runs[0].seeds.values())) if all(clip in a for r in runs for a in r.seeds.values())
    ]
    if not shared:
        told = ", ".join(f"{run.name}: {run.task}" for run in runs)
        raise DataError(f"The runs have no test clip in common ({told}).", hint="Compare runs on the same data.")
    groups = np.unique([name for name, _ in shared], return_inverse=True)[1].reshape(-1)
    counts = resample(groups, REPLICATES, 0).astype(np.float64)
    right = {run.name: np.array([[run.right(seed, c) for c in shared] for seed in run.seeds]) for run in runs}
    draws: dict[str, npt.NDArray[np.float64]] = {
        name: values @ counts / counts.sum(0) for name, values in right.items()
    }
    headline, number = runs[0].headline, len(shared)
    cells = {}
    for run in runs:
        whole = len(run.seeds) == 1 and headline != "segment_accuracy"
        values = right[run.name].mean(1)
        figure = estimate(values.mean(), over_runs(draws[run.name], 0), number, proportion=whole)
        if len(values) > 1:
            figure = dataclasses.replace(figure, interval="seeds", n=len(values), values=tuple(values.tolist()))
        cells[run.name] = {headline: figure}
    means = np.array([right[run.name].mean(0) for run in runs])
    differing = [clip for clip, column in zip(shared, means.T, strict=True) if np.ptp(column) > 0]
    seeds = {run.name: list(run.seeds) for run in runs}

    def difference(later: str, earlier: str, metric: str) -> Estimate:
        ours, theirs = draws[later], draws[earlier]
        paired = seeds[later] == seeds[earlier]
        gap = over_runs(ours - theirs, 0) if paired else over_runs(ours, 0) - over_runs(theirs, 1)
        return estimate(right[later].mean() - right[earlier].mean(), gap, number, lowest=-1.0)

    table = Comparison(
        task=runs[0].task,
        headline=headline,
        num_clips=number,
        systems=tuple(run.name for run in runs),
        metrics=(headline,),
        cells=cells,
        differences=(),
        replicates=REPLICATES,
    )
    return with_differences(table, difference), differing
