"""Adapters on the Hugging Face hub, by ``hf://user/name[@revision]``.

What is fetched lies under ``$AVFS_CACHE/adapters`` by its commit, appears whole or not at all, and is only what an
adapter consists of: safetensors, JSON, prompt templates. A full commit that is here is never asked for again.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from avfewshot.encoders.fetch import refuse_plain_http
from avfewshot.encoders.weights.locate import hub_server
from avfewshot.errors import UsageError, WeightsError
from avfewshot.io import cache_dir

SCHEME = "hf://"
_NAME = re.compile(r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
FILES = (
    "adapter.safetensors",
    "config.json",
    "templates.*",
    "tuned.safetensors",
    "tuned.json",
    "scorer/*.safetensors",
    "scorer/*.json",
)
"""What is fetched and pushed, in a repository's folder."""


class _Bar(tqdm):
    """No bar where nobody watches."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": None})


def local_adapter(path: str | os.PathLike[str]) -> Path:
    """The folder of an adapter, fetched first where it is named by ``hf://user/name[@revision]``.

    Raises:
        UsageError: The name is not of that form.
        WeightsError: It cannot be fetched.
    """
    text = os.fspath(path)
    return _fetched(text) if text.startswith("hf:/") else Path(path)


@functools.lru_cache
def _fetched(text: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    match = _NAME.fullmatch(text)
    if match is None:
        raise UsageError(f"{text} names no repository.", hint="Write hf://user/name or hf://user/name@revision.")
    repository, revision = match["repository"], match["revision"]
    store = cache_dir("adapters", repository.replace("/", "--"))
    if revision and _COMMIT.fullmatch(revision) and (store / revision).is_dir():
        return store / revision
    server = hub_server()
    refuse_plain_http(server, "the adapter")
    try:
        commit = HfApi(endpoint=server).model_info(repository, revision=revision, timeout=10).sha or ""
        if not (store / commit).is_dir():
            store.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=store, prefix=".part-") as unfinished:
                snapshot_download(
                    repository,
                    revision=commit,
                    local_dir=unfinished,
                    allow_patterns=list(FILES),
                    endpoint=server,
                    tqdm_class=_Bar,
                )
                shutil.rmtree(Path(unfinished, ".cache"), ignore_errors=True)
                os.rename(unfinished, store / commit)
                Path(unfinished).mkdir()  # for the context, which removes it
    except Exception as error:  # the hub's client raises those of its network library, which differ between versions
        raise explained(f"{SCHEME}{repository}", server, error) from error
    if commit != revision:
        warnings.warn(f"{text} is now {SCHEME}{repository}@{commit}: name that to hold to it.", stacklevel=2)
    return store / commit


def explained(what: str, server: str, error: Exception) -> WeightsError:
    """An error of the hub's client, for people."""
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"{what}: {server} has no such repository, or it is not yours.", hint="Check its name; set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(f"{what}: the repository has no such revision.", hint="Check what stands behind the @.")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, errors.HfHubHTTPError):
        return WeightsError(f"{what}: {server} answered: {reason}", hint="Set HF_TOKEN to a token that may do this.")
    return WeightsError(
        f"{what}: {server} cannot be reached, or the disk is full ({reason}).", hint="Check the network."
    )
