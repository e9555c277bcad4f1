"""``avfs push``: the adapter of a run onto the Hugging Face hub."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avfewshot.cli.options import argument, option
from avfewshot.errors import DataError, UsageError

if TYPE_CHECKING:
    from avfewshot.models.checkpoint import AdapterConfig


def push(
    run: Annotated[Path, argument("RUN", "A run folder, or that of an adapter.")],
    repository: Annotated[str, argument("USER/NAME", "Made if it is not there.")],
    private: Annotated[bool, option("--private", "", "Make a new repository private.")] = False,
) -> None:
    """Put what a run learnt onto the Hugging Face hub, with a model card.

    Trained tensors and fitted methods go, no clip and no weights of CLIP or CLAP. What few-shot methods keep of the
    support are its embeddings and the names of its clips. `HF_TOKEN` says who you are; HF_ENDPOINT names another
    server.

    [bold]Examples[/bold]

      avfs push runs/llp_cls/20261126-101500 me/kitchen-sounds
      avfs zeroshot clips/ --adapter hf://me/kitchen-sounds
    """
    from avfewshot.encoders.fetch import refuse_plain_http
    from avfewshot.encoders.weights.locate import hub_server
    from avfewshot.models.hub import FILES, SCHEME, explained

    repository = repository.removeprefix(SCHEME)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UsageError(f"{repository!r} names no repository.", hint="Write USER/NAME.")
    server = hub_server()
    refuse_plain_http(server, "your token and the adapter")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = _stage(run, folder)
        (folder / "README.md").write_text(_card(folder, config, repository), encoding="utf-8")
        from huggingface_hub import HfApi

        try:
            api = HfApi(endpoint=server)
            api.create_repo(repository, private=private, exist_ok=True)
            what = {"folder_path": folder, "allow_patterns": [*FILES, "README.md"]}
            commit = api.upload_folder(repo_id=repository, commit_message="Adapter by avfewshot", **what)
        except Exception as error:  # those of the client's network library; ValueError where there is no token
            raise explained(repository, server, error) from error
    typer.echo(f"pushed: {server}/{repository}")
    typer.echo(f"load it: avfs zeroshot CLIPS --adapter {SCHEME}{repository}@{commit.oid}")


def _stage(run: Path, folder: Path) -> AdapterConfig:
    """Lay out what goes: trained tensors at the top, the fitted method that answers in ``scorer/``."""
    from avfewshot.inference.runs import find_learned, find_tuned
    from avfewshot.models.checkpoint import load_adapter

    learned = find_learned(run)
    if learned is not None:
        shutil.copytree(learned.path, folder / "scorer")
    elif (tuned := find_tuned(run)) is not None:
        shutil.copytree(tuned.path, folder, dirs_exist_ok=True)
        return tuned.config
    try:
        trained = load_adapter(run if learned is None else learned.path.parent)
    except DataError:
        if learned is None:
            raise
        return learned.config
    for path in trained.path.iterdir():
        if path.name in ("adapter.safetensors", "config.json") or path.name.startswith("templates."):
            shutil.copyfile(path, folder / path.name)
    return trained.config


def _card(folder: Path, config: AdapterConfig, repository: str) -> str:
    from avfewshot.reports.model_card import cell

    trained = "DG-SCT adapters" if (folder / "adapter.safetensors").is_file() else ""
    fitted = ""
    for about in (folder / "scorer" / "scorer.json", folder / "tuned.json"):
        if about.is_file():
            fitted = json.loads(about.read_text(encoding="utf-8")).get("method", "a fitted method")
    rows = [
        ("made by", f"avfewshot {config.version}"),
        ("task", config.task),
        ("backbone", f"{config.backbone} ({', '.join(f'{k} {v[:12]}' for k, v in sorted(config.identity.items()))})"),
        ("what predicts", " and ".join(part for part in (fitted, trained) if part)),
        ("shots", str(config.training.get("shots", "-"))),
        ("support", str(config.support.get("fingerprint", "-"))),
        ("seed", str(config.seed)),
    ]
    table = "\n".join(f"| {name} | {cell(text)} |" for name, text in rows)
    return f"""---
library_name: avfewshot
tags: [audio-visual, few-shot, video-classification, clip, clap]
---

# {cell(repository)}

Classifies video clips by sight and sound, on a frozen CLIP and a frozen CLAP, whose weights are needed beside it and
are checked by their SHA-256.

| | |
|---|---|
{table}

    pip install avfewshot
    avfs zeroshot clips/ --adapter hf://{repository}

## Classes

{", ".join(cell(label) for label in config.labels)}
"""
