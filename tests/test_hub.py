"""Adapters to the hub and back, with the hub's own client against a local server in the hub's layout."""

import base64
import hashlib
import json
import re
import socket

import huggingface_hub.constants
import pytest
from command_support import Commands
from fewshot_worlds import CLASSES, write_class_folders
from weights_support import LocalServer

import avfewshot
from avfewshot.errors import UsageError, WeightsError
from avfewshot.models import hub as hubs


class Hub(LocalServer):
    """Repositories in memory; a commit is a dictionary of files."""

    def __init__(self):
        super().__init__()
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.requests: list[str] = []

    def find(self, repository, revision):
        """(commit, files), or None."""
        made = self.commits.get(repository, [])
        return next((one for one in reversed(made) if revision in ("main", one[0])), None)

    def answer(self, handler, body):
        path = handler.path.partition("?")[0]
        self.requests.append(f"{handler.command} {path}")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.commits.setdefault(name, [("0" * 40, {})])
            return self.give(handler, {"url": f"{self.address}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.give(handler, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", path):
            files = [f | {"uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.give(handler, {"files": files})
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main", path):
            files = dict(self.find(match[1], "main")[1])
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = hashlib.sha1(body).hexdigest()
            self.commits[match[1]].append((commit, files))
            url = f"{self.address}/{match[1]}/commit/{commit}"
            return self.give(handler, {"success": True, "commitOid": commit, "commitUrl": url})
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+))?", path):
            found = self.find(match[1], match[2] or "main")
            if found is None:
                code = "RevisionNotFound" if match[1] in self.commits else "RepoNotFound"
                return self.send(handler, 404, {"X-Error-Code": code})
            siblings = [{"rfilename": name} for name in found[1]]
            return self.give(handler, {"id": match[1], "sha": found[0], "siblings": siblings})
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/([\w.-]+)", path):
            found = self.find(match[1], match[2])
            if found is not None:
                sizes = [(name, len(data), hashlib.sha1(data).hexdigest()) for name, data in found[1].items()]
                tree = [{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in sizes]
                return self.give(handler, tree)
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
            found = self.find(match[1], match[2])
            if found and match[3] in found[1]:
                data = found[1][match[3]]
                headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": found[0]}
                return self.give(handler, data, headers)
        return self.send(handler, 404, {"X-Error-Code": "RepoNotFound"})

    def give(self, handler, content, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send(handler, 200, {"Content-Type": "application/json", **(headers or {})}, data)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_class_folders(folder / "my_clips", clips=4)
    avfs = Commands(folder)
    few = ("fewshot", "--data", "my_clips", "--backbone", "tiny", "--device", "cpu", "--shots", "2", "--val-shots", "0")
    avfs(*few, "--epochs", "1", "--max-steps", "1", "--name", "both")
    avfs(*few, "--method", "kernel_ridge", "--name", "light")
    avfs(*few, "--method", "coop", "--max-steps", "1", "--name", "coop")
    return folder


@pytest.fixture
def avfs(world):
    return Commands(world, shared=False)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hubs._fetched.cache_clear()
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.mark.parametrize("name", ["light", "both", "coop"])
def test_what_was_pushed_predicts_as_the_run_does(hub, avfs, world, name):
    local = avfs.folder_of(name)
    pinned = avfs("push", local, f"me/{name}")[0].split("--adapter ")[1].strip()
    commit, files = hub.commits[f"me/{name}"][-1]
    assert pinned == f"hf://me/{name}@{commit}"
    known = {"adapter.safetensors", "config.json", "scorer", "tuned.safetensors", "tuned.json", "README.md"}
    assert {path.split("/")[0] for path in files} <= known
    assert ("adapter.safetensors" in files) == (name == "both")
    card = files["README.md"].decode()
    assert all(label in card for label in CLASSES)
    assert str(world) not in card

    clips = [f"my_clips/{label}/3.mp4" for label in CLASSES]
    scores = []
    for adapter in (f"hf://me/{name}", local):
        out, err = avfs("zeroshot", *clips, "--adapter", adapter, "--format", "json", "--device", "cpu")
        scores.append([clip["scores"] for clip in json.loads(out)["clips"]])
        # It says what to hold to.
        assert (f"hf://me/{name}@{commit}" in " ".join(err.split())) == (adapter != local)
    assert scores[0] == scores[1]


def test_a_commit_that_is_here_is_not_asked_for_again_and_stays_what_it_was(hub, avfs):
    avfs("push", avfs.folder_of("light"), "me/held")
    commit = hub.commits["me/held"][-1][0]
    folder = hubs.local_adapter(f"hf://me/held@{commit}")
    hub.commits["me/held"].append(("f" * 40, {"config.json": b"{}"}))
    hub.requests.clear()
    hubs._fetched.cache_clear()
    assert hubs.local_adapter(f"hf://me/held@{commit}") == folder
    assert hub.requests == []
    assert avfewshot.load(adapter=f"hf://me/held@{commit}", device="cpu").own_labels.names == CLASSES
    avfs.refused("learn", f"hf://me/held@{commit}", "remove", CLASSES[0])  # what a commit holds is not changed
    assert avfewshot.load(adapter=f"hf://me/held@{commit}", device="cpu").own_labels.names == CLASSES
    with pytest.warns(UserWarning, match="f" * 40):
        assert hubs.local_adapter("hf://me/held").name == "f" * 40


def test_only_an_adapters_files_are_fetched(hub):
    evil = {"config.json": b"{}", "model.pkl": b"x", "run.py": b"x", "scorer/scorer.json": b"{}", "scorer/x.pt": b"x"}
    hub.commits["me/evil"] = [("e" * 40, evil)]
    folder = hubs.local_adapter("hf://me/evil@" + "e" * 40)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["config.json", "scorer/scorer.json"]


def test_what_cannot_be_fetched_is_said(hub):
    hub.commits["me/some"] = [("a" * 40, {})]
    for name, kind, said in (
        ("hf://nobody", UsageError, "hf://user/name"),
        ("hf://../../etc", UsageError, "hf://user/name"),
        ("hf://me/none", WeightsError, "no such repository"),
        ("hf://me/some@none", WeightsError, "no such revision"),
    ):
        with pytest.raises(kind) as caught:
            hubs.local_adapter(name)
        assert said in f"{caught.value} {caught.value.hint}"


def test_a_hub_that_does_not_answer_is_said(hub, avfs, monkeypatch):
    with socket.socket() as silent:  # bound, and nobody listens
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(WeightsError, match="cannot be reached"):
            hubs.local_adapter("hf://me/some")
        assert "cannot be reached" in avfs.refused("push", avfs.folder_of("light"), "me/some", status=1)


def test_a_token_does_not_travel_in_the_open(hub, avfs, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert "plain http" in avfs.refused("push", avfs.folder_of("light"), "me/open", status=1)
    avfs.refused("push", "my_clips", "me/open", status=1)
    avfs.refused("push", avfs.folder_of("light"), "no-owner")
