"""From the parsed YAML of a description file to its typed form, with every fault collected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avfewshot.data.schema import FORMAT, READERS, ClassEntry, Description, OfficialFile, default_wording

_BRING_THEIR_OWN_CLASSES = ("vggsound", "folder")


def parse_description(raw: Any, path: Path) -> tuple[Description, list[str]]:
    """Turn parsed YAML into a description.

    Args:
        raw: What the YAML parser made of the file.
        path: The file, kept in the description.

    Returns:
        The description, which is usable only where the second item, the list of faults, is empty.
    """
    checker = _Checker(raw, path)
    return checker.description(), checker.faults


class _Checker:
    """Turns the parsed YAML into a :class:`Description` and collects every fault on the way."""

    def __init__(self, raw: Any, path: Path) -> None:
        self.faults: list[str] = []
        self.path = path
        if not isinstance(raw, dict):
            self.faults.append("the top level must be a mapping of keys")
            raw = {}
        self.raw: dict[str, Any] = raw

    def description(self) -> Description:
        if self.raw.get("format") != FORMAT:
            self.faults.append(f"format must be {FORMAT}, not {self.raw.get('format')!r}")
        known = {name for name in Description.__dataclass_fields__ if name != "path"} | {"format"}
        if unknown := sorted(str(key) for key in self.raw if key not in known):
            self.faults.append(f"unknown key(s) {', '.join(unknown)}")
        reader = self._text("reader")
        if reader and reader not in READERS:
            self.faults.append(f"reader must be one of {', '.join(READERS)}, not {reader!r}")
        name = self._text("name")
        return Description(
            name=name,
            title=self._text("title"),
            reader=reader,
            tasks=self._texts("tasks", required=True),
            classes=self._classes(reader),
            files=self._files(reader),
            path=self.path,
            background=self._entry(self.raw["background"], "background") if self.raw.get("background") else None,
            folders=self._folders() or (name,),
            segments=self._count("segments", 10) or 10,
            multi_label=self._flag(self.raw.get("multi_label", False), "multi_label"),
            splits=self._mapping("splits", int),
            expected_classes=self._count("expected_classes", None),
            minimum_rows=self._count("minimum_rows", None),
            known_classes=self._texts("known_classes"),
            supports=self._supports(),
            paper=self._text("paper", required=False),
            source=self._text("source", required=False),
            how_to_get=self._text("how_to_get", required=False),
            licence=self._mapping("licence", str),
        )

    def _text(self, key: str, *, required: bool = True) -> str:
        value = self.raw.get(key, "")
        if not isinstance(value, str) or (required and not value.strip()):
            self.faults.append(f"{key} must be a text" if key in self.raw else f"{key} is missing")
            return ""
        return value.strip()

    def _texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        value = self.raw.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or (required and not value):
            self.faults.append(f"{key} must be a list of texts" if key in self.raw else f"{key} is missing")
            return ()
        return tuple(value)

    def _folders(self) -> tuple[str, ...]:
        folders = self._texts("folders")
        for folder in folders:
            if not _is_plain_name(folder):
                self.faults.append(f"folders: {folder!r} must be a plain name")
        return tuple(folder for folder in folders if _is_plain_name(folder))

    def _count(self, key: str, default: int | None) -> int | None:
        value = self.raw.get(key, default)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            return value
        self.faults.append(f"{key} must be a positive whole number, not {value!r}")
        return default

    def _flag(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            self.faults.append(f"{where} must be true or false")
            return False
        return value

    def _mapping(self, key: str, kind: type) -> dict[str, Any]:
        value = self.raw.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(k, str) and type(v) is kind for k, v in value.items()):
            self.faults.append(f"{key} must map texts to {'whole numbers' if kind is int else 'texts'}")
            return {}
        return dict(value)

    def _entry(self, value: Any, where: str) -> ClassEntry:
        if isinstance(value, str):  # A bare name is a class with the default wording.
            value = {"name": value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"].strip():
            self.faults.append(f"{where} must be {{name: ..., wording: ...}} with texts (quote names such as 'yes')")
            return ClassEntry("", "")
        wording = value.get("wording", default_wording(value["name"]))
        if not isinstance(wording, str) or not wording.strip() or set(value) - {"name", "wording"}:
            self.faults.append(f"{where} ({value['name']!r}) must have name and wording, both texts, and nothing else")
            wording = ""
        return ClassEntry(value["name"].strip(), wording.strip())

    def _classes(self, reader: str) -> tuple[ClassEntry, ...]:
        value = self.raw.get("classes")
        if not isinstance(value, list):
            self.faults.append("classes must be a list" if value is not None else "classes is missing")
            return ()
        entries = tuple(self._entry(item, f"classes[{index}]") for index, item in enumerate(value))
        if repeated := _repeated([entry.name for entry in entries]):
            self.faults.append(f"classes names {', '.join(repr(name) for name in repeated)} more than once")
        if repeated := _repeated([entry.wording for entry in entries if entry.wording]):
            self.faults.append(f"classes words {', '.join(repr(text) for text in repeated)} more than once")
        if not entries and reader not in _BRING_THEIR_OWN_CLASSES:
            self.faults.append("classes is empty")
        return entries

    def _files(self, reader: str) -> tuple[OfficialFile, ...]:
        value = self.raw.get("files", [])
        if not isinstance(value, list):
            self.faults.append("files must be a list")
            return ()
        if not value and reader != "folder":
            self.faults.append("files is empty")
        files = [self._file(item, f"files[{index}]") for index, item in enumerate(value)]
        if repeated := _repeated([entry.role for entry in files if entry]):
            self.faults.append(f"files has role(s) {', '.join(repeated)} more than once")
        return tuple(entry for entry in files if entry)

    def _file(self, value: Any, where: str) -> OfficialFile | None:
        if not isinstance(value, dict) or set(value) - set(OfficialFile.__dataclass_fields__):
            self.faults.append(f"{where} must have only the keys {', '.join(OfficialFile.__dataclass_fields__)}")
            return None
        role, names, rows = value.get("role"), value.get("names"), value.get("rows")
        digests = [*([value["sha256"]] if "sha256" in value else []), *(value.get("variants") or [])]
        if not isinstance(role, str) or not isinstance(names, list) or not names:
            self.faults.append(f"{where} needs a role and a list of names")
            return None
        if bad := [name for name in names if not isinstance(name, str) or not _is_plain_name(name)]:
            self.faults.append(f"{where}: {bad[0]!r} must be a plain file name")
            return None
        if rows is not None and (type(rows) is not int or rows < 0):
            self.faults.append(f"{where}: rows must be a whole number")
        if any(not isinstance(digest, str) or len(digest) != 64 for digest in digests):
            self.faults.append(f"{where}: a SHA-256 has 64 hexadecimal digits")
        required = self._flag(value.get("required", True), f"{where}: required")
        variants = tuple(value.get("variants") or ())
        return OfficialFile(role, tuple(names), required, rows, value.get("sha256"), variants)

    def _supports(self) -> dict[str, Any]:
        value = self.raw.get("supports", {})
        if not isinstance(value, dict):
            self.faults.append("supports must be a mapping")
            return {}
        for sampler, table in value.items():
            if sampler == "algorithm":
                continue
            levels = [table] if sampler == "first_k" else list(table.values()) if isinstance(table, dict) else [None]
            for level in levels:
                if not isinstance(level, dict) or not all(
                    type(k) is int and isinstance(digest, str) for k, digest in level.items()
                ):
                    self.faults.append(f"supports: {sampler} must map seeds to shots to digests")
                    return {}
        return value


def _repeated(items: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({item for item in items if item in seen or seen.add(item)})


def _is_plain_name(name: str) -> bool:
    """Whether `name` is one path component that stays in its folder, on any system."""
    return bool(name) and name not in {".", ".."} and not any(mark in name for mark in "/\\:\0")
