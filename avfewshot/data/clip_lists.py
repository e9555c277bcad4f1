"""Lists of VGG-Sound clips, in every form in which they are handed around.

===================  ===========================================================================================
form                 rows
===================  ===========================================================================================
``avel-labels``      header ``category,video_id,split,label``; `label` a list of ten 0/1; `video_id` a row number
``avel``             header ``category,video_id,split``
``ovave-csv``        header ``split,cls_name,cls_type,vid_name`` (OV-AVEBench)
``ovave-json``       ``{id: {"category": ..., "label": "[0, 1, ...]"}}`` (OV-AVEBench), no splits
``vggsound``         ``id,start,label,split``, with or without a header (VGG-Sound's vggsound.csv has none)
``vggsound-split``   no header, ``id_start6.mp4,label`` (VGG-Sound's train.csv and test.csv)
``vggsounder``       header ``video_id,label,modality,...``; a row per label of a clip (VGGSounder)
===================  ===========================================================================================

Columns of forms with a header are found by name, in any order.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avfewshot.data.dataset import DatasetReport
from avfewshot.data.rows import clip_id, normalise_split, other_form, read_csv, read_json_text, seconds, youtube_id
from avfewshot.errors import DataError

_CATEGORY = ("category", "cls_name", "class")
_VIDEO = ("video_id", "vid_name", "youtube_id", "ytid")
_SEGMENTS = ("label", "labels")
_START = ("start", "start_seconds", "start_sec", "start_time")
_SPLIT = ("split", "train/test_split")
_STARTED = re.compile(r"(?P<video>[A-Za-z0-9_-]{11})_(?P<start>\d{1,6})")
_NAMED = re.compile(r".+_\d{6}")
_NOT_OF_FORM = "rows not of the form {!r}, left out."
_NO_BITS = "segment labels that are not a list of 0 and 1; those clips have none."
_BITS = re.compile(r"\[?\s*([01](?:\.0*)?(?:[\s,]+[01](?:\.0*)?)*)\s*\]?")


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One row of a list."""

    line: int  # line (or entry) number, from 1
    id: str  # id of the clip: ``ID_START6`` where the start is known, otherwise what the list says
    category: str  # name of the class, as spelt in the list
    split: str | None = None  # ``train``, ``val``, ``test``, or None where the list does not say
    youtube_id: str | None = None  # id of the video, None where the list has row numbers
    start: float | None = None  # where the clip begins in the video
    bits: tuple[int, ...] | None = None  # per second whether the event is there, or None
    modality: str = ""  # VGGSounder's: ``A``, ``V`` or ``AV``; otherwise empty


@dataclass(frozen=True)
class ClipList:
    """A list of clips."""

    path: Path
    form: str
    rows: tuple[ClipRow, ...]  # those that can be read, in file order
    total: int  # number of all data rows


def read_clip_list(path: str | Path, report: DatasetReport, *, split: str | None = None) -> ClipList:
    """Read a list of clips in any form: JSON where its suffix says so, otherwise CSV.

    `split` is that of forms that do not name one; `report` gets a finding for every kind of row that cannot be read. A
    :class:`DataError` where none can.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        result = _read_json(path, split, report)
    else:
        table = read_csv(path)
        if not table:
            raise DataError(f"{path}: the file is empty.", hint="Take the official file.")
        result = _read_headed(path, table, split, report) or _read_plain(path, table, split, report)
    if not result.rows:
        raise DataError(f"{path}: no row of the form {result.form!r} can be read.", hint=other_form(path))
    return result


def parse_bits(text: object) -> tuple[int, ...] | None:
    """Segment labels written as ``[0, 1, ...]`` or as a list; None for anything but zeros and ones."""
    if isinstance(text, list):
        text = " ".join(str(int(item)) if isinstance(item, (bool, int)) else "?" for item in text)
    return _bits_of(text) if isinstance(text, str) else None


@functools.lru_cache(maxsize=4096)  # Ten zeros and ones can be written in 1024 ways, in tens of thousands of rows.
def _bits_of(text: str) -> tuple[int, ...] | None:
    match = _BITS.fullmatch(text.strip())
    return tuple(int(float(bit)) for bit in re.split(r"[\s,]+", match[1])) if match else None


def _read_headed(
    path: Path, table: Sequence[tuple[int, list[str]]], split: str | None, report: DatasetReport
) -> ClipList | None:
    header = ["_".join(cell.lower().strip("# ").split()) for cell in table[0][1]]
    columns = {name: position for position, name in enumerate(header)}
    video = _column(columns, _VIDEO)
    if video is None:
        return None
    official = [_column(columns, names) for names in (_VIDEO, _START, ("label",), _SPLIT)]
    places = [place for place in official if place is not None]
    if places == official and _column(columns, _CATEGORY) is None:
        plain = [(line, [cells[place] for place in places if place < len(cells)]) for line, cells in table[1:]]
        return _read_plain(path, plain, split, report)
    if "modality" in columns and "label" in columns:
        form, category, bits = "vggsounder", columns["label"], None
    else:
        category, bits = _column(columns, _CATEGORY), _column(columns, _SEGMENTS)
        form = "ovave-csv" if "vid_name" in columns else "avel" if bits is None else "avel-labels"
    if category is None:
        message = f"{path}: the header {','.join(header)} names no class column."
        raise DataError(message, hint=f"Call the column of the classes {', '.join(_CATEGORY[:-1])} or {_CATEGORY[-1]}.")
    where = _column(columns, _SPLIT)
    rows: list[ClipRow] = []
    with report.collect(f"{path.name}: ") as remark:
        for line, cells in table[1:]:
            place = f"{path.name}:{line}"
            if len(cells) != len(header) or not cells[video] or not cells[category]:
                remark("warning", "malformed-rows", _NOT_OF_FORM.format(form), f"{place} {','.join(cells)[:80]}")
                continue
            part = normalise_split(cells[where]) if where is not None else split
            if part is None and where is not None:
                message = "splits other than train, val, test, left out."
                remark("warning", "unknown-splits", message, f"{place} {cells[where]}")
                continue
            marks = parse_bits(cells[bits]) if bits is not None else None
            if bits is not None and marks is None:
                remark("warning", "malformed-segments", _NO_BITS, f"{place} {cells[bits][:60]}")
            modality = cells[columns["modality"]].upper() if form == "vggsounder" else ""
            rows.append(_row(line, cells[video], cells[category], part, marks, modality))
    return ClipList(path, form, tuple(rows), len(table) - 1)


def _read_plain(
    path: Path, table: Sequence[tuple[int, list[str]]], split: str | None, report: DatasetReport
) -> ClipList:
    widths = {len(cells) for _, cells in table}
    form = "vggsound" if 4 in widths else "vggsound-split"
    rows: list[ClipRow] = []
    malformed: list[str] = []
    for line, cells in table:
        if form == "vggsound" and len(cells) == 4:
            start, part = seconds(cells[1]), normalise_split(cells[3])
            if cells[0] and start is not None and start < 1e6 and part and cells[2]:
                video = clip_id(cells[0])
                name = f"{video}_{round(start):06d}"
                rows.append(ClipRow(line, name, cells[2], part, youtube_id(video), start))
                continue
        elif form == "vggsound-split" and len(cells) == 2 and cells[1] and _NAMED.fullmatch(clip_id(cells[0])):
            rows.append(_row(line, cells[0], cells[1], split, None, ""))
            continue
        malformed.append(f"{path.name}:{line} {','.join(cells)[:80]}")
    if not rows:
        raise DataError(
            f"{path}: this is no list of clips that avfewshot knows.",
            hint="Known: category,video_id,split[,label] with a header; id,start,label,split; id_start6.mp4,label; "
            "OV-AVEBench's CSV and JSON; VGGSounder's CSV.",
        )
    report.note("warning", "malformed-rows", f"{path.name}: {_NOT_OF_FORM.format(form)}", malformed)
    return ClipList(path, form, tuple(rows), len(table))


def _read_json(path: Path, split: str | None, report: DatasetReport) -> ClipList:
    repeated: list[str] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(items)
        if len(made) != len(items):
            repeated.extend(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        return made

    entries = read_json_text(path, object_pairs_hook=pairs)
    if not isinstance(entries, dict):
        message = f'{path}: expected {{"ID": {{"category": ..., "label": "[0, 1, ...]"}}, ...}}.'
        raise DataError(message, hint=other_form(path))
    message = f"{path.name}: clips listed more than once; the last counts."
    report.note("warning", "repeated-ids", message, repeated)
    rows: list[ClipRow] = []
    with report.collect(f"{path.name}: ") as remark:
        for number, (name, entry) in enumerate(entries.items(), 1):
            category = entry.get("category") if isinstance(entry, dict) else None
            if not isinstance(category, str) or not category.strip():
                remark("warning", "malformed-rows", _NOT_OF_FORM.format("ovave-json"), f"{path.name} {name}")
                continue
            marks = parse_bits(entry.get("label"))
            if marks is None:
                remark("warning", "malformed-segments", _NO_BITS, f"{path.name} {name}")
            rows.append(_row(number, name, category.strip(), split, marks, ""))
    return ClipList(path, "ovave-json", tuple(rows), len(entries))


def _row(
    line: int, name: str, category: str, split: str | None, bits: tuple[int, ...] | None, modality: str
) -> ClipRow:
    name = clip_id(name)
    match = _STARTED.fullmatch(name)
    video = match["video"] if match else youtube_id(name)
    return ClipRow(line, name, category, split, video, float(match["start"]) if match else None, bits, modality)


def _column(columns: dict[str, int], names: Sequence[str]) -> int | None:
    return next((columns[name] for name in names if name in columns), None)
