"""Which files a backbone needs and where they lie on this machine. Nothing here asks the network."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from avfewshot.encoders.lean_imports import library_folder, library_module
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
from avfewshot.io import cache_dir, user_path, write_text

_LOG = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
ROBERTA_FILES = ("vocab.json", "merges.txt")
_HF_TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "vocab.txt")


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


def needed_files(
    preset: Preset,
    *,
    clip_weights: str | Path | None = None,
    clap_weights: str | Path | None = None,
    roberta: str | Path | None = None,
) -> list[Needed]:
    """The files of a backbone, packaged ones included, whether they are there or not.

    CLIP's and CLAP's checkpoints and the folder of RoBERTa's tokenizer take the places of the preset's.

    Raises:
        UsageError: The preset names a model or tag that open_clip does not have, or one that is not on the hub.
    """
    if preset.peav:
        return _peav_files(preset, clip_weights, clap_weights, roberta)
    clip = Source(file=_path(clip_weights)) if clip_weights else clip_source(preset.clip)
    swin = preset.clip.swin is not None
    needed = [Needed("clip", "Swin weights" if swin else "CLIP weights", clip, "--clip-weights")]
    if preset.clip.tokenizer:
        needed.append(Needed("clip_bpe", "CLIP tokenizer", Source(file=preset.clip.tokenizer)))
    needed += [] if swin else _transformers_text_files(preset.clip)
    if preset.clap.picture is not None:
        if used := [name for name, path in (("--clap-weights", clap_weights), ("--roberta", roberta)) if path]:
            raise UsageError(f"The backbone {preset.name!r} has no CLAP: {' and '.join(used)} has no use.")
        return needed
    clap = Source(file=_path(clap_weights)) if clap_weights else preset.clap.source
    needed.append(Needed("clap", "CLAP weights", clap, "--clap-weights"))
    if preset.clap.text["type"] == "clip":
        if roberta:
            raise _no_roberta(preset)
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
    """Whether adapters can be put between the blocks of its towers: that is a Swin or a ViT of open_clip's own."""
    if preset.peav:
        return False
    if preset.clip.swin is not None:
        return True
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


def no_texts(backbone: str) -> UsageError:
    """The error for what compares clips with texts, on a backbone without text branches."""
    return UsageError(
        f"The backbone {backbone} has no text branches: no clip can be compared with a label.",
        hint="It serves `avfs train`. For labels take another one, such as --backbone base.",
    )


def clip_tag(clip: ClipPreset) -> Mapping[str, Any]:
    """open_clip's entry for the preset's tag (``hf_hub``, ``mean``, ``std``, ...); empty where it names no tag.

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
        model_configuration(clip)  # raises for an unknown model
        tags = library.list_pretrained_tags_by_model(clip.model)
        raise UsageError(
            f"open_clip has no weights {clip.pretrained!r} for {clip.model}.",
            hint=f"Valid ones: {', '.join(tags)}." if tags else "It has none at all for it; give a file.",
        )
    return entry


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
    # Read here, since the import of open_clip takes seconds.
    paths = {path.stem: path for path in sorted(library_folder("open_clip").glob("model_configs/*.json"))}
    if clip.model in paths:
        return json.loads(paths[clip.model].read_text(encoding="utf-8"))
    close = get_close_matches(clip.model, paths, n=8, cutoff=0.5) or [name for name in paths if name.startswith("ViT-")]
    raise UsageError(f"open_clip has no model {clip.model!r}.", hint=f"For example: {', '.join(close[:8])}.")


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
    """Refuse a file from the hub that is not the expected one; one of which nothing is known is the expected one then.

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
    """Path by key of every file; of optional ones those that are there.

    Raises:
        WeightsError: Some are missing; all of them are named, with where they were looked for and what to do.
    """
    paths: dict[str, Path] = {}
    missing: list[Needed] = []
    for entry in needed:
        if path := locate(entry):
            _LOG.info("%s: %s", entry.part, path)
            paths[entry.key] = path
        elif not entry.optional:
            missing.append(entry)
    if missing:
        count = "a file" if len(missing) == 1 else f"{len(missing)} files"
        listed = "; ".join(f"{entry.part}: {entry.title} (looked in {looked_in(entry)})" for entry in missing)
        raise WeightsError(f"The backbone {preset.name!r} lacks {count}: {listed}.", hint=how_to_get(preset, missing))
    return paths


def how_to_get(preset: Preset, missing: Sequence[Needed]) -> str:
    """What to do about files that are not here, at least one, in one sentence."""
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
        return user_path(explicit)
    if home := os.environ.get("HF_HOME"):
        return user_path(home) / "hub"
    return Path(constants.HF_HUB_CACHE)


def _roberta_files(source: Source) -> list[Needed]:
    option, folder = "--roberta", source.file
    # A folder in which either form of the tokenizer is enough.
    if folder and not (folder / ROBERTA_FILES[0]).exists() and (folder / "tokenizer.json").exists():
        return [Needed("roberta", "RoBERTa tokenizer", Source(file=folder / "tokenizer.json"), option)]

    def at(name: str, size: str) -> Source:
        if folder:
            return Source(file=folder / name)
        digest = ROBERTA_SHA256[name] if source.repository == ROBERTA_TOKENIZER else None
        return replace(source, names=(name,), sha256=digest, size=size)

    return [
        Needed("roberta_vocab", "RoBERTa vocabulary", at(ROBERTA_FILES[0], "0.9 MB"), option),
        Needed("roberta_merges", "RoBERTa merges", at(ROBERTA_FILES[1], "0.5 MB"), option),
    ]


def _peav_files(
    preset: Preset, clip_weights: str | Path | None, clap_weights: str | Path | None, roberta: str | Path | None
) -> list[Needed]:
    """Of PE-AV, and of PE-A-Frame, without which seconds of sound are heard one at a time."""
    peav = preset.peav
    assert peav is not None
    if roberta:
        raise _no_roberta(preset)

    def beside(source: Source, name: str) -> Source:
        if source.file:
            return Source(file=source.file.parent / name)
        return Source((name,), source.repository, source.revision, licence=source.licence)

    weights = Source(file=_path(clip_weights)) if clip_weights else peav.source
    needed = [
        Needed("clip", "PE-AV weights", weights, "--clip-weights"),
        Needed("peav_config", "PE-AV sizes", beside(weights, "config.json")),
        Needed("peav_tokenizer", "PE-AV tokenizer", beside(weights, "tokenizer.json")),
    ]
    timeline = Source(file=_path(clap_weights)) if clap_weights else peav.timeline
    if timeline:
        optional = not clap_weights
        needed += [
            Needed("clap", "PE-A-Frame weights", timeline, "--clap-weights", optional),
            Needed("peav_timeline_config", "PE-A-Frame sizes", beside(timeline, "config.json"), optional=optional),
        ]
    return needed


def _no_roberta(preset: Preset) -> UsageError:
    return UsageError(f"The backbone {preset.name!r} has no RoBERTa, so --roberta has no use.", hint="Leave it out.")


def _transformers_text_files(clip: ClipPreset) -> list[Needed]:
    """Tokenizer and configuration of open_clip models whose text tower or tokenizer is one of transformers'."""
    text = text_configuration(clip)
    repository = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if not repository:
        return []

    def file(key: str, part: str, *names: str, where: str = repository, optional: bool = False) -> Needed:
        return Needed(f"clip_text_{key}", f"CLIP {part}", Source(names, where), optional=optional)

    needed = [
        file("tokenizer", "tokenizer", *_HF_TOKENIZER_FILES),
        file("tokenizer_config", "tokenizer settings", "tokenizer_config.json", optional=True),
        # Repositories of timm's export describe the tokenizer in its own settings and have no such file.
        file("tokenizer_type", "tokenizer type", "config.json", optional="hf_model_name" not in text),
    ]
    if text.get("hf_model_name"):
        needed.append(file("config", "text settings", "config.json", where=text["hf_model_name"]))
    return needed


def _path(given: str | Path) -> Path:
    return user_path(given).absolute()


_PACKAGE = Path(__file__).resolve().parents[2]
_PRESETS = _PACKAGE / "encoders" / "presets"
