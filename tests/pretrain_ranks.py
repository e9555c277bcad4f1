"""One rank of several that pretrain together over gloo: `python pretrain_ranks.py FOLDER`, started as by torchrun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from training_support import clips, losses, make_trainer, resumed, tensors

from avfewshot.training.distributed import many_devices

ODD_ONES = ["0-1-3", "1-1-5", "2-1-3-mute", "0-2-4-blind", "1-2-1", "2-2-3", "0-3-3-blind", "1-3-2-mute"]
"""Clips without sound, without picture; rank 0 gets those of three seconds, rank 1 those of all other lengths."""

SCENARIOS: dict[str, dict[str, Any]] = {
    "even": {"paths": clips(12), "batch_size": 2, "epochs": 2},
    "last rank idle": {"paths": clips(9), "batch_size": 2, "epochs": 2, "objective": "classes"},
    "unequal chunks": {"paths": clips(7), "batch_size": 4, "epochs": 1, "micro_batch": 1},
    "odd ones": {"paths": [Path(f"{name}.mp4") for name in ODD_ONES], "batch_size": 4, "epochs": 2},
}
"""Settings of a pretraining on two ranks; on one rank the batch is twice as large."""


def outcome(training: Any, folder: Path) -> dict[str, Any]:
    """What a rank knows at the end."""
    return {
        "finished": bool(training.fit().finished),
        "step": training.progress.step,
        "best": training.progress.best.to_dict(),
        "tensors": tensors(training),
        "given": training.task.source.given,
        "losses": losses(folder),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fabric = many_devices(torch.device("cpu"), "fp32", devices=2, strategy="ddp")
    result = {"place": [fabric.global_rank, fabric.world_size]}
    for name, settings in SCENARIOS.items():
        training = make_trainer(folder / name, kind="pretrain", fabric=fabric, **settings)
        result[name] = outcome(training, folder / name)

    def asked():  # rank 1 alone, after four steps
        return fabric.global_rank == 1 and stopped.progress.step == 4

    settings = {"kind": "pretrain", "fabric": fabric, **SCENARIOS["even"]}
    stopped = make_trainer(folder / "stopped", stopping=asked, **settings)
    result["stopped"] = outcome(stopped, folder / "stopped")
    again = resumed(folder / "stopped", **settings)
    result["resumed"] = outcome(again, folder / "stopped")
    torch.save(result, folder / f"rank-{fabric.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
