"""Train the few-shot grid, the ablations and pretrainings on the toy world, and write the tables of docs/results.md.

A cell of the grid is `avfs fewshot --task TASK --shots K --seeds 1,2,3` with default settings: every method beside the
other, and how they are joined. The ablations are `avfs compare --task llp_cls --shots 1 --ablate modules|directions`.

    avfs data toy --root toy
    python benchmarks/results.py --root toy --runs toy-runs --table table.md

Runs that are complete are kept, so the command can be interrupted and run again; `--train` says what of it is trained,
`--train none` nothing. Each process uses one thread; `--jobs` run side by side.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from avfewshot.evaluation.evaluate import average_comparisons
from avfewshot.evaluation.results import Comparison, Estimate
from avfewshot.evaluation.tasks import METRICS

TASKS = ("ave", "ave_cls", "llp_cls")
SEEDS = "1,2,3"
SHOTS = (16, 1, 4, 2, 8)  # in the order in which they are run
ABLATED_TASK, ABLATED_SHOTS = "llp_cls", 1
ABLATIONS = ("modules", "directions")
PRETRAINED_TASKS = ("ave_cls", "llp_cls")
PARTS = ("all classes", "classes that were trained on", "other classes")


def results(task: str, shots: int, runs: Path) -> list[Path]:
    """Results of the seeds of a cell that are there."""
    folders = sorted((runs / task).glob(f"*-{shots}-shot"))
    return sorted(folders[-1].glob("seed-*/result.json")) if folders else []


def run_cell(task: str, shots: int, root: Path, runs: Path) -> None:
    """Train, unless it was done."""
    if len(results(task, shots, runs)) < len(SEEDS.split(",")):
        avfs(
            "fewshot", "--task", task, "--shots", shots, "--seeds", SEEDS, "--root", root, "--backbone", "tiny",
            "--runs", runs, "--name", f"{shots}-shot",
        )  # fmt: skip


def run_ablation(kind: str, root: Path, runs: Path) -> None:
    """Train what of its rows is not there."""
    avfs(
        "compare", "--task", ABLATED_TASK, "--shots", ABLATED_SHOTS, "--seeds", SEEDS, "--ablate", kind, "--root", root,
        "--backbone", "tiny", "--runs", runs,
    )  # fmt: skip


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


def read(task: str, shots: int, runs: Path) -> Comparison | None:
    """The comparison of a cell's systems over its seeds."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results(task, shots, runs)]
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
        cells = {shots: read(task, shots, runs) for shots in sorted(SHOTS)}
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
    for kind in ABLATIONS:
        path = runs / "compare" / f"{ABLATED_TASK}-{kind}" / "compare.csv"
        if path.is_file():
            yield f"Ablation, `{ABLATED_TASK}`, {ABLATED_SHOTS} shots, {kind}:\n"
            yield "| | hit@1 |"
            yield "|---|---|"
            for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
                numbers = (float(row[key]) if row[key] else None for key in ("value", "low", "high"))
                yield f"| {row['system']} | {shown(Estimate(*numbers))} |"
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
    kinds = ("grid", "ablations", "pretraining")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="toy world")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--table", type=Path, help="also write the tables here")
    parser.add_argument("--train", nargs="+", choices=(*kinds, "none"), default=kinds, help="what of it")
    options = parser.parse_args()
    where = options.root, options.runs
    with ThreadPoolExecutor(options.jobs) as pool:
        if "grid" in options.train:
            list(pool.map(lambda cell: run_cell(*cell, *where), [(task, shots) for shots in SHOTS for task in TASKS]))
        if "ablations" in options.train:
            list(pool.map(lambda kind: run_ablation(kind, *where), ABLATIONS))
        if "pretraining" in options.train:
            list(pool.map(lambda seed: run_pretraining(seed, *where), SEEDS.split(",")))
    text = "\n".join(tables(options.runs)) + "\n"
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
