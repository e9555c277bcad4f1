"""Labels that people gave in Label Studio, FiftyOne or ELAN, as a folder of classes: a clip a labelled stretch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from avfewshot.errors import AvfsError, UsageError
from avfewshot.media.decoders import IsolatedReader
from avfewshot.media.discover import walk_media
from avfewshot.media.transcode import SUFFIXES
from avfewshot.text import printable

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


def read_stretches(path: Path, frame_rate: float | None = None) -> list[Stretch]:
    """Read a JSON export of Label Studio, ``labels.json`` of FiftyOne's temporal detections, or an ``.eaf`` of ELAN.

    A ``data.json`` beside that of FiftyOne says where its clips lie. `frame_rate` is of pictures a second, where the
    file counts pictures, the first of which is 1.

    Raises:
        UsageError: It cannot be read, is not what it should be, or counts pictures and `frame_rate` is not given.
    """
    try:
        text = _text(path)
        if path.suffix.lower() == ".eaf":
            found = list(_elan(text))
        elif isinstance(document := json.loads(text), dict):
            beside = path.with_name("data.json")
            media = json.loads(_text(beside)) if beside.is_file() else {}
            found = list(_fiftyone(document, _typed(media, dict, beside.name), frame_rate))
        else:
            found = list(_label_studio(document, frame_rate))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.", hint="Name a file.") from None
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply.", hint="Export it again.") from None
    except (ValueError, ET.ParseError) as error:
        hint = "A JSON export of Label Studio is needed, labels.json of FiftyOne's temporal detections, or ELAN's .eaf."
        no_json = isinstance(error, json.JSONDecodeError)
        reason = f"is not JSON, by line {error.lineno}" if no_json else printable(str(error))
        raise UsageError(f"{path}: {reason}.", hint=hint) from None
    return list(dict.fromkeys(found))


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_BYTES >> 20} MB")
    return path.read_bytes().decode("utf-8-sig")


def _label_studio(tasks: Any, rate: float | None) -> Iterator[Stretch]:
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
                if kind not in ("labels", "choices", "timelinelabels"):
                    continue
                value = _typed(result.get("value"), dict, f"{where}, value")
                if kind == "choices":
                    spans: list[tuple[float, float | None]] = [(0.0, None)]
                elif kind == "labels":
                    spans = [_span(value.get("start"), value.get("end"), where)]
                else:
                    ranges = _typed(value.get("ranges"), list, f"{where}, ranges")
                    parts = [_typed(part, dict, f"{where}, a range") for part in ranges]
                    spans = [_pictures(part.get("start"), part.get("end"), rate, where) for part in parts]
                for label in _typed(value.get(kind), list, f"{where}, {kind}"):
                    for span in spans:
                        yield Stretch(clip, _typed(label, str, f"{where}, a label"), *span)


def _fiftyone(document: dict[str, Any], media: dict[str, Any], rate: float | None) -> Iterator[Stretch]:
    classes = _typed(document.get("classes") or [], list, "classes")
    media = {os.path.splitext(name)[0]: place for name, place in media.items()} | media
    for key, entries in _typed(document.get("labels"), dict, "labels").items():
        where, clip = f"clip {key}", _typed(media.get(key, key), str, f"data.json, {key}")
        for entry in _typed(entries or [], list, where):
            label = _typed(entry, dict, f"{where}, a label").get("label")
            if isinstance(label, int) and 0 <= label < len(classes):
                label = classes[label]
            support = entry.get("support")
            times = _typed(entry.get("timestamps") if support is None else support, list, f"{where}, timestamps")
            if len(times) != 2:
                raise ValueError(f"{where} has {len(times)} times in the place of two")
            first, last = times
            span = _span(first, last, where) if support is None else _pictures(first, last, rate, where)
            yield Stretch(clip, _typed(label, str, f"{where}, label"), *span)


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


def _pictures(first: Any, last: Any, rate: float | None, where: str) -> tuple[float, float]:
    """From the first picture to the end of the last one."""
    if rate is None:
        raise ValueError(f"{where} counts pictures: say how many there are a second by --frame-rate")
    if not (type(first) is int and type(last) is int and 1 <= first <= last <= rate * _MAX_SECONDS):
        raise ValueError(f"{where} has a first and a last picture that are no numbers from 1 on, in order")
    return (first - 1) / rate, last / rate


class ClassFolders:
    """Cuts labelled stretches of the clips in a folder into ``root/CLASS/``."""

    def __init__(self, clips: Path, root: Path) -> None:
        self._clips, self._root = clips, root
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in map(Path, walk_media([clips])):
            self._named[path.name].append(path)
            self._named[path.stem].append(path)

    def add(self, stretch: Stretch) -> bool:
        """Cut a stretch, False: it was there already.

        An :class:`AvfsError` where its clip or label cannot be used, such as a :class:`UsageError` where the folder of
        the label is a link that leads out of the root.
        """
        source, folder = self._find(stretch.clip), self._root / folder_name(stretch.label)
        if not folder.resolve().is_relative_to(self._root.resolve()):
            raise UsageError(f"{folder}: leads out of {self._root}.", hint="Remove the link.")
        key = hashlib.sha256(source.relative_to(self._clips).as_posix().encode(errors="surrogateescape")).hexdigest()
        span = "whole" if stretch.end is None else f"{round(1000 * stretch.start)}-{round(1000 * stretch.end)}"
        stem = f"{source.stem[:60]}-{key[:8]}-{span}"
        if any((folder / f"{stem}{suffix}").is_file() for suffix in SUFFIXES):
            return False
        with IsolatedReader(source) as reader:
            reader.write(folder, stem, start=stretch.start, end=stretch.end)
        return True

    def _find(self, named: str) -> Path:
        parts = urlsplit(named) if re.match(r"(file|https?)://|/data/", named) else None
        place = named if parts is None else parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        place = place.replace("\\", "/")
        name = place.rsplit("/", 1)[-1]
        upload = _UPLOAD.fullmatch(name)
        found: Sequence[Path] = self._named.get(name) or self._named.get(upload[1] if upload else "", [])
        if len(found) > 1:
            ends = [(path, path.relative_to(self._clips)) for path in found]
            fit = [p for p, end in ends if f"/{place}".endswith((f"/{end.as_posix()}", f"/{end.with_suffix('')}"))]
            found = fit or found
        if len(found) != 1:
            what = f"{len(found)} clips have this name" if found else "there is no such clip"
            raise AvfsError(f"{printable(named)}: {what} in {self._clips}.", hint="Name their folder with --clips.")
        return found[0]


def folder_name(label: str) -> str:
    """A label as the name of a class folder: not hidden, not of a split or hard negatives; or an :class:`AvfsError`."""
    name = re.sub(r'[/\\:*?"<>|]', "_", printable(" ".join(label.split()))).encode()[:200].decode(errors="ignore")
    name = name.rstrip(". ") or ("_" if name else "")
    if not name:
        raise AvfsError("A label is empty.", hint="Give it a name.")
    if name.startswith((".", "-")) or name.lower() in ("train", "val", "test"):
        name = f"_{name}"
    return name
