from __future__ import annotations

import io
import re

from rich.cells import cell_len
from rich.console import Console
from sample_results import LABELS, clip, failure, run_info

from avfewshot.inference.results import SegmentResult
from avfewshot.reports.strip import LETTERS, OTHER, cells, marks, runs
from avfewshot.reports.tables import TableWriter, bar
from avfewshot.reports.text import clock, printable, rate, reason, seconds, shorten
from avfewshot.reports.writers import Summary


def shown(results, *, width=100, topk=2, segments=False, labels=LABELS, encoding="utf-8", **console):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    writer = TableWriter(Console(file=stream, width=width, highlight=False, **console), topk=topk, segments=segments)
    writer.begin(run_info(labels))
    for result in results:
        writer.add(result)
    failed = sum(not hasattr(result, "scores") for result in results)
    writer.end(Summary(len(results) - failed, failed, len(results), 4.0))
    stream.flush()
    return raw.getvalue().decode(encoding)


def segment(second, label):
    return SegmentResult(second, second + 1.0, label, 1.0, {"visual": 0.5, "audio": 0.5}, [])


def test_a_block_a_clip_and_a_footer():
    text = shown([clip("some/dog.mp4"), failure("bad.mp4")])
    lines = text.splitlines()
    assert lines[0] == "some/dog.mp4  10 s"
    assert "both" in lines[1]
    assert "visual, weight 0." in lines[1]
    assert len(re.findall(r"\d\.\d %", lines[2])) == 3
    assert "bad.mp4" in lines
    assert "  failed: is damaged" in lines
    assert lines[-1] == "1 clip, 1 failed · 0.50 clips/s · tiny on cpu, fp32"


def test_topk_and_best_first():
    result = clip()
    rows = [line for line in shown([result], topk=2).splitlines() if "%" in line]
    assert len(rows) == 2
    assert rows[0].strip().startswith(result.label)


def test_blocks_are_aligned_and_fit_the_width():
    labels = ("犬の鳴き声", "a label that is far too long for the column that it has to fit into", "violin")
    text = shown([clip("a.mp4", labels=labels), clip("b.mp4", labels=labels)], width=80, topk=3, labels=labels)
    rows = [line for line in text.splitlines() if "%" in line and "clips/s" not in line]
    assert len({cell_len(line.rstrip()) for line in rows}) == 1
    assert all(cell_len(line) <= 80 for line in rows)


def test_narrow_terminals_go_without_bars():
    assert "█" not in shown([clip()], width=45)
    assert "█" in shown([clip()], width=100)


def test_colour_only_where_it_is_wanted():
    assert "\x1b[" not in shown([clip()], segments=True)
    assert "\x1b[" in shown([clip()], segments=True, force_terminal=True, color_system="truecolor")
    plain = shown([clip()], segments=True, force_terminal=True, color_system="truecolor", no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|38;)", plain)


def test_a_terminal_without_utf8_gets_plain_bars():
    labels = (*LABELS, "a label that is too long for its column in a terminal of this width")
    text = shown([clip(visual=False, labels=labels)], labels=labels, topk=4, segments=True, encoding="ascii", width=78)
    assert "###" in text
    assert "..." in text


def test_absent_modality_is_a_dash():
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


def test_hostile_names_are_shown_harmless():
    text = shown([clip("a\x1b]0;x\x07\n.mp4"), failure("b\x1b[2J.mp4")])
    assert "\x1b" not in text
    assert r"a\x1b]0;x\x07\n.mp4" in text


def test_markup_in_names_is_text():
    assert "[red]x[/red].mp4" in shown([clip("[red]x[/red].mp4")])


def test_bars():
    assert bar(0, 4) == "    "
    assert bar(1, 4) == "████"
    assert bar(0.5, 4) == "██  "
    assert bar(0.53125, 4) == "██▏ "
    assert bar(0.5, 4, plain=True) == "##  "
    assert bar(7.0, 4) == "████"


def test_runs_and_cells():
    parts = [segment(index, label) for index, label in enumerate("aabbbc")]
    assert [(run.start, run.end, run.label) for run in runs(parts)] == [(0, 2, "a"), (2, 5, "b"), (5, 6, "c")]
    assert cells([part.label for part in parts], 10) == (["a", "a", "b", "b", "b", "c"], 1)
    assert cells([part.label for part in parts], 3) == (["a", "b", "b"], 2)
    assert runs([]) == []


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
