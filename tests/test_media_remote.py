import http.server
import json
import sys
import threading
import time

import pytest
from media_factory import tone, write_audio

from avfewshot.cli.app import run
from avfewshot.errors import UsageError
from avfewshot.inference.inputs import is_single, names_many
from avfewshot.media import remote
from avfewshot.media.clip import Failure
from avfewshot.media.discover import find_media
from avfewshot.media.stream import iter_clips


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server: `.files` by path, `.asked` (method, path), `.tag` of every file; some paths misbehave."""
    monkeypatch.setenv("AVFS_CACHE", str(tmp_path / "cache"))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            here.asked.append((self.command, self.path))
            content = here.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            if here.tag:
                self.send_header("ETag", here.tag)
            unknown = self.path.startswith("/endless")
            self.send_header(*(("Connection", "close") if unknown else ("Content-Length", str(len(content)))))
            self.end_headers()
            if self.command == "HEAD":
                return
            if self.path.startswith("/stalls"):
                self.wfile.write(content[:10])
                self.wfile.flush()
                here.over.wait(20)
                return
            try:
                self.wfile.write(content)
                while unknown and not here.over.is_set():
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
            self.close_connection = unknown or self.close_connection

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    here = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.files, here.asked, here.tag, here.over = {}, [], '"1"', threading.Event()
    here.url = f"http://127.0.0.1:{here.server_port}"
    threading.Thread(target=here.serve_forever, daemon=True).start()
    yield here
    here.over.set()
    here.shutdown()


@pytest.fixture
def sound(tmp_path):
    return write_audio(tmp_path / "a.wav", tone(2.0)).read_bytes()


def read(*addresses, **options):
    return list(iter_clips(addresses, modality="audio", **options))


def cached():
    return [path for path in remote.cache_dir("remote").iterdir() if path.suffix == ".wav"]


def test_addresses_are_read_like_files_and_named_as_they_were(server, sound):
    server.files = {"/a.wav": sound, "/page.wav": b"<!doctype html><html>404</html>"}
    urls = [f"{server.url}{path}" for path in ("/a.wav", "/no.wav", "/page.wav")]
    whole, missing, page, lost = read(*urls, "http://127.0.0.1:9/x.wav")
    assert (whole.path, whole.num_segments) == (urls[0], 2)
    assert missing == Failure(urls[1], missing.error)
    assert "there is no such file" in missing.error or "404" in missing.error
    assert "is not a media file" in page.error
    assert "cannot be fetched: Cannot connect" in lost.error  # a server that is not there costs its files


def test_what_is_unchanged_is_not_fetched_again(server, sound):
    server.files = {"/a.wav": sound, "/same.wav": sound}

    def fetched():
        read(f"{server.url}/a.wav")
        return sum(method == "GET" for method, _ in server.asked)

    assert [fetched(), fetched()] == [1, 1]
    server.tag = '"2"'
    assert [fetched(), fetched()] == [2, 2]
    server.tag = None  # a server that does not tell versions
    assert [fetched(), fetched()] == [3, 4]
    read(f"{server.url}/same.wav")
    assert len(cached()) == 1  # the same bytes


def test_size_and_time_are_bounded(server, sound, monkeypatch):
    monkeypatch.setattr(remote, "MAX_BYTES", 300_000)
    monkeypatch.setenv("AVFS_TIMEOUT", "1")
    server.files = {"/large.wav": bytes(300_001), "/endless.wav": sound, "/stalls.wav": sound, "/empty.wav": b""}
    began = time.monotonic()
    large, endless, stalls, empty = read(*(f"{server.url}{path}" for path in server.files))
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
    read(f"{server.url}/a.wav")
    time.sleep(0.05)
    read(f"{server.url}/b.wav")
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


def test_a_missing_extra_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert run(["zeroshot", "--label", "dog", "--label", "cat", "s3://bucket/a.wav", "--backbone", "tiny"]) == 2
    assert "pip install 'avfewshot[remote]'" in " ".join(capsys.readouterr().err.split())


def test_a_file_whose_name_is_an_address_is_that_file(monkeypatch, tmp_path, sound):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:").mkdir()
    (tmp_path / "http:" / "a.wav").write_bytes(sound)
    assert not remote.is_remote("http://a.wav")


def test_zeroshot_of_an_address_and_a_store_that_asks_for_each_once(server, sound, tmp_path, capfd):
    server.files = {"/a.wav": sound, "/b.wav": sound[:-100]}
    (tmp_path / "clips").mkdir()
    folder, local = str(tmp_path / "store"), write_audio(tmp_path / "clips" / "c.wav", tone(1.0))
    named = [f"{server.url}/a.wav", f"{server.url}/b.wav", f"{server.url}/none.wav", str(local.parent)]

    def paths(*command):
        assert run([*command, "--format", "json"]) == 0
        return [clip["path"] for clip in json.loads(capfd.readouterr().out)["clips"]]

    zeroshot = ["zeroshot", "--label", "hum", "--label", "beep", "--backbone", "tiny", "--device", "cpu"]
    assert paths(*zeroshot, named[0]) == [named[0]]
    assert run(["embed", *named, "--store", folder, "--backbone", "tiny", "--device", "cpu"]) == 1
    assert "none.wav: cannot be fetched: there is no such file" in capfd.readouterr().err.replace("\n", " ")
    server.asked.clear()
    assert run(["embed", *named, "--store", folder]) == 1
    assert "0 new, 0 changed, 0 gone, 3 as before, 1 left out" in capfd.readouterr().err
    assert set(paths("find", "--like", named[0], "--store", folder)) == {named[1], str(local)}
    assert paths(*zeroshot, "--store", folder) == [str(local), *named[:2]]
    assert server.asked == []
    server.files["/none.wav"] = sound
    assert run(["embed", *named, "--store", folder, "--retry"]) == 0
