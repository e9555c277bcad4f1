"""Media at http(s):// and s3:// addresses: brought here through fsspec, in bounded size, kept under their content.

What was fetched is used again while the server gives the same ETag (or time of change) for the address; two addresses
of the same bytes share a file. Only what is named on the command line, or given from Python, is ever fetched.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from avfewshot.errors import MediaError, UsageError
from avfewshot.io import atomic_path, cache_dir, write_text
from avfewshot.text import printable

MAX_BYTES = 2_000_000_000
"""Bytes of a file that are fetched at most."""

CACHE_BYTES = 20_000_000_000
"""Bytes that fetched files take together; the longest unused ones give way."""

PATIENCE = 10
"""A download may take so many times the time limit of a file; a server that is silent for that limit is given up."""

PROTOCOLS = ("http", "https", "s3")
_ADDRESS = re.compile(r"(?i)([a-z][a-z0-9+.-]+)://")
_VERSIONS = ("ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified")
_BLOCK = 1 << 20
_IN_USE = 600.0  # seconds after its last use during which a file is not evicted


def is_remote(path: Any) -> bool:
    """Whether a text is an address, and no file of that name lies here."""
    return isinstance(path, str) and _ADDRESS.match(path) is not None and not os.path.lexists(path)


def names_many(address: str) -> bool:
    """Whether an address is that of a folder or a glob, which web servers have none of."""
    return address[:2].lower() == "s3" and (glob.has_magic(address) or address.endswith("/"))


def expand(address: str, *, recursive: bool, suffixes: frozenset[str]) -> list[str]:
    """The files that an address names: itself, or of ``s3://`` those below a folder (``/`` at its end) or of a glob.

    Raises:
        UsageError: Another protocol, a missing extra, a folder or a glob without media, a server that does not answer.
    """
    protocol = _protocol(address)
    files, pattern = _filesystem(protocol), address.split("://", 1)[1]
    if not names_many(address):
        return [address]
    try:
        if address.endswith("/"):
            found = files.find(pattern, maxdepth=None if recursive else 1)
        else:
            found = files.glob(pattern)
    except Exception as error:
        raise UsageError(f"{address}: cannot be listed: {_reason(error)}.") from None
    wanted = [name for name in sorted(found) if os.path.splitext(name)[1].lower() in suffixes]
    if not wanted:
        hint = f"Known suffixes: {' '.join(sorted(suffixes))}."
        raise UsageError(f"There is no media file at '{printable(address)}'.", hint=hint)
    return [f"{protocol}://{name.removeprefix(f'{protocol}://').lstrip('/')}" for name in wanted]


def fetch(address: str, *, timeout: float) -> Path:
    """The file at an address, from the cache or the network.

    Raises:
        MediaError: It cannot be fetched, is too large or comes too slowly.
    """
    try:
        files = _filesystem(_protocol(address), timeout)
        about = files.info(_name(address))
        size = about.get("size")
        if isinstance(size, int) and size > MAX_BYTES:
            raise MediaError(address, _too_large(size))
        version = next((str(about[key]) for key in _VERSIONS if about.get(key)), None)
        note = cache_dir("remote") / f"{hashlib.sha256(address.encode()).hexdigest()}.json"
        kept = _kept(note, version)
        return kept or _download(files, address, note, version, deadline=time.monotonic() + PATIENCE * timeout)
    except (MediaError, UsageError):
        raise
    except Exception as error:  # those of fsspec's protocols, which are many
        raise MediaError(address, f"cannot be fetched: {_reason(error)}") from None


def _protocol(address: str) -> str:
    protocol = address.split("://", 1)[0].lower()
    if protocol not in PROTOCOLS or "::" in address:  # `::` chains protocols in fsspec, local files among them
        hint = "Addresses of http(s):// and s3:// are understood; fetch others first."
        raise UsageError(f"'{printable(address)}' cannot be fetched.", hint=hint)
    return protocol


def _name(address: str) -> str:
    """What fsspec calls the file."""
    return address.split("://", 1)[1] if address[:2].lower() == "s3" else address


def _filesystem(protocol: str, timeout: float = 60.0) -> Any:
    try:
        import fsspec

        if protocol == "s3":
            return fsspec.filesystem("s3")
        import aiohttp

        # No limit on the whole: a long film takes its time. Proxies are those of the environment.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=min(timeout, 15.0), sock_read=timeout)
        return fsspec.filesystem(protocol, client_kwargs={"timeout": limits, "trust_env": True})
    except ImportError as error:
        hint = "Install it: `pip install 'avfewshot[remote]'`. Or fetch the files first."
        raise UsageError(f"{protocol}:// addresses need the extra `remote` ({error}).", hint=hint) from None


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    if isinstance(error, FileNotFoundError):  # fsspec's word for a server that cannot be reached, too
        return _reason(error.__cause__) if isinstance(error.__cause__, OSError) else "there is no such file"
    if isinstance(error, PermissionError):
        return "access is denied"
    if isinstance(error, TimeoutError):
        return "the server does not answer in time"
    return printable(" ".join(str(error).split())[:160]) or type(error).__name__


def _too_large(size: int) -> str:
    return f"is too large to be fetched: {size:,} bytes or more (up to {MAX_BYTES:,} are)"


def _kept(note: Path, version: str | None) -> Path | None:
    """What was fetched before, where the server still names the same version of it."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if version is not None and known["version"] == version and re.fullmatch(r"[0-9a-f]{64}[.\w]*", known["file"]):
            path = cache_dir("remote") / known["file"]
            os.utime(path)
            return path
    return None


def _download(files: Any, address: str, note: Path, version: str | None, *, deadline: float) -> Path:
    digest, size = hashlib.sha256(), 0
    suffix = os.path.splitext(unquote(urlsplit(address).path))[1]
    suffix = suffix if re.fullmatch(r"\.\w{1,8}", suffix, re.ASCII) else ""
    fetched = cache_dir("remote") / f"fetched-{secrets.token_hex(8)}{suffix}"
    with atomic_path(fetched) as temporary:
        # A block size of 0 is one plain request; a size that is given is not asked for, which not every server tells.
        options = {"block_size": 0, "size": 1} if address.lower().startswith("http") else {"block_size": 8 * _BLOCK}
        with files.open(_name(address), "rb", **options) as source, open(temporary, "wb") as target:
            while block := source.read(_BLOCK):
                size += len(block)
                if size > MAX_BYTES:
                    raise MediaError(address, _too_large(size))
                if time.monotonic() > deadline:
                    raise MediaError(address, f"comes too slowly: {size:,} bytes so far")
                digest.update(block)
                target.write(block)
        if not size:
            raise MediaError(address, "is empty (0 bytes)")
    path = cache_dir("remote") / f"{digest.hexdigest()}{suffix}"
    os.replace(fetched, path)
    write_text(note, json.dumps({"address": address, "version": version, "file": path.name}))
    _make_room()
    return path


def _make_room() -> None:
    """Evict the longest unused files, what killed processes left among them."""
    entries = []
    for item in os.scandir(cache_dir("remote")):
        with contextlib.suppress(OSError):
            if not item.name.endswith(".json"):
                entries.append((item.stat().st_mtime, item.stat().st_size, item.path))
    total = sum(size for _, size, _ in entries)
    for used, size, path in sorted(entries):
        if total <= CACHE_BYTES or time.time() - used < _IN_USE:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= size
