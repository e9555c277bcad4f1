"""Backbone presets: which models, which weights and prompt templates; from packaged or custom YAML files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.encoders.kinds.base import PACKAGED, Preset
from avfewshot.encoders.kinds.forms import ANY, SOURCE, TEXT, Reader
from avfewshot.encoders.kinds.pe_av import PeAv
from avfewshot.encoders.kinds.towers import ClipClap, Towers
from avfewshot.encoders.weights.locate import combined
from avfewshot.errors import UsageError, did_you_mean, raise_faults
from avfewshot.io import user_path
from avfewshot.safe_yaml import load_yaml

if TYPE_CHECKING:
    from avfewshot.encoders.tower import Encoder

KINDS: tuple[type[Preset], ...] = (ClipClap, PeAv, Towers)
"""A file is of the first kind unless it has a section of another one."""


def preset_names() -> list[str]:
    """Names of the packaged presets, the default first."""
    return sorted((path.stem for path in PACKAGED.glob("*.yaml")), key=lambda name: (name != "base", name))


def load_preset(name_or_path: str | Path) -> Preset:
    """Read a preset: one of :func:`preset_names`, or a YAML file of the same form, whose paths are relative to it.

    Raises:
        UsageError: No such preset or file, not YAML, or unknown keys and wrong values, all of them at once.
    """
    text = str(name_or_path)
    if text in preset_names():
        path = PACKAGED / f"{text}.yaml"
    elif text.lower().endswith((".yaml", ".yml")):
        path = user_path(text)
    else:
        hint = f"Valid ones: {', '.join(preset_names())}, or the path of a YAML file of your own."
        raise UsageError(f"There is no backbone {text!r}.{did_you_mean(text, preset_names())}", hint=hint)
    if not path.exists():
        raise UsageError(f"{path}: there is no such backbone file.")
    reader = Reader(path)
    sections = dict.fromkeys((section for kind in KINDS for section in kind.sections), ANY)
    top = reader.section(load_yaml(path), "", {"description": TEXT, "templates": TEXT, **sections})
    kind = next((kind for kind in KINDS[1:] if any(section in top for section in kind.sections)), KINDS[0])
    preset = kind.read(reader, top, reader.common(top))
    raise_faults(reader.faults)
    return preset


def recipe(preset: Preset) -> str:
    """What a YAML file of one's own says beside where its files lie, as a digest; empty for a packaged preset.

    The same weights can be read in other ways: with another mean of the pixels, another kind of GELU.
    """
    if preset.path.parent == PACKAGED:
        return ""

    def said(value: Any) -> Any:
        unsaid = ("description", "templates", *SOURCE)
        return {key: said(value[key]) for key in value if key not in unsaid} if isinstance(value, dict) else value

    return combined(json.dumps(said(load_yaml(preset.path)), sort_keys=True, default=str))


def not_walkable(what: str, backbone: str) -> UsageError:
    """The error for something that works between the blocks of towers, on a backbone whose towers are run whole."""
    message = f"{what}: needs towers that can be walked block by block, and those of {backbone} are run whole."
    names = ", ".join(name for name in preset_names() if load_preset(name).walkable)
    hint = f"Take --backbone {names}; or a method on frozen embeddings, as --method auto."
    return UsageError(message, hint=hint)


def require_walkable(what: str, *encoders: Encoder) -> None:
    """Raise :func:`not_walkable` where one of the encoders is plain, for something that works between their blocks."""
    from avfewshot.encoders.tower import walkable

    if not walkable(*encoders):
        raise not_walkable(what, "this backbone")
