"""Pretraining on two ranks, as torchrun starts them, against one rank with batches twice as large."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pretrain_ranks import SCENARIOS
from training_support import assert_close, log, losses, make_trainer, tensors

TIMEOUT = 240.0
"""Seconds after which ranks that wait for each other for ever are ended; they need a tenth of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    """What two processes tell that went through all scenarios."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(__file__).with_name("pretrain_ranks.py")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    processes = []
    try:
        for rank in range(2):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / f"rank-{rank}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(program), str(folder)], env={**os.environ, **common, **own}, stdout=log,
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


def test_ranks_know_their_place(ranks):
    assert [told["place"] for told in ranks] == [[0, 2], [1, 2]]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_ranks_equal_one_with_a_batch_twice_as_large(ranks, tmp_path, folder, scenario):
    settings = SCENARIOS[scenario]
    alone = make_trainer(tmp_path, **{"kind": "pretrain", **settings, "batch_size": 2 * settings["batch_size"]})
    alone.fit()
    assert losses(folder / scenario) == pytest.approx(losses(tmp_path), abs=1e-5)
    for told in ranks:
        assert told[scenario]["finished"] is True
        assert_close(tensors(alone), told[scenario]["tensors"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_ranks_end_with_the_same_tensors_and_the_same_verdict(ranks, scenario):
    first, second = (told[scenario] for told in ranks)
    assert all(torch.equal(tensor, second["tensors"][name]) for name, tensor in first["tensors"].items())
    assert first["best"] == second["best"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_clip_is_used_once_an_epoch_by_one_rank(ranks, scenario):
    given = [tuple(entry) for told in ranks for entry in told[scenario]["given"]]
    names = [path.stem for path in SCENARIOS[scenario]["paths"]]
    assert sorted(given) == sorted((epoch, name) for epoch in range(SCENARIOS[scenario]["epochs"]) for name in names)


def test_all_ranks_stop_together_when_one_is_asked_to(ranks):
    for told in ranks:
        assert told["stopped"]["finished"] is False
        assert told["stopped"]["step"] == 4


def test_two_ranks_resume_to_the_bit_with_the_same_clips(ranks, folder):
    for told in ranks:
        straight, again = told["even"], told["resumed"]
        assert all(torch.equal(tensor, again["tensors"][name]) for name, tensor in straight["tensors"].items())
        assert told["stopped"]["given"] + again["given"] == straight["given"]
    assert log(folder / "stopped") == log(folder / "even")
