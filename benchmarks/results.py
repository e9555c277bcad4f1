"""Train the few-shot grid and the ablations on the toy world, and write the tables of docs/results.md.

    avfs data toy --root toy
    python benchmarks/results.py --root toy --runs toy-runs --table table.md

Runs that are complete are kept, so the command can be interrupted and run again; `--tables-only` trains nothing. Each
process uses one thread; `--jobs` run side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from avfewshot.evaluation.comparison import Comparison
from avfewshot.evaluation.estimate import Estimate
from avfewshot.evaluation.seeds import average_comparisons
from avfewshot.evaluation.tasks import METRICS

TASKS = ("ave", "ave_cls", "llp_cls")
SEEDS = "1,2,3"
# Clips times epochs are held within what two cores do in an hour and a half: fewer epochs for more shots.
GRID = {1: (6, 4), 2: (4, 4), 4: (3, 4), 8: (2, 8), 16: (1, 8)}  # shots: (epochs, batch size)
ABLATED_TASK, ABLATED_SHOTS = "llp_cls", 2
ABLATIONS = {
    "all of DG-SCT": (),
    "projectors only": ("--adapter-kind", "none"),
    "A2V only": ("--no-v2a",),
    "V2A only": ("--no-a2v",),
    "without S": ("--no-spatial",),
    "without C": ("--no-channel",),
    "without T": ("--no-temporal",),
}


@dataclass(frozen=True)
class Job:
    """One run of `avfs fewshot`, over all seeds."""

    task: str
    shots: int
    name: str
    extra: tuple[str, ...] = ()

    def arguments(self, root: Path, runs: Path) -> list[str]:
        """Its arguments behind `avfs`."""
        epochs, batch = GRID[self.shots]
        return [
            "fewshot", "--task", self.task, "--shots", str(self.shots), "--seeds", SEEDS, "--epochs", str(epochs),
            "--batch-size", str(batch), "--lr", "1e-3", "--validate-every", str(epochs), "--patience", "0",
            "--no-checkpointing", "--workers", "1", "--root", str(root), "--backbone", "tiny", "--runs", str(runs),
            "--name", self.name, *self.extra,
        ]  # fmt: skip

    def results(self, runs: Path) -> list[Path]:
        """Results of its seeds that are there."""
        folders = sorted((runs / self.task).glob(f"*-{self.name}"))
        return sorted(folders[-1].glob("seed-*/result.json")) if folders else []


def jobs() -> list[Job]:
    """The grid, then the ablations."""
    grid = [Job(task, shots, f"{shots}-shot") for shots in GRID for task in TASKS]
    ablations = [
        Job(ABLATED_TASK, ABLATED_SHOTS, f"{ABLATED_SHOTS}-shot-{name.replace(' ', '-')}", extra)
        for name, extra in ABLATIONS.items()
        if extra
    ]
    return grid + ablations


def run(job: Job, root: Path, runs: Path) -> None:
    """Train, unless it was done."""
    if len(job.results(runs)) == len(SEEDS.split(",")):
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "avfewshot", *job.arguments(root, runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{job.task} {job.name}: {'done' if not done.returncode else done.stderr[-500:]}", flush=True)


def read(job: Job, runs: Path) -> Comparison | None:
    """The comparison of a job's systems over its seeds."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in job.results(runs)]
    return average_comparisons([Comparison.from_dict(record["comparison"]) for record in found]) if found else None


def shown(estimate: Estimate, *, sign: bool = False) -> str:
    """A figure in percent with its interval."""
    if estimate.value is None:
        return "-"
    form = "{:+.1f}" if sign else "{:.1f}"
    text = form.format(100 * estimate.value)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({form.format(100 * estimate.low)} to {form.format(100 * estimate.high)})"


def tables(runs: Path) -> Iterable[str]:
    """The tables as Markdown."""
    for task in TASKS:
        rows, headline = [], ""
        for shots in GRID:
            comparison = read(Job(task, shots, f"{shots}-shot"), runs)
            if comparison is None:
                continue
            headline = comparison.headline
            cells = [shown(comparison.cells[system][headline]) for system in comparison.systems]
            gain = comparison.difference("trained", "zero-shot").estimate
            rows.append(f"| {shots} | {' | '.join(cells)} | {shown(gain, sign=True)} |")
        if rows:
            yield f"**`{task}`**, {METRICS[headline].title}, %:\n"
            yield "| shots | CLIP only | CLAP only | zero-shot fusion | trained | trained - zero-shot |"
            yield "|---|---|---|---|---|---|"
            yield from rows
            yield ""
    rows = []
    for name, extra in ABLATIONS.items():
        label = f"{ABLATED_SHOTS}-shot" + (f"-{name.replace(' ', '-')}" if extra else "")
        comparison = read(Job(ABLATED_TASK, ABLATED_SHOTS, label, extra), runs)
        if comparison is not None:
            trained = comparison.cells["trained"]
            columns = [metric for metric in ("hit_at_1", "map", "macro_f1") if metric in trained]
            rows.append(f"| {name} | {' | '.join(shown(trained[metric]) for metric in columns)} |")
    if rows:
        yield f"Ablation, `{ABLATED_TASK}`, {ABLATED_SHOTS} shots, trained model:\n"
        yield "| | hit@1 | mAP | macro F1 |"
        yield "|---|---|---|---|"
        yield from rows


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="toy world")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--table", type=Path, help="also write the tables here")
    parser.add_argument("--tables-only", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.tables_only:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda job: run(job, options.root, options.runs), jobs()))
    text = "\n".join(tables(options.runs)) + "\n"
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
