"""A store of embeddings: what is embedded, what has changed, kills, search; as a library and as commands."""

import base64
import contextlib
import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from command_support import TINY, Commands
from fewshot_worlds import CLASSES, write_class_folders

import avfewshot
from avfewshot.cache import file_stamp
from avfewshot.errors import DataError, UsageError
from avfewshot.inference.features import EmbeddedFile
from avfewshot.methods.active import margins, suggest
from avfewshot.methods.base import Features
from avfewshot.store import search, writer
from avfewshot.store.embeddings import StoredEmbeddings
from avfewshot.store.store import Store
from avfewshot.store.writer import embed_files


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_class_folders(folder / "clips", clips=3)
    return folder


@pytest.fixture(scope="module")
def avfs(world):
    return Commands(world, shared=False)


@pytest.fixture(scope="module")
def classifier():
    return avfewshot.load("tiny", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def embedded(world):
    """The store of all clips."""
    assert "9 clips, 27 seconds; 9 new" in embed(world, *TINY)
    return world / "store"


@pytest.fixture
def copy(world, embedded, tmp_path):
    """The clips and the store of them, which a test may change; they are put back behind it."""
    for name in ("clips", "store"):
        shutil.copytree(world / name, tmp_path / name)
    yield world
    for name in ("clips", "store"):
        shutil.rmtree(world / name)
        shutil.copytree(tmp_path / name, world / name)


def embed(folder, *options, store="store", status=0):
    """What `avfs embed` says of the clips in a folder."""
    return Commands(folder, shared=False)("embed", "clips", "--store", store, *options, status=status)[1]


def contents(folder):
    """What a store holds, whatever the order that it came in."""
    store = Store(folder)
    return {
        os.path.relpath(clip.path, store.folder.parent): (clip.seconds, *(part.tobytes() for part in store.of(clip)))
        for clip in store.embedded
    }


def assert_same(one, other):
    """Two entries of contents agree up to rounding.

    To the bit only if their seconds went through the towers in batches of one size: a BLAS adds up in another order
    where there are few rows. Another clip or second differs by more than a thousand times this.
    """
    assert one[0] == other[0]
    for mine, yours in zip(one[1:], other[1:], strict=True):
        np.testing.assert_allclose(np.frombuffer(mine, "<f4"), np.frombuffer(yours, "<f4"), rtol=0, atol=1e-6)


def test_a_store_holds_what_the_towers_make_of_each_second(embedded, classifier):
    store = Store(embedded)
    assert len(store) == 9
    for clip in store.embedded:
        whole = classifier.embed(clip.path)
        visual, audio = store.of(clip)
        np.testing.assert_allclose(visual, whole.visual.numpy(), atol=1e-5)
        np.testing.assert_allclose(audio, whole.audio.numpy(), atol=1e-5)
        assert store.thumbnail(clip.path, 2).startswith(b"\xff\xd8")
        assert store.thumbnail(clip.path, 3) is None
        assert clip.duration == pytest.approx(3, abs=0.1)


def test_nothing_to_do_loads_no_model(embedded, world):
    code = (
        "import sys; from avfewshot.cli.app import run; "
        "status = run(['embed', 'clips', '--store', 'store']); assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=world, capture_output=True, text=True, check=True)
    assert "0 new, 0 changed, 0 gone, 9 as before" in done.stderr


def test_a_store_names_its_towers_for_other_folders_whatever_lies_beside_it(world):
    (world / "tiny").mkdir()
    (world / "own.txt").write_text("a clip of {}")
    embed(world, *TINY, "--templates", "own.txt", store="own")
    model = Store(world / "own").model
    assert (model["backbone"], model["templates"]) == ("tiny", str(world / "own.txt"))


def test_new_changed_and_gone_clips(copy):
    before = contents(copy / "store")
    clips = copy / "clips" / CLASSES[0]
    shutil.copy(clips / "0.mp4", copy / "clips" / "new.mp4")
    shutil.copy(clips / "1.mp4", clips / "2.mp4")
    (clips / "0.mp4").unlink()
    assert "1 new, 1 changed, 1 gone, 7 as before" in embed(copy)
    after = contents(copy / "store")
    name = f"clips/{CLASSES[0]}"
    assert f"{name}/0.mp4" not in after
    assert_same(after["clips/new.mp4"], before[f"{name}/0.mp4"])
    assert_same(after[f"{name}/2.mp4"], before[f"{name}/1.mp4"])
    assert after[f"{name}/1.mp4"] == before[f"{name}/1.mp4"]


def test_a_store_that_another_process_made_first_is_not_replaced(tmp_path):
    for backbone in ("first", "second"):
        writer.create(tmp_path / "s", {"backbone": backbone, "precision": "fp32"}, {}, {"visual": 2, "audio": 2})
    assert Store(tmp_path / "s").model["backbone"] == "first"


def test_a_clip_that_grows_while_it_is_embedded_is_embedded_again(copy, monkeypatch):
    clip, embed_all = copy / "clips" / "new.mp4", embed_files

    def growing(*arguments, **options):
        for found in embed_all(*arguments, **options):
            with clip.open("ab") as stream:
                stream.write(bytes(8))
            yield found

    shutil.copy(copy / "clips" / CLASSES[0] / "0.mp4", clip)
    with monkeypatch.context() as patch:
        patch.setattr("avfewshot.store.store.embed_files", growing)
        assert "1 new" in embed(copy)
    assert "1 changed" in embed(copy)
    assert "0 changed" in embed(copy)


def test_pictures_of_a_clip_are_the_stores_until_it_changes(copy):
    store, clip = Store(copy / "store"), copy / "clips" / CLASSES[0] / "0.mp4"
    assert [picture.second for picture in store.pictures(clip, 2)] == [0, 2]
    content = base64.b64decode(store.pictures(clip, 2)[1].source.partition(",")[2])
    assert content == store.thumbnail(clip, 2)
    os.utime(clip, (0, 0))
    assert store.pictures(clip, 2) == []
    clip.unlink()
    _, err = Commands(copy, shared=False)("embed", f"clips/{CLASSES[1]}", "--store", "store")
    assert "0 gone, 3 as before" in err  # what lies elsewhere has not gone


def test_dead_rows_make_room_also_where_a_kill_came_before_it(copy, monkeypatch):
    for name in CLASSES[:2]:
        shutil.rmtree(copy / "clips" / name)
    before = contents(copy / "store")
    monkeypatch.setattr(writer, "_DEAD_SHARE", 2)  # as if it had been killed before
    embed(copy)
    monkeypatch.undo()
    store = Store(copy / "store")
    assert store.rows != {"visual": 9, "audio": 9}
    changes = store.changes(sorted((copy / "clips").rglob("*.mp4")), [copy / "clips"])
    assert not list(store.update(changes, lambda: pytest.fail("there is nothing to embed")))
    assert store.rows == {"visual": 9, "audio": 9}
    assert [path.name for path in sorted(store.folder.glob("*.f32"))] == ["audio-2.f32", "visual-2.f32"]
    assert contents(copy / "store") == {name: what for name, what in before.items() if CLASSES[2] in name}


def test_what_a_process_left_that_was_killed_while_it_made_room_is_removed(copy):
    folder, kept = copy / "store", sorted(path.name for path in (copy / "store").iterdir())
    # Before the rows had their name; before the commit, behind it.
    for name in (".visual-2-0a1b2c3d.part.f32", "visual-2.f32", "audio-0.index"):
        (folder / name).write_bytes(bytes(16))
    (folder / "visual-x.f32").touch()  # somebody else's
    before = contents(folder)
    embed(copy)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*kept, "visual-x.f32"])
    assert contents(folder) == before


def test_bad_files_are_named_and_remembered_until_they_change(copy):
    bad = copy / "clips" / "bad.mp4"
    bad.write_bytes(b"no video")
    for again in (False, True):
        err = embed(copy, status=1)
        assert "bad.mp4: " in err
        assert ("1 left out" in err, "loading" in err) == ((True, True) if not again else (True, False))
    assert "loading" in embed(copy, "--retry", status=1)
    shutil.copy(copy / "clips" / CLASSES[0] / "0.mp4", bad)
    assert "10 clips" in embed(copy)


KILLED = """
import os, signal, sys
from avfewshot.cli.app import run
from avfewshot.store import writer as module

module._COMMIT_CLIPS, module._COMMIT_SECONDS = 2, 1e9
add, count = module.Writer.add, 0


def counted(writer, *file):
    global count
    add(writer, *file)
    for stream in writer._files.values():
        stream.flush()
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)


module.Writer.add = counted
run(["embed", "clips", "--store", "killed", "--backbone", "tiny", "--device", "cpu", "--precision", "fp32"])
"""


def test_a_killed_run_goes_on_and_ends_like_an_undisturbed_one(world, embedded):
    killed = subprocess.run([sys.executable, "-c", KILLED, "7"], cwd=world, check=False)
    assert killed.returncode == -signal.SIGKILL  # rows of a clip are in the files, and no commit counts them
    assert len(Store(world / "killed")) == 6
    assert (world / "killed" / "visual-1.f32").stat().st_size > Store(world / "killed").vectors("visual").nbytes
    assert "3 new, 0 changed, 0 gone, 6 as before" in embed(world, store="killed")
    ended, undisturbed = contents(world / "killed"), contents(embedded)
    assert ended.keys() == undisturbed.keys()
    for name in ended:
        assert_same(ended[name], undisturbed[name])
    assert (world / "killed" / "visual-1.f32").stat().st_size == Store(world / "killed").vectors("visual").nbytes


def test_misuse_and_two_writers_are_told(avfs, world, embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_PATIENCE", 0.2)
    with writer.writing(world / "store"):
        assert "another process" in embed(world, status=1)
    assert "there is no store" in avfs.refused("find", "dog", "--store", "none")
    assert "was embedded with backbone tiny, not base" in embed(world, "--backbone", "base", status=2)
    avfs("embed", "clips", status=2)
    with pytest.raises(UsageError, match="differs in precision"):
        Store(embedded).check({**Store(embedded).identity, "precision": "bf16"}, (128, 128))
    (tmp_path / "store.db").write_bytes(b"no database at all, but long enough" * 100)
    with pytest.raises(DataError, match="damaged"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", [Path.unlink, Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"cut")])
def test_rows_that_are_missing_cut_or_no_file_are_told_by_readers_and_writers(tmp_path, damage):
    made_up_store(tmp_path, 2)
    path = tmp_path / "visual-1.f32"
    if damage is not Path.unlink:
        path.unlink()
    damage(path)
    with pytest.raises(DataError, match=r"visual-1\.f32: is missing or cut"):
        Store(tmp_path).vectors("visual")
    with pytest.raises(DataError, match=r"visual-1\.f32: is missing or cut"), writer.writing(tmp_path):
        pass


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("visual", "[[["), ("visual", 10**9), ("audio", -1), ("seconds", "x"), ("duration", None), ("size", -1)),
        *(("duration", 1e308), ("duration", float("inf")), ("duration", 2.0), ("visual", None)),
        *(("mtime", 1.5), ("seconds", 0), ("path", b"/a\0b"), ("identity", "[]"), ("identity", '{"a": 1}')),
        *(("dims", '{"visual": 0, "audio": 8}'), ("dims", '{"visual": 16}')),
        *(("model", "[]"), ("model", '{"backbone": "tiny"}')),
        ("model", '{"backbone": "tiny", "precision": "fp32", "stranger": 1}'),
    ],
)
def test_rows_that_nobody_wrote_are_refused(tmp_path, column, value):
    made_up_store(tmp_path, 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as database, database:
        of_store = column in ("model", "identity", "dims")
        table = f"about SET value = ? WHERE key = '{column}'" if of_store else f"clips SET {column} = ?"
        database.execute(f"UPDATE {table}", (value,))
    with pytest.raises(DataError, match=r"store\.db: is damaged .*Embed the collection into a new store"):
        Store(tmp_path)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e38])
@pytest.mark.parametrize("name", ["visual", "audio"])
def test_rows_that_are_no_unit_vectors_are_told_by_searches_and_clips(tmp_path, name, value):
    made_up_store(tmp_path, 3)
    rows = np.memmap(tmp_path / f"{name}-1.f32", np.float32, "r+").reshape(-1, 16 if name == "visual" else 8)
    rows[:] = value
    rows.flush()
    store = Store(tmp_path)
    query = {"visual": np.eye(16)[0], "audio": np.eye(8)[0]}
    with pytest.raises(FloatingPointError, match=name):
        store.search().find(query)
    for look in (lambda clip: store.find(like=clip), StoredEmbeddings(store, None).get):
        with pytest.raises(DataError, match=rf"{name}-1\.f32: .*no unit vectors.*into a new store"):
            look(tmp_path / "00001.mp4")


def test_dimensions_of_other_towers_are_told_wherever_towers_come(avfs, world, copy):
    (world / "labels.txt").write_text("\n".join(CLASSES))
    run = avfs.made("fewshot", "--data", "clips", "--shots", "1", "--method", "kernel_ridge", *TINY, name="dims")
    (world / "clips" / "new.mp4").write_bytes((world / "clips" / CLASSES[0] / "0.mp4").read_bytes())
    with contextlib.closing(sqlite3.connect(world / "store" / "store.db")) as database, database:
        database.execute("UPDATE about SET value = ? WHERE key = 'dims'", ('{"visual": 64, "audio": 128}',))
    for command in (
        ("find", "dog"),
        ("suggest", "--run", run),
        ("embed", "clips"),
        ("zeroshot", "--labels", "labels.txt", *TINY),
        ("fewshot", "--data", "clips", "--shots", "1", "--method", "kernel_ridge", *TINY),
    ):
        told = avfs.refused(*command, "--store", "store", status=1)
        assert "its dimensions are 64 and 128; tiny makes 128 and 128" in told


def test_a_database_that_contradicts_itself_is_told_by_its_writer(tmp_path):
    made_up_store(tmp_path, 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as database, database:
        database.execute("DELETE FROM clips")
        database.execute("INSERT INTO thumbnails VALUES (1, 0, x'00')")
    vectors = torch.ones(1, 16)
    with pytest.raises(DataError, match=r"store\.db: is damaged"), writer.writing(tmp_path) as files:
        files.add(tmp_path / "00000.mp4", EmbeddedFile("a", 1.0, vectors, None, ()), {0: b"x"}, (1, 1))


# ---------------------------------------------------------------------------------------------- search


def test_words_find_clips_by_sight_sound_and_both(embedded):
    store = Store(embedded)
    for by in ("sight", "sound", "both"):
        hits = store.find("dog barking", by=by, top=3)
        assert {Path(hit.path).parent.name for hit in hits} == {"dog barking"}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert set(hits[0].cosines) == {"sight": {"visual"}, "sound": {"audio"}}.get(by, {"visual", "audio"})
        for hit in hits:
            assert max(moment.score for moment in hit.moments) == hit.score
            assert any(moment.start <= hit.second < moment.end for moment in hit.moments)
    with pytest.raises(UsageError, match="smell"):
        store.find("dog", by="smell")
    with pytest.raises(UsageError, match="by words or by a clip"):
        store.find()


def test_a_clip_finds_its_like_but_not_itself(embedded, world, tmp_path):
    store = Store(embedded)
    clip = world / "clips" / "clock ticking" / "0.mp4"
    first, second, *_ = store.find(like=clip)
    assert {Path(first.path), Path(second.path)} == {clip.with_name("1.mp4"), clip.with_name("2.mp4")}
    assert store._towers is None  # no model was needed
    shutil.copy(clip, tmp_path / "elsewhere.mp4")
    found = store.find(like=f"{tmp_path / 'elsewhere.mp4'}:1-2", by="sight", top=1)
    assert found[0].path == str(clip)
    with pytest.raises(UsageError, match="has 3 seconds"):
        store.find(like=f"{clip}:7-9")
    with pytest.raises(UsageError, match="ends before"):
        store.find(like=f"{clip}:2-1")


def made_up_store(folder, clips, seconds=4, dims=None):
    """A store of random vectors, some clips without sound; and its vectors by clip."""
    dims = dims or {"visual": 16, "audio": 8}
    rng = np.random.default_rng(0)
    store = Store.create(folder, {"backbone": "tiny", "precision": "fp32"}, {}, dims)
    made = {}
    with writer.writing(store.folder) as files:
        for number in range(clips):
            path = folder / f"{number:05}.mp4"
            path.write_bytes(b"x")
            parts = [rng.normal(size=(seconds, width)).astype(np.float32) for width in dims.values()]
            parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
            made[str(path)] = parts if number % 5 else [parts[0], None]
            tensors = [None if part is None else torch.from_numpy(part) for part in made[str(path)]]
            files.add(path, EmbeddedFile(str(path), float(seconds), *tensors, ()), {}, file_stamp(path))
    return Store(folder), made


def plain_search(made, query, top):
    """What the scores are by their definition, clip by clip."""
    scores = {}
    for place, name in enumerate(("visual", "audio")):
        if name not in query:
            continue
        cosines = {path: parts[place] @ query[name] for path, parts in made.items() if parts[place] is not None}
        everything = np.concatenate(list(cosines.values()))
        for path, values in cosines.items():
            standard = (values - everything.mean()) / everything.std()
            scores[path] = scores.get(path, 0) + standard / len(query)
    best = sorted(((values.max(), path) for path, values in scores.items()), reverse=True)
    return [path for _, path in best[:top]], [score for score, _ in best[:top]]


def test_a_clip_is_taken_wholly_or_not_at_all(tmp_path):
    store, made = made_up_store(tmp_path, 6)
    path = tmp_path / "00002.mp4"
    with writer.writing(store.folder) as files:
        good = [torch.from_numpy(part) for part in made[str(tmp_path / "00001.mp4")]]
        files.add(tmp_path / "00003.mp4", EmbeddedFile("", 4.0, *good, ()), {}, (1, 1))
        with pytest.raises(AttributeError):
            # Fails behind sight, before sound.
            files.add(path, EmbeddedFile(str(path), 4.0, good[0], "no tensor", ()), {}, (1, 1))
    store = Store(tmp_path)
    assert len(store) == 6
    np.testing.assert_array_equal(store.of(store.clips[str(path)])[0], made[str(path)][0])
    np.testing.assert_array_equal(store.of(store.clips[str(tmp_path / "00003.mp4")])[1], good[1].numpy())
    assert sum(clip.audio is not None for clip in store.embedded) == 4  # two have no sound


def test_reading_clips_opens_the_database_once(tmp_path, monkeypatch):
    made_up_store(tmp_path, 6)
    opened, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: opened.append(1) or connect(*given, **options))
    store = Store(tmp_path)
    store.identity["audio context"] = "clip"
    with pytest.raises(DataError, match="damaged"):  # it has no windows
        store.by_clip(store.embedded[1])
    for clip in store.embedded:
        assert store.thumbnail(clip.path) is None
        store.pictures(clip.path, 2)
    assert len(opened) == 1


def test_embeddings_of_a_store_are_no_copies(tmp_path):
    store, made = made_up_store(tmp_path, 3)
    store.identity["audio context"] = "clip"
    window = np.ones((1, 8), dtype=np.float32)
    with contextlib.closing(writer.connect(tmp_path, "rw")) as database, database:
        database.execute("INSERT INTO windows VALUES (?, '[4]', ?)", (store.embedded[1].id, window.tobytes()))
    file = StoredEmbeddings(store, None).get(store.embedded[1].source)
    np.testing.assert_array_equal(file.visual.numpy(), made[store.embedded[1].path][0])
    assert np.shares_memory(file.visual.numpy(), store._vectors["visual"])
    assert file.audio_windows.shape == (4, 8)
    assert file.audio_windows.stride(0) == 0
    file.visual.zero_()  # is nobody else's matter
    np.testing.assert_array_equal(Store(tmp_path).of(store.embedded[1])[0], made[store.embedded[1].path][0])


@pytest.mark.parametrize("names", [("visual",), ("audio",), ("visual", "audio")])
def test_scores_are_deviations_above_the_collection(tmp_path, names):
    store, made = made_up_store(tmp_path, 40)
    query = {name: made[str(tmp_path / "00007.mp4")][name == "audio"][2] for name in names}
    hits = store.search().find(query, 5)
    paths, scores = plain_search(made, query, 5)
    assert [hit.path for hit in hits] == paths
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-3)
    assert (hits[0].path, hits[0].second) == (str(tmp_path / "00007.mp4"), 2)
    assert len(store.search().find(query, 100)) == (32 if names == ("audio",) else 40)


def test_the_index_finds_what_an_exact_search_finds(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(search, "_INDEXED", 1000)
    store, made = made_up_store(tmp_path, 600, dims={"visual": 32, "audio": 16})
    with writer.writing(tmp_path) as files:
        files.forget([store.embedded[3]])
    store = Store(tmp_path)
    assert set(store.index()) == {"visual", "audio"}
    query = {"visual": made[str(tmp_path / "00004.mp4")][0][1], "audio": made[str(tmp_path / "00004.mp4")][1][1]}
    with_index, exact = store.search().find(query, 10), store.search(exact=True).find(query, 10)
    assert with_index == exact
    gone = {"visual": made[str(tmp_path / "00003.mp4")][0][0]}
    assert str(tmp_path / "00003.mp4") not in {hit.path for hit in store.search().find(gone, 10)}
    next(tmp_path.glob("visual-*.index")).write_bytes(b"damaged")
    assert store.search().find(query, 10) == exact


def test_moments_join_seconds_that_follow_each_other(tmp_path):
    store = Store.create(tmp_path, {"backbone": "tiny", "precision": "fp32"}, {}, {"visual": 2, "audio": 2})
    query = {"visual": np.array([1.0, 0.0], dtype=np.float32)}
    assert store.search().find(query) == []
    near = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x")
    with writer.writing(store.folder) as files:
        vectors = torch.tensor([[1.0, 0.0] if one else [0.0, 1.0] for one in near])
        files.add(path, EmbeddedFile(str(path), 12.0, vectors, None, ()), {}, file_stamp(path))
    [hit] = Store(tmp_path)._search.find(query)
    assert [(moment.start, moment.end) for moment in hit.moments] == [(1, 3), (5, 6)]
    assert hit.second == 1


def test_find_prints_tables_json_and_csv_and_takes_queries_by_line(avfs, embedded, monkeypatch):
    asked = ("find", "dog barking", "--store", "store", "--top", "2")
    out, _ = avfs(*asked)
    assert out.count("\nclips/dog barking/") == 2  # named from the current folder
    assert "0:00-" in out
    clips = avfs.json(*asked)["clips"]
    assert [Path(clip["path"]).parent.name for clip in clips] == ["dog barking"] * 2
    assert clips[0]["moments"][0].keys() == {"start", "end", "score"}
    rows = list(csv.DictReader(StringIO(avfs(*asked, "--format", "csv")[0])))
    assert {row["rank"] for row in rows} == {"1", "2"}
    monkeypatch.setattr("sys.stdin", StringIO("dog barking\n \nclock ticking\n"))
    answers = avfs("find", "--store", "store", "--top", "1", "--format", "json")[0].splitlines()
    assert [json.loads(answer)["query"] for answer in answers] == ["dog barking", "clock ticking"]
    monkeypatch.setattr("sys.stdin", StringIO("dog barking\nclock ticking\n"))
    lines = avfs("find", "--store", "store", "--top", "1")[0].splitlines()
    assert [line for line in lines if line in ("dog barking", "clock ticking")] == ["dog barking", "clock ticking"]
    monkeypatch.setattr("sys.stdin", StringIO("dog barking\nclock ticking\n"))
    rows = list(csv.DictReader(StringIO(avfs("find", "--store", "store", "--top", "1", "--format", "csv")[0])))
    assert list(dict.fromkeys(row["query"] for row in rows)) == ["dog barking", "clock ticking"]
    assert {row["rank"] for row in rows} == {"1"}
    assert "Which store?" in avfs.refused("find", "dog")
    avfs("find", "dog", "--like", "a.mp4", "--store", "store", status=2)
    assert "nothing.mp4" in avfs.refused("find", "--like", "nothing.mp4", "--store", "store", status=1)


# ---------------------------------------------------------------------------------------------- other commands


@pytest.fixture
def no_decoding(monkeypatch):
    """Any attempt to embed a clip is an error; the cache of embeddings is empty."""

    def refuse(embedder, items):
        for item in items:
            raise AssertionError(f"{item.path} is embedded although the store has it")
        yield from ()

    def install(folder):
        monkeypatch.setenv("AVFS_CACHE", str(folder))
        monkeypatch.setattr("avfewshot.inference.features.Embedder.embed", refuse)

    return install


def test_zeroshot_from_a_store_says_what_it_says_without(avfs, world, embedded, tmp_path, no_decoding):
    (world / "labels.txt").write_text("\n".join(CLASSES))
    arguments = ("zeroshot", "--labels", "labels.txt", *TINY)
    before = avfs.json(*arguments, "clips")["clips"]
    no_decoding(tmp_path)
    after = avfs.json(*arguments, "clips", "--store", "store")["clips"]
    assert [clip["path"] for clip in before] == [clip["path"] for clip in after]
    for one, other in zip(before, after, strict=True):
        assert one["label"] == other["label"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)
    whole = avfs.json(*arguments, "--store", "store")["clips"]
    assert {clip["path"] for clip in whole} == {clip.path for clip in Store(embedded).embedded}
    assert "differs in" in avfs.refused(*arguments, "clips", "--store", "store", "--weights", "random")


def figures(rows: list[dict[str, str]]) -> list[float]:
    """All figures of a table, row by row."""
    cells = [value for row in rows for key, value in row.items() if key not in ("task", "system", "metric")]
    return [float(value) for value in cells if value]


def names(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """What its rows are of, and which cells are empty."""
    return [(row["system"], row["metric"], *(key for key, value in row.items() if not value)) for row in rows]


def test_fewshot_and_compare_from_a_store_say_what_they_say_without(avfs, world, embedded, tmp_path, no_decoding):
    tables = {}
    embed(world, *TINY[:4], store="own-precision")  # compare has no other
    for name in ("plain", "stored"):
        if name == "stored":
            no_decoding(tmp_path / "cache")
        for command, options, file, store in (
            ("fewshot", ("--method", "kernel_ridge", "--precision", "fp32"), f"folder/*-{name}/results.csv", "store"),
            ("compare", ("--seeds", "1", "--methods", "kernel_ridge"), f"compare/{name}/compare.csv", "own-precision"),
        ):
            more = ("--store", store) if name == "stored" else ()
            shared = ("--data", "clips", "--shots", "2", "--runs", tmp_path, "--name", name, *TINY[:4])
            avfs(command, *shared, *options, *more)
            [path] = tmp_path.glob(file)
            rows = list(csv.DictReader(path.open()))
            tables[command, name] = [{key: row[key] for key in row if key != "fit_seconds"} for row in rows]
    assert tables["fewshot", "plain"]
    assert tables["fewshot", "plain"] == tables["fewshot", "stored"]
    # Where towers are in bfloat16, the last digits depend on the clips that are embedded together.
    plain, stored = tables["compare", "plain"], tables["compare", "stored"]
    assert names(plain) == names(stored) != []
    assert figures(plain) == pytest.approx(figures(stored), abs=1e-4)


def test_files_that_a_store_lacks_are_decoded(world, embedded, tmp_path):
    known = world / "clips" / CLASSES[0] / "0.mp4"
    shutil.copy(known, tmp_path / "new.mp4")
    towers = avfewshot.load("tiny", device="cpu", precision="fp32")
    assert towers.look_up(Store(embedded).cache)
    one, other = towers.embed([tmp_path / "new.mp4", known])
    torch.testing.assert_close(one.visual, other.visual)


# ---------------------------------------------------------------------------------------------- what to label next


def test_suggest_names_clips_that_the_run_was_not_trained_on(avfs, world, embedded):
    run = avfs.made("fewshot", "--data", "clips", "--shots", "1", "--method", "kernel_ridge", *TINY, name="one")
    asked = ("suggest", "--store", "store", "--run", run, "--count")
    clips = avfs.json(*asked, "4")["clips"]
    support = json.loads((run / "results.json").read_text())["seeds"][0]["support"]["ids"]
    paths = {os.path.relpath(clip["path"], world / "clips") for clip in clips}
    assert len(paths) == 4
    assert len(support) == 3
    assert not paths & set(support)
    for clip in clips:
        assert {clip["label"], clip["second"]} <= set(CLASSES)
        assert 0 <= clip["margin"] <= clip["score"] <= 1
    assert avfs(*asked, "50")[0].count("\nclips/") == 6
    avfs("suggest", "--store", "store", status=2)
    assert "holds no fitted method" in avfs.refused("suggest", "--store", "store", "--run", world / "clips")


def test_suggested_clips_are_doubtful_and_of_different_clusters():
    rng = np.random.default_rng(0)
    centres = np.eye(4)[:2]
    clips = [centres[number // 10] + 0.01 * rng.normal(size=4) for number in range(20)] + [np.eye(4)[3]]
    features = Features.of((str(number), clip[None], None) for number, clip in enumerate(clips))
    sure = np.full(21, 0.99)
    sure[[3, 4, 15, 20]] = 0.5, 0.55, 0.6, 0.5
    chosen = suggest(margins(np.stack([sure, 1 - sure], 1)), features.take, 2)
    assert {3, 15} == set(chosen.tolist())  # not both of one cluster, nor the one that is like no other
