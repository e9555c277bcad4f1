"""``avfs weights``: list, fetch and check the files of backbones."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.options import TableOrJson, argument, option, setting_option
from avfewshot.cli.terminal import say
from avfewshot.config import resolve
from avfewshot.encoders.weights.locate import combined, hub_server, locate, looked_in
from avfewshot.errors import AvfsError, UsageError
from avfewshot.io import cache_dir, write_text
from avfewshot.reports.text import size
from avfewshot.version import __version__

if TYPE_CHECKING:
    from avfewshot.encoders.kinds.base import Preset
    from avfewshot.encoders.weights.locate import Needed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="""List, fetch and check the weights of backbones.

    Files from the hub lie in the hub's own cache ($HF_HOME); `fetch` alone uses the network. Without one, fetch them
    elsewhere and give them by path.
    """,
)

_BYPATH = "Files by path"
_Name = Annotated[str | None, argument("BACKBONE", "Preset, or a YAML file of your own.")]
_Backbone = Annotated[str | None, setting_option("backbone")]
_Clip = Annotated[str | None, setting_option("clip_weights", _BYPATH)]
_Clap = Annotated[str | None, setting_option("clap_weights", _BYPATH)]
_Roberta = Annotated[str | None, setting_option("roberta", _BYPATH)]


@app.command("list")
def list_command(name: _Name = None, backbone: _Backbone = None, form: TableOrJson = "table") -> None:
    """Say which backbones there are, what each takes, which files it needs, and where those are or would be.

    Memory is that of all weights in float32; computation that of a clip of ten seconds, sight and sound.

    Example: avfs weights list
    """
    from avfewshot.encoders.presets import load_preset, preset_names

    chosen = _one_name(name, backbone)
    presets = [load_preset(each) for each in ([chosen] if chosen else preset_names())]
    if form == "json":
        typer.echo(json.dumps([_as_dict(preset) for preset in presets], indent=2))
    else:
        typer.echo("\n\n".join(_described(preset) for preset in presets))


@app.command()
def fetch(
    name: _Name = None,
    backbone: _Backbone = None,
    clip_weights: _Clip = None,
    clap_weights: _Clap = None,
    roberta: _Roberta = None,
    force: Annotated[bool, option("--force", "", "Download files again that are here.")] = False,
    allow_http: Annotated[bool, option("--allow-http", "", "Accept a server without TLS.")] = False,
) -> None:
    """Download what a backbone lacks, with the hub's own client. HF_ENDPOINT names another server, HF_TOKEN a token.

    Example: avfs weights fetch base
    """
    from avfewshot.encoders.fetch import fetch as fetch_file
    from avfewshot.encoders.presets import preset_names

    preset, paths = _request(name, backbone, clip_weights, clap_weights, roberta)
    preset.require_library()  # before gigabytes are fetched in vain
    for needed in preset.files(**paths):
        fetched = fetch_file(preset, needed, force=force, allow_http=allow_http, announce=_announce)
        if fetched is not None:
            how = "fetched" if fetched.downloaded else "here already"
            typer.echo(f"{needed.part}: {how}: {fetched.path}")
            if fetched.recorded:
                typer.echo(f"  its SHA-256 {fetched.recorded} is recorded; another file will be refused from now on")
    named = preset.name if preset.name in preset_names() else shlex.quote(str(preset.path))
    typer.echo(f"Complete. Next: avfs weights check {named}")


@app.command()
def check(
    name: _Name = None,
    backbone: _Backbone = None,
    clip_weights: _Clip = None,
    clap_weights: _Clap = None,
    roberta: _Roberta = None,
    form: TableOrJson = "table",
) -> None:
    """Check that a backbone's files are here and whole, that they load, and that its tokenizers tell texts apart.

    Example: avfs weights check tiny
    """
    from avfewshot.encoders import check as checking

    preset, paths = _request(name, backbone, clip_weights, clap_weights, roberta)
    findings = checking.check(preset, **paths, progress=_progress)
    if form == "json":
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.part) for finding in findings)
        for finding in findings:
            digest = f"  sha256 {finding.sha256[:12]}" if finding.sha256 and finding.status == checking.OK else ""
            typer.echo(f"{finding.status:8}{finding.part:{width}}  {finding.detail}{digest}")
    if any(finding.status != checking.OK for finding in findings):
        raise typer.Exit(1)


def _request(
    name: str | None, backbone: str | None, clip_weights: str | None, clap_weights: str | None, roberta: str | None
) -> tuple[Preset, dict[str, Any]]:
    """The preset and the paths, with the environment and ``avfs.toml`` having their say as for ``avfs zeroshot``."""
    from avfewshot.encoders.presets import load_preset

    flags = {"clip_weights": clip_weights, "clap_weights": clap_weights, "roberta": roberta}
    settings = resolve("zeroshot", {"backbone": _one_name(name, backbone), **flags}).check()
    return load_preset(settings["backbone"]), {key: settings[key] for key in flags}


def _one_name(name: str | None, backbone: str | None) -> str | None:
    if name and backbone and name != backbone:
        raise UsageError(f"Two backbones are given, {name!r} and {backbone!r}.", hint="Leave one out.")
    return name or backbone


def _described(preset: Preset) -> str:
    lines = [f"{preset.name}: {preset.description}".rstrip(": ")]
    adapters = "adapters can be trained" if preset.walkable else "run whole, no adapters"
    if cost := _cost(preset):
        lines.append(
            f"  {cost['parameters'] / 1e6:,.0f} M parameters, {cost['memory_bytes'] / 1e9:.2f} GB, "
            f"{cost['flops_per_clip'] / 1e9:,.0f} GFLOPs a clip; {adapters}"
        )
    elif preset.needs:
        lines.append(f"  needs {preset.needs}")
    for needed, path in _files(preset):
        facts = ", ".join(fact for fact in (_size(needed, path), needed.source.licence) if fact)
        lines.append(f"  {needed.part:20} {'here' if path else 'missing':8} {facts}".rstrip())
        indent = " " * 32
        if needed.source.published:
            lines.append(f"{indent}published: {needed.source.published}")
        if needed.source.repository:
            lines.append(f"{indent}from {_address(needed)}")
            if not needed.source.sha256:
                lines.append(f"{indent}its SHA-256 is not known beforehand: that of the first download is held to")
        lines.append(f"{indent}in {path}" if path else f"{indent}would go to {looked_in(needed)}")
    return "\n".join(lines)


def _cost(preset: Preset) -> dict[str, int]:
    """What a backbone takes, remembered for these versions of the libraries; empty where files are needed to tell."""
    versions = [f"{name} {version(name)}" for name in ("open_clip_torch", "timm", "torch", "transformers")]
    note = cache_dir("costs", f"{combined(preset.path.read_text(encoding='utf-8'), __version__, *versions)}.json")
    with contextlib.suppress(OSError, ValueError):
        return json.loads(note.read_text(encoding="utf-8"))
    from avfewshot.models.complexity import backbone_cost

    try:
        cost = backbone_cost(preset)
    except AvfsError:
        return {}
    with contextlib.suppress(OSError):
        write_text(note, json.dumps(cost))
    return cost


def _as_dict(preset: Preset) -> dict[str, Any]:
    files = [
        {
            "part": needed.part,
            "source": _address(needed) if needed.source.repository else None,
            "size": _size(needed, path),
            "licence": needed.source.licence,
            "published": needed.source.published,
            "sha256": needed.source.sha256,
            "option": needed.option,
            "path": str(path) if path else None,
            "folder": str(looked_in(needed)),
        }
        for needed, path in _files(preset)
    ]
    about = {"name": preset.name, "description": preset.description, "templates": preset.templates}
    return {**about, "adapters": preset.walkable, **_cost(preset), "files": files}


def _files(preset: Preset) -> list[tuple[Needed, Any]]:
    located = [(needed, locate(needed)) for needed in preset.files()]
    # Optional files of some size, PE-A-Frame's, are worth a line before they are here.
    return [(needed, path) for needed, path in located if path or not needed.optional or needed.source.size]


def _size(needed: Needed, path: Any) -> str | None:
    return needed.source.size if path is None else size(path.stat().st_size)


def _address(needed: Needed) -> str:
    revision = f" at {needed.source.revision}" if needed.source.revision else ""
    return f"{hub_server()}/{needed.title}{revision}"


def _announce(needed: Needed) -> None:
    about = f", about {needed.source.size}" if needed.source.size else ""
    licence = needed.source.licence or "not known, see its page"
    say(f"{needed.part}: fetching {needed.title}{about}; licence: {licence}")


def _progress(what: str) -> None:
    if sys.stderr.isatty():  # gigabytes are read, so the person is told
        say(f"checking {what}")
