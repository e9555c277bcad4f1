"""Pretraining on two ranks, as torchrun starts them, against one rank with batches twice as large."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from training_support import assert_close, clips, log, losses, make_trainer, resumed, same, tensors

from avfewshot.training.distributed import many_devices, parting

TIMEOUT = 240.0  # seconds after which ranks that wait for each other for ever are ended; they need a tenth of it
# Clips without sound, without picture; rank 0 gets those of three seconds, rank 1 those of all other lengths.
ODD_ONES = ["0-1-3", "1-1-5", "2-1-3-mute", "0-2-4-blind", "1-2-1", "2-2-3", "0-3-3-blind", "1-3-2-mute"]
# Settings of a pretraining on two ranks; on one rank the batch is twice as large.
SCENARIOS: dict[str, dict[str, Any]] = {
    "even": {"paths": clips(12), "batch_size": 2, "epochs": 2},
    "last rank idle": {"paths": clips(9), "batch_size": 2, "epochs": 2, "objective": "classes"},
    "unequal chunks": {"paths": clips(7), "batch_size": 4, "epochs": 1, "micro_batch": 1},
    "odd ones": {"paths": [Path(f"{name}.mp4") for name in ODD_ONES], "batch_size": 4, "epochs": 2},
}


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
    assert fabric.world_size == 2
    result = {}
    for name, settings in SCENARIOS.items():
        training = make_trainer(folder / name, kind="pretrain", fabric=fabric, **settings)
        result[name] = outcome(training, folder / name)

    def asked():  # rank 1 alone, after four steps
        return fabric.global_rank == 1 and stopped.progress.step == 4

    settings = {"kind": "pretrain", "fabric": fabric, **SCENARIOS["even"]}
    stopped = make_trainer(folder / "stopped", stopping=asked, **settings)
    result["stopped"] = outcome(stopped, folder / "stopped")
    again = resumed(folder / "stopped", **settings)
    with parting(fabric):
        result["resumed"] = outcome(again, folder / "stopped")
    result["connected"] = dist.is_initialized()
    torch.save(result, folder / f"rank-{fabric.global_rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    """What two processes tell that went through all scenarios."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    processes = []
    try:
        for rank in range(2):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / f"rank-{rank}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, __file__, str(folder)], env={**os.environ, **common, **own}, stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )  # fmt: skip
        deadline = time.monotonic() + TIMEOUT
        # Where one rank fails, the other waits for it in vain.
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.05)
        states = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if states != [0, 0]:
        logs = "\n".join((folder / f"rank-{rank}.log").read_text()[-3000:] for rank in range(2))
        pytest.fail(f"The ranks ended with {states} (None: still waiting after {TIMEOUT:.0f} seconds).\n{logs}")
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_ranks_equal_one_with_a_batch_twice_as_large(ranks, tmp_path, folder, scenario):
    settings = SCENARIOS[scenario]
    alone = make_trainer(tmp_path, **{"kind": "pretrain", **settings, "batch_size": 2 * settings["batch_size"]})
    alone.fit()
    assert losses(folder / scenario) == pytest.approx(losses(tmp_path), abs=1e-5)
    first, second = (told[scenario] for told in ranks)
    assert first["finished"]
    assert second["finished"]
    assert_close(tensors(alone), first["tensors"])
    assert same(first["tensors"], second["tensors"])
    assert first["best"] == second["best"]
    # Every clip is used once an epoch by one rank.
    names = [path.stem for path in settings["paths"]]
    expected = sorted((epoch, name) for epoch in range(settings["epochs"]) for name in names)
    assert sorted(tuple(entry) for entry in first["given"] + second["given"]) == expected


def test_all_ranks_stop_together_when_one_is_asked_to_and_resume_to_the_bit_with_the_same_clips(ranks, folder):
    for told in ranks:
        straight, stopped, again = told["even"], told["stopped"], told["resumed"]
        assert (stopped["finished"], stopped["step"]) == (False, 4)
        assert same(straight["tensors"], again["tensors"])
        assert stopped["given"] + again["given"] == straight["given"]
    assert log(folder / "stopped") == log(folder / "even")


def test_ranks_part_when_all_is_done(ranks):
    assert [told["connected"] for told in ranks] == [False, False]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
