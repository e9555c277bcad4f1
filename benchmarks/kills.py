"""Commands that are killed again and again, and started again: do they end as if nobody had touched them?

    python benchmarks/kills.py --kills 20 --seed 1
    python benchmarks/kills.py --kills 20 --only zeroshot,fewshot,prepare,toy    # about 25 minutes of an idle core

Each command runs once undisturbed on a few clips of a toy world (backbone `tiny`). Then it is ended by SIGKILL or
SIGINT, in turn, at moments drawn evenly from the time that it took, and started again as a person would: the same
command, or `--resume` once there is a run folder. When it comes to its end, what it leaves is compared with what the
undisturbed one left, and it begins anew, until there were enough kills or `--minutes` are over. Nothing unfinished may
remain. Prints a table in Markdown; the exit status is 1 if anything differs. `kill_pretrain.py` kills between steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AVFS = [sys.executable, "-m", "avfewshot"]
TINY = ["--backbone", "tiny", "--device", "cpu", "--precision", "fp32"]


@dataclass
class Case:
    """A command, how it is gone on with, and what it leaves."""

    title: str
    command: Callable[[Path], list[str]]  # in a folder of its own, given what an earlier one has left there
    outcome: Callable[[Path], dict[str, str]]  # name -> digest, to be equal


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    """SHA-256 of files below a folder."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_outcome(folder: Path) -> dict[str, str]:
    """Trained tensors, the journal and the figures of the one run below a folder, whatever time its name tells."""
    found = [path.parent for path in folder.glob("runs/*/*/run.json")]
    if len(found) != 1:
        return {"run folders": str(len(found))}
    parts = digests(found[0], "**/best*/*.safetensors", "**/scorer/*.safetensors", "metrics.jsonl")
    if (results := found[0] / "results.json").is_file():
        parts["figures"] = json.dumps(_figures(json.loads(results.read_text())), sort_keys=True)
    return parts


def _figures(value: Any) -> Any:
    """Without what differs between two undisturbed runs: times, speeds, the folder in the command."""
    if isinstance(value, dict):
        return {
            key: _figures(item)
            for key, item in value.items()
            if not any(w in key for w in ("second", "time", "command", "created"))
        }
    return [_figures(item) for item in value] if isinstance(value, list) else value


def few_clips(toy: Path, classes: int = 12, clips: int = 3) -> None:
    """Links to some clips of the toy world's AVE as class folders: every command takes long enough, and no longer."""
    rows = [line.split("&")[:2] for line in (toy / "AVE" / "Annotations.txt").read_text().splitlines()]
    for name in list(dict.fromkeys(name for name, _ in rows))[:classes]:
        folder = toy / "few" / name
        folder.mkdir(parents=True, exist_ok=True)
        for video in [video for other, video in rows if other == name][:clips]:
            source, link = toy / "AVE" / "AVE" / f"{video}.mp4", folder / f"{video}.mp4"
            if source.is_file() and not link.exists():
                link.symlink_to(source)


def resumed(command: list[str], folder: Path, *tail: str) -> list[str]:
    """Go on with the run in a folder, or begin it."""
    found = sorted(folder.glob("runs/*/*/run.json"))
    return (
        [command[0], "--resume", str(found[0].parent)] if found else [*command, "--runs", str(folder / "runs"), *tail]
    )


def cases(toy: Path) -> dict[str, Case]:
    """The commands by name."""
    few = str(toy / "few")
    fewshot = ["fewshot", "--data", few, "--shots", "1", "--seeds", "1", "--epochs", "2"]
    fewshot += ["--hidden", "8", "--name", "kills", "--method", "dgsct", *TINY]
    pretrain = ["pretrain", "vggsound40k", "--root", str(toy / "VGGSound"), "--epochs", "2", "--batch-size", "8"]
    pretrain += ["--hidden", "8", "--name", "kills", *TINY]
    zeroshot = ["zeroshot", "--labels", str(toy / "labels.txt"), few, *TINY]
    prepare = ["data", "prepare", "folder", "--root", few, "--backbone", "tiny", "--workers", "1", "--shard-clips", "4"]
    world = ["data", "toy", "--only", "vggsound", "--clips-per-class", "3", "--jobs", "1"]
    return {
        "zeroshot": Case(
            "zeroshot --output r.jsonl",
            lambda folder: [*zeroshot, "--output", str(folder / "r.jsonl")],
            lambda folder: digests(folder, "r.jsonl"),
        ),
        "fewshot": Case("fewshot", lambda folder: resumed(fewshot, folder), run_outcome),
        "pretrain": Case("pretrain", lambda folder: resumed(pretrain, folder), run_outcome),
        "prepare": Case(
            "data prepare",
            lambda folder: [*prepare, "--out", str(folder / "shards")],
            lambda folder: digests(folder / "shards", "**/*"),
        ),
        "toy": Case(
            "data toy",
            lambda folder: [*world, "--root", str(folder / "toy")],
            lambda folder: digests(folder / "toy", "**/*"),
        ),
    }


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    """A command in a process of its own; its embeddings and clips are cached in the folder, as they are for people."""
    environment = os.environ | {"AVFS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen([*AVFS, *arguments], env=environment, stdout=log, stderr=log, cwd=folder)


def try_out(case: Case, kills: int, draw: random.Random, deadline: float) -> dict[str, Any]:
    """Kill and compare."""
    with tempfile.TemporaryDirectory(prefix="avfs-kills-") as name:
        straight = Path(name, "straight")
        straight.mkdir()
        began = time.monotonic()
        if status := start(case.command(straight), straight).wait():
            raise SystemExit(
                f"undisturbed `{case.title}`: status {status}\n{(straight / 'log.txt').read_text()[-2000:]}"
            )
        whole, expected = time.monotonic() - began, case.outcome(straight)
        row = {"case": case.title, "seconds": whole, "SIGKILL": 0, "SIGINT": 0, "ends": 0, "differences": []}
        while (done := row["SIGKILL"] + row["SIGINT"]) < kills and time.monotonic() < deadline:
            folder = Path(name, f"trial-{done}")
            folder.mkdir()
            while True:
                process = start(case.command(folder), folder)
                try:
                    more = row["SIGKILL"] + row["SIGINT"] < kills and time.monotonic() < deadline
                    process.wait(draw.uniform(0, whole) if more else None)
                    break
                except subprocess.TimeoutExpired:
                    number = signal.SIGINT if row["SIGINT"] < row["SIGKILL"] else signal.SIGKILL
                process.send_signal(number)
                process.wait()
                row[number.name] += 1
                if number is signal.SIGINT and process.returncode not in (130, -signal.SIGINT):
                    row["differences"].append(f"status {process.returncode} after SIGINT")
                print(f"{case.title}: {row['SIGKILL']} + {row['SIGINT']} of {kills}", file=sys.stderr)
            row["ends"] += 1
            if process.returncode:
                row["differences"].append(f"status {process.returncode}: {(folder / 'log.txt').read_text()[-300:]}")
            found = case.outcome(folder)
            row["differences"] += [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
            hidden = [path for path in folder.rglob(".*") if "cache" not in path.parts]
            row["differences"] += [f"remains: {path.relative_to(folder)}" for path in hidden]
            shutil.rmtree(folder)
        return row


def main() -> int:
    """Read the arguments, kill, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--minutes", type=float, default=60, help="for each command; the last trial is finished")
    parser.add_argument("--only", default="zeroshot,fewshot,pretrain,prepare,toy", help="some of the commands")
    parser.add_argument("--toy", type=Path, help="a toy world; one is made unless given")
    arguments = parser.parse_args()
    draw, rows = random.Random(arguments.seed), []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs behind
    with tempfile.TemporaryDirectory(prefix="avfs-kills-") as name:
        toy = arguments.toy or Path(name, "toy")
        if arguments.toy is None:
            world = ["data", "toy", "--root", str(toy), "--clips-per-class", "3", "--only", "ave,vggsound"]
            subprocess.run([*AVFS, *world], check=True)
        clips = Path(name, "clips")  # a toy world that is given stays as it is
        clips.mkdir()
        for path in toy.resolve().iterdir():
            (clips / path.name).symlink_to(path)
        few_clips(clips)
        for key in arguments.only.split(","):
            case = cases(clips)[key]
            rows.append(try_out(case, arguments.kills, draw, time.monotonic() + 60 * arguments.minutes))
            print(json.dumps(rows[-1]), file=sys.stderr)
    print("| command | undisturbed | SIGKILL | SIGINT | came to its end | differences |\n|---|---|---|---|---|---|")
    for row in rows:
        different = "; ".join(row["differences"]) or "none"
        kills = f"{row['SIGKILL']} | {row['SIGINT']} | {row['ends']}"
        print(f"| `{row['case']}` | {row['seconds']:.0f} s | {kills} | {different} |")
    return int(any(row["differences"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
