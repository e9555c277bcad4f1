"""Fetching weight files from the hub: the only place from which avfewshot asks the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from avfewshot.encoders.kinds.base import Preset
from avfewshot.encoders.weights.locate import (
    Needed,
    expected_sha256,
    file_sha256,
    hub_cache,
    hub_server,
    locate,
    verify,
)
from avfewshot.errors import AvfsError, WeightsError

_PATIENCE = 10.0  # seconds to wait for the hub's first answer


@dataclass(frozen=True)
class Fetched:
    """A file after :func:`fetch`."""

    path: Path  # where it lies
    downloaded: bool  # whether it came over the network; False if it was there already
    recorded: str | None = None  # its SHA-256, where none was known: from now on only this file is accepted


def fetch(
    preset: Preset,
    needed: Needed,
    *,
    force: bool = False,
    allow_http: bool = False,
    announce: Callable[[Needed], None] | None = None,
) -> Fetched | None:
    """See that a file is on this machine and whole, downloading it if need be; None for an optional one nowhere.

    Files go to the hub's own cache. ``HF_ENDPOINT`` names another server, ``HF_TOKEN`` a token. A connection that
    breaks is taken up again where it broke; a file whose SHA-256 is not the expected one is downloaded again, once.
    `allow_http` takes it over a connection that anybody on the way can read and change; `announce` is called before a
    download begins.

    Raises:
        WeightsError: There is no network, no such repository or file, no room; or the file arrived damaged.
    """
    present = None if force else locate(needed)
    if needed.source.file:
        if present is None:
            message = f"{needed.part}: {needed.source.file} does not exist, and it is not from the hub."
            raise WeightsError(message, hint=preset.how_to_get([needed]))
        return Fetched(present, downloaded=False)
    if present is not None and _is_whole(needed, present):
        return Fetched(present, downloaded=False)
    if not allow_http:
        refuse_plain_http(hub_server(), "weights", "or say --allow-http")
    if announce:
        announce(needed)
    path = _download(needed, force=force or present is not None)
    if path is None:
        return None
    if not _is_whole(needed, path):
        hint = "Try again; if it happens again, the file on the hub is not the one that this backbone was made for."
        raise WeightsError(f"{path}: arrived damaged: its SHA-256 is not {expected_sha256(needed, path)}.", hint=hint)
    recorded = expected_sha256(needed, path) is None
    digest = verify(needed, path)
    return Fetched(path, downloaded=True, recorded=digest if recorded else None)


def refuse_plain_http(server: str, what: str, otherwise: str = "") -> None:
    """Raise WeightsError for a server of this protocol, unless it is this machine."""
    parts = urlsplit(server)
    host = parts.hostname or ""
    if parts.scheme == "https" or host in ("localhost", "::1") or host.startswith("127."):
        return
    message = f"{server}: {what} would come over plain http, where anybody on the way can exchange them."
    raise WeightsError(message, hint=f"Set HF_ENDPOINT to an https address{otherwise and f', {otherwise}'}.")


def _is_whole(needed: Needed, path: Path) -> bool:
    expected = expected_sha256(needed, path)
    return expected is None or file_sha256(path) == expected


def _download(needed: Needed, *, force: bool) -> Path | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    server, repository, revision = hub_server(), needed.source.repository, needed.source.revision
    assert repository is not None
    options: Any = {"cache_dir": hub_cache(), "endpoint": server, "force_download": force}
    try:
        for name in needed.source.names:
            with contextlib.suppress(EntryNotFoundError):
                # Asked first, since the download itself would try for minutes to reach a server that is not there.
                url = hf_hub_url(repository, name, revision=revision, endpoint=server)
                get_hf_file_metadata(url, timeout=_PATIENCE)
                return Path(hf_hub_download(repository, name, revision=revision, **options))
    except Exception as error:  # the hub's client raises those of its network library, which differ between versions
        raise _explained(needed, server, error) from error
    if needed.optional:
        return None
    message = f"{needed.part}: {server}/{repository} has no file {' or '.join(needed.source.names)}."
    raise WeightsError(message, hint="Check `repository`, `checkpoint` and `revision` in the backbone's YAML file.")


def _explained(needed: Needed, server: str, error: Exception) -> AvfsError:
    from huggingface_hub import errors

    what = f"{needed.part}: {needed.title} cannot be fetched"
    option = f", and give it with {needed.option} PATH" if needed.option else f", into {hub_cache()}"
    by_path = f"fetch the file on a machine with a network{option}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return WeightsError(f"{what}: HF_HUB_OFFLINE forbids the network.", hint=f"Unset HF_HUB_OFFLINE, or {by_path}.")
    if isinstance(error, errors.GatedRepoError):
        hint = "Ask for it on its page; set HF_TOKEN."
        return WeightsError(f"{what}: its owner asks for a permission first.", hint=hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "Check its name; set HF_TOKEN if private."
        return WeightsError(f"{what}: {server} has no such repository, or it is private.", hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        problem = f"the repository has no revision {needed.source.revision!r}."
        return WeightsError(f"{what}: {problem}", hint="Check its name.")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, errors.HfHubHTTPError):
        return WeightsError(f"{what}: {server} answered: {reason}", hint=f"Try again later, or {by_path}.")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        message = f"{what}: {hub_cache()} cannot be written: {error.strerror}."
        return WeightsError(message, hint="Set HF_HOME elsewhere.")
    message = f"{what}: {server} cannot be reached ({reason})."
    return WeightsError(message, hint=f"Check the network (HF_ENDPOINT names another server), or {by_path}.")
