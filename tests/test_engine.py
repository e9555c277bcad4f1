"""`--engine ray`: the results of one process, from the workers of a cluster, also when one of them dies."""

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from command_support import Commands
from media_factory import tone, write_media

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'avfewshot[ray]'")
ROOT = Path(__file__).resolve().parents[1]
LABELS = ("--label", "dog barking", "--label", "boat honking", "--backbone", "tiny", "--segments")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips with and without sound, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(11):
        wave = None if number == 3 else tone(2.0, frequency=220 * (number + 1))
        write_media(folder / f"{number}.mp4", seconds=2.0, audio=wave)
    (folder / "broken.mp4").write_bytes(b"no clip")
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, each with room for one worker."""
    from ray.cluster_utils import Cluster

    paths = os.environ.get("PYTHONPATH")
    os.environ.update(RAY_worker_niceness="0")  # beside other tests, workers at 15 would wait for minutes
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([paths] if paths else [])])
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def workers():
    """Processes of Ray that hold one of our workers, by their titles."""
    import psutil

    return [one for one in psutil.process_iter(["cmdline"]) if "ray::MapWorker" in " ".join(one.info["cmdline"] or [])]


def same(one, two):
    """Equal but for rounding: some processors add up small batches in another order than large ones."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(value, two[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return one == (pytest.approx(two, abs=2e-6) if isinstance(two, float) else two)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_give_the_results_of_one_process_though_a_worker_is_killed(cluster, clips, avfs, tmp_path):
    first = avfs.json("zeroshot", clips, *LABELS, status=1)  # one file is broken
    seen, killed = set(), []

    def kill_one():
        until = time.monotonic() + 240
        while not killed and time.monotonic() < until:
            for one in workers():
                seen.add(one.pid)
                if len(seen) > 1 and ".submit" in " ".join(one.info["cmdline"]):  # it works on clips
                    os.kill(one.pid, signal.SIGKILL)
                    killed.append(one.pid)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    engine = ("--engine", "ray", "--address", cluster.address)
    second = Commands(tmp_path).json("zeroshot", clips, *LABELS, *engine, status=1)  # with a cache of its own
    killer.join()
    assert killed, "no worker was met at work"
    assert [clip["path"] for clip in second["clips"]] == [clip["path"] for clip in first["clips"]]
    assert same(second["clips"], first["clips"])
    assert second["failed"] == first["failed"]


def test_without_ray_it_is_misuse_with_the_way_to_install_it(avfs, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    write_media(tmp_path / "a.mp4", seconds=1.0)
    (tmp_path / "mine" / "dog").mkdir(parents=True)
    for command in (
        ("zeroshot", "a.mp4", "--label", "dog"),
        ("embed", "a.mp4", "--store", "store"),
        ("data", "prepare", "folder", "--root", "mine", "--out", "shards"),
    ):
        assert "avfewshot[ray]" in avfs.refused(*command, "--engine", "ray")
        assert "--engine ray" in avfs.refused(*command, "--address", "auto")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "mine"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_store_embedded_by_a_cluster_is_that_of_one_process(cluster, clips, avfs, tmp_path):
    import numpy as np

    from avfewshot.media.clip import MODALITIES
    from avfewshot.store.store import Store

    engine = ("--engine", "ray", "--address", cluster.address)
    for name, more in (("one", ()), ("two", engine)):
        avfs("embed", clips, "--store", name, "--backbone", "tiny", *more, status=1)
    first, second = Store(tmp_path / "one"), Store(tmp_path / "two")
    assert [clip.path for clip in second.embedded] == [clip.path for clip in first.embedded]
    assert all(np.allclose(first.vectors(name), second.vectors(name), atol=1e-6) for name in MODALITIES)
    assert first.thumbnail(clips / "0.mp4", 1) == second.thumbnail(clips / "0.mp4", 1) is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shards_prepared_by_a_cluster_are_those_of_one_process_to_the_byte(cluster, clips, avfs, tmp_path):
    for label in ("dog", "boat"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "mine" / label / f"{number}.mp4").write_bytes((clips / f"{number}.mp4").read_bytes())
    (tmp_path / "mine" / "dog" / "broken.mp4").write_bytes(b"no clip")
    common = ("data", "prepare", "folder", "--root", "mine", "--backbone", "tiny", "--shard-clips", 2)
    avfs(*common, "--out", "one", "--workers", 1, status=1)
    avfs(*common, "--out", "two", "--engine", "ray", "--address", cluster.address, status=1)
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("one", "two")
    ]
    assert contents[0] == contents[1]
    assert sum(name.endswith(".tar") for name in contents[0]) > 1
