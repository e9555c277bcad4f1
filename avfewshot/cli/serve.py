"""`avfs serve`: a local page to look at clips, correct them and learn from it, and a JSON API."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from avfewshot.cli.loading import chosen, left_to_adapter, load_classifier, open_store
from avfewshot.cli.logs import library_messages
from avfewshot.cli.options import argument, asked_labels, backbone_faults, with_options
from avfewshot.cli.terminal import say
from avfewshot.config import resolve
from avfewshot.errors import UsageError, collect, raise_faults
from avfewshot.io import user_path


@with_options("serve")
def serve(
    paths: Annotated[list[str] | None, argument("PATH", "Media files or folders.")] = None,
    **flags: Any,
) -> None:
    """Open a page in the browser: see clips with what is seen and heard in each second, correct it, learn from it.

    Each PATH is a media file or a folder; without any, the clips of --store, or the current folder. Nothing else of
    this machine is shown. Labels come from --labels, --label, a few-shot run, or are typed in the page. What you say
    about clips is kept at once in labels.csv in the first folder. `POST /classify` answers programs; /docs describes
    it.

    [bold]Examples[/bold]

      avfs serve clips/ --labels labels.txt
      avfs serve clips/ --label "dog barking" --label rain
      avfs serve clips/ --adapter runs/folder/RUN             learn on from a few-shot run
      avfs serve --store my-store                             a collection that `avfs embed` has embedded
      avfs serve clips/ --host 0.0.0.0                        for other machines, with a token

    [bold]Exit status:[/bold] 0 ended by Ctrl-C, 1 failed, 2 misuse.
    """
    settings = resolve("serve", flags)
    faults, config = settings.faults, settings.config
    labels = collect(faults, lambda: asked_labels(settings))
    store = collect(faults, lambda: open_store(config.store))
    roots = [user_path(path) for path in paths or ([] if store and len(store) else ["."])]
    files = collect(faults, lambda: _media(roots, config.recursive)) or []
    if store is not None and len(store) and not paths:
        files = roots = [clip.source for clip in store.embedded if isinstance(clip.source, Path)]
        if not files:
            hint = "The page plays files: give PATH."
            faults.append(UsageError(f"{config.store}: holds addresses alone.", hint=hint))
        elif len(files) < len(store):
            say(f"{len(store) - len(files):,} clips of the store lie at addresses; the page is of the files.")
    faults += backbone_faults(settings)
    local = config.host == "localhost" or _is_loopback(config.host)
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        hint = 'pip install "avfewshot[app]"'
        faults.append(UsageError(f"avfs serve needs {', '.join(missing)}, not installed here.", hint=hint))
    raise_faults(faults)
    from avfewshot.app.server import create_app, listen, run

    try:
        listening = listen(config.host, config.port)
    except OSError as error:
        elsewhere = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        hint = "Give an address of this machine." if elsewhere else "`--port 0` takes any free one."
        raise UsageError(f"{config.host}:{config.port} cannot be listened at: {error.strerror}.", hint=hint) from None
    from avfewshot.app.workspace import Workspace

    folder = roots[0] if roots[0].is_dir() else Path(os.path.commonpath([root.absolute().parent for root in roots]))
    model = config.model
    with library_messages():
        say(f"Loading {settings['adapter'] or model.backbone} ...")
        classifier = load_classifier(settings, store)
        for key in ("fusion", "pool"):
            if not left_to_adapter(settings, key):
                setattr(classifier, key, settings[key])
        templates = chosen(settings, "templates") or (
            classifier.learned.config.templates if classifier.learned else classifier.backbone.templates
        )
        how = {"modality": model.modality, "batch_size": model.batch_size, "frame_backend": model.frame_backend}
        how |= {"roots": roots, "runs": config.runs, "templates": str(templates), "store": store}
        work = Workspace(classifier, folder, files, labels or classifier.own_labels, **how)
        token = config.token or (None if local else secrets.token_urlsafe(24))
        port = listening.getsockname()[1]
        shown = f"[{config.host}]" if ":" in config.host else config.host
        hosts = {f"{name}:{port}" for name in ("localhost", "127.0.0.1", "[::1]", shown)} if local else None
        web = create_app(work, hosts=hosts, token=token, max_upload=config.max_upload * 1_000_000)
        say(f"{len(files)} clips; labels are kept in {work.clips.labels_file}. Open this address; Ctrl-C ends.")
        if not local:
            say("Others can reach this page; without https, whoever reads the network can read the token.")
        typer.echo(f"http://{shown}:{port}/{f'?token={token}' if token else ''}")
        sys.stdout.flush()
        run(web, work, listening)
        kept = work.clips.labels_file.exists()
        say(f"Ended. What was said about clips is in {work.clips.labels_file}." if kept else "Ended.")


def _media(paths: Sequence[Path], recursive: bool) -> list[Path]:
    """The media files; an empty folder is fine, since clips can be dropped."""
    from avfewshot.media.discover import find_media

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            with contextlib.suppress(UsageError):
                files += [file for file in find_media([path], recursive=recursive) if isinstance(file, Path)]
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError(f"{path}: there is no such file or folder.", hint="Give media files or folders.")
    return list(dict.fromkeys(files))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
