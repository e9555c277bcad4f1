"""``avfs doctor``: what is installed and here, and what would go wrong."""

from __future__ import annotations

import importlib
import json
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import typer

from avfewshot.cli.options import TableOrJson
from avfewshot.config import COMMANDS, CONFIG_NAME, resolve
from avfewshot.io import cache_dir

OK, NOTE, FAULT = "ok", "note", "fault"
_NEEDED = ("torch", "torchvision", "torchaudio", "open_clip_torch", "laion_clap", "av", "numpy", "scikit-learn")
_LITTLE = 2 * 10**9  # bytes of free disk, less than a day's clips

Finding = tuple[str, str, str]  # what was looked at, how it is, and for people: what was found and what to do


def doctor(form: TableOrJson = "table") -> None:
    """Say what is installed, which devices there are, which weights are here, what the caches take, and what would go
    wrong.

    [bold]Examples[/bold]

      avfs doctor
      avfs doctor --format json
    """  # noqa: D205
    findings = [finding for look in (_packages, _devices, _settings, _weights, _disk) for finding in look()]
    if form == "json":
        named = [dict(zip(("what", "status", "detail"), one, strict=True)) for one in findings]
        typer.echo(json.dumps(named, indent=2))
    else:
        width = max(len(what) for what, _, _ in findings)
        for what, status, detail in findings:
            typer.echo(f"{status:<6}{what:<{width}}  {detail}")
    if any(status == FAULT for _, status, _ in findings):
        raise typer.Exit(1)


def _packages() -> Iterator[Finding]:
    from avfewshot.version import __version__

    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "avfewshot", OK, f"{__version__}, {machine}"
    for name in _NEEDED:
        version = _version(name)
        fault = None if version else f"is not installed: pip install {name}"
        if version and name in ("torchvision", "torchaudio"):
            try:
                importlib.import_module(name)
            except Exception as error:
                reason = str(error).partition("\n")[0]
                todo = "install torch, torchvision and torchaudio together"
                fault = f"{version} does not fit this torch ({reason}): {todo}"
        yield name, FAULT if fault else OK, fault or str(version)
    version = _version("decord")
    instead = "is not installed (no wheel for this platform?): frames are decoded by PyAV, the same ones"
    yield "decord", OK if version else NOTE, version or instead
    for extra in metadata.metadata("avfewshot").get_all("Provides-Extra") or ():
        marked = (line.replace("'", '"') for line in metadata.requires("avfewshot") or ())
        names = [re.split(r"[^\w.-]", line)[0] for line in marked if f'extra == "{extra}"' in line]
        lacking = ", ".join(name for name in names if _version(name) is None)
        detail = f"lacks {lacking}: pip install 'avfewshot[{extra}]'" if lacking else "is installed"
        if extra != "dev":
            yield f"[{extra}]", NOTE if lacking else OK, detail


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    import torch

    from avfewshot.inference.devices import available_devices, resolve_device, resolve_precision

    device = resolve_device()
    yield "device", OK, f"{', '.join(available_devices())}; auto takes {device} in {resolve_precision('auto', device)}"
    if torch.backends.cuda.is_built() and not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        yield "cuda", FAULT, "there is an NVIDIA driver, and torch finds no GPU: `nvidia-smi` tells whether they fit"
    yield "processors", OK, f"{torch.get_num_threads()} threads for arithmetic"
    if (maps := Path("/proc/self/maps")).is_file():
        taken = re.search(r"tcmalloc|jemalloc|mimalloc", maps.read_text())
        advice = "the C library's; with tcmalloc a training on a processor takes less memory (docs/performance.md)"
        yield "allocator", OK, taken[0] if taken else advice


def _settings() -> Iterator[Finding]:
    faults = [fault.message for table in COMMANDS for fault in resolve(table).faults]
    for message in dict.fromkeys(faults):
        yield "settings", FAULT, message
    if not faults:
        here = f"{CONFIG_NAME} here is valid" if Path(CONFIG_NAME).is_file() else f"no {CONFIG_NAME} here"
        yield "settings", OK, f"{here}; avfs config shows them all"


def _weights() -> Iterator[Finding]:
    from avfewshot.encoders.presets import load_preset, preset_names
    from avfewshot.encoders.weights.locate import locate

    for name in preset_names():
        preset = load_preset(name)
        missing = [n for n in preset.files() if not n.optional and locate(n) is None]
        sizes = ", ".join(f"{needed.part} {needed.source.size or ''}".strip() for needed in missing)
        detail = f"missing: {sizes}: avfs weights fetch {name}" if missing else "all files are here"
        yield f"weights {name}", NOTE if missing else OK, detail


def _disk() -> Iterator[Finding]:
    from avfewshot.cli.cache import KINDS, entries

    folder = cache_dir()
    sizes = {kind: sum(status.st_size for _, status in entries(kind)) for kind in KINDS}
    shown = ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in sizes.items())
    yield "cache", OK, f"{folder}: {shown}; avfs cache clear empties it"
    parent = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        probe = parent / ".avfs-doctor"
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield "cache", NOTE, f"{parent} cannot be written to ({error.strerror}): nothing is kept between runs"
    for what, place in (("cache", parent), ("this folder", Path.cwd())):
        free = shutil.disk_usage(place).free
        detail = f"{free / 1e9:,.0f} GB free for {what}"
        yield "disk", OK if free > _LITTLE else NOTE, detail if free > _LITTLE else f"only {detail}"
