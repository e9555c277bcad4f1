import base64
import csv
import dataclasses
import functools
import hashlib
import io
import re
import xml.dom.minidom
from statistics import fmean

import numpy as np
import pytest
import run_record_samples as samples
from markupsafe import Markup
from PIL import Image
from rich.console import Console
from test_reports_html import EVIL, Page

from avfewshot.evaluation.results import Calibration, CalibrationBin, Comparison, Difference, Estimate
from avfewshot.reports import charts, comparison, figures, listings, methods
from avfewshot.reports.charts import heat_source, is_picture
from avfewshot.reports.run_html import class_changes, confused_pairs, confusion, run_page
from avfewshot.training.record import Curve, Heatmap, Second

SECTIONS = "figures training classes confusion calibration examples looks data model settings again".split()
MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def llp():
    return samples.record("llp_cls", clips=40, replicates=20)


@pytest.fixture(scope="module")
def ave():
    return samples.record("ave", seeds=3, clips=15, replicates=5)


@pytest.fixture(scope="module")
def llp_page(llp):
    return run_page(llp)


@pytest.fixture(scope="module")
def ave_page(ave):
    return run_page(ave)


def shown(text):
    return " ".join("".join(Page(text).text).split())


def sha256(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@pytest.mark.parametrize("page", ["llp_page", "ave_page"])
def test_a_page_has_every_section_and_asks_for_nothing_from_anywhere(page, request):
    parsed = Page(request.getfixturevalue(page))
    assert [attrs["id"] for attrs in parsed.all("h2") if "id" in attrs] == SECTIONS
    assert parsed.asks_for_nothing()
    [script], [sheet] = parsed.scripts, parsed.styles
    [policy] = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})
    sources = f"style-src 'sha256-{sha256(sheet)}'; script-src 'sha256-{sha256(script)}'"
    assert policy["content"] == f"default-src 'none'; img-src data:; {sources}"
    rules = dict(re.findall(r':is\(\[data-s="(\d+)"\], #s\) \{ (.+) \}', sheet))
    assert {attrs["data-s"] for _, attrs in parsed.tags if "data-s" in attrs} == set(rules)
    assert any(re.fullmatch(r"left: [\d.]+%; width: [\d.]+%", rule) for rule in rules.values())
    # Pictures and drawings have texts, links have targets.
    assert all(image["alt"] for image in parsed.all("img"))
    assert all(drawing.get("aria-label") for drawing in parsed.all("svg"))
    assert all(strip["aria-label"] for strip in parsed.all("div", role="img"))
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for _, attrs in parsed.tags if attrs.get("href", "").startswith("#")}
    assert set(SECTIONS) <= links <= set(ids)


def test_mistakes_can_be_filtered(llp_page):
    parsed = Page(llp_page)
    outcomes = {article["data-outcome"] for article in parsed.all("article") if "data-outcome" in article}
    ends = ("right", "wrong")
    assert outcomes
    assert outcomes <= {f"now-{now} before-{before}" for now in ends for before in ends}
    offered = [option["value"] for option in parsed.all("option")]
    assert {"", "now-wrong", "now-right", "before-wrong"} <= set(offered)
    assert parsed.all("label", **{"for": "outcome"})
    assert "hidden" in parsed.all("div", id="example-filter")[0]  # without script all examples are there


@pytest.mark.parametrize(("which", "page"), [("llp", "llp_page"), ("ave", "ave_page")])
def test_figures_are_those_of_the_record(which, page, request):
    record, text = request.getfixturevalue(which), shown(request.getfixturevalue(page))
    table = record.comparison
    for system in table.systems:
        for found in table.cells[system].values():
            assert f"{100 * found.value:.1f}{100 * found.low:.1f}–{100 * found.high:.1f}" in text.replace("−", "-")
    headline = table.cells["trained"][table.headline]
    assert f"{100 * headline.value:.1f} %" in text
    error = record.results["trained"].calibration.error
    assert f"trained: expected calibration error {100 * error:.1f} %" in text
    for reference in (*record.results["trained"].baselines, *record.results["trained"].ceilings):
        assert reference.title in text
    assert figures.verdict(table.difference("trained", "zero-shot"))[1] in text


@pytest.mark.parametrize(
    ("estimate", "kind", "words"),
    [
        (Estimate(0.031, 0.01, 0.05, 60, "bootstrap"), "gain", "3.1 percentage points above"),
        (Estimate(-0.031, -0.05, -0.01, 60, "bootstrap"), "loss", "3.1 percentage points below"),
        (Estimate(0.031, -0.01, 0.07, 3, "seeds"), "unclear", "from these 3 training runs the difference is not clear"),
        (Estimate(0.031), "unknown", "Without an interval"),
        (Estimate(None), "unknown", "not defined"),
        (Estimate(0.0, -0.01, 0.01, 9, "bootstrap"), "unclear", "are equal"),
    ],
)
def test_a_difference_in_plain_language(estimate, kind, words):
    found, sentence = figures.verdict(Difference("trained", "zero-shot", "top1", estimate))
    assert found == kind
    assert words in sentence


PARTS = """avfs fewshot --shots 16 --task ave | avfs.toml | 2,345,678 | 92.2 | no audio track in it | and 12 more
fingerprint 1a2b3c2 | 9 validation clips could not be read. | Right only after training | Wrong only after training
seed 2 | ended after 8 epochs | Means over 3 training runs | 2025-03-01 12:00 UTC | Of seed 0, the first one.
before training"""


def test_what_is_on_the_page(ave_page):
    text = shown(ave_page)
    assert [part for part in re.split(r" \| |\n", PARTS) if part not in text] == []
    assert len(Page(ave_page).all("svg", **{"class": "panel"})) == 6
    assert len(Page(ave_page).all("svg", **{"class": "chart"})) == 4


def test_names_from_others_are_never_markup():
    labels = (EVIL, '" onmouseover="x', "]]></svg><b>", "\x1b[31mred", "d\udce9")
    heats = (Heatmap(EVIL, ((0.0, 1.0),)),)
    texts = {"title": EVIL, "dataset": EVIL, "command": f"avfs {EVIL}", "notes": (EVIL, "\udce9")}
    rows = {"settings": ((EVIL, EVIL, EVIL),), "data": ((EVIL, 1, 1, 0, EVIL),), "left": ((EVIL, EVIL, EVIL),)}
    record = samples.record(
        "ave_cls",
        classes=labels,
        replicates=5,
        **texts,
        **rows,
        supports=((0, (EVIL,)),),
        examples=(dataclasses.replace(samples.example(EVIL), truth=(EVIL,), trained=((EVIL, 0.5),)),),
        looks=(dataclasses.replace(samples.look(EVIL), label=EVIL, heats=heats),),
        curves=(dataclasses.replace(samples.curve(0), outcome=EVIL),),
    )
    text = run_page(record)
    text.encode("utf-8")
    parsed = Page(text)
    assert EVIL not in text
    assert "\x1b" not in text
    assert len(parsed.all("script")) <= 1
    assert parsed.all("b") == []
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)


def test_a_picture_that_is_no_data_address_is_left_out():
    outside = "https://example.org/a.png"
    seen = dataclasses.replace(samples.example(), thumbnails=((0, outside), (1, 'data:image/png;base64,"x')))
    heat = dataclasses.replace(samples.look().heats[-1], over=outside)
    looked = dataclasses.replace(samples.look(), frame=outside, heats=(heat,))
    text = run_page(samples.record("ave_cls", replicates=0, examples=(seen,), looks=(looked,)))
    assert "example.org" not in text
    assert Page(text).all("img") == []
    assert is_picture(samples.picture(8))


def test_a_bare_record_still_gives_a_page():
    bare = dict.fromkeys(("examples", "looks", "curves", "settings", "components", "data", "supports", "notes"), ())
    record = samples.record("llp_cls", replicates=0, clips=8, left=(), left_total=0, **bare)
    text = run_page(record)
    assert [attrs["id"] for attrs in Page(text).all("h2")] == SECTIONS
    assert "Without an interval" in text
    assert "No examples were kept." in text


def test_figures_that_are_not_defined_are_dashes():
    record = samples.record("ave_cls", replicates=5)
    table = record.comparison
    cells = {system: dict.fromkeys(table.metrics, Estimate(None)) for system in table.systems}
    differences = tuple(dataclasses.replace(found, estimate=Estimate(None)) for found in table.differences)
    after = record.results["trained"].model_copy(update={"calibration": Calibration(None, 0, ())})
    changed = dataclasses.replace(
        record,
        comparison=table.model_copy(update={"cells": cells, "differences": differences}),
        results={**record.results, "trained": after},
    )
    text = shown(run_page(changed))
    assert "cannot be compared" in text
    assert "zero-shot: expected calibration error" in text
    assert "trained: expected calibration error" not in text


def test_a_training_without_validation_clips_or_finite_losses():
    nan = float("nan")
    steps = [{"step": 1, "loss": nan, "visual_loss": nan}, {"step": 2, "loss": 1.0, "visual_loss": nan}]
    course = Curve(0, [step | {"audio_loss": step["loss"]} for step in steps], (), "ended")
    text = shown(run_page(samples.record("ave_cls", replicates=0, curves=(course,))))
    assert "There are no figures on validation clips." in text
    assert "1 step without a finite loss left out." in text


def test_how_far_the_gates_of_the_kept_state_have_opened_is_told(ave, ave_page):
    assert "mean |gate|" in shown(ave_page)
    for gate in (curve.kept["gate"] for curve in ave.curves):
        assert gate > 0
        assert f'<td class="number">{gate:.4f}</td>' in ave_page


def test_many_classes_and_examples_of_a_single_system_stay_readable_and_small():
    names = [*samples.NAMES, *(f"class {number}" for number in range(133))]
    examples = tuple(samples.example(f"clip-{number}") for number in range(12))
    asked = {"classes": names, "clips": 200, "replicates": 0, "examples": examples}
    record = samples.record("vggsound_cls", systems=samples.SYSTEMS[2:], **asked)
    text = run_page(record)
    assert len(text.encode()) < MAX_BYTES
    parsed = Page(text)
    assert "Of 141 classes the 40 with most mix-ups" in shown(text)
    known = sum(row.f1 is not None for row in record.results["trained"].classes)
    assert len(parsed.all("svg", **{"class": "change"})) == known
    assert len(parsed.all("article")) == 13
    text = run_page(samples.record("ave_cls", replicates=0, systems=(("trained", 2.0),), examples=()))
    assert "What is taken for what" in text


def test_timelines_show_truth_and_both_systems():
    def told(seen):
        text = run_page(samples.record("ave_cls", replicates=0, examples=(seen,)))
        return [attrs["aria-label"] for attrs in Page(text).all("div", role="img")]

    seen = samples.example()
    truth, trained, before, *_ = told(seen)
    assert truth == "truth over time: 0-2 s: Background; 2-8 s: Dog; 8-10 s: Background"
    assert trained == "trained over time: 0-4 s: Dog; 4-6 s: Speech; 6-10 s: Dog"
    assert before.startswith("zero-shot over time: 0-1 s: Dog; 1-3 s: Car")
    seconds = (Second(None, ("Dog", 0.9), ("Car", 0.8)),) * 3  # not annotated
    said = told(dataclasses.replace(seen, seconds=seconds))
    assert said == ["trained over time: 0-3 s: Dog", "zero-shot over time: 0-3 s: Car"]


def test_classes_are_sorted_by_change(llp):
    rows = class_changes(llp.results["trained"], llp.results["zero-shot"])
    after = {row.name: row.f1 for row in llp.results["trained"].classes}
    before = {row.name: row.f1 for row in llp.results["zero-shot"].classes}
    moves = [after[row.name] - before[row.name] for row, _, _ in rows]
    assert moves == sorted(moves, reverse=True)
    assert [change for _, _, change in rows] == moves


def test_confusion_keeps_shares_of_the_whole_class_and_pairs_come_from_off_the_diagonal(llp):
    result = llp.results["trained"]
    part, whole = confusion(result, most=3), confusion(result)
    assert whole.whole
    assert not part.whole
    assert all(sum(row) == pytest.approx(1) for row in whole.shares)
    index = [row.name for row in result.classes].index(part.names[1])
    assert part.shares[1][1] == pytest.approx(result.confusion[index][index] / sum(result.confusion[index]))
    after, before = llp.results["trained"], llp.results["zero-shot"]
    pairs = confused_pairs(after, before, most=4)
    matrix = np.array(after.confusion)
    np.fill_diagonal(matrix, 0)
    assert pairs[0].count == matrix.max()
    assert [pair.count for pair in pairs] == sorted((pair.count for pair in pairs), reverse=True)
    names = [row.name for row in after.classes]
    first = pairs[0]
    assert first.before == before.confusion[names.index(first.truth)][names.index(first.answered)]


def test_drawings_are_well_formed():
    line = charts.Series("seed <1>", [(0, 0.1), (1, float("nan")), (2, 0.9)], marked=(2, 0.9))
    drawings = [
        charts.line_chart("a & b", [line], x_name="epoch", level=(0.5, "<before>"), shares=True),
        charts.line_chart("flat", [charts.Series("x", [(1, 2.0)])], x_name="step"),
        charts.drawing("reliability", "r", Calibration(0.1, 3, (CalibrationBin(0.4, 0.6, 3, 0.5, 0.7),))),
        charts.drawing("change_bar", "<c>", 0.2, 0.9),
        charts.drawing("heat_map", "m", confusion(samples.judged("ave_cls", replicates=0)[0]["trained"])),
    ]
    for drawing in drawings:
        assert isinstance(drawing, Markup)
        assert xml.dom.minidom.parseString(drawing).documentElement.tagName == "svg"


def test_a_level_lies_among_the_heights_and_nothing_to_draw_draws_nothing():
    drawing = charts.line_chart("t", [charts.Series("x", [(0, 0.0), (1, 1.0)])], x_name="epoch", level=(0.5, "l"))
    heights = [float(y) for y in re.findall(r'class="dot" cx="[\d.]+" cy="([\d.]+)"', drawing)]
    level = float(re.search(r'class="level"[^>]* y1="([\d.]+)"', drawing)[1])
    assert level == pytest.approx(sum(heights) / 2, abs=0.2)
    assert charts.line_chart("t", [charts.Series("x", [(1, float("inf"))])], x_name="step") == ""


def one_figure(**cells):
    about = {"task": "folder", "headline": "top1", "metrics": ("top1",), "differences": (), "replicates": 9}
    rows = {name: {"top1": estimate} for name, estimate in cells.items()}
    return Comparison(systems=tuple(cells), cells=rows, num_clips=max(one.n for one in cells.values()), **about)


def test_few_clips_are_counted_in_tables_of_single_runs():
    share = functools.partial(Estimate, low=0.0, high=1.0, n=2, interval="wilson")
    table = one_figure(a=share(1.0), b=share(0.4))
    assert figures.cell(share(1.0), table) == figures.headline(share(1.0), table) == "2 of 2"
    assert figures.headline(share(0.4), table) == "40.0 %"  # no share of two clips
    assert "Wilson's score over 2 test clips" in figures.basis(table)
    for others in (dataclasses.replace(share(0.5), n=10), dataclasses.replace(share(0.5), interval="seeds")):
        assert figures.cell(others, one_figure(a=share(1.0), b=others)) == "50.0"
    assert figures.cell(share(1.0), one_figure(a=share(1.0), b=others)) == "100.0"  # beside a mean over seeds


def test_only_the_headline_is_counted():
    zero = Estimate(0.0, 0.0, 0.5, n=2, interval="wilson")
    table = one_figure(a=zero)
    row = {**table.cells["a"], "macro_f1": zero}
    told = printed(
        comparison.comparison_table(table.model_copy(update={"cells": {"a": row}, "metrics": tuple(row)})), 80
    )
    assert told.count("0 of 2") == 1


def test_names_of_systems_stay_whole_where_it_is_narrow():
    figure = Estimate(0.5, 0.4, 1.0, n=50, interval="bootstrap")
    names = ("nearest_mean", "class_adaptive")
    told = {"labels_used": {"support": 112}, "seconds": 48.6, "trainable": 3_079_614, "loo_accuracy": 1.0}
    table = one_figure(**dict.fromkeys(names, figure))
    text = printed(methods.methods_table(table, [dict.fromkeys(names, told)]), 80)
    assert all(f" {name} " in text for name in names)
    assert text.count("40.0–100.0") == text.count("3,079,614") == text.count("112") == 2


def test_intervals_stand_beside_each_other_at_their_own_heights_and_shots_double_from_tick_to_tick():
    ends = [(1, 0.2, 0.4), (2, 0.5, 0.7), (16, 0.1, 0.9)]
    lines = [charts.Series(name, [(x, (low + high) / 2) for x, low, high in ends], intervals=ends) for name in "ab"]
    drawing = charts.line_chart("t", lines, x_name="shots", shares=True, doubling=True)
    assert re.findall(r'class="tick mid"[^>]*>(\d+)<', drawing) == ["1", "2", "16"]
    assert len(set(re.findall(r"translate\(([-\d.]+) 0\)", drawing))) == 2
    for half in drawing.split("<g ")[1:]:
        bars = np.array(re.findall(r'class="interval" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', half), dtype=float)
        dots = np.array(re.findall(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', half), dtype=float)
        np.testing.assert_allclose(bars[:, [0, 2]], dots[:, [0, 0]])
        np.testing.assert_allclose(bars[:, [1, 3]].mean(1), dots[:, 1], atol=0.1)
        np.testing.assert_allclose(np.diff(dots[:, 0])[1], 3 * np.diff(dots[:, 0])[0], atol=0.2)  # 2 to 16, 1 to 2
        heights = bars[:, 1] - bars[:, 3]
        np.testing.assert_allclose(heights / heights[0], [1, 1, 4], atol=0.05)


def test_equal_means_win_together_whatever_their_last_digit():
    mean = fmean((0.81, 0.83, 0.85))
    assert mean != 0.83
    table = one_figure(fixed=Estimate(0.83, 0.7, 0.9, n=100), seeds=Estimate(mean, 0.7, 0.9, n=100))
    rows = methods.wins_listing([("1 shot", table, [])]).rows
    assert sorted(rows) == [("fixed", "1 shot", "–"), ("seeds", "1 shot", "–")]


def test_systems_that_the_chart_has_no_colour_for_have_one_of_their_own_from_few_shots_to_many(tmp_path):
    names = ("auto", "zero-shot", *"abcdefg")

    def page(*systems):
        cells = [
            {name: Estimate(0.4 + 0.05 * k + 0.01 * row, 0.1, 0.9, n=50, interval="seeds")
             for row, name in enumerate(systems)}
            for k in (2, 1)
        ]  # fmt: skip
        runs = [{}, {"auto": {"choice": "gda", "why": "it is better", "seconds": 1.0}}]
        tables = [(title, one_figure(**of), runs) for title, of in zip(("2 shots", "1 shot"), cells, strict=True)]
        methods.write_methods_page(tmp_path / "page.html", tables, title="t", command="c", seeds=(4, 9), shots=(2, 1))
        return (tmp_path / "page.html").read_text()

    text = page(*names)
    chart, *panels = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    [drawn, *alone] = [re.findall(r"<g [^>]*><title>([^<]+)", one) for one in (chart, *panels)]
    assert drawn == ["auto", "zero-shot", *"gfed"]
    assert "auto from 45.0 % to 50.0 %" in chart
    assert alone == [["auto", "zero-shot", name] for name in "abcdefg"]
    assert {one.count('class="interval"') for one in panels} == {2}  # of its own line
    assert len({tuple(re.findall(r'class="tick end"[^>]*>([^<]+)', one)) for one in panels}) == 1
    assert page(*names[:6]).count("<svg") == 1
    assert text.count("Seed 9: auto took gda, since it is better") == 2


def test_ticks_are_round_and_long_lines_are_thinned_and_smoothed():
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(0.41, 0.63)[0] <= 0.41
    assert charts.ticks(3, 3)[0] < 3 < charts.ticks(3, 3)[-1]
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    assert len(charts.thinned(points)) <= charts.MOST_POINTS
    smooth = charts.smoothed(points)
    assert len(smooth) == len(points)
    assert all(abs(y - 0.5) < 0.01 for _, y in smooth)


def test_heat_is_strongest_at_the_largest_value():
    source, ends = heat_source(((0.0, 0.5), (float("nan"), 2.0)))
    assert ends == (0.0, 2.0)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
    assert pixels.shape == (2, 2, 4)
    assert pixels[1, 1, 3] == pixels[..., 3].max() > pixels[0, 1, 3] > pixels[0, 0, 3]
    assert (pixels[1, 0] == pixels[0, 0]).all()
    assert heat_source(((float("nan"),),)) is None
    assert heat_source(((0.3, 0.3),))[1] == (0.3, 0.3)


def printed(table, width=160):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_tables_on_a_terminal(llp):
    # A narrow terminal is the one that has to show everything.
    lines = printed(comparison.comparison_table(llp.comparison), 80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any("trained -" in line for line in lines)
    row = next(index for index, line in enumerate(lines) if "hit@1" in line)
    found = llp.comparison.cells["trained"]["hit_at_1"]
    assert f" {100 * found.value:.1f} " in lines[row]
    assert f" {100 * found.low:.1f}-{100 * found.high:.1f} " in lines[row + 1]
    assert ("*" in lines[row]) == llp.comparison.difference("trained", "zero-shot").clear
    assert "…" not in "".join(lines)
    text = printed(listings.components_table(llp.components))
    assert re.search(r"adapters\W+2,345,678\W+2,345,678\W+4\.2", text)
    assert re.search(r"temperatures\W+2\W+2\W+-", text)


def test_comparison_as_markdown(llp):
    table = llp.comparison
    last = table.differences[-1]
    changes = {
        "systems": ("a|b<i>", "trained"),
        "cells": {"a|b<i>": table.cells["zero-shot"], "trained": table.cells["trained"]},
        "differences": (dataclasses.replace(last, reference="a|b<i>"),),
        "metrics": (last.metric,),
        "headline": last.metric,
    }
    lines = comparison.comparison_markdown(table.model_copy(update=changes)).splitlines()
    assert lines[0].startswith("| system | ")
    assert lines[2].startswith("| a\\|b&lt;i&gt; | ")
    assert lines[4].startswith("| trained − a\\|b&lt;i&gt; | ")
    full = comparison.comparison_markdown(table).splitlines()
    assert {line.count("|") for line in full[:7]} == {len(table.metrics) + 2}


def test_comparison_and_classes_as_csv(llp, ave):
    table = llp.comparison
    rows = list(csv.DictReader(io.StringIO(comparison.comparison_csv(table))))
    assert tuple(rows[0]) == comparison.COMPARISON_COLUMNS
    assert len(rows) == len(table.systems) * len(table.metrics) + len(table.differences)
    for row in rows:
        found = table.cells[row["system"]][row["metric"]]
        if row["reference"]:
            found = table.difference(row["system"], row["reference"], row["metric"]).estimate
        assert (float(row["value"]), float(row["low"]), row["n"]) == (found.value, found.low, str(found.n))
    result = ave.results["trained"]
    rows = list(csv.DictReader(io.StringIO(comparison.classes_csv(result))))
    assert [row["class"] for row in rows] == [row.name for row in result.classes]
    assert [row["f1"] for row in rows] == ["" if row.f1 is None else str(row.f1) for row in result.classes]
