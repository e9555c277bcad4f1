"""Train the few-shot grid, the ablations and pretrainings on the toy world, and write the tables of docs/results.md.

A cell of the grid is `avfs fewshot --task TASK --shots K --seeds 1,2,3` with default settings: every method beside the
other, and how they are joined.

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

from avfewshot.evaluation.evaluate import average_comparisons
from avfewshot.evaluation.results import Comparison, Estimate
from avfewshot.evaluation.tasks import METRICS

TASKS = ("ave", "ave_cls", "llp_cls")
SEEDS = "1,2,3"
SHOTS = (16, 1, 4, 2, 8)  # in the order in which they are run
ABLATED_TASK, ABLATED_SHOTS = "llp_cls", 1
ABLATIONS = {
    "all of DG-SCT": (),
    "projectors only": ("--adapter-kind", "none"),
    "A2V only": ("--no-v2a",),
    "V2A only": ("--no-a2v",),
    "without S": ("--no-spatial",),
    "without C": ("--no-channel",),
    "without T": ("--no-temporal",),
}
PRETRAINED_TASKS = ("ave_cls", "llp_cls")
PARTS = ("all classes", "classes that were trained on", "other classes")


@dataclass(frozen=True)
class Job:
    """One run of `avfs fewshot`, over all seeds."""

    task: str
    shots: int
    name: str
    extra: tuple[str, ...] = ()

    def arguments(self, root: Path, runs: Path) -> list[str]:
        """Its arguments behind `avfs`."""
        return [
            "fewshot", "--task", self.task, "--shots", str(self.shots), "--seeds", SEEDS, "--root", str(root),
            "--backbone", "tiny", "--runs", str(runs), "--name", self.name, *self.extra,
        ]  # fmt: skip

    def results(self, runs: Path) -> list[Path]:
        """Results of its seeds that are there."""
        folders = sorted((runs / self.task).glob(f"*-{self.name}"))
        return sorted(folders[-1].glob("seed-*/result.json")) if folders else []


def jobs() -> list[Job]:
    """The grid, then the ablations."""
    grid = [Job(task, shots, f"{shots}-shot") for shots in SHOTS for task in TASKS]
    ablations = [
        Job(ABLATED_TASK, ABLATED_SHOTS, f"{ABLATED_SHOTS}-shot-{name.replace(' ', '-')}", extra)
        for name, extra in ABLATIONS.items()
        if extra
    ]
    return grid + ablations


def run(job: Job, root: Path, runs: Path) -> None:
    """Train, unless it was done."""
    if len(job.results(runs)) < len(SEEDS.split(",")):
        avfs(*job.arguments(root, runs))


def run_pretraining(seed: str, root: Path, runs: Path) -> None:
    """Pretrain with a seed and evaluate on data sets that were not trained on, unless it was done."""
    targets = {task: runs / "pretrained" / f"{task}-{seed}.json" for task in PRETRAINED_TASKS}
    if all(path.is_file() for path in targets.values()):
        return
    avfs(
        "pretrain", "vggsound40k", "--epochs", "1", "--batch-size", "16", "--lr", "1e-3", "--val-clips", "48",
        "--no-checkpointing", "--seed", seed, "--name", f"seed-{seed}", "--root", root, "--backbone", "tiny",
        "--runs", runs,
    )  # fmt: skip
    trained = sorted((runs / "pretrain").glob(f"*-seed-{seed}"))[-1]
    for task, path in targets.items():
        path.parent.mkdir(exist_ok=True)
        avfs("zeroshot", "--task", task, "--root", root, "--adapter", trained, "--output", path)


def avfs(*arguments: object) -> None:
    """Run the program in a process of its own, on one thread."""
    words = [str(argument) for argument in arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "avfewshot", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"avfs {' '.join(words)}: {done.stderr[-500:] if done.returncode else 'done'}", flush=True)


def read(job: Job, runs: Path) -> Comparison | None:
    """The comparison of a job's systems over its seeds."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in job.results(runs)]
    return average_comparisons([Comparison.model_validate(record["comparison"]) for record in found]) if found else None


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
        cells = {shots: read(Job(task, shots, f"{shots}-shot"), runs) for shots in sorted(SHOTS)}
        columns = {shots: comparison for shots, comparison in cells.items() if comparison is not None}
        if not columns:
            continue
        headline = next(iter(columns.values())).headline
        systems = dict.fromkeys(system for comparison in columns.values() for system in comparison.systems)
        yield f"**`{task}`**, {METRICS[headline].title}, %:\n"
        yield f"| system | {' | '.join(map(str, columns))} |"
        yield "|---" * (len(columns) + 1) + "|"
        for system in systems:
            row = [c.cells[system][headline] if system in c.systems else None for c in columns.values()]
            yield f"| {system} | {' | '.join('-' if cell is None else shown(cell) for cell in row)} |"
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
        yield ""
    yield from pretrained_tables(runs)


def pretrained_tables(runs: Path) -> Iterable[str]:
    """What pretraining gives on tasks that were not trained on."""
    rows = []
    for task in PRETRAINED_TASKS:
        paths = sorted((runs / "pretrained").glob(f"{task}-*.json"))
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        for part in PARTS:
            found = [record["comparison"] if part == PARTS[0] else record["parts"].get(part) for record in records]
            comparisons = [Comparison.model_validate(record) for record in found if record is not None]
            if not comparisons:
                continue
            mean = average_comparisons(comparisons)
            cells = [shown(mean.cells[system][mean.headline]) for system in mean.systems]
            gain = mean.difference("adapted", "zero-shot").estimate
            metric = METRICS[mean.headline].title
            rows.append(
                f"| `{task}`, {metric} | {part} | {mean.num_clips} | {' | '.join(cells)} | {shown(gain, sign=True)} |"
            )
    if rows:
        yield "Zero-shot on AVE and LLP after pretraining on the VGG-Sound layout, %:\n"
        yield "| task | test clips of | clips | CLIP only | CLAP only | zero-shot fusion | pretrained | difference |"
        yield "|---|---|---|---|---|---|---|---|"
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
            list(pool.map(lambda seed: run_pretraining(seed, options.root, options.runs), SEEDS.split(",")))
    text = "\n".join(tables(options.runs)) + "\n"
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
