import contextlib
import sys
import threading
import time

import pytest
from media_factory import tone, write_audio
from weights_support import LocalServer

from avfewshot.errors import UsageError
from avfewshot.inference.inputs import is_single, names_many
from avfewshot.media import remote
from avfewshot.media.clip import Failure
from avfewshot.media.discover import find_media
from avfewshot.media.stream import iter_clips


class Web(LocalServer):
    """Serves `.files` by path, all with the version `.tag`; some paths misbehave until it is `.over`."""

    def __init__(self):
        super().__init__()
        self.files, self.asked, self.tag, self.over = {}, [], '"1"', threading.Event()

    def answer(self, handler, body):
        self.asked.append((handler.command, handler.path))
        content = self.files.get(handler.path)
        headers = {"ETag": self.tag} if self.tag else {}
        if content is None:
            self.send(handler, 404, {})
        elif handler.path == "/stalls.wav":
            self.send(handler, 200, {"Content-Length": str(len(content)), **headers}, content[:10])
            self.over.wait(20 * (handler.command == "GET"))
        elif handler.path == "/endless.wav":
            handler.close_connection = True
            handler.send_response(200)
            handler.end_headers()
            with contextlib.suppress(OSError):
                while handler.command == "GET" and not self.over.is_set():
                    handler.wfile.write(content)
        else:
            self.send(handler, 200, headers, content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("AVFS_CACHE", str(tmp_path / "cache"))
    with Web() as web:
        yield web
        web.over.set()


@pytest.fixture
def sound(tmp_path):
    return write_audio(tmp_path / "a.wav", tone(2.0)).read_bytes()


def read(*addresses, **options):
    return list(iter_clips(addresses, modality="audio", **options))


def cached():
    return [path for path in remote.cache_dir("remote").iterdir() if path.suffix == ".wav"]


def test_addresses_are_read_like_files_and_named_as_they_were(server, sound):
    server.files = {"/a.wav": sound, "/page.wav": b"<!doctype html><html>404</html>"}
    urls = [f"{server.address}{path}" for path in ("/a.wav", "/no.wav", "/page.wav")]
    whole, missing, page, lost = read(*urls, "http://127.0.0.1:9/x.wav")
    assert (whole.path, whole.num_segments) == (urls[0], 2)
    assert missing == Failure(urls[1], missing.error)
    assert "there is no such file" in missing.error or "404" in missing.error
    assert "is not a media file" in page.error
    assert "cannot be fetched: Cannot connect" in lost.error  # a server that is not there costs its files


def test_what_is_unchanged_is_not_fetched_again(server, sound):
    server.files = {"/a.wav": sound, "/same.wav": sound}

    def fetched():
        read(f"{server.address}/a.wav")
        return sum(method == "GET" for method, _ in server.asked)

    assert [fetched(), fetched()] == [1, 1]
    server.tag = '"2"'
    assert [fetched(), fetched()] == [2, 2]
    server.tag = None  # a server that does not tell versions
    assert [fetched(), fetched()] == [3, 4]
    read(f"{server.address}/same.wav")
    assert len(cached()) == 1  # the same bytes


def test_size_and_time_are_bounded(server, sound, monkeypatch):
    monkeypatch.setattr(remote, "MAX_BYTES", 300_000)
    monkeypatch.setenv("AVFS_TIMEOUT", "1")
    server.files = {"/large.wav": bytes(300_001), "/endless.wav": sound, "/stalls.wav": sound, "/empty.wav": b""}
    began = time.monotonic()
    large, endless, stalls, empty = read(*(f"{server.address}{path}" for path in server.files))
    assert "too large to be fetched: 300,001 bytes" in large.error
    assert ("GET", "/large.wav") not in server.asked  # refused by what the server says
    assert "too large to be fetched" in endless.error
    assert "does not answer in time" in stalls.error
    assert "empty" in empty.error
    assert time.monotonic() - began < 15
    assert not cached()


def test_the_cache_is_bounded(server, sound, monkeypatch):
    monkeypatch.setattr(remote, "_IN_USE", 0.0)
    monkeypatch.setattr(remote, "CACHE_BYTES", len(sound) + 10)
    server.files = {"/a.wav": sound, "/b.wav": sound[:-2]}
    read(f"{server.address}/a.wav")
    time.sleep(0.05)
    read(f"{server.address}/b.wav")
    assert [path.read_bytes() for path in cached()] == [sound[:-2]]


@pytest.fixture
def bucket(monkeypatch, tmp_path, sound):
    """Files at s3://bucket, without s3."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Fake(MemoryFileSystem):
        protocol = "s3"
        store, pseudo_dirs = {}, [""]

    monkeypatch.setenv("AVFS_CACHE", str(tmp_path / "cache"))
    before = fsspec.get_filesystem_class
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **kw: Fake() if name == "s3" else before(name)(**kw))
    for name in ("one.wav", "two.wav", "notes.txt", "below/three.wav"):
        Fake().pipe_file(f"/bucket/{name}", sound)


def test_folders_and_globs_of_a_bucket(bucket):
    assert find_media(["s3://bucket/"]) == [f"s3://bucket/{name}.wav" for name in ("below/three", "one", "two")]
    assert find_media(["s3://bucket/"], recursive=False) == ["s3://bucket/one.wav", "s3://bucket/two.wav"]
    assert find_media(["s3://bucket/t*"]) == ["s3://bucket/two.wav"]
    with pytest.raises(UsageError, match="There is no media file at 's3://bucket/q"):
        find_media(["s3://bucket/q*"])
    assert [clip.num_segments for clip in read("s3://bucket/one.wav")] == [2]
    assert names_many("s3://bucket/")
    assert is_single("s3://bucket/one.wav")
    assert not names_many("https://example.org/a.mp4?b=[1]")


@pytest.mark.parametrize("address", ["gs://a/b.wav", "file:///etc/passwd", "s3://a::file:///etc/passwd", "ftp://a/b"])
def test_other_protocols_are_refused(address):
    with pytest.raises(UsageError, match="cannot be fetched"):
        find_media([address])


def test_a_missing_extra_is_said(avfs, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    told = avfs.refused("zeroshot", "--label", "dog", "s3://bucket/a.wav", "--backbone", "tiny")
    assert "pip install 'avfewshot[remote]'" in " ".join(told.split())


def test_a_file_whose_name_is_an_address_is_that_file(monkeypatch, tmp_path, sound):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:").mkdir()
    (tmp_path / "http:" / "a.wav").write_bytes(sound)
    assert not remote.is_remote("http://a.wav")


def test_zeroshot_of_an_address_and_a_store_that_asks_for_each_once(server, sound, avfs, tmp_path):
    server.files = {"/a.wav": sound, "/b.wav": sound[:-100]}
    (tmp_path / "clips").mkdir()
    local = write_audio(tmp_path / "clips" / "c.wav", tone(1.0))
    named = [*(f"{server.address}/{name}.wav" for name in ("a", "b", "none")), str(local.parent)]

    def paths(*command):
        return [clip["path"] for clip in avfs.json(*command)["clips"]]

    zeroshot = ("zeroshot", "--label", "hum", "--label", "beep", "--backbone", "tiny", "--device", "cpu")
    assert paths(*zeroshot, named[0]) == [named[0]]
    embed = ("embed", *named, "--store", "store")
    told = avfs.refused(*embed, "--backbone", "tiny", "--device", "cpu", status=1)
    assert "none.wav: cannot be fetched: there is no such file" in told.replace("\n", " ")
    server.asked.clear()
    assert "0 new, 0 changed, 0 gone, 3 as before, 1 left out" in avfs.refused(*embed, status=1)
    assert set(paths("find", "--like", named[0], "--store", "store")) == {named[1], str(local)}
    assert paths(*zeroshot, "--store", "store") == [str(local), *named[:2]]
    assert server.asked == []
    server.files["/none.wav"] = sound
    avfs(*embed, "--retry")
