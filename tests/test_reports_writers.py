import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from rich.console import Console
from sample_results import LABELS, clip, failure, run_info

from avfewshot.inference.results import SegmentResult
from avfewshot.reports.listings import figures_table
from avfewshot.reports.strip import LETTERS, OTHER, cells, marks, runs
from avfewshot.reports.tables import TableWriter, bar
from avfewshot.reports.text import clock, rate, reason, seconds, shorten
from avfewshot.reports.timelines import TimelineWriter
from avfewshot.reports.writers import (
    CSV_COLUMNS,
    CsvWriter,
    JsonlWriter,
    JsonWriter,
    SegmentsCsvWriter,
    Summary,
    clip_record,
    distribution,
    is_finite,
)
from avfewshot.text import printable

SUMMARY = Summary(clips=2, failed=1, total=3, elapsed=2.0)


class Recording(io.StringIO):
    """A stream that remembers what was visible after each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue())


def written(writer_of, results, run=None, **options):
    stream = Recording()
    writer = writer_of(stream, run or run_info(), **options)
    for result in results:
        writer.add(result)
    writer.end(SUMMARY)
    return stream


def rows_of(writer_of, results, run=None):
    return list(csv.DictReader(io.StringIO(written(writer_of, results, run).getvalue())))


def test_the_documented_example_has_the_same_keys():
    text = (Path(__file__).resolve().parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    documented = json.loads(text.partition("```json\n")[2].partition("```")[0])

    def keys(document):
        [entry], [failed] = document["clips"], document["failed"]
        return list(document), list(entry), list(entry["segments"][0]), list(entry["weights"]), list(failed)

    assert keys(documented) == keys(json.loads(written(JsonWriter, [clip(), failure()], segments=True).getvalue()))


def test_json_is_valid_whatever_was_done():
    for results in ([], [failure()], [clip()], [failure("a"), failure("b")]):
        document = json.loads(written(JsonWriter, results, segments=False).getvalue())
        assert len(document["clips"]) + len(document["failed"]) == len(results)
        assert all(one["segments"] == [] for one in document["clips"])


def test_rounded_distributions_still_sum_to_one():
    for count in (1, 7, 309, 5000):
        raw = clip(labels=[f"label {index}" for index in range(count)], seconds=1).scores
        rounded = distribution(raw)
        assert math.fsum(rounded.values()) == pytest.approx(1.0, abs=1e-6)
        assert max(rounded, key=rounded.__getitem__) == max(raw, key=raw.__getitem__)
    # float32 sums are off by a little; what is written is not.
    assert math.fsum(distribution({"a": 0.50001, "b": 0.50001}).values()) == pytest.approx(1.0, abs=1e-6)


def test_numbers_are_rounded_without_exponents():
    record = clip_record(dataclasses.replace(clip(), duration=9.9613333), segments=True)
    assert record["duration"] == 9.961
    assert all(len(repr(share)) <= 10 for share in record["scores"].values())
    assert "scores" not in record["segments"][0]
    tiny = dataclasses.replace(clip(), scores={"dog barking": 1 - 2e-7, "violin": 1e-7, "background": 1e-7})
    assert "e-0" not in written(CsvWriter, [tiny]).getvalue()


def test_jsonl_lines_are_flushed_one_by_one():
    results = [clip("a.mp4"), failure(), clip("b.mp4")]
    stream = written(JsonlWriter, results, segments=False)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["path"] for line in lines] == ["a.mp4", "broken.mp4", "b.mp4"]
    assert lines[1] == {"path": "broken.mp4", "error": "broken.mp4: is damaged"}
    assert [text.count("\n") for text in stream.flushed] == [1, 2, 3]
    assert all(text.endswith("\n") for text in stream.flushed)


def test_csv_has_one_row_a_file():
    results = [clip("a,b.mp4"), failure("x\n.mp4"), clip("b.wav", visual=False, warnings=["one", "two"])]
    rows = rows_of(CsvWriter, results)
    assert list(rows[0]) == [*CSV_COLUMNS, *(f"p:{label}" for label in LABELS)]
    good, bad, heard = rows
    assert good["path"] == "a,b.mp4"
    assert float(good["score"]) == pytest.approx(results[0].score, abs=1e-6)
    assert good["visual_label"] == max(results[0].visual, key=results[0].visual.__getitem__)
    assert sum(float(good[f"p:{label}"]) for label in LABELS) == pytest.approx(1.0, abs=1e-6)
    assert float(good["visual_weight"]) + float(good["audio_weight"]) == pytest.approx(1.0, abs=1e-6)
    assert (bad["path"], bad["error"], bad["label"], bad["p:violin"]) == ("x\\n.mp4", "x\\n.mp4: is damaged", "", "")
    assert (heard["visual_label"], heard["visual_score"], heard["warnings"]) == ("", "", "one; two")


def test_letters_stay_readable_and_odd_bytes_do_not_break_anything():
    odd = clip("caf\udce9.mp4")
    text = written(JsonlWriter, [clip("犬.mp4"), odd], segments=False).getvalue()
    assert "犬.mp4" in text
    text.encode("utf-8")
    assert json.loads(text.splitlines()[1])["path"] == "caf\udce9.mp4"


def test_results_that_are_not_finite_are_found_and_summed_up():
    good = clip()
    assert is_finite(good)
    assert not is_finite(dataclasses.replace(good, scores=good.scores | {"violin": math.nan}))
    assert not is_finite(dataclasses.replace(good, audio=good.audio | {"violin": math.inf}))
    broken = dataclasses.replace(good.segments[0], score=math.nan)
    assert not is_finite(dataclasses.replace(good, segments=[broken]))
    assert SUMMARY.complete
    assert SUMMARY.rate == 1.5
    assert not Summary(1, 0, 3, 1.0).complete
    assert Summary(0, 0, 0, 0.0).rate == 0.0


FORMULA = "=HYPERLINK(1).mp4"
ACTING = "esc\x1b]0;owned\x07 c1\x9b31m bidi\u202e line\u2028.mp4"


def test_csv_cells_are_neither_formulas_nor_acting_characters():
    rows = rows_of(CsvWriter, [clip(FORMULA), clip(ACTING), failure("-7O3.mp4"), clip("a=b.mp4", warnings=["@x"])])
    seen = r"esc\x1b]0;owned\x07 c1\x9b31m bidi\u202e line\u2028.mp4"
    assert [row["path"] for row in rows] == ["'" + FORMULA, seen, "'-7O3.mp4", "a=b.mp4"]
    assert rows[3]["warnings"] == "'@x"
    [row] = rows_of(CsvWriter, [clip(labels=["+1", "b"])], run_info(["+1", "b"]))
    assert row["label"] in ("'+1", "b")
    assert list(row)[-2:] == ["p:+1", "p:b"]


def test_json_escapes_what_acts_and_gives_it_back():
    for writer in (JsonWriter, JsonlWriter):
        text = written(writer, [clip(ACTING)], segments=False).getvalue()
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        document = json.loads(text)
        assert (document["clips"][0] if writer is JsonWriter else document)["path"] == ACTING


def test_csv_segments_has_a_row_a_second():
    result = clip("a.mp4", seconds=3)
    *seconds, failed = rows_of(SegmentsCsvWriter, [result, failure()])
    assert [(row["path"], row["start"], row["end"]) for row in seconds] == [
        ("a.mp4", str(second), str(second + 1)) for second in range(3)
    ]
    assert [row["label"] for row in seconds] == [segment.label for segment in result.segments]
    assert float(seconds[0]["visual_weight"]) + float(seconds[0]["audio_weight"]) == pytest.approx(1)
    assert (failed["path"], failed["label"], failed["error"]) == ("broken.mp4", "", "broken.mp4: is damaged")


def timeline(form, *results):
    stream = io.StringIO()
    writer = TimelineWriter(form, stream)
    for result in results:
        writer.add(result)
    return stream.getvalue()


@pytest.fixture
def film():
    """Two seconds of one label, one and a half of another that looks like markup."""
    result = clip("b&w.mp4", seconds=4, labels=["dog", "<i>--> x"])
    labels, ends = ["dog", "dog", "<i>--> x", "<i>--> x"], [1.0, 2.0, 3.0, 3.5]
    segments = [
        dataclasses.replace(segment, label=label, end=end)
        for segment, label, end in zip(result.segments, labels, ends, strict=True)
    ]
    return dataclasses.replace(result, segments=segments)


def test_subtitles_and_elan(film):
    assert timeline("srt", film, failure()) == (
        "1\n00:00:00,000 --> 00:00:02,000\ndog\n\n2\n00:00:02,000 --> 00:00:03,500\n<i>-> x\n"
    )
    assert timeline("vtt", film) == (
        "WEBVTT\n\nNOTE b&w.mp4\n\n00:00:00.000 --> 00:00:02.000\ndog\n\n"
        "00:00:02.000 --> 00:00:03.500\n&lt;i&gt;-&gt; x\n"
    )
    root = ElementTree.fromstring(timeline("eaf", film))
    times = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE")) for slot in root.iter("TIME_SLOT")}
    spans = [
        (times[entry.get("TIME_SLOT_REF1")], times[entry.get("TIME_SLOT_REF2")], entry.findtext("ANNOTATION_VALUE"))
        for entry in root.iter("ALIGNABLE_ANNOTATION")
    ]
    assert spans == [(0, 2000, "dog"), (2000, 3500, "<i>--> x")]
    assert root.find("HEADER/MEDIA_DESCRIPTOR").get("RELATIVE_MEDIA_URL") == "./b&w.mp4"


def test_timelines_of_one_name_do_not_overwrite_each_other(tmp_path):
    writer = TimelineWriter("srt", folder=tmp_path)
    for path in ("a/x.mp4", "a/x.wav", "b/x.wav"):
        writer.add(clip(path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.srt", "x.wav-2.srt", "x.wav.srt"]


def shown(results, *, width=100, topk=2, segments=False, labels=LABELS, encoding="utf-8", **console):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    console = Console(file=stream, width=width, highlight=False, **console)
    writer = TableWriter(console, run_info(labels), topk=topk, segments=segments)
    for result in results:
        writer.add(result)
    failed = sum(not hasattr(result, "scores") for result in results)
    writer.end(Summary(len(results) - failed, failed, len(results), 4.0))
    stream.flush()
    return raw.getvalue().decode(encoding)


def segment(second, label):
    return SegmentResult(second, second + 1.0, label, 1.0, {"visual": 0.5, "audio": 0.5}, [])


def test_blocks_are_aligned_and_fit_the_width():
    labels = ("犬の鳴き声", "a label that is far too long for the column that it has to fit into", "violin")
    text = shown([clip("a.mp4", labels=labels), clip("b.mp4", labels=labels)], width=80, topk=3, labels=labels)
    rows = [line for line in text.splitlines() if "%" in line and "clips/s" not in line]
    assert len({cell_len(line.rstrip()) for line in rows}) == 1
    assert all(cell_len(line) <= 80 for line in rows)


def test_bars_and_colours_only_where_a_terminal_has_them():
    assert "█" not in shown([clip()], width=45)
    assert "█" in shown([clip()], width=100)
    assert "\x1b[" not in shown([clip()], segments=True)
    coloured = {"segments": True, "force_terminal": True, "color_system": "truecolor"}
    assert "\x1b[" in shown([clip()], **coloured)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|38;)", shown([clip()], **coloured, no_color=True))
    labels = (*LABELS, "a label that is too long for its column in a terminal of this width")
    text = shown([clip(visual=False, labels=labels)], labels=labels, topk=4, segments=True, encoding="ascii", width=78)
    assert "###" in text
    assert "..." in text
    text = shown([clip(audio=False, warnings=["no sound"])], topk=1)
    assert "–" in text
    assert "warning: no sound" in text


def test_strip_shows_letters_and_runs():
    result = clip()
    labels = [part.label for part in result.segments]
    text = shown([result], segments=True)
    letters = dict(zip(LABELS, "ABC", strict=True))
    assert "".join(letters[label] for label in labels) in text
    first = runs(result.segments)[0]
    assert f"{letters[first.label]} 0-{first.end:.0f} s {first.label}" in text


def test_a_long_clip_fits_one_line_and_sums_up():
    text = shown([clip(seconds=1000)], segments=True, width=80)
    assert "one letter is 13 s" in text
    assert " s background" in text
    assert len(text.splitlines()) < 15


def test_hostile_names_are_shown_harmless_and_markup_in_names_is_text():
    text = shown([clip("a\x1b]0;x\x07\n.mp4"), failure("b\x1b[2J.mp4"), clip("[red]x[/red].mp4")])
    assert "\x1b" not in text
    assert r"a\x1b]0;x\x07\n.mp4" in text
    assert "[red]x[/red].mp4" in text


def test_runs_cells_and_bars():
    parts = [segment(index, label) for index, label in enumerate("aabbbc")]
    assert [(run.start, run.end, run.label) for run in runs(parts)] == [(0, 2, "a"), (2, 5, "b"), (5, 6, "c")]
    assert cells([part.label for part in parts], 10) == (["a", "a", "b", "b", "b", "c"], 1)
    assert cells([part.label for part in parts], 3) == (["a", "b", "b"], 2)
    assert runs([]) == []
    drawn = {0: "    ", 1: "████", 0.5: "██  ", 0.53125: "██▏ ", 7.0: "████"}
    assert {value: bar(value, 4) for value in drawn} == drawn
    assert bar(0.5, 4, plain=True) == "##  "


def test_marks_are_letters_and_colours():
    table = marks(LABELS)
    assert [table[label].letter for label in LABELS] == ["A", "B", "C"]
    assert table["dog barking"].paint != table["violin"].paint
    many = [f"label {index}" for index in range(100)]
    assert marks(many, ["label 99", "label 3", "label 99"])["label 99"].letter == "A"
    assert [marks(many, many)[label].letter for label in (many[51], many[52])] == [LETTERS[-1], OTHER]


def test_every_paint_is_legible():
    def luminance(colour):
        channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for mark in marks([*(f"label {index}" for index in range(7)), "background"]).values():
        light, dark = sorted((luminance(mark.paint.fill), luminance(mark.paint.ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_texts():
    assert printable("plain") == "plain"
    assert printable("a\tb\u202e") == r"a\tb\u202e"
    assert printable("می\u200cخواهم") == "می\u200cخواهم"
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert seconds(3.0) == "3"
    assert seconds(9.46) == "9.5"
    assert clock(3725) == "1:02:05"
    assert clock(7.9) == "0:07"
    assert [rate(value) for value in (120.4, 3.14, 0.421)] == ["120", "3.1", "0.42"]
    assert reason("a.mp4", "a.mp4: is empty") == "is empty"


def test_names_of_a_table_stay_whole_where_it_is_narrow():
    table = figures_table("system", "a figure", "another figure")
    for name in ("20261128-063820-4-shot", "20261128-063910-1-shot"):
        table.add_row(name, "100.0", "67.6–100.0")
    console = Console(file=io.StringIO(), width=40)
    console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    first = [line.split("  ")[0].strip() for line in text.splitlines()]
    assert "20261128-063820-4-shot20261128-063910-1-shot" in "".join(first)
