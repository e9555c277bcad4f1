from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sample_results import LABELS, clip, failure, run_info

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

SUMMARY = Summary(clips=2, failed=1, total=3, elapsed=2.0)


class Recording(io.StringIO):
    """A stream that remembers what was visible after each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue())


def written(writer_of, results, run=None):
    stream = Recording()
    writer = writer_of(stream)
    writer.begin(run or run_info())
    for result in results:
        writer.add(result)
    writer.end(SUMMARY)
    return stream


def test_json_has_the_documented_shape_and_key_order():
    results = [clip("a.mp4", seed=1), failure("broken.mp4"), clip("b.wav", visual=False, warnings=["no video"])]
    stream = written(lambda s: JsonWriter(s, segments=True), results)
    document = json.loads(stream.getvalue())
    assert list(document) == ["version", "backbone", "adapter", "labels", "clips", "failed"]
    assert document["version"] == 1
    assert document["backbone"] == "tiny"
    assert document["adapter"] is None
    assert document["labels"] == list(LABELS)
    assert document["failed"] == [{"path": "broken.mp4", "error": "broken.mp4: is damaged"}]
    first, second = document["clips"]
    keys = ["path", "duration", "label", "score", "scores", "visual", "audio", "weights", "segments", "warnings"]
    assert list(first) == list(second) == keys
    assert first["score"] == first["scores"][first["label"]] == max(first["scores"].values())
    assert second["visual"] is None
    assert second["weights"] == {"visual": 0.0, "audio": 1.0}
    assert second["warnings"] == ["no video"]
    assert [list(segment) for segment in first["segments"]] == [["start", "end", "label", "score", "weights"]] * 10
    for shares in (first["scores"], first["visual"], first["audio"], first["weights"], second["scores"]):
        assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-6)


def test_the_documented_example_has_the_same_keys():
    text = (Path(__file__).resolve().parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    documented = json.loads(text.partition("```json\n")[2].partition("```")[0])
    stream = written(lambda s: JsonWriter(s, segments=True), [clip(), failure()])

    def keys(document):
        [entry], [failed] = document["clips"], document["failed"]
        return list(document), list(entry), list(entry["segments"][0]), list(entry["weights"]), list(failed)

    assert keys(documented) == keys(json.loads(stream.getvalue()))


@pytest.mark.parametrize("results", [[], [failure()], [clip()], [failure("a"), failure("b")]])
def test_json_is_valid_whatever_was_done(results):
    document = json.loads(written(lambda s: JsonWriter(s, segments=False), results).getvalue())
    assert len(document["clips"]) + len(document["failed"]) == len(results)
    assert all(one["segments"] == [] for one in document["clips"])


def test_rounded_distributions_still_sum_to_one():
    for count in (1, 2, 7, 28, 309, 5000):
        raw = clip(labels=[f"label {index}" for index in range(count)], seconds=1).scores
        rounded = distribution(raw)
        assert math.fsum(rounded.values()) == pytest.approx(1.0, abs=1e-6)
        assert max(rounded, key=rounded.__getitem__) == max(raw, key=raw.__getitem__)
    # float32 sums are off by a little; what is written is not.
    assert math.fsum(distribution({"a": 0.50001, "b": 0.50001}).values()) == pytest.approx(1.0, abs=1e-6)


def test_numbers_are_rounded():
    record = clip_record(dataclasses.replace(clip(), duration=9.9613333), segments=True)
    assert record["duration"] == 9.961
    assert all(len(repr(share)) <= 10 for share in record["scores"].values())
    assert "scores" not in record["segments"][0]


def test_jsonl_lines_are_flushed_one_by_one():
    results = [clip("a.mp4"), failure(), clip("b.mp4")]
    stream = written(lambda s: JsonlWriter(s, segments=False), results)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["path"] for line in lines] == ["a.mp4", "broken.mp4", "b.mp4"]
    assert lines[1] == {"path": "broken.mp4", "error": "broken.mp4: is damaged"}
    assert [text.count("\n") for text in stream.flushed] == [1, 2, 3]
    assert all(text.endswith("\n") for text in stream.flushed)


def test_csv_has_one_row_a_file():
    results = [clip("a,b.mp4"), failure("x\n.mp4"), clip("b.wav", visual=False, warnings=["one", "two"])]
    stream = written(CsvWriter, results)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert list(rows[0]) == [*CSV_COLUMNS, *(f"p:{label}" for label in LABELS)]
    good, bad, heard = rows
    assert good["path"] == "a,b.mp4"
    assert float(good["score"]) == pytest.approx(results[0].score, abs=1e-6)
    assert good["visual_label"] == max(results[0].visual, key=results[0].visual.__getitem__)
    assert sum(float(good[f"p:{label}"]) for label in LABELS) == pytest.approx(1.0, abs=1e-6)
    assert float(good["visual_weight"]) + float(good["audio_weight"]) == pytest.approx(1.0, abs=1e-6)
    assert (bad["path"], bad["error"], bad["label"], bad["p:violin"]) == ("x\\n.mp4", "x\\n.mp4: is damaged", "", "")
    assert (heard["visual_label"], heard["visual_score"], heard["warnings"]) == ("", "", "one; two")


def test_csv_has_no_exponents():
    tiny = dataclasses.replace(clip(), scores={"dog barking": 1 - 2e-7, "violin": 1e-7, "background": 1e-7})
    assert "e-0" not in written(CsvWriter, [tiny]).getvalue()


def test_letters_stay_readable_and_odd_bytes_do_not_break_anything():
    odd = clip("caf\udce9.mp4")
    text = written(lambda s: JsonlWriter(s, segments=False), [clip("犬.mp4"), odd]).getvalue()
    assert "犬.mp4" in text
    text.encode("utf-8")
    assert json.loads(text.splitlines()[1])["path"] == "caf\udce9.mp4"


def test_results_that_are_not_finite_are_found():
    good = clip()
    assert is_finite(good)
    assert not is_finite(dataclasses.replace(good, scores=good.scores | {"violin": math.nan}))
    assert not is_finite(dataclasses.replace(good, audio=good.audio | {"violin": math.inf}))
    broken = dataclasses.replace(good.segments[0], score=math.nan)
    assert not is_finite(dataclasses.replace(good, segments=[broken]))


def test_summary():
    assert SUMMARY.complete
    assert SUMMARY.rate == 1.5
    assert not Summary(1, 0, 3, 1.0).complete
    assert Summary(0, 0, 0, 0.0).rate == 0.0


FORMULA = "=HYPERLINK(1).mp4"
ACTING = "esc\x1b]0;owned\x07 c1\x9b31m bidi\u202e line\u2028.mp4"


def test_csv_cells_are_neither_formulas_nor_acting_characters():
    text = written(CsvWriter, [clip(FORMULA), clip(ACTING), failure("-7O3.mp4"), clip("a=b.mp4", warnings=["@x"])])
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert [row["path"] for row in rows] == [
        "'" + FORMULA,
        r"esc\x1b]0;owned\x07 c1\x9b31m bidi\u202e line\u2028.mp4",
        "'-7O3.mp4",
        "a=b.mp4",
    ]
    assert rows[3]["warnings"] == "'@x"
    labelled = written(CsvWriter, [clip(labels=["+1", "b"])], run_info(["+1", "b"])).getvalue()
    [row] = csv.DictReader(io.StringIO(labelled))
    assert row["label"] in ("'+1", "b")
    assert list(row)[-2:] == ["p:+1", "p:b"]


def test_json_escapes_what_acts_and_gives_it_back():
    for writer in (JsonWriter, JsonlWriter):
        text = written(lambda s, w=writer: w(s, segments=False), [clip(ACTING)]).getvalue()
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        document = json.loads(text)
        assert (document["clips"][0] if writer is JsonWriter else document)["path"] == ACTING


def test_csv_segments_has_a_row_a_second():
    result = clip("a.mp4", seconds=3)
    rows = list(csv.DictReader(io.StringIO(written(SegmentsCsvWriter, [result, failure()]).getvalue())))
    assert [(row["path"], row["start"], row["end"]) for row in rows[:3]] == [
        ("a.mp4", "0", "1"),
        ("a.mp4", "1", "2"),
        ("a.mp4", "2", "3"),
    ]
    assert [row["label"] for row in rows[:3]] == [segment.label for segment in result.segments]
    assert float(rows[0]["visual_weight"]) + float(rows[0]["audio_weight"]) == pytest.approx(1)
    assert (rows[3]["path"], rows[3]["label"], rows[3]["error"]) == ("broken.mp4", "", "broken.mp4: is damaged")


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


def test_subtitles(film):
    assert timeline("srt", film, failure()) == (
        "1\n00:00:00,000 --> 00:00:02,000\ndog\n\n2\n00:00:02,000 --> 00:00:03,500\n<i>-> x\n"
    )
    assert timeline("vtt", film) == (
        "WEBVTT\n\nNOTE b&w.mp4\n\n00:00:00.000 --> 00:00:02.000\ndog\n\n"
        "00:00:02.000 --> 00:00:03.500\n&lt;i&gt;-&gt; x\n"
    )


def test_elan(film):
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
