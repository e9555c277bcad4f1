"""`avfs embed`: a collection of clips into a store, again for what is new, changed or gone."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.destinations import check_folder
from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.loading import on_ray
from avfewshot.cli.logs import library_messages
from avfewshot.cli.options import argument, backbone_faults, with_options
from avfewshot.cli.terminal import progress_bar, say
from avfewshot.config import EmbedConfig, TowersConfig, resolve, settings_of
from avfewshot.engine import check_engine
from avfewshot.errors import UsageError, collect, raise_faults
from avfewshot.media.discover import find_media
from avfewshot.text import printable

if TYPE_CHECKING:
    from avfewshot.inference.classifier import Classifier


_OWN = {"device", "frame_backend", "batch_size"}  # of a call; the other settings of towers are the store's


@with_options("embed", without=("frame_backend",))
def embed(
    paths: Annotated[list[str] | None, argument("PATH", "Media files, folders, globs or addresses.")] = None,
    **flags: Any,
) -> None:
    """Embed clips second by second into a store: for `avfs find`, and `--store` of zeroshot, fewshot and compare.

    Called again, it embeds what is new or has changed, and forgets what has gone; what lies at an address is
    taken not to change. Interrupted or killed, it goes on where it stopped. A file that cannot be read is
    named and left out until it changes, or with --retry.

    [bold]Examples[/bold]

      avfs embed clips/ --store my-store
      avfs find "dog barking" --store my-store
      avfs zeroshot --labels labels.txt --store my-store     its clips, without decoding them again

    [bold]Exit status:[/bold] 0 all done, 1 some clips failed, 2 misuse, 130 interrupted; what was embedded is kept.
    """
    settings = resolve("embed", flags)
    config: EmbedConfig = settings.config
    faults = [*settings.faults, *backbone_faults(settings)]
    if config.store is None:
        faults.append(UsageError("Which store?", hint="avfs embed clips/ --store DIR"))
    else:
        faults += check_folder(config.store, "--store")
    roots = paths or ["."]
    files = collect(faults, lambda: find_media(roots, recursive=config.recursive)) or []
    collect(faults, lambda: check_engine(config.distribution.engine, config.distribution.address))
    raise_faults(faults)
    assert config.store is not None
    overrides = {key for key in settings_of(TowersConfig) if settings.sources[key] != "default"} - _OWN
    with library_messages(), Interrupts() as interrupts:
        status = _embed(config, config.store, files, roots, overrides, interrupts)
    if status:
        raise typer.Exit(status)


def _embed(
    config: EmbedConfig,
    folder: Path,
    files: list[Path | str],
    roots: list[str],
    given: set[str],
    interrupts: Interrupts,
) -> int:
    from avfewshot.encoders.presets import preset_names
    from avfewshot.media.clip import Failure
    from avfewshot.prompts import template_names
    from avfewshot.store.store import Store
    from avfewshot.store.writer import embed_files

    asked: dict[str, Any] = {name: value for name, value in config.model if name not in _OWN}
    asked = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in asked.items()}
    for name, packaged in (("backbone", preset_names()), ("templates", template_names())):
        if asked[name] not in (None, *packaged) and os.path.exists(asked[name]):
            asked[name] = os.path.abspath(asked[name])

    @functools.cache
    def load() -> Classifier:
        from avfewshot.inference.loading import load

        say(f"loading {asked['backbone']}")
        return load(**asked, device=config.model.device)

    if (folder / "store.db").exists():
        store = Store(folder)
        own = {"audio_context": store.audio_context, **store.model}
        for name in given:  # towers are the store's own; what is told must not contradict
            if asked[name] != own[name] and not (name == "precision" and asked[name] == "auto"):
                raise UsageError(
                    f"{folder}: was embedded with {name.replace('_', '-')} {own[name]}, not {asked[name]}.",
                    hint="Leave the option out, or embed into another store.",
                )
        asked = store.model
    else:
        classifier = load()
        asked["precision"] = classifier.precision
        dims = {"visual": classifier.backbone.visual.output_dim, "audio": classifier.backbone.audio.output_dim}
        store = Store.create(folder, asked, classifier.embedding_identity, dims)
    folders = [root for root in roots if os.path.isdir(root) or (config.recursive and root.endswith("/"))]
    changes = store.changes(files, folders, retry=config.retry)
    failed, count = list(changes.failed), 0
    bar = progress_bar(len(changes.to_embed), "clip", "embedding")
    how: dict[str, Any] = {"batch_size": config.model.batch_size, "workers": config.workers}
    if config.distribution.engine == "ray":
        how["embed"] = on_ray(config.distribution, asked | {"device": config.model.device}, embed_files, **how)
    try:
        for done in store.update(changes, load, **how):
            bar.update()
            count += not isinstance(done, Failure)
            if isinstance(done, Failure):
                failed.append(done)
    except KeyboardInterrupt:
        say(f"Interrupted: {count:,} clips are embedded. The same command goes on.")
        return interrupts.status
    finally:
        bar.close()
    for failure in failed:
        say(f"left out: {printable(failure.path)}: {failure.error}")
    seconds = sum(clip.seconds for clip in store.embedded)
    say(
        f"{printable(str(folder))}: {len(store):,} clips, {seconds:,} seconds; {len(changes.new):,} new, "
        f"{len(changes.changed):,} changed, {len(changes.gone):,} gone, {changes.kept:,} as before, "
        f"{len(failed):,} left out."
    )
    return 1 if failed else 0
