"""Prompt templates: the sentences that a label is put into before the text branches read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfewshot.errors import UsageError, did_you_mean, raise_faults
from avfewshot.io import resource_dir, user_path
from avfewshot.safe_yaml import load_yaml
from avfewshot.text import visible

SLOT = "{}"
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Templates:
    """Sentences with a slot for the label, and sentences for "no event"."""

    visual: tuple[str, ...]  # for the image side's text branch; each holds ``{}`` once
    audio: tuple[str, ...]  # for the sound side's
    background_visual: tuple[str, ...]  # what stands for seconds in which no event is seen; without a slot
    background_audio: tuple[str, ...]  # what stands for seconds in which no event is heard


def template_names() -> list[str]:
    """Names of the packaged templates, the default first."""
    found = (path.stem for path in resource_dir("prompts").glob("*.yaml"))
    return sorted(found, key=lambda name: (name != "default", name))


_MAX_CHARACTERS = 1 << 20


def load_templates(name_or_path: str | Path = "default") -> Templates:
    """Read templates.

    Args:
        name_or_path: One of :func:`template_names`; or a YAML file with the keys ``visual`` and ``audio``, and
            optionally ``background`` with the same two keys; or a plain text file with a template a line (``#`` begins
            a comment), used for both sides. Without a background of its own, a file takes the default one.

    Raises:
        UsageError: No such name or file, or templates that are at fault, all of them at once.
    """
    text = str(name_or_path)
    if text in template_names():
        return _from_yaml(resource_dir("prompts") / f"{text}.yaml")
    path = user_path(text)
    if not path.exists():
        guess = did_you_mean(text, template_names())
        raise UsageError(
            f"There are no templates {text!r}, neither by that name nor as a file.{guess}",
            hint=f"Valid names: {', '.join(template_names())}; or give a YAML file or a text file.",
        )
    return _from_yaml(path) if path.suffix.lower() in _SUFFIXES else _from_text(path)


def _from_text(path: Path) -> Templates:
    faults: list[UsageError] = []
    entries = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        template = visible(line)
        if template and not template.startswith("#"):
            entries.append((f"line {number}", template))
    if not entries:
        faults.append(UsageError(f"{path}: holds no template.", hint="Write one a line, such as `a photo of a {}`."))
    templates = _checked(path, entries, slots=1, faults=faults)
    raise_faults(faults)
    default = load_templates("default")
    return Templates(templates, templates, default.background_visual, default.background_audio)


def _from_yaml(path: Path) -> Templates:
    document = load_yaml(path)
    faults: list[UsageError] = []
    top = _section(path, "", document, ("visual", "audio", "background"), faults)
    background = _section(path, "background", top.get("background") or {}, ("visual", "audio"), faults)
    read = {
        name: _checked(path, _entries(path, name, section.get(key), required, faults), slots, faults)
        for name, section, key, slots, required in (
            ("visual", top, "visual", 1, True),
            ("audio", top, "audio", 1, True),
            ("background.visual", background, "visual", 0, False),
            ("background.audio", background, "audio", 0, False),
        )
    }
    raise_faults(faults)
    visual, audio = read["background.visual"], read["background.audio"]
    if not (visual and audio):
        default = load_templates("default")
        visual, audio = visual or default.background_visual, audio or default.background_audio
    return Templates(read["visual"], read["audio"], visual, audio)


def _section(path: Path, where: str, raw: Any, keys: tuple[str, ...], faults: list[UsageError]) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        shown = f"{where}: " if where else ""
        faults.append(UsageError(f"{path}: {shown}keys and lists are needed ({', '.join(keys)})."))
        return {}
    for key in raw:
        if key not in keys:
            name = f"{where}.{key}" if where else str(key)
            faults.append(UsageError(f"{path}: {name} is unknown.", hint=f"Valid keys: {', '.join(keys)}."))
    return raw


def _entries(path: Path, name: str, raw: Any, required: bool, faults: list[UsageError]) -> list[tuple[str, str]]:
    if raw is None and not required:
        return []
    if not isinstance(raw, list) or not raw:
        faults.append(UsageError(f"{path}: {name}: a list of sentences is needed."))
        return []
    entries = []
    for number, value in enumerate(raw, start=1):
        where = f"{name}, entry {number}"
        if isinstance(value, str) and visible(value):
            entries.append((where, visible(value)))
        else:
            # Not the whole of a list or mapping: aliases can make its text as large as the memory.
            found = f"a {type(value).__name__}" if isinstance(value, Mapping | list) else repr(value)
            faults.append(UsageError(f"{path}: {where}: a sentence is needed, not {found}.", hint="Put it in quotes."))
    return entries


def _checked(path: Path, entries: list[tuple[str, str]], slots: int, faults: list[UsageError]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    for where, template in entries:
        if template.count(SLOT) != slots:
            wanted = "hold {} once, where the label goes" if slots else "not hold {}: there is no label to put there"
            faults.append(UsageError(f"{path}: {where}: {template!r} must {wanted}."))
        if seen[template]:
            faults.append(UsageError(f"{path}: {where}: {template!r} is there already."))
        seen[template] += 1
    return tuple(template for _, template in entries)


def _read(path: Path) -> str:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path}: is not a file.")  # a pipe or a device would be read without end
    try:
        with open(path, encoding="utf-8-sig") as stream:
            text = stream.read(_MAX_CHARACTERS + 1)
        if len(text) > _MAX_CHARACTERS:
            raise UsageError(f"{path}: is too large for a file of templates.")
        return text
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8.", hint="Save it as UTF-8.") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder, a file with templates is needed.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
