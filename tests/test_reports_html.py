from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sample_results import LABELS, clip, failure, run_info

from avfewshot.media.thumbnails import Thumbnail, jpeg_source, spread
from avfewshot.reports.html import MOST_IN_FULL, HtmlWriter, Provenance, clip_view, picture_count
from avfewshot.reports.strip import MOST_BINS, step_path
from avfewshot.reports.writers import Summary

VOID = {"meta", "img", "br", "link", "input", "hr", "path"}
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The tags of a page, and its text; refuses tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.scripts = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self._open and self._open[-1] == "script" else self.text).append(data)

    def all(self, tag, **wanted):
        return [attrs for name, attrs in self.tags if name == tag and wanted.items() <= attrs.items()]


def pictures(path, count):
    picture = np.full((16, 16, 3), 128, np.uint8)
    return [Thumbnail(second, jpeg_source(picture)) for second in range(min(count, 10))]


def page_of(tmp_path, results, *, labels=LABELS, total=None, command="avfs zeroshot", pictures=pictures, **run):
    path = tmp_path / "report.html"
    path.unlink(missing_ok=True)
    settings = [("backbone", "tiny", "avfs.toml"), ("device", "cpu", "default")]
    total = len(results) if total is None else total
    provenance = Provenance(command, settings)
    writer = HtmlWriter(path, topk=2, total=total, provenance=provenance, pictures=pictures)
    writer.begin(run_info(labels, **run))
    for result in results:
        writer.add(result)
    assert not path.exists()
    failed = sum(not hasattr(result, "scores") for result in results)
    writer.end(Summary(len(results) - failed, failed, total, 2.0))
    return path.read_text(encoding="utf-8")


def test_what_is_on_the_page(tmp_path):
    results = [clip("a.mp4"), failure("bad.mp4"), clip("b.wav", visual=False, warnings=["no video in it"])]
    text = page_of(tmp_path, results, warnings=["unknown word: kazoo"], command="avfs zeroshot --labels l.txt")
    page = Page(text)
    shown = " ".join(page.text)
    for part in (
        "2 clips classified",
        "avfs zeroshot --labels l.txt",
        "unknown word: kazoo",
        "avfs.toml",
        "the sound and sight of violin",
        "1 file could not be classified",
        "no video in it",
        "judged by hearing alone",
        "is damaged",
    ):
        assert part in shown
    articles = page.all("article")
    assert [article["data-label"] for article in articles] == [results[0].label, results[2].label]
    assert len(page.all("img")) == 20
    assert f"{100 * results[0].visual[results[0].label]:.1f} %" in shown
    assert len(page.all("svg")) >= 2


def test_nothing_is_requested_from_anywhere(tmp_path):
    page = Page(page_of(tmp_path, [clip()]))
    for tag, attrs in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert attrs.get(name, "data:").startswith("data:"), (tag, attrs)
    text = page_of(tmp_path, [clip()])
    assert not re.search(r"url\(|@import|https?://", text)
    [policy] = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    [script] = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy["content"]


def test_labels_paths_and_settings_are_never_markup(tmp_path):
    labels = (EVIL, '" onmouseover="x', "</script><b>")
    results = [clip(f"{EVIL}.mp4", labels=labels, warnings=[EVIL], seed=seed) for seed in range(3)]
    results.append(failure(EVIL))
    text = page_of(tmp_path, results, labels=labels, command=f"avfs {EVIL}", warnings=[EVIL], backbone=EVIL)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert EVIL not in text
    assert page.all("b") == []
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert {article["data-label"] for article in page.all("article")} <= set(labels)


def test_pictures_have_texts_and_controls_have_labels(tmp_path):
    page = Page(page_of(tmp_path, [clip("a.mp4")]))
    assert all(image["alt"] for image in page.all("img"))
    assert all(drawing.get("aria-label") for drawing in page.all("svg"))
    assert page.all("html", lang="en")
    assert page.all("label", **{"for": "label"})
    assert page.all("select", id="label")
    assert page.all("meta", name="viewport")


def test_without_script_every_clip_is_there_and_the_filter_is_not(tmp_path):
    page = Page(page_of(tmp_path, [clip()]))
    assert "hidden" in page.all("div", id="filter")[0]
    assert all("hidden" not in article for article in page.all("article"))
    assert "hidden = false" in page.scripts[0]


def test_filter_offers_each_label_found_with_its_count(tmp_path):
    results = [clip(f"{index}.mp4", seed=index) for index in range(6)]
    values = [option["value"] for option in Page(page_of(tmp_path, results)).all("option")]
    assert values[0] == ""
    assert set(values[1:]) == {result.label for result in results}


def test_order_is_kept_although_pictures_come_late(tmp_path):
    results = [clip(f"{index}.mp4") for index in range(40)]
    text = page_of(tmp_path, results)
    found = [int(number) for number in re.findall(r'<article class="card clip" id="clip-(\d+)"', text)]
    assert found == list(range(1, 41))


def test_only_failures_or_nothing_at_all(tmp_path):
    assert "0 clips classified" in page_of(tmp_path, [failure()])
    assert "stopped after 0 of 5 files" in page_of(tmp_path, [], total=5)


def test_odd_file_names_can_be_written(tmp_path):
    Page(page_of(tmp_path, [clip("caf\udce9.mp4"), failure("\udce9")]))


def test_a_failing_page_leaves_nothing_behind(tmp_path):
    def broken(path, count):
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        page_of(tmp_path, [clip()], pictures=broken)
    assert list(tmp_path.iterdir()) == []


def test_view_of_the_timeline():
    result = clip(seconds=10)
    view = clip_view(result, run_info(), topk=3)["timeline"]
    spans = view["spans"]
    assert spans[0].left == 0
    assert sum(span.width for span in spans) == pytest.approx(100)
    assert all(track["bins"] == 10 for track in view["tracks"])
    assert view["tracks"][0]["name"] in {segment.label for segment in result.segments}
    assert view["ticks"][0] == (0, "0:00")
    assert view["ticks"][-1] == (100, "0:10")
    assert view["balance"] is not None
    assert clip_view(clip(audio=False), run_info(), topk=3)["timeline"]["balance"] is None


def test_an_hour_long_clip_stays_small():
    view = clip_view(clip(seconds=3600), run_info(), topk=3)["timeline"]
    assert len(view["spans"]) <= MOST_BINS
    assert all(track["bins"] <= MOST_BINS for track in view["tracks"])
    assert len(view["ticks"]) <= 12


def test_more_labels_than_letters(tmp_path):
    labels = tuple(f"label {index}" for index in range(120))
    Page(page_of(tmp_path, [clip(f"{index}.mp4", labels=labels, seed=index) for index in range(5)], labels=labels))


def test_step_path():
    assert step_path([0.0, 1.0, 0.25]) == "M0 1V1H1V0H2V0.75H3V1Z"


def test_pictures_are_spread_evenly():
    assert spread(3, 10) == [0, 1, 2]
    assert spread(100, 4) == [12, 37, 62, 87]
    assert [picture_count(clips) for clips in (1, 500, 5000)] == [10, 5, 1]


def test_jpeg_source_is_the_picture():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[..., 0] = 200
    source = jpeg_source(picture)
    head, data = source.split(",")
    assert head == "data:image/jpeg;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert decoded.shape == (32, 32, 3)
    assert np.abs(decoded.astype(int) - picture).max() < 12


def test_many_clips_have_a_line_each_and_pictures_in_a_folder(tmp_path):
    (tmp_path / "report-files").mkdir()
    (tmp_path / "report-files" / "999999.jpg").write_bytes(b"of an earlier page")
    (tmp_path / "report-files" / "mine.txt").write_text("kept")
    count = MOST_IN_FULL + 1
    results = [clip(f"a folder of clips/and a rather long name of a clip {index}.mp4") for index in range(count)]
    text = page_of(tmp_path, [*results, failure()], total=10_000, pictures=lambda path, count: pictures(path, 1))
    assert len(text.encode()) - 20_000 < count * 900  # 10,000 clips stay below 10 MB
    page = Page(text)
    images = page.all("img")
    assert [image["src"] for image in images[:2]] == ["report-files/000001.jpg", "report-files/000002.jpg"]
    files = sorted(path.name for path in (tmp_path / "report-files").iterdir())
    assert len(files) == count + 1
    assert files[-1] == "mine.txt"
    assert Image.open(tmp_path / images[0]["src"]).size == (16, 16)
    assert [article["data-label"] for article in page.all("article")] == [result.label for result in results]
    [policy] = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "img-src data: 'self' file:;" in policy["content"]
