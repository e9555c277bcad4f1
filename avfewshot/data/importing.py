"""Labels that people gave in Label Studio or ELAN, as a folder of classes: a clip a labelled stretch."""

from __future__ import annotations

import hashlib
import json
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from avfewshot.errors import AvfsError, UsageError
from avfewshot.io import printable
from avfewshot.media.discover import walk_media
from avfewshot.media.transcode import transcode

_T = TypeVar("_T")
_MAX_BYTES = 256 << 20
_MAX_SECONDS = 1e6
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio puts this before the name of a file that was uploaded


@dataclass(frozen=True)
class Stretch:
    """A label over a part of a clip."""

    clip: str  # its path, as the annotator's file has it
    label: str
    start: float  # seconds
    end: float | None  # None: to the end of the clip


def read_stretches(path: Path) -> list[Stretch]:
    """Read a JSON export of Label Studio, or an ``.eaf`` of ELAN.

    Raises:
        UsageError: It cannot be read, or is not what it should be.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"has more than {_MAX_BYTES >> 20} MB")
        text = path.read_bytes().decode("utf-8-sig")
        found = list(_elan(text) if path.suffix.lower() == ".eaf" else _label_studio(json.loads(text)))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.", hint="Name a file.") from None
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply.", hint="Export it again.") from None
    except (ValueError, ET.ParseError) as error:
        hint = "An export of Label Studio as JSON is needed, or a file of ELAN (.eaf)."
        raise UsageError(f"{path}: {printable(str(error))}.", hint=hint) from None
    return list(dict.fromkeys(found))


def _label_studio(tasks: Any) -> Iterator[Stretch]:
    for number, task in enumerate(_typed(tasks, list, "the file"), start=1):
        where = f"task {number}"
        data = _typed(_typed(task, dict, where).get("data"), dict, f"{where}, data")
        clip = _typed(data.get("video", data.get("audio")), str, f"{where}, data.video")
        rounds = task.get("annotations") or task.get("predictions") or []
        for entry in _typed(rounds, list, f"{where}, annotations"):
            if _typed(entry, dict, f"{where}, an annotation").get("was_cancelled"):
                continue
            for result in _typed(entry.get("result"), list, f"{where}, result"):
                kind = _typed(result, dict, f"{where}, a result").get("type")
                if kind == "timelinelabels":
                    raise ValueError(f"{where} has timeline labels in frames; docs/export.md has a set-up in seconds")
                if kind not in ("labels", "choices"):
                    continue
                value = _typed(result.get("value"), dict, f"{where}, value")
                span = (0.0, None) if kind == "choices" else _span(value.get("start"), value.get("end"), where)
                for label in _typed(value.get(kind), list, f"{where}, {kind}"):
                    yield Stretch(clip, _typed(label, str, f"{where}, a label"), *span)


def _elan(text: str) -> Iterator[Stretch]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("declares a document type or entities, which no file of ELAN does")
    root = ET.fromstring(text)
    header = root.find("HEADER")
    if root.tag != "ANNOTATION_DOCUMENT" or header is None:
        raise ValueError("is no ANNOTATION_DOCUMENT with a HEADER")
    if header.get("TIME_UNITS", "milliseconds") != "milliseconds":
        raise ValueError(f"has times in {header.get('TIME_UNITS')}, not in milliseconds")
    media = header.find("MEDIA_DESCRIPTOR")
    clip = None if media is None else media.get("MEDIA_URL") or media.get("RELATIVE_MEDIA_URL")
    if not clip:
        raise ValueError("names no media file")
    times = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    for entry in root.iter("ALIGNABLE_ANNOTATION"):
        where = f"annotation {entry.get('ANNOTATION_ID')}"
        begin, end = (times.get(entry.get(f"TIME_SLOT_REF{n}")) for n in (1, 2))
        try:
            span = float(begin or "") / 1000, float(end or "") / 1000
        except ValueError:
            raise ValueError(f"{where} has no times") from None
        yield Stretch(clip, entry.findtext("ANNOTATION_VALUE") or "", *_span(*span, where))


def _typed(value: Any, kind: type[_T], where: str) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"{where} is not a {kind.__name__}")
    return value


def _span(start: Any, end: Any, where: str) -> tuple[float, float]:
    for value in (start, end):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SECONDS:
            raise ValueError(f"{where} has a time that is no number of seconds from 0 to {_MAX_SECONDS:,.0f}")
    if not start < end:
        raise ValueError(f"{where} ends before it begins")
    return float(start), float(end)


class ClassFolders:
    """Cuts labelled stretches of the clips in a folder into ``root/CLASS/``."""

    def __init__(self, clips: Path, root: Path) -> None:
        self._clips, self._root = clips, root
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in map(Path, walk_media([clips])):
            self._named[path.name].append(path)

    def add(self, stretch: Stretch) -> bool:
        """Cut a stretch; False: it was there already.

        Raises:
            AvfsError: The clip is missing or cannot be read, there are several, or the label makes no folder.
        """
        source, folder = self._find(stretch.clip), self._root / folder_name(stretch.label)
        if not folder.resolve().is_relative_to(self._root.resolve()):
            raise UsageError(f"{folder}: leads out of {self._root}.", hint="Remove the link.")
        key = hashlib.sha256(source.relative_to(self._clips).as_posix().encode(errors="surrogateescape")).hexdigest()
        span = "whole" if stretch.end is None else f"{round(1000 * stretch.start)}-{round(1000 * stretch.end)}"
        stem = f"{source.stem[:60]}-{key[:8]}-{span}"
        if any((folder / f"{stem}{suffix}").is_file() for suffix in (".mp4", ".mkv", ".mka")):
            return False
        transcode(source, folder, stem, start=stretch.start, end=stretch.end)
        return True

    def _find(self, named: str) -> Path:
        parts = urlsplit(named) if re.match(r"(file|https?)://|/data/", named) else None
        place = named if parts is None else parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        place = place.replace("\\", "/")
        name = place.rsplit("/", 1)[-1]
        upload = _UPLOAD.fullmatch(name)
        found: Sequence[Path] = self._named.get(name) or self._named.get(upload[1] if upload else "", [])
        if len(found) > 1:
            found = [p for p in found if f"/{place}".endswith(f"/{p.relative_to(self._clips).as_posix()}")] or found
        if len(found) != 1:
            what = f"{len(found)} clips have this name" if found else "there is no such clip"
            raise AvfsError(f"{printable(named)}: {what} in {self._clips}.", hint="Name their folder with --clips.")
        return found[0]


def folder_name(label: str) -> str:
    """A label as the name of a class folder: one part, not hidden, not of a split and not of hard negatives.

    Raises:
        AvfsError: Nothing is left of it.
    """
    name = re.sub(r'[/\\:*?"<>|]', "_", printable(" ".join(label.split()))).encode()[:200].decode(errors="ignore")
    name = name.rstrip(". ") or ("_" if name else "")
    if not name:
        raise AvfsError("A label is empty.", hint="Give it a name.")
    if name.startswith((".", "-")) or name.lower() in ("train", "val", "test"):
        name = f"_{name}"
    return name
