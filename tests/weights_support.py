"""Small backbones in the official layouts, and a server that speaks the hub's language."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from avfewshot.encoders.htsat import load_htsat_module
from avfewshot.encoders.kinds.towers import ClipClap
from avfewshot.encoders.presets import load_preset

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLIP_MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
AUDIO = {
    "hop": 768,
    "native_samples": 48_000,
    "spec_size": 64,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "class_num": 3,
}
ROBERTA = {
    "type": "roberta",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SOURCES = {
    "clip": {"repository": "timm/small_clip", "licence": "MIT"},
    "clap": {"repository": "lukewys/laion_clap", "checkpoint": "630k-small.pt", "tokenizer": "small/roberta"},
}


def write_preset(folder: Path, *, clip: dict[str, Any] | None = None, clap: dict[str, Any] | None = None) -> Path:
    """A small backbone as a YAML file; `clip` and `clap` add to or replace its entries."""
    document = {
        "description": "small",
        "clip": {"model": CLIP_MODEL, **SOURCES["clip"], **(clip or {})},
        "clap": {"audio": AUDIO, "text": ROBERTA, "joint_dim": 16, **SOURCES["clap"], **(clap or {})},
    }
    for section in ("clip", "clap"):
        document[section] = {key: value for key, value in document[section].items() if value is not None}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def write_clip(preset: ClipClap, path: Path, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random CLIP weights in open_clip's layout."""
    torch.manual_seed(seed)
    model, _ = preset.clip.build()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path)
    return state


def laion_state(preset: ClipClap, seed: int = 2) -> dict[str, torch.Tensor]:
    """Random CLAP weights under the names of LAION's checkpoints."""
    torch.manual_seed(seed)
    model, _ = preset.clap.build()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state["module.logit_scale_a"] = torch.tensor(3.0)
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    for side in ("audio_transform", "text_transform"):
        for layer in (0, 3):
            state[f"module.{side}.sequential.{layer}.weight"] = torch.randn(16, 16)
            state[f"module.{side}.sequential.{layer}.bias"] = torch.randn(16)
    return state


def write_laion(state: dict[str, torch.Tensor], path: Path) -> None:
    """A checkpoint as LAION's training script leaves it: metrics as numpy numbers, the optimizer's state."""
    checkpoint = {
        "epoch": 45,
        "name": "small",
        "state_dict": state,
        "optimizer": {"state": {0: {"step": 7, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4}]},
        "metrics": {"esc_50": np.float64(0.91), "mAP": np.float32(0.36), "count": np.int64(12)},
    }
    torch.save(checkpoint, path)


def fusion_state(preset: ClipClap) -> dict[str, torch.Tensor]:
    """The further tensors of a checkpoint with feature fusion, by the library's own class."""
    config = preset.clap.audio
    library = load_htsat_module()
    settings = type("Settings", (), {"window_size": 1024, "hop_size": 768, "sample_rate": 48_000, "mel_bins": 64})
    settings.fmin, settings.fmax, settings.class_num = 50, 14_000, 3
    fused = library.HTSAT_Swin_Transformer(
        spec_size=config["spec_size"],
        patch_size=4,
        patch_stride=(4, 4),
        num_classes=3,
        embed_dim=config["embed_dim"],
        depths=list(config["depths"]),
        num_heads=list(config["num_heads"]),
        window_size=8,
        config=settings,
        enable_fusion=True,
        fusion_type="aff_2d",
    )
    plain, _ = preset.clap.build()
    known = {name.removeprefix("audio_branch.") for name in plain.state_dict()}
    return {f"module.audio_branch.{k}": v for k, v in fused.state_dict().items() if k not in known}


def write_roberta(folder: Path, size: int = 50265) -> None:
    """Tokenizer files of RoBERTa's form: its special tokens, bytes and merges, filled up to `size` tokens."""
    merges = ["Ġ d", "Ġd o", "Ġdo g", "b a", "ba r", "r a", "ra i", "rai n"]
    letters = _byte_letters()
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(merge.replace(" ", "") for merge in merges)]
    tokens += [f"filler{number}" for number in range(size - len(tokens) - 1)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<mask>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def word_tokenizer(words: list[str], unknown: str, frame: tuple[str, ...] = ()) -> Any:
    """A tokenizer that knows whole words only, and puts every text between the two tokens of `frame`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame:
        special = [(token, words.index(token)) for token in frame]
        tokenizer.post_processor = processors.TemplateProcessing(" $A ".join(frame), special_tokens=special)
    return tokenizer


def _byte_letters() -> list[str]:
    from open_clip.tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def make_hub(folder: Path) -> dict[str, Path]:
    """All files of the small backbone, by repository and name."""
    preset = load_preset(write_preset(folder))
    clip, clap = folder / "open_clip_model.safetensors", folder / "630k-small.pt"
    write_clip(preset, clip)
    write_laion(laion_state(preset), clap)
    write_roberta(folder)
    return {
        "timm/small_clip/open_clip_model.safetensors": clip,
        "lukewys/laion_clap/630k-small.pt": clap,
        "small/roberta/vocab.json": folder / "vocab.json",
        "small/roberta/merges.txt": folder / "merges.txt",
    }


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path, files: dict[str, Path]) -> Iterator[HubServer]:
    """A server of these files that the hub's client asks, with an empty cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HubServer(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


class LocalServer:
    """A server on this machine whose subclass answers each request."""

    def __init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            do_HEAD = do_POST = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        raise NotImplementedError

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)


class HubServer(LocalServer):
    """Serves files as the hub does: ``/{owner}/{repository}/resolve/{revision}/{file}``.

    Attributes:
        files: What it serves; may be changed while it runs.
        requests: Method, path and Range header of each request, in order.
        cut: Break off the next answers with a body after so many bytes each.
        status: Answer everything with this status, when set.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        super().__init__()
        self.files = dict(files)
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: list[int] = []
        self.status: int | None = None

    def downloads(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET"]

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.command, handler.path, asked))
        matched = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", handler.path)
        if self.status:
            return self.send(handler, self.status, {})
        if not matched or not any(name.startswith(f"{matched[1]}/") for name in self.files):
            return self.send(handler, 404, {"X-Error-Code": "RepoNotFound"})
        if matched[2] not in ("main", COMMIT):
            return self.send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        path = self.files.get(f"{matched[1]}/{matched[3]}")
        if path is None:
            return self.send(handler, 404, {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        # As on the hub: SHA-256 of large files, git's SHA-1 of small ones.
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        etag = hashlib.sha256(data).hexdigest() if path.suffix in (".safetensors", ".pt", ".bin") else git
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        content = data[start:]
        if self.cut and handler.command == "GET":
            headers["Content-Length"] = str(len(content))
            content = content[: self.cut.pop(0)]
            handler.close_connection = True
        return self.send(handler, 206 if asked else 200, headers, content)
