"""Which files a backbone needs and where they lie on this machine. Nothing here asks the network."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from avfewshot.encoders.lean_imports import library_module
from avfewshot.encoders.presets import (
    ROBERTA_SHA256,
    ROBERTA_TOKENIZER,
    ClipPreset,
    Preset,
    Source,
    load_preset,
    preset_names,
)
from avfewshot.encoders.weights.identity import combined, file_sha256
from avfewshot.errors import UsageError, WeightsError
from avfewshot.io import cache_dir, write_text

_LOG = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
ROBERTA_FILES = ("vocab.json", "merges.txt")
_HF_TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "vocab.txt")


@dataclass(frozen=True)
class Needed:
    """A file that a backbone needs.

    Attributes:
        key: ``"clip"``, ``"clap"``, ``"clip_bpe"``, ``"clap_bpe"``, ``"roberta_vocab"``, ``"roberta_merges"``,
            ``"roberta"`` (a ``tokenizer.json``), or ``"clip_text_..."`` for open_clip models with a text tower of
            transformers.
        part: What it is, for people.
        source: Where it comes from.
        option: The option that gives it by path; None where there is none.
        optional: Whether the backbone works without it.
    """

    key: str
    part: str
    source: Source
    option: str | None = None
    optional: bool = False

    @property
    def title(self) -> str:
        """The file, for people: its path, or repository and name."""
        if self.source.file:
            return str(self.source.file)
        return f"{self.source.repository}/{self.source.names[0]}"


def needed_files(
    preset: Preset,
    *,
    clip_weights: str | Path | None = None,
    clap_weights: str | Path | None = None,
    roberta: str | Path | None = None,
) -> list[Needed]:
    """The files of a backbone.

    Args:
        preset: The preset.
        clip_weights: CLIP checkpoint that takes the place of the preset's.
        clap_weights: CLAP checkpoint that takes the place of the preset's.
        roberta: Folder with RoBERTa's tokenizer files that takes the place of the preset's.

    Returns:
        The files, packaged ones included, whether they are there or not.

    Raises:
        UsageError: The preset names a model or tag that open_clip does not have, or one that is not on the hub.
    """
    clip = Source(file=_path(clip_weights)) if clip_weights else clip_source(preset.clip)
    needed = [Needed("clip", "CLIP weights", clip, "--clip-weights")]
    if preset.clip.tokenizer:
        needed.append(Needed("clip_bpe", "CLIP tokenizer", Source(file=preset.clip.tokenizer)))
    needed += _transformers_text_files(preset.clip)
    clap = Source(file=_path(clap_weights)) if clap_weights else preset.clap.source
    needed.append(Needed("clap", "CLAP weights", clap, "--clap-weights"))
    if preset.clap.text["type"] == "clip":
        if roberta:
            raise UsageError(
                f"The backbone {preset.name!r} has no RoBERTa, so --roberta has no use.", hint="Leave it out."
            )
        needed.append(Needed("clap_bpe", "CLAP tokenizer", preset.clap.tokenizer))
    else:
        needed += _roberta_files(Source(file=_path(roberta)) if roberta else preset.clap.tokenizer)
    return needed


def clip_source(clip: ClipPreset) -> Source:
    """Where CLIP's weights come from: what the preset says, else the repository of open_clip's tag.

    Raises:
        UsageError: open_clip knows no such model or tag, or the tag is not on the hub.
    """
    if clip.source.repository or clip.source.file:
        return clip.source
    tag = clip_tag(clip)
    if not tag.get("hf_hub"):
        raise UsageError(
            f"open_clip's weights {clip.pretrained!r} for {clip.model} are not on the hub.",
            hint=f"Download {tag.get('url') or 'them'} and give the file with --clip-weights.",
        )
    owner, _, rest = tag["hf_hub"].partition("/")
    name, _, file = rest.partition("/")
    names = (file,) if file else clip.source.names
    if file.endswith((".bin", ".pth")):  # open_clip too prefers a safetensors version of the same name
        names = (file[:-4] + ".safetensors", file)
    return replace(clip.source, names=names, repository=f"{owner}/{name}")


def is_walkable(preset: Preset) -> bool:
    """Whether adapters can be put between the blocks of its towers: its picture tower is a ViT of open_clip's own."""
    vision = model_configuration(preset.clip)["vision_cfg"]
    return "timm_model_name" not in vision and not isinstance(vision.get("layers"), list | tuple)


def walkable_presets() -> list[str]:
    """Names of the packaged presets that adapters can be trained for."""
    return [name for name in preset_names() if is_walkable(load_preset(name))]


def not_walkable(what: str, backbone: str) -> UsageError:
    """The error for something that works between the blocks of towers, on a backbone whose towers are run whole."""
    return UsageError(
        f"{what}: needs towers that can be walked block by block, and those of {backbone} are run whole.",
        hint=f"Take --backbone {', '.join(walkable_presets())}; or a method on frozen embeddings, as --method auto.",
    )


def clip_tag(clip: ClipPreset) -> Mapping[str, Any]:
    """open_clip's entry for the preset's tag: ``hf_hub``, ``mean``, ``std``, ``quick_gelu``, ``resize_mode``.

    Returns:
        The entry; empty when the preset names no tag.

    Raises:
        UsageError: open_clip knows no such model or tag; the valid ones are listed.
    """
    if clip.pretrained is None:
        return {}
    library = library_module("open_clip", "pretrained")
    if not isinstance(clip.model, str):
        raise UsageError("clip.pretrained needs the name of an open_clip model, not an architecture of your own.")
    entry = library.get_pretrained_cfg(clip.model, clip.pretrained)
    if not entry:
        text_configuration(clip)  # raises for an unknown model
        tags = library.list_pretrained_tags_by_model(clip.model)
        raise UsageError(
            f"open_clip has no weights {clip.pretrained!r} for {clip.model}.",
            hint=f"Valid ones: {', '.join(tags)}." if tags else "It has none at all for it; give a file.",
        )
    return entry


def unknown_model(name: str) -> UsageError:
    """The error for a model name that open_clip does not have."""
    names = [path.stem for path in _clip_configurations()]
    close = get_close_matches(name, names, n=8, cutoff=0.5) or [other for other in names if other.startswith("ViT-")]
    return UsageError(f"open_clip has no model {name!r}.", hint=f"For example: {', '.join(close[:8])}.")


def text_configuration(clip: ClipPreset) -> Mapping[str, Any]:
    """open_clip's ``text_cfg`` of the preset's model.

    Raises:
        UsageError: open_clip has no such model.
    """
    return model_configuration(clip)["text_cfg"]


def model_configuration(clip: ClipPreset) -> Mapping[str, Any]:
    """open_clip's configuration of the preset's model.

    Raises:
        UsageError: open_clip has no such model.
    """
    if not isinstance(clip.model, str):
        return clip.model
    for path in _clip_configurations():  # read here, since the import of open_clip takes seconds
        if path.stem == clip.model:
            return json.loads(path.read_text(encoding="utf-8"))
    raise unknown_model(clip.model)


def _clip_configurations() -> list[Path]:
    found = importlib.util.find_spec("open_clip")
    folders = found.submodule_search_locations or () if found else ()
    return sorted(path for folder in folders for path in Path(folder, "model_configs").glob("*.json"))


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
    """Refuse a file from the hub that is not the expected one; one of which nothing is known is the expected one then.

    Args:
        needed: What it is.
        path: Where it lies.

    Returns:
        Its SHA-256.

    Raises:
        WeightsError: It is another file.
    """
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


def require(preset: Preset, needed: Sequence[Needed]) -> dict[str, Path]:
    """Find every file.

    Args:
        preset: For the advice in messages.
        needed: From :func:`needed_files`.

    Returns:
        Path by key; optional files only where they are there.

    Raises:
        WeightsError: Some are missing; all of them are named, with where they were looked for and what to do.
    """
    found = {entry.key: locate(entry) for entry in needed}
    missing = [entry for entry in needed if found[entry.key] is None and not entry.optional]
    for entry in needed:
        if path := found[entry.key]:
            _LOG.info("%s: %s", entry.part, path)
    if not missing:
        return {key: path for key, path in found.items() if path is not None}
    listed = "; ".join(f"{entry.part}: {entry.title} (looked in {looked_in(entry)})" for entry in missing)
    raise WeightsError(
        f"The backbone {preset.name!r} lacks {_count(missing)}: {listed}.", hint=how_to_get(preset, missing)
    )


def how_to_get(preset: Preset, missing: Sequence[Needed]) -> str:
    """What to do about files that are not here, in one sentence.

    Args:
        preset: The backbone.
        missing: At least one file.
    """
    advice = []
    if any(entry.source.repository for entry in missing):
        which = preset.name if preset.path.parent == _PRESETS else preset.path
        advice.append(f"run `avfs weights fetch {which}` once with a network")
        if options := sorted({entry.option for entry in missing if entry.source.repository and entry.option}):
            advice.append(f"or give the files by path with {' and '.join(options)}")
    if given := [entry.source.file for entry in missing if entry.source.file]:
        packaged = any(path.is_relative_to(_PACKAGE) for path in given)
        advice.append("install avfewshot again, it brings its files along" if packaged else "check the path")
    sentence = ", ".join(advice)
    return f"{sentence[0].upper()}{sentence[1:]}."


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
        return Path(explicit).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def _roberta_files(source: Source) -> list[Needed]:
    option = "--roberta"
    if source.file:
        # A folder in which either form of the tokenizer is enough.
        if not (source.file / ROBERTA_FILES[0]).exists() and (source.file / "tokenizer.json").exists():
            return [Needed("roberta", "RoBERTa tokenizer", Source(file=source.file / "tokenizer.json"), option)]
        return [
            Needed("roberta_vocab", "RoBERTa vocabulary", Source(file=source.file / ROBERTA_FILES[0]), option),
            Needed("roberta_merges", "RoBERTa merges", Source(file=source.file / ROBERTA_FILES[1]), option),
        ]

    def at(name: str, size: str) -> Source:
        digest = ROBERTA_SHA256[name] if source.repository == ROBERTA_TOKENIZER else None
        return Source((name,), source.repository, source.revision, sha256=digest, size=size, licence=source.licence)

    return [
        Needed("roberta_vocab", "RoBERTa vocabulary", at(ROBERTA_FILES[0], "0.9 MB"), option),
        Needed("roberta_merges", "RoBERTa merges", at(ROBERTA_FILES[1], "0.5 MB"), option),
    ]


def _transformers_text_files(clip: ClipPreset) -> list[Needed]:
    """Tokenizer and configuration of open_clip models whose text tower or tokenizer is one of transformers'."""
    text = text_configuration(clip)
    repository = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if not repository:
        return []

    def at(*names: str, where: str = repository) -> Source:
        return Source(names=names, repository=where)

    needed = [
        Needed("clip_text_tokenizer", "CLIP tokenizer", at(*_HF_TOKENIZER_FILES)),
        Needed("clip_text_tokenizer_config", "CLIP tokenizer settings", at("tokenizer_config.json"), optional=True),
        # Repositories of timm's export describe the tokenizer in its own settings and have no such file.
        Needed(
            "clip_text_tokenizer_type",
            "CLIP tokenizer type",
            at("config.json"),
            optional="hf_model_name" not in text,
        ),
    ]
    if text.get("hf_model_name"):
        needed.append(Needed("clip_text_config", "CLIP text settings", at("config.json", where=text["hf_model_name"])))
    return needed


def _path(given: str | Path) -> Path:
    return Path(given).expanduser().absolute()


def _count(missing: Sequence[Needed]) -> str:
    return "a file" if len(missing) == 1 else f"{len(missing)} files"


_PACKAGE = Path(__file__).resolve().parents[2]
_PRESETS = _PACKAGE / "encoders" / "presets"
