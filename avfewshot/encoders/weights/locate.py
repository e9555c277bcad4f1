"""Where the files of a backbone lie on this machine, and by their SHA-256 whether they are those that they should be.

Nothing here asks the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avfewshot.errors import WeightsError
from avfewshot.io import cache_dir, sha256_file, user_path, write_text

if TYPE_CHECKING:
    from torch import nn

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """Where a file comes from."""

    names: tuple[str, ...] = ()  # file names in the repository, the best first; one of them is needed
    repository: str | None = None  # on the hub, for example "lukewys/laion_clap"
    revision: str | None = None  # branch, tag or commit of the repository; its main branch when None
    file: Path | None = None  # the file itself, where it is not on the hub
    sha256: str | None = None  # what its bytes must hash to, where that is known
    size: str | None = None  # for people, for example "605 MB"
    licence: str | None = None  # for people
    published: str | None = None  # figures with their source, for people

    @classmethod
    def at(cls, path: str | Path) -> Source:
        """A file or folder that was given by path."""
        return cls(file=user_path(path).absolute())


NOWHERE = Source()
"""Where nothing is said."""


@dataclass(frozen=True)
class Needed:
    """A file that a backbone needs."""

    # "clip", "clap", "clip_bpe", "clap_bpe", "roberta_vocab", "roberta_merges", "roberta" (a ``tokenizer.json``), or
    # "clip_text_..." for open_clip models with a text tower of transformers; PE-AV's: "clip", "clap" (PE-A-Frame),
    # "peav_..."
    key: str
    part: str  # what it is, for people
    source: Source  # where it comes from
    option: str | None = None  # what gives it by path; None where nothing does
    optional: bool = False  # the backbone works without it

    @property
    def title(self) -> str:
        """The file, for people: its path, or repository and name."""
        if self.source.file:
            return str(self.source.file)
        return f"{self.source.repository}/{self.source.names[0]}"


def locate(needed: Needed) -> Path | None:
    """The file on this machine, or None.

    Hub files are looked up in the hub's own cache (``$HF_HUB_CACHE``, ``$HF_HOME``), without the network. Caches that
    were filled by hand are found too: whose ``refs/main`` ends in a line feed, or which have no ``refs``. Of another
    revision than the preset's a file is taken only where its SHA-256 is known, since it is compared then.
    """
    source = needed.source
    if source.file:
        return source.file if source.file.exists() else None
    from huggingface_hub import try_to_load_from_cache

    assert source.repository is not None
    folder = looked_in(needed)
    revisions = [source.revision or "main"]
    if not source.revision or source.sha256:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            revisions.append((folder / "refs" / "main").read_text(encoding="utf-8").strip())
        with contextlib.suppress(OSError):
            snapshots = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            revisions += [path.name for path in snapshots]
    for revision in filter(None, revisions):
        for name in source.names:
            path = try_to_load_from_cache(source.repository, name, cache_dir=hub_cache(), revision=revision)
            if isinstance(path, str) and Path(path).exists():
                return Path(path)
    return None


def expected_sha256(needed: Needed, path: Path) -> str | None:
    """What a file's bytes must hash to: by the preset, by its first download, by the hub's name of large files."""
    if needed.source.sha256 or not needed.source.repository:
        return needed.source.sha256
    with contextlib.suppress(OSError, UnicodeDecodeError):
        recorded = _record(needed, path).read_text(encoding="ascii")
        if _SHA256.fullmatch(recorded):
            return recorded
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def verify(needed: Needed, path: Path) -> str:
    """The SHA-256 of a file (of one from the hub that is not known yet, expected from now on), or a `WeightsError`."""
    digest, expected = file_sha256(path), expected_sha256(needed, path)
    if expected and digest != expected:
        raise WeightsError(
            f"{path}: is not the file that it should be: its SHA-256 is {digest}, {expected} was expected.",
            hint="Fetch it again with `avfs weights fetch --force`; if that fails too, the server has another file. One"
            " that you trust can be given by path.",
        )
    if needed.source.repository and not needed.source.sha256:
        with contextlib.suppress(OSError):
            write_text(_record(needed, path), digest)
    return digest


def _record(needed: Needed, path: Path) -> Path:
    """Where the SHA-256 of a file's first download is kept."""
    source = needed.source
    address = f"{source.repository}/{path.name}@{source.revision or 'main'}"
    return cache_dir("weights", f"{combined(address)}.sha256")


def looked_in(needed: Needed) -> Path:
    """The folder in which a file was looked for."""
    if needed.source.file:
        return needed.source.file.parent
    return hub_cache() / f"models--{str(needed.source.repository).replace('/', '--')}"


def hub_server() -> str:
    """Address of the hub, as the environment has it now (``HF_ENDPOINT``)."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def hub_cache() -> Path:
    """The hub's cache folder, as the environment has it now."""
    from huggingface_hub import constants

    if explicit := os.environ.get("HF_HUB_CACHE"):
        return user_path(explicit)
    if home := os.environ.get("HF_HOME"):
        return user_path(home) / "hub"
    return Path(constants.HF_HUB_CACHE)


def file_sha256(path: str | Path, *, remember: bool = True) -> str:
    """Hexadecimal SHA-256 of a file, remembered as long as it keeps its path, size and time of modification.

    Without `remember` the file is read in any case, which finds damage that leaves size and time alone.
    """
    path = Path(path).resolve()
    status = path.stat()
    mark = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    note = cache_dir("hashes", f"{hashlib.sha256(str(path).encode()).hexdigest()}.json")
    with contextlib.suppress(OSError, ValueError):
        if remember and isinstance(remembered := json.loads(note.read_text(encoding="utf-8")), dict):
            digest = remembered.pop("sha256", None)
            if remembered == mark and isinstance(digest, str) and len(digest) == 64:
                return digest
    digest = sha256_file(path)
    # Without a writable cache folder the file is hashed again next time.
    with contextlib.suppress(OSError):
        write_text(note, json.dumps({**mark, "sha256": digest}))
    return digest


def combined(*parts: str) -> str:
    """One SHA-256 for several texts in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(part.encode("utf-8")).digest() for part in parts)).hexdigest()


def sample_hash(model: nn.Module) -> str:
    """SHA-256 of the first numbers of each of a model's tensors: what tells random weights of one seed apart."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode("utf-8"))
        digest.update(str(tuple(tensor.shape)).encode("utf-8"))
        digest.update(tensor.detach().flatten()[:64].contiguous().numpy().tobytes())
    return digest.hexdigest()
