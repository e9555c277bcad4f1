"""The server of `avfs serve`: its API, what it keeps, and what it refuses."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from media_factory import strike, tone, write_media

pytest.importorskip("fastapi", reason='pip install "avfewshot[app]"')
from fastapi.testclient import TestClient

import avfewshot
from avfewshot.app.clips import Scratch
from avfewshot.app.label_file import NAME, Mark, read_marks, write_marks
from avfewshot.app.learner import features_of
from avfewshot.app.server import create_app, listen
from avfewshot.app.workspace import Workspace
from avfewshot.cli.app import run
from avfewshot.errors import DataError
from avfewshot.inference.loading import load
from avfewshot.labels import LabelSet
from avfewshot.methods.active import suggest
from avfewshot.store.store import Store

HOST = "127.0.0.1:8765"
LABELS = LabelSet.from_names(["dog barking", "bell ringing"])
TOWERS = ["--backbone", "tiny", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def classifier():
    return load("tiny", device="cpu", precision="fp32", cache=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six clips of two kinds."""
    folder = tmp_path_factory.mktemp("world") / "clips"
    folder.mkdir()
    for number in range(6):
        kind, colour = divmod(number, 3)
        frequency = (300 if kind else 2500) + 20 * colour
        path, size = folder / f"{'ab'[kind]}{colour}.mp4", (96, 64) if kind else (64, 96)
        write_media(path, seconds=3, audio=tone(3, frequency=frequency), size=size)
    return folder


def until(reached, seconds=60):
    """What a condition comes to in the end."""
    end = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


class Served:
    """A workspace, and clients of its application."""

    def __init__(self, classifier, folder, *, labels=LABELS, token=None, start=True, **options):
        self.work = Workspace(classifier, folder, sorted(folder.glob("*.mp4")), labels, runs=folder / "runs")
        hosts = None if token else {HOST}
        self.app = create_app(self.work, hosts=hosts, token=token, **options)
        if start:
            self.work.worker.start()

    def client(self, **headers):
        return TestClient(self.app, base_url=f"http://{HOST}", headers=headers, raise_server_exceptions=False)

    def ready(self):
        def reached():
            state = self.work.state()
            return state["embedded"] == state["clips"] and not state["stale"] and self.work.worker.model is not None

        until(reached)
        return self


@pytest.fixture
def serve(classifier, world):
    """Makes servers of the world; ends them, and takes away what they have written."""
    made, clips = [], set(world.iterdir())

    def make(classifier=classifier, **options):
        made.append(Served(classifier, world, **options))
        return made[-1]

    make.folder = world
    yield make
    for served in made:
        served.work.close()
    for path in set(world.iterdir()) - clips:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def rows(client, since=0):
    return client.get("/api/clips", params={"since": since}).json()["clips"]


# -------------------------------------------------------------------------------------------------- the API


def test_classify_answers_as_the_command_line_does(serve, classifier):
    client = serve(start=False).client()
    clip = (serve.folder / "a0.mp4").read_bytes()
    texts = ["dog: a dog barks", "bell"]
    answer = client.post("/classify", files={"files": ("my clip.mp4", clip)}, data={"labels": texts, "segments": "1"})
    assert answer.status_code == 200
    [found] = answer.json()["clips"]
    expected = classifier.classify(serve.folder / "a0.mp4", {"dog": "a dog barks", "bell": "bell"})[0]
    assert found["path"] == "my clip.mp4"
    assert found["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert len(found["segments"]) == 3
    assert answer.json()["version"] == 1
    answer = client.post("/classify", files=[("files", ("bad.mp4", b"nothing")), ("files", ("b.mp4", clip))]).json()
    assert [clip["path"] for clip in answer["clips"]] == ["b.mp4"]
    assert [failure["path"] for failure in answer["failed"]] == ["bad.mp4"]
    answer = client.post("/classify", data={"paths": ["a0.mp4"]}).json()
    assert answer["clips"][0]["label"] in LABELS.names
    # The interface is described.
    paths = client.get("/openapi.json").json()["paths"]
    assert "post" in paths["/classify"]
    page = client.get("/docs")
    assert all(path in page.text for path in paths)
    assert "http://" not in re.sub(r"<pre>.*?</pre>", "", page.text)


def test_scores_frames_and_ranges_of_clips(serve, classifier):
    client = serve().ready().client()
    for row in rows(client):
        expected = classifier.classify(serve.folder / row["path"], LABELS)[0]
        first, second = sorted(expected.scores.values(), reverse=True)
        gap = sum(abs(expected.visual[name] - expected.audio[name]) for name in LABELS.names) / 2
        assert row["label"] == expected.label
        found = [row[key] for key in ("score", "margin", "disagreement")]
        assert found == pytest.approx([expected.score, first - second, gap], abs=1e-3)
    clip = client.get("/api/clips/0").json()
    assert len(clip["both"]) == len(clip["sight"]) == len(clip["sound"]) == 2 * 3
    assert client.get("/api/clips/0/frame", params={"second": 1}).content[:2] == b"\xff\xd8"
    assert client.get("/api/clips/0/frame", params={"second": 99}).status_code == 404
    part = client.get("/api/clips/0/media", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")


def test_corrections_are_in_the_file_before_the_answer_and_survive_the_server(serve, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    client = serve().ready().client(**{"X-Tab": "one"})
    with monkeypatch.context() as patch:
        patch.setattr("avfewshot.app.label_file.write_text", full)
        answer = client.post("/api/label", json={"ids": [0], "label": "dog barking"})
    assert answer.status_code == 507
    assert "No space left" in answer.json()["error"]
    assert rows(client)[0]["mine"] is None
    for said in (
        {"ids": [0, 1], "label": "dog barking"},
        {"ids": [3], "label": "kazoo", "wording": "a kazoo"},
        {"ids": [2], "label": "none", "start": 1, "end": 3},
    ):
        assert client.post("/api/label", json=said).status_code == 200
    lines = (serve.folder / NAME).read_text().splitlines()
    assert {"a0.mp4,,,dog barking,", ",,,kazoo,a kazoo", "a2.mp4,1,3,none,"} <= set(lines)
    again = serve().ready().client()  # as if the first one had died
    state = again.get("/api/state").json()
    assert {"name": "kazoo", "wording": "a kazoo"} in state["classes"]
    assert state["labelled"] == 4
    found = {row["path"]: row for row in rows(again)}
    assert found["a0.mp4"]["mine"] == "dog barking"
    assert found["a2.mp4"]["seconds"] == 2
    assert until(lambda: again.get("/api/state").json()["learnt"])["clips"] == 4  # what was learnt comes back, too


def test_learning_follows_corrections_and_a_saved_run_is_learnt_on_from(serve):
    served = serve().ready()
    client = served.client()
    assert client.post("/api/learn").json()["learnt"] is None
    # The words say nothing about these clips: the corrections decide.
    client.post("/api/label", json={"ids": [0, 1], "label": "bell ringing"})
    client.post("/api/label", json={"ids": [3, 4], "label": "dog barking"})
    facts = client.post("/api/learn").json()["learnt"]
    assert (facts["clips"], facts["accuracy"]) == (4, 1)
    served.ready()
    found = {row["path"]: row for row in rows(client)}
    assert found["a2.mp4"]["label"] == "bell ringing"
    assert found["b2.mp4"]["label"] == "dog barking"
    assert client.post("/api/save", json={"name": "../up"}).status_code == 422
    run = client.post("/api/save", json={"name": "mine"}).json()["run"]
    saved = avfewshot.load(adapter=run, device="cpu", precision="fp32")
    result = saved.classify(serve.folder / "a2.mp4")[0]
    assert result.label == "bell ringing"
    assert found["a2.mp4"]["score"] == pytest.approx(result.score, abs=1e-3)

    served.work.close()
    (serve.folder / NAME).unlink()
    later = serve(classifier=saved, labels=saved.own_labels).ready()
    client = later.client()
    assert {row["path"]: row["label"] for row in rows(client)}["b2.mp4"] == "dog barking"
    client.post("/api/label", json={"ids": [2, 5], "label": "new", "wording": ""})
    client.post("/api/learn")
    later.ready()
    assert {row["label"] for row in rows(client) if row["path"] in ("a2.mp4", "b2.mp4")} == {"new"}


def test_undo_is_each_tabs_own(serve):
    served = serve().ready()
    one, two = served.client(**{"X-Tab": "one"}), served.client(**{"X-Tab": "two"})
    one.post("/api/label", json={"ids": [0], "label": "dog barking"})
    two.post("/api/label", json={"ids": [1], "label": "bell ringing"})
    assert one.post("/api/undo").json()["undone"] is True
    assert [row["mine"] for row in rows(one)][:2] == [None, "bell ringing"]
    one.post("/api/label", json={"ids": [2], "label": "dog barking"})
    two.post("/api/label", json={"ids": [2], "label": "bell ringing"})
    assert one.post("/api/undo").status_code == 422  # it is no longer what this tab said
    assert [row["mine"] for row in rows(one)][2] == "bell ringing"
    classes = one.get("/api/state").json()["classes"]
    assert one.put("/api/classes", json=classes[:1]).status_code == 200
    assert [row["mine"] for row in rows(one)][2] is None
    assert one.post("/api/undo").json()["undone"] is True
    assert one.get("/api/state").json()["classes"] == classes
    assert [row["mine"] for row in rows(one)][2] == "bell ringing"


def test_suggestions_are_without_a_label_and_different(serve, classifier):
    client = serve().ready().client()
    client.post("/api/label", json={"ids": [0], "label": "dog barking"})
    ids = client.get("/api/suggest", params={"count": 2}).json()["ids"]
    assert len(set(ids)) == 2
    assert 0 not in ids
    assert {number // 3 for number in ids} == {0, 1}  # one of each kind
    # Something is suggested where nothing is in doubt.
    files = list(classifier.iter_embed([serve.folder / f"{name}.mp4" for name in ("a0", "a1", "b0", "b1")]))
    chosen = suggest(np.ones(4), lambda rows: features_of(classifier, [files[row] for row in rows]), 2)
    assert len(set(chosen.tolist())) == 2
    with warnings.catch_warnings():  # of copies of one clip one is suggested
        warnings.simplefilter("error")
        assert len(suggest(np.ones(4), lambda rows: features_of(classifier, [files[0]] * len(rows)), 2)) == 1


def test_clips_are_found_by_what_is_in_them(serve, tmp_path):
    served = serve().ready()
    client = served.client()

    def find(by="both"):
        return client.get("/api/find", params={"q": "dog barking", "by": by})

    for by in ("sight", "sound", "both"):
        found = find(by).json()["found"]
        assert sorted(hit["id"] for hit in found) == list(range(6))
        assert [hit["score"] for hit in found] == sorted((hit["score"] for hit in found), reverse=True)
    # What `avfs find` says of a store of the same clips.
    folder = str(tmp_path / "store")
    assert run(["embed", str(serve.folder), "--store", folder, *TOWERS]) == 0
    hits = Store(folder).find("dog barking", top=50)
    assert [Path(hit.path).name for hit in hits] == [rows(client)[hit["id"]]["path"] for hit in found]
    assert [hit.score for hit in hits] == pytest.approx([hit["score"] for hit in found], abs=1e-3)
    # A clip that is dropped later is found, too, and kept once it is labelled.
    content = (serve.folder / "a0.mp4").read_bytes()
    [number] = client.post("/api/clips", files={"files": ("../../dog.mp4", content)}).json()["ids"]
    served.ready()
    assert len(find().json()["found"]) == 7
    assert find("smell").status_code == 422
    assert rows(client)[number]["path"] == "dropped/dog.mp4"
    assert not (serve.folder / "dropped").exists()
    client.post("/api/label", json={"ids": [number], "label": "dog barking"})
    assert (serve.folder / "dropped" / "dog.mp4").read_bytes() == content
    assert "dropped/dog.mp4,,,dog barking," in (serve.folder / NAME).read_text().splitlines()
    assert client.get(f"/api/clips/{number}/media").status_code == 200
    temporary = served.work.clips.temporary
    served.work.close()
    assert not temporary.exists()


def test_what_a_killed_server_left_is_swept_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os; from avfewshot.app.clips import Scratch; (Scratch().path / 'clip').mkdir()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    killed = [sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)"]
    assert subprocess.run(killed, env=environment, check=False).returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "avfs-serve-link").symlink_to(elsewhere)
    alive = Scratch()
    assert not left.exists()
    (alive.path / "clip.mp4").write_bytes(b"x")
    second = Scratch()
    assert (alive.path / "clip.mp4").exists()
    alive.close()
    second.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["avfs-serve-link", "elsewhere"]


# -------------------------------------------------------------------------------------------------- the label file


def test_the_label_file_keeps_whatever_names_there_are(tmp_path):
    classes = {"dog": "a dog, barking", "=cmd|x": "'quoted'", "été": "été"}
    marks = {
        tmp_path / "=1+1.mp4": Mark("dog"),
        tmp_path / "a,b\"c'.mp4": Mark(None, {0: "dog", 1: "dog", 3: "=cmd|x"}),
        tmp_path.parent / "elsewhere.mp4": Mark("été", {2: "none"}),
    }
    write_marks(tmp_path / NAME, classes, marks)
    assert read_marks(tmp_path / NAME) == (classes, marks)
    cells = [cell.strip('"') for line in (tmp_path / NAME).read_text().splitlines() for cell in line.split(",")]
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)


def test_a_damaged_label_file_is_named_and_left_alone(tmp_path):
    title = "path,start,end,label,wording\n"
    for text in ("a,b\n", f"{title}x,1\n", f"{title}x,5,2,dog,\n"):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(DataError, match=re.escape(str(tmp_path / NAME))):
            read_marks(tmp_path / NAME)
        assert (tmp_path / NAME).read_text() == text


# -------------------------------------------------------------------------------------------------- security


def test_pages_of_other_sites_get_nothing(serve):
    served = serve(start=False)
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
        {"Host": "evil.example:8765"},
        {"Host": "127.0.0.1.evil.example"},
    ):
        client = served.client(**headers)
        for path in ("/api/state", "/api/clips/0/media", "/classify", "/api/label"):
            body = {"json": {"ids": [0], "label": "dog barking"}} if path in ("/classify", "/api/label") else {}
            answer = client.request("POST" if body else "GET", path, **body)
            assert answer.status_code in (403, 421), (headers, path)
            assert "clips" not in answer.text
    assert not (serve.folder / NAME).exists()


def test_this_sites_own_requests_are_answered(serve):
    client = serve(start=False).client(Origin=f"http://{HOST}", **{"Sec-Fetch-Site": "same-origin"})
    assert client.post("/api/label", json={"ids": [0], "label": "dog barking"}).status_code == 200
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    page = serve(start=False).client(**visit).get("/")  # a link to the page is no attack
    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_beyond_this_machine_a_token_is_needed(serve):
    served = serve(start=False, token="s3cret")
    client = served.client()
    for path in ("/", "/?token=wrong", "/api/state", "/docs", "/openapi.json", "/static/app.js", "/api/clips/0/media"):
        assert client.get(path).status_code == 401, path
    assert client.post("/classify", files={"files": ("a.mp4", b"x")}).status_code == 401
    assert client.get("/api/state", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/api/state", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert client.get("/api/state?token=s3cret").status_code == 401  # addresses end up in logs
    first = client.get("/?token=s3cret", follow_redirects=False)
    assert first.headers["Location"] == "/"
    assert "HttpOnly" in first.headers["Set-Cookie"]
    assert "SameSite=strict" in first.headers["Set-Cookie"]
    assert client.get("/api/state").status_code == 200  # the cookie
    assert client.get("/api/state", headers={"Origin": "http://evil.example"}).status_code == 403


def test_no_path_leads_out_of_the_folders(serve):
    secret = serve.folder.parent / "secret.mp4"
    secret.write_bytes((serve.folder / "a0.mp4").read_bytes())
    os.symlink(secret, serve.folder / "link.mp4")
    client = serve().ready().client()
    outside = ["../secret.mp4", "/etc/passwd", "%2e%2e/secret.mp4", "..\\secret.mp4", "link.mp4", "/dev/zero", "."]
    for path in (*outside, "folder/../../secret.mp4", "a0.mp4\0"):
        answer = client.post("/classify", data={"paths": [path], "labels": ["dog", "cat"]})
        assert answer.status_code == 422, (path, answer.text)
    linked = next(row for row in rows(client) if row["path"] == "link.mp4")
    assert "leads out" in linked["error"]
    assert client.get(f"/api/clips/{linked['id']}/media").status_code == 422
    static = ("/static/../server.py", "/static/%2e%2e/server.py", "/static/index.html")
    for raw in (*static, "/api/clips/-1/media", "/api/clips/99999/media"):
        assert client.get(raw).status_code in (404, 422), raw


def test_uploads_are_bounded(serve):
    served = serve(start=False, max_upload=100_000)
    client = served.client()
    for path in ("/api/clips", "/classify"):
        answer = client.post(path, files={"files": ("big.mp4", b"x" * 200_000)})
        assert answer.status_code == 413
        assert "100,000" in answer.json()["error"]

    def endless():  # no Content-Length
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/api/clips", content=endless(), headers=headers).status_code == 413
    assert client.post("/api/label", content=b"[" * (5 << 20)).status_code == 413
    assert client.post("/api/clips", files={"files": ("page.html", b"<script>")}).json()["ids"] == []
    assert client.post("/api/clips", content=b"no form", headers=headers).status_code in (400, 422)
    for _ in range(4):
        client.post("/api/clips", files={"files": ("a.mp4", b"x" * 95_000)})
    assert client.post("/api/clips", files={"files": ("a.mp4", b"x" * 95_000)}).status_code == 507
    assert [path for path in served.work.clips.temporary.iterdir() if path.is_file()] == []


BODIES = (
    b"{",
    b"[]",
    b'{"ids": []}',
    b'{"ids": [77]}',
    b'{"ids": [0], "label": "nobody knows"}',
    b'{"ids": [0], "label": "none", "start": 1}',
    b'{"ids": [0], "label": "none", "start": 5, "end": 99}',
)


def test_malformed_requests_are_refused(serve):
    client = serve(start=False).client(**{"Content-Type": "application/json"})
    for body in BODIES:
        answer = client.post("/api/label", content=body)
        assert answer.status_code in (404, 422), body
        assert answer.json()["error"]
    assert not (serve.folder / NAME).exists()


def test_a_hostile_clip_costs_a_worker_and_not_the_server(serve, monkeypatch):
    strike(monkeypatch, "hostile.mp4", signal.SIGSEGV)
    served = serve()
    client = served.client()
    clip = (serve.folder / "a0.mp4").read_bytes()
    files = [("files", ("hostile.mp4", clip + b"1")), ("files", ("fine.mp4", clip + b"2"))]
    ids = client.post("/api/clips", files=files).json()["ids"]
    served.ready()
    hostile, fine = (rows(client)[number] for number in ids)
    assert "crashed" in hostile["error"]
    assert fine["label"] in LABELS.names
    assert client.get(f"/api/clips/{ids[0]}/frame").status_code == 404
    assert client.get("/api/state").status_code == 200


def test_many_requests_at_once(serve):
    served = serve().ready()
    clip, errors = (serve.folder / "a0.mp4").read_bytes(), []

    def hammer(number):
        client = served.client(**{"X-Tab": str(number)})
        try:
            for turn in range(2):
                label = LABELS.names[(number + turn) % 2]
                assert client.post("/api/label", json={"ids": [number % 6], "label": label}).status_code == 200
                assert client.get("/api/clips").status_code == 200
                assert client.get(f"/api/clips/{number % 6}").status_code == 200
                assert client.post("/api/learn").status_code == 200
                answer = client.post("/classify", files={"files": ("a.mp4", clip)})
                assert answer.status_code in (200, 503), answer.text
                assert client.get("/api/clips/0/frame").status_code == 200
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    served.ready()
    _, marks = read_marks(serve.folder / NAME)
    assert {path.name: mark.label for path, mark in marks.items()} == {
        row["path"]: row["mine"] for row in rows(served.client())
    }


# -------------------------------------------------------------------------------------------------- the command


def test_the_command_serves_and_ctrl_c_ends_it_with_an_event_stream_open(serve):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "avfewshot", "serve", str(serve.folder), "--label", "dog", "--label", "cat"]
    command += ["--backbone", "tiny", "--device", "cpu", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", process.stdout.readline())[1])
        stream = socket.create_connection(("127.0.0.1", port), timeout=20)
        stream.sendall(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        received = b""
        while b"data: {" not in received:
            received += stream.recv(4096)
        assert b"text/event-stream" in received
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read().endswith("\nEnded.\n")  # and names no labels.csv: nothing was said
    finally:
        process.kill()
        process.wait()


def test_an_address_beyond_this_machine_gets_a_token_and_a_port_in_use_is_said(serve):
    with listen("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        assert run(["serve", str(serve.folder), "--label", "dog", "--backbone", "tiny", "--port", str(port)]) == 2
    assert run(["serve", str(Path(serve.folder) / "nothing"), "--label", "dog", "--backbone", "tiny"]) == 2
    web = create_app(serve(start=False).work, hosts=None)
    with pytest.raises(ValueError, match="no token"):
        web.build_middleware_stack()


def test_embeddings_come_from_a_store(serve, tmp_path, monkeypatch):
    folder = str(tmp_path / "store")
    assert run(["embed", str(serve.folder), "--store", folder, *TOWERS]) == 0
    looking = load("tiny", device="cpu", precision="fp32")
    assert looking.look_up(Store(folder).cache)
    monkeypatch.setattr("avfewshot.inference.embedding.read_items", None)  # nothing can be decoded
    store = Store(folder)
    work = Workspace(looking, serve.folder, sorted(serve.folder.glob("*.mp4")), LABELS, store=store)
    work.worker.start()
    try:
        until(lambda: work.state()["embedded"] == 6)
        assert [row["error"] for row in work.rows()] == [None] * 6
        client = TestClient(create_app(work, hosts={HOST}), base_url=f"http://{HOST}")
        small = client.get("/api/clips/0/frame", params={"second": 1}).content
        assert small == store.thumbnail(serve.folder / "a0.mp4", 1)
        assert client.get("/api/clips/0/frame", params={"second": 1, "size": 320}).content != small
    finally:
        work.close()
