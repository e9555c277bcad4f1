"""Which store for a collection, and how fast `avfs find` is: seconds of clips that are made up, a million by default.

    pip install lancedb "pyarrow<22" faiss-cpu usearch numkong
    python benchmarks/store.py --candidates all --vectors 50000 --folder /tmp/stores --output stores.json
    python benchmarks/store.py --vectors 1000000 --folder /tmp/stores --output find.json
    python benchmarks/store.py --rerun 10000 --folder /tmp/stores
    python benchmarks/store.py --embed 10000 --clips toy/AVE --folder /tmp/stores

The first compares candidates for the store on the same vectors: LanceDB, or vectors in a memory-mapped file with an
index. `build` is from vectors to an index that answers, `first` the first answer of a new process, imports included,
`add` a commit of 1,000 seconds that survives a kill. The second makes an :class:`avfewshot.Store` and searches it by
sight, sound and both. Recall is the share of the best twenty of an exact search that is returned. The last embeds hard
links of some clips by `avfs embed`, each of them decoded; interrupted, it goes on.

Vectors are spread as embeddings of CLIP are: ten seconds of a clip lie close together, clips gather around topics,
variance falls off along the axes, and texts lie apart from clips (the modality gap), which is what makes approximate
search hard.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIM, CLIP, TOPICS, TOP, CHUNK = 512, 10, 4000, 20, 50_000
CANDIDATES = (
    "lance-ivf-pq", "lance-ivf-hnsw-sq", "memmap-faiss-ivf-pq", "memmap-faiss-pq4", "memmap-usearch-hnsw-i8",
    "memmap-exact",
)  # fmt: skip


def made_up(count: int, folder: Path, modality: int = 0, queries: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Vectors ``[count, DIM]`` (memory-mapped) and queries, unit length, float32; modalities share the topics."""
    rng, choice = np.random.default_rng(modality), np.random.default_rng(10)
    spectrum = (1 + np.arange(DIM)) ** -0.4
    cone, gap = rng.normal(size=(2, DIM))
    topics = rng.normal(size=(TOPICS, DIM)) * spectrum
    scale = np.linalg.norm(topics, axis=1).mean() / np.linalg.norm(cone)

    def unit(values: np.ndarray) -> np.ndarray:
        return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)

    path = folder / f"vectors-{count}-{modality}.npy"
    if not path.exists():
        vectors: Any = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, DIM))
        for start in range(0, count, CHUNK):
            clips = (min(CHUNK, count - start) + CLIP - 1) // CLIP
            clip = topics[choice.integers(TOPICS, size=clips)] + 0.8 * rng.normal(size=(clips, DIM)) * spectrum
            seconds = np.repeat(clip, CLIP, 0) + 0.3 * rng.normal(size=(clips * CLIP, DIM)) * spectrum
            stop = min(start + CHUNK, count)
            vectors[start:stop] = unit(seconds + scale * cone)[: stop - start]
        vectors.flush()
    asked = np.random.default_rng(11).integers(TOPICS, size=queries)
    words = topics[asked] + 0.8 * np.random.default_rng(12 + modality).normal(size=(queries, DIM)) * spectrum
    return np.load(path, mmap_mode="r"), unit(words + scale * gap)


def exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Row numbers of the best of each query ``[Q, TOP]``."""
    best = np.full((len(queries), TOP), -np.inf), np.zeros((len(queries), TOP), dtype=np.int64)
    for start in range(0, len(vectors), CHUNK):
        scores = queries @ vectors[start : start + CHUNK].T
        rows = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        joined = np.concatenate([best[0], np.take_along_axis(scores, rows, 1)], 1)
        ids = np.concatenate([best[1], rows + start], 1)
        order = np.argsort(-joined, axis=1)[:, :TOP]
        best = np.take_along_axis(joined, order, 1), np.take_along_axis(ids, order, 1)
    return best[1]


class Lance:
    """LanceDB: one versioned table, the index inside it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def build(self, vectors: np.ndarray) -> None:
        """From vectors on disk to what answers."""
        import lancedb
        import pyarrow as pa

        def batches() -> Any:
            for start in range(0, len(vectors), CHUNK):
                part = np.ascontiguousarray(vectors[start : start + CHUNK])
                values = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), DIM)
                yield pa.record_batch({"row": pa.array(np.arange(start, start + len(part))), "vector": values})

        schema = pa.schema({"row": pa.int64(), "vector": pa.list_(pa.float32(), DIM)})
        table = lancedb.connect(self.folder).create_table("seconds", batches(), schema=schema)
        options = {"num_partitions": max(1, int(len(vectors) ** 0.5))}
        if self.kind == "IVF_PQ":
            options |= {"num_sub_vectors": DIM // 8}
        table.create_index(metric="dot", vector_column_name="vector", index_type=self.kind, **options)

    def open(self) -> Callable[[np.ndarray], list[int]]:
        """What answers a query."""
        import lancedb

        self.table = table = lancedb.connect(self.folder).open_table("seconds")

        def search(query: np.ndarray) -> list[int]:
            asked = table.search(query, vector_column_name="vector").distance_type("dot").nprobes(50).refine_factor(10)
            return asked.select(["row", "_distance"]).limit(TOP).to_arrow()["row"].to_pylist()

        return search

    def add(self, part: np.ndarray) -> None:
        """Commit further seconds."""
        import pyarrow as pa

        values = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), DIM)
        self.table.add(pa.table({"row": pa.array(np.arange(len(part))), "vector": values}))


class MemoryMap:
    """Vectors in one file, an index beside it for candidates, exact scores for what it returns."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def build(self, vectors: np.ndarray) -> None:
        """From vectors on disk to what answers."""
        self.folder.mkdir(parents=True)
        np.save(self.folder / "vectors.npy", vectors)
        if self.kind == "faiss":
            import faiss

            lists = max(1, int(len(vectors) ** 0.5))
            form = f"PQ{DIM // 2}x4fs" if self.folder.name.endswith("pq4") else f"IVF{lists},PQ{DIM // 8}"
            index = faiss.index_factory(DIM, form, faiss.METRIC_INNER_PRODUCT)
            rows = min(len(vectors), 20_000 if form.endswith("fs") else 40 * lists)
            some = np.random.default_rng(0).choice(len(vectors), rows, replace=False)
            index.train(np.ascontiguousarray(vectors[np.sort(some)]))
            for start in range(0, len(vectors), CHUNK):
                index.add(np.ascontiguousarray(vectors[start : start + CHUNK]))
            faiss.write_index(index, str(self.folder / "index"))
        elif self.kind == "usearch":
            from usearch.index import Index

            index = Index(ndim=DIM, metric="ip", dtype="i8")
            for start in range(0, len(vectors), CHUNK):
                part = np.ascontiguousarray(vectors[start : start + CHUNK])
                index.add(np.arange(start, start + len(part)), part)
            index.save(self.folder / "index")

    def open(self) -> Callable[[np.ndarray], list[int]]:
        """What answers a query."""
        vectors = np.load(self.folder / "vectors.npy", mmap_mode="r")
        if self.kind == "faiss":
            import faiss

            index = faiss.read_index(str(self.folder / "index"))
            if hasattr(index, "nprobe"):
                index.nprobe = 50
            candidates = lambda query: index.search(query[None], 10 * TOP)[1][0]  # noqa: E731
        elif self.kind == "usearch":
            from usearch.index import Index

            index = Index.restore(self.folder / "index", view=True)
            index.expansion_search = 256
            candidates = lambda query: index.search(query, 10 * TOP).keys.astype(np.int64)  # noqa: E731
        else:
            return lambda query: exact(vectors, query[None])[0].tolist()

        def search(query: np.ndarray) -> list[int]:
            rows = np.sort(candidates(query))
            return rows[np.argsort(-(vectors[rows] @ query))][:TOP].tolist()

        return search

    def add(self, part: np.ndarray) -> None:
        """Commit further seconds."""
        with open(self.folder / "added", "ab") as stream:  # and a record of it in SQLite, which costs as much again
            stream.write(part.tobytes())
            stream.flush()
            os.fsync(stream.fileno())


def candidate(name: str, folder: Path) -> Any:
    """A candidate by name."""
    if name.startswith("lance-"):
        return Lance(folder / name, name.removeprefix("lance-").upper().replace("-", "_"))
    return MemoryMap(folder / name, name.split("-")[1])


def measure(name: str, folder: Path, vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Build, open, ask, add."""
    store = candidate(name, folder)
    shutil.rmtree(folder / name, ignore_errors=True)
    began = time.perf_counter()
    store.build(vectors)
    figures: dict[str, Any] = {"build_seconds": time.perf_counter() - began}
    files = [path for path in (folder / name).rglob("*") if path.is_file()]
    figures["gigabytes"] = sum(path.stat().st_size for path in files) / 1e9
    began = time.perf_counter()
    arguments = [sys.executable, __file__, "--folder", str(folder), "--vectors", str(len(vectors)), "--first", name]
    subprocess.run(arguments, check=True)
    figures["first_seconds"] = time.perf_counter() - began
    search = store.open()
    search(queries[0])
    times, hits = [], []
    for query, best in zip(queries, truth, strict=True):
        began = time.perf_counter()
        rows = search(query)
        times.append(time.perf_counter() - began)
        hits.append(len(set(rows) & set(best.tolist())) / TOP)
    figures |= {"median_seconds": float(np.median(times)), "p95_seconds": float(np.quantile(times, 0.95))}
    figures["recall"] = float(np.mean(hits))
    began = time.perf_counter()
    store.add(np.ascontiguousarray(vectors[:1000]))
    figures["add_seconds"] = time.perf_counter() - began
    return figures


def measure_find(folder: Path, count: int) -> dict[str, Any]:
    """A store of `count` seconds: how long it takes to open and to search, against an exact search."""
    from avfewshot.media.clip import MODALITIES
    from avfewshot.store.files import connect
    from avfewshot.store.store import Store

    made = {name: made_up(count, folder, number, 50) for number, name in enumerate(MODALITIES)}
    shutil.rmtree(folder / "store", ignore_errors=True)
    store = Store.create(folder / "store", {"backbone": "made up", "precision": "fp32"}, {}, dict.fromkeys(made, DIM))
    for name, (vectors, _) in made.items():
        with open(folder / "store" / f"{name}-1.f32", "wb") as stream:
            for start in range(0, count, CHUNK):
                stream.write(np.ascontiguousarray(vectors[start : start + CHUNK]).tobytes())
    clips = count // CLIP
    with contextlib.closing(connect(store.folder, "rw")) as database, database:
        names = (b"/clips/%d.mp4" % number for number in range(clips))
        rows = ((i, name, name, 1, 1, 10.0, CLIP, i * CLIP, i * CLIP) for i, name in enumerate(names))
        database.executemany("INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '[]', NULL)", rows)
        database.execute("UPDATE about SET value = ? WHERE key = 'rows'", (json.dumps(dict.fromkeys(made, count)),))
    figures: dict[str, Any] = {"seconds": count, "clips": clips}
    for what in ("index_seconds", "open_seconds"):
        began = time.perf_counter()
        search = Store(folder / "store").search()
        figures[what] = time.perf_counter() - began
    plain = Store(folder / "store").search(exact=True)
    files = [path for path in (folder / "store").iterdir() if path.is_file()]
    figures["gigabytes"] = {path.suffix: 0.0 for path in files}
    for path in files:
        figures["gigabytes"][path.suffix] += path.stat().st_size / 1e9
    for by, names in (("sight", MODALITIES[:1]), ("sound", MODALITIES[1:]), ("both", MODALITIES)):
        times, slow, hits = [], [], []
        for number in range(50):
            query = {name: made[name][1][number] for name in names}
            began = time.perf_counter()
            found = search.find(query, TOP)
            middle = time.perf_counter()
            truth = plain.find(query, TOP)
            times.append(middle - began)
            slow.append(time.perf_counter() - middle)
            hits.append(len({hit.path for hit in found} & {hit.path for hit in truth}) / TOP)
        figures[by] = {
            "first_seconds": times[0],
            "median_seconds": float(np.median(times[1:])),
            "worst_seconds": max(times[1:]),
            "exact_median_seconds": float(np.median(slow)),
            "recall": float(np.mean(hits)),
        }
        print(by, figures[by], flush=True)
    return figures


def measure_rerun(folder: Path, count: int) -> dict[str, Any]:
    """`avfs embed` with nothing to do: `count` hard links, and a store that holds made-up embeddings of them."""
    import torch

    from avfewshot.inference.features import EmbeddedFile
    from avfewshot.media.clip import MODALITIES
    from avfewshot.store.store import Store
    from avfewshot.store.writer import writing

    clips, part = folder / "clips", torch.nn.functional.normalize(torch.ones(CLIP, DIM), dim=1)
    for path in (clips, folder / "embedded"):
        shutil.rmtree(path, ignore_errors=True)
    clips.mkdir()
    (clips / "0.mp4").write_bytes(b"a clip")
    about = {"backbone": "tiny", "precision": "fp32"}
    store = Store.create(folder / "embedded", about, {}, dict.fromkeys(MODALITIES, DIM))
    with writing(store.folder) as writer:
        for number in range(count):
            path = clips / f"{number}.mp4"
            if number:
                os.link(clips / "0.mp4", path)
            writer.add(path, EmbeddedFile(str(path), float(CLIP), part, part, ()), {})
    times, work = zip(*(run_embed(clips, folder / "embedded") for _ in range(5)), strict=True)
    return {"clips": count, "median_seconds": float(np.median(times)), "processor_seconds": float(np.median(work))}


def run_embed(clips: Path, store: Path, *options: str) -> tuple[float, float]:
    """Seconds of `avfs embed` by the clock, and of the processors."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "avfewshot", "embed", clips, "--store", store, *options], check=True)
    after = os.times()
    work = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, work


def measure_embed(folder: Path, count: int, originals: Path) -> dict[str, Any]:
    """`avfs embed` of `count` hard links of the clips below `originals`, and again with nothing to do."""
    files = sorted(originals.rglob("*.mp4"))
    links = folder / f"links-{count}"
    links.mkdir(exist_ok=True)
    for number in range(count):
        with contextlib.suppress(FileExistsError):  # of a run that was interrupted
            os.link(files[number % len(files)], links / f"{number:05}.mp4")
    figures: dict[str, Any] = {"clips": count, "originals": min(count, len(files))}
    for what, options in (("embed", ("--backbone", "tiny", "--device", "cpu")), ("rerun", ())):
        seconds, work = run_embed(links, folder / f"embedded-{count}", *options)
        figures[what] = {"seconds": seconds, "processor_seconds": work}
    files = [path for path in (folder / f"embedded-{count}").iterdir() if path.is_file()]
    figures["gigabytes"] = sum(path.stat().st_size for path in files) / 1e9
    return figures


def main() -> None:
    """Measure each candidate that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("stores"))
    parser.add_argument("--candidates", help=f"all, or some of: {', '.join(CANDIDATES)}")
    parser.add_argument("--rerun", type=int, help="measure `avfs embed` with nothing to do for so many clips")
    parser.add_argument("--embed", type=int, help="embed so many hard links of --clips")
    parser.add_argument("--clips", type=Path, help="folder of the clips that are linked, on the disk of --folder")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--first", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not asked.candidates and not asked.first:
        if asked.embed:
            report = measure_embed(asked.folder, asked.embed, asked.clips or parser.error("--embed needs --clips"))
        elif asked.rerun is not None:
            report = measure_rerun(asked.folder, asked.rerun)
        else:
            report = measure_find(asked.folder, asked.vectors)
        print(json.dumps(report, indent=1))
        if asked.output:
            asked.output.write_text(json.dumps(report, indent=1))
        return
    vectors, queries = made_up(asked.vectors, asked.folder)
    if asked.first:
        candidate(asked.first, asked.folder).open()(queries[0])
        return
    truth = exact(vectors, queries)
    report = {"vectors": len(vectors), "dimensions": DIM, "top": TOP, "candidates": {}}
    for name in CANDIDATES if asked.candidates == "all" else asked.candidates.split(","):
        report["candidates"][name] = figures = measure(name, asked.folder, vectors, queries, truth)
        print(name, json.dumps(figures), flush=True)
        if asked.output:
            asked.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
