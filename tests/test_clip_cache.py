import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from media_factory import tone, write_media
from PIL import Image

import avfewshot.media.clip_cache as module
from avfewshot.errors import MediaError
from avfewshot.inference.embedding_cache import EmbeddingCache
from avfewshot.inference.features import EmbeddedFile
from avfewshot.io import atomic_path, cache_dir
from avfewshot.media.clip import SAMPLE_RATE
from avfewshot.media.clip_bytes import DamagedError, decode_clip, encode_clip, encode_sound
from avfewshot.media.clip_cache import ClipCache
from avfewshot.media.reader import read_clip


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four small files: a second of pictures and sound."""
    folder = tmp_path_factory.mktemp("media")
    sounds = [tone(1.0, frequency=300 + 100 * number) for number in range(4)]
    return [write_media(folder / f"clip{n}.mp4", seconds=1.0, audio=sound) for n, sound in enumerate(sounds)]


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch):
    def forbid():
        def read(path, **options):
            raise AssertionError(f"{path} was decoded")

        monkeypatch.setattr(module, "read_isolated", read)

    return forbid


def same(one, two) -> bool:
    def equal(a, b):
        return a is b if a is None or b is None else torch.equal(a, b)

    return (
        equal(one.frames, two.frames)
        and equal(one.waveform, two.waveform)
        and (one.path, one.duration, one.start, one.warnings, one.last)
        == (two.path, two.duration, two.start, two.warnings, two.last)
    )


def entries(cache: ClipCache) -> list[Path]:
    return sorted(cache.folder.glob("*.zip"))


def copied(source: Path, folder: Path) -> Path:
    path = folder / "clip.mp4"
    path.write_bytes(source.read_bytes())
    return path


def test_the_second_time_nothing_is_decoded_and_the_clip_is_the_same_to_the_bit(media, no_decoding):
    first = [ClipCache().get(path, frame_size=32) for path in media]
    plain = read_clip(media[0], frame_size=32)
    assert torch.equal(plain.frames, first[0].frames)
    assert 0 < (plain.waveform - first[0].waveform).abs().max() <= 2**-16  # half a step of 16 bits
    assert first[0].waveform.dtype == torch.float32
    no_decoding()
    cache = ClipCache()
    assert all(same(cache.get(path, frame_size=32), clip) for path, clip in zip(media, first, strict=True))
    assert (cache.counts["hits"], cache.counts["misses"]) == (4, 0)
    assert cache.folder == cache_dir("clips")
    assert cache.size() == sum(path.stat().st_size for path in entries(cache))
    cache = pickle.loads(pickle.dumps(cache))  # noqa: S301 - what multiprocessing does itself
    assert same(cache.get(media[0], frame_size=32), first[0])


@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_a_missing_modality_and_warnings_come_back(tmp_path, modality, no_decoding):
    silent = write_media(tmp_path / "silent.mp4", seconds=1.0, audio=0 * tone(1.0))
    clip = ClipCache().get(silent, frame_size=16, modality=modality)
    assert (clip.frames is None) == (modality == "audio")
    assert bool(clip.warnings) == (modality == "audio")
    no_decoding()
    assert same(ClipCache().get(silent, frame_size=16, modality=modality), clip)


def test_pictures_that_are_not_square_survive(media):
    clip = read_clip(media[0], frame_size=None)
    assert clip.frames.shape[2:] == (64, 96)
    assert torch.equal(decode_clip(encode_clip(clip, "key"), "key", clip.path).frames, clip.frames)


def test_each_way_of_reading_has_its_own_entry_and_a_changed_file_is_decoded_anew(media, tmp_path):
    cache, path = ClipCache(), copied(media[0], tmp_path)
    ways = [{}, {"frame_size": 16}, {"modality": "audio"}, {"frame_backend": "pyav"}]
    for way in ways:
        cache.get(path, **{"frame_size": 32, **way})
    assert len(entries(cache)) == cache.counts["misses"] == len(ways)
    copied(media[1], tmp_path)
    assert torch.equal(cache.get(path, frame_size=32).waveform, ClipCache(max_bytes=0).get(media[1]).waveform)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the same size, another time
    cache.get(path, frame_size=32)
    assert (cache.counts["hits"], cache.counts["misses"]) == (0, len(ways) + 2)


def test_a_damaged_entry_never_gives_another_clip(media):
    clip = ClipCache().get(media[0], frame_size=8)
    content = encode_clip(clip, "key")
    rng = random.Random(0)
    spots = [*range(0, 40, 2), *range(len(content) - 40, len(content), 2), *rng.sample(range(len(content)), 40)]
    broken = [content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :] for at in spots]
    broken += [content[: len(content) // 2], content[:-1], b"", b"PK", os.urandom(500)]
    refused = [damaged for damaged in broken if not decodes_to(clip, damaged)]
    assert len(refused) > 40


def decodes_to(clip, content: bytes) -> bool:
    """False where the content is refused; a byte that means nothing, such as the time of an entry, may change."""
    try:
        found = decode_clip(content, "key", clip.path)
    except DamagedError:
        return False
    assert same(found, clip)
    return True


def test_a_damaged_entry_and_one_of_another_clip_are_decoded_anew_and_replaced(media, no_decoding):
    cache = ClipCache()
    clip = cache.get(media[0], frame_size=16)
    [first] = entries(cache)
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    assert same(cache.get(media[0], frame_size=16), clip)
    assert (cache.counts["damaged"], cache.counts["misses"]) == (1, 2)
    other = cache.get(media[1], frame_size=16)
    [second] = set(entries(cache)) - {first}
    second.write_bytes(first.read_bytes())
    assert same(cache.get(media[1], frame_size=16), other)
    assert cache.counts["damaged"] == 2
    no_decoding()
    assert same(cache.get(media[0], frame_size=16), clip)


def test_the_entry_that_was_not_used_for_the_longest_time_gives_way(media, tmp_path, no_decoding):
    probe = ClipCache(tmp_path / "probe")
    for path in media:
        probe.get(path, frame_size=16)
    largest = max(path.stat().st_size for path in entries(probe))
    cache = ClipCache(tmp_path / "cache", max_bytes=int(3.5 * largest))
    for number, path in enumerate(media[:3]):
        before = set(entries(cache))
        cache.get(path, frame_size=16)
        (entry,) = set(entries(cache)) - before
        os.utime(entry, ns=(number, number))
    cache.get(media[0], frame_size=16)  # the oldest by writing is now the latest by use
    cache.get(media[3], frame_size=16)
    assert cache.size() <= cache.max_bytes
    assert cache.counts["evicted"] == 1
    no_decoding()
    for path in (media[0], media[2], media[3]):
        cache.get(path, frame_size=16)
    with pytest.raises(AssertionError, match="was decoded"):
        cache.get(media[1], frame_size=16)


def test_nothing_is_kept_without_room(media, tmp_path):
    for bound in (0, 1000):
        cache = ClipCache(tmp_path / str(bound), max_bytes=bound)
        clips = [cache.get(media[0], frame_size=16) for _ in range(2)]
        assert same(*clips)
        assert (cache.counts["misses"], cache.size()) == (2, 0)


def test_a_file_that_changes_while_it_is_read_is_not_kept(media, tmp_path, monkeypatch):
    def read_and_change(target, **options):
        clip = read_clip(target, **options)
        copied(media[1], tmp_path)
        return clip

    monkeypatch.setattr(module, "read_isolated", read_and_change)
    cache = ClipCache()
    cache.get(copied(media[0], tmp_path), frame_size=16)
    assert (cache.counts["unstored"], cache.size()) == (1, 0)


def test_files_that_cannot_be_read_are_the_readers_error_and_are_not_remembered(media, tmp_path):
    cache, path, loop = ClipCache(), tmp_path / "clip.mp4", tmp_path / "loop.mp4"
    with pytest.raises(MediaError):
        cache.get(path)
    path.write_bytes(b"no video")
    with pytest.raises(MediaError):
        cache.get(path)
    assert cache.get(copied(media[0], tmp_path), frame_size=16).num_segments == 1
    loop.symlink_to("loop.mp4")
    with pytest.raises(MediaError, match="symbolic links"):
        cache.get(loop)
    embeddings = EmbeddingCache({}, tmp_path / "embeddings")
    embeddings.put(loop, EmbeddedFile(str(loop), 1.0, torch.zeros(1, 2), None, ()))
    assert embeddings.get(loop) is None


@pytest.mark.parametrize("seconds", [-7200, 7200])  # ago, or before the clock was set back
def test_unfinished_files_of_killed_processes_are_removed_and_those_at_work_are_not(media, tmp_path, seconds):
    cache = ClipCache(tmp_path)
    with atomic_path(cache.entry("0" * 64)) as old, atomic_path(cache.entry("1" * 64)) as new:
        os.utime(old, (1, time.time() + seconds))
        cache.get(media[0], frame_size=16)
        assert (old.exists(), new.exists()) == (False, True)
        old.touch()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("zip"), MemoryError(), KeyError()]
)
def test_whatever_goes_wrong_in_writing_costs_only_time(media, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("avfewshot.cache.write_bytes", fail)
    cache = ClipCache(tmp_path / "cache")
    assert same(cache.get(media[0], frame_size=16), cache.get(media[0], frame_size=16))
    assert cache.counts["unstored"] == 2


def test_a_disk_that_is_full_costs_only_time(media, tmp_path):
    """A limit on the size of a file stands for it."""
    cache = ClipCache(tmp_path / "cache")
    embeddings = EmbeddingCache({}, tmp_path / "embeddings")
    file = EmbeddedFile(str(media[0]), 1.0, torch.randn(10, 600), None, ())
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        cache.get(media[0], frame_size=32)
        embeddings.put(media[0], file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (cache.counts["unstored"], embeddings.disk.counts["unstored"]) == (1, 1)
    assert embeddings.get(media[0]) is None
    assert not list((tmp_path / "embeddings").iterdir())


def test_parts_of_an_entry_that_unpack_to_more_than_they_say_are_refused(media):
    """Silence of an hour is a few kilobytes of FLAC, a picture of one colour likewise."""
    clip = ClipCache().get(media[0], frame_size=8)
    with zipfile.ZipFile(io.BytesIO(encode_clip(clip, "key"))) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}

    def packed(how=zipfile.ZIP_STORED, **parts) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", how) as archive:
            for name, content in {**good, **parts}.items():
                archive.writestr(name, content)
        return stream.getvalue()

    assert same(decode_clip(packed(), "key", clip.path), clip)
    hour = encode_sound(torch.zeros(3600 * SAMPLE_RATE // 10))
    huge = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(huge, "PNG")
    about = {**json.loads(good["clip.json"]), "segments": 10**9}
    for bomb in (
        packed(**{"audio.flac": hour}),
        packed(**{"000000.img": huge.getvalue()}),
        packed(**{"000000.img": huge.getvalue(), "000001.img": huge.getvalue()}),
        packed(**{"clip.json": json.dumps(about)}),
        packed(zipfile.ZIP_DEFLATED),
    ):
        with pytest.raises(DamagedError):
            decode_clip(bomb, "key", clip.path)


def test_threads_share_a_cache(media, tmp_path):
    cache = ClipCache(tmp_path / "cache")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: [cache.get(path, frame_size=16) for path in media * 3], range(4)))
    assert cache.counts["hits"] + cache.counts["misses"] == 48
    assert 4 <= cache.counts["misses"] <= 16
    assert len(entries(cache)) == 4


def work(folder: Path, bound: int, seed: int, paths: list[Path], queue) -> None:
    cache = ClipCache(folder, bound)
    expected = {path: ClipCache(max_bytes=0).get(path, frame_size=16) for path in paths}
    order = random.Random(seed).choices(paths, k=12)
    right = all(same(cache.get(path, frame_size=16), expected[path]) for path in order)
    queue.put((right, cache.counts))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs processes that fork")
def test_processes_that_evict_each_others_entries_get_the_right_clips(media, tmp_path):
    probe = ClipCache(tmp_path / "probe")
    probe.get(media[0], frame_size=16)
    context = multiprocessing.get_context("fork")
    queue, bound = context.SimpleQueue(), int(2.5 * probe.size())
    shared = [(tmp_path / "cache", bound, seed, media, queue) for seed in range(3)]
    processes = [context.Process(target=work, args=given) for given in shared]
    for process in processes:
        process.start()
    outcomes = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    assert all(right for right, _ in outcomes)
    assert sum(counts["hits"] for _, counts in outcomes) > 0
    assert sum(counts["evicted"] for _, counts in outcomes) > 0
    assert sum(counts["unstored"] for _, counts in outcomes) == 0
