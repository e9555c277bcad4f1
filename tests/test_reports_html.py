import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sample_results import LABELS, clip, failure, run_info

from avfewshot.media.thumbnails import Thumbnail, jpeg_source, spread
from avfewshot.reports.html import HtmlWriter, clip_data, picture_count
from avfewshot.reports.strip import step_path
from avfewshot.reports.writers import Summary

VOID = {"meta", "img", "br", "link", "input", "hr", "path"}
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The tags of a page, and its text; refuses tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.text, self._open = text, [], [], []
        self.scripts, self.styles = [], []
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
        inside = self._open[-1] if self._open else ""
        (self.scripts if inside == "script" else self.styles if inside == "style" else self.text).append(data)

    def asks_for_nothing(self):
        """Nothing is requested from anywhere, and no style is set where a policy would forbid it."""
        for tag, attrs in self.tags:
            for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                assert attrs.get(name, "#").startswith(("data:", "#")), (tag, attrs)
            assert "style" not in attrs
        return not re.search(r"url\(|@import|https?://", self.source)

    @property
    def data(self):
        return json.loads(self.scripts[0])

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
    writer = HtmlWriter(
        path, run_info(labels, **run), topk=2, total=total, command=command, settings=settings, pictures=pictures
    )
    for result in results:
        writer.add(result)
    assert not path.exists()
    failed = sum(not hasattr(result, "scores") for result in results)
    writer.end(Summary(len(results) - failed, failed, total, 2.0))
    return path.read_text(encoding="utf-8")


def test_what_is_on_the_page(tmp_path):
    results = [clip("a.mp4"), failure("bad.mp4"), clip("b.wav", visual=False, warnings=["no video in it"])]
    results += [clip(f"{index}.mp4") for index in range(20)]
    text = page_of(tmp_path, results, warnings=["unknown word: kazoo"], command="avfs zeroshot --labels l.txt")
    page = Page(text)
    shown = " ".join(page.text)
    for part in ("22 clips classified", "avfs zeroshot --labels l.txt", "unknown word: kazoo", "avfs.toml",
                 "the sound and sight of violin", "1 file could not be classified", "is damaged"):  # fmt: skip
        assert part in shown
    assert page.data["labels"] == list(LABELS)
    first, second, *_ = page.data["clips"]
    assert [first["label"], second["label"]] == [results[0].label, results[2].label]
    assert len(first["pictures"]) == 10
    assert second["warnings"] == ["no video in it"]
    assert second["sight"] is None
    # The order is kept although pictures come late.
    classified = [one.path for one in results if one.path != "bad.mp4"]
    assert [one["path"] for one in page.data["clips"]] == classified


def test_the_data_of_a_clip_are_its_scores_in_thousandths():
    result = clip(seconds=10)
    data = clip_data(result, topk=2)
    order = sorted(result.scores, key=result.scores.get, reverse=True)
    assert [LABELS[index] for index, *_ in data["best"]] == order[:2]
    index, both, sight, sound = data["best"][0]
    assert [both, sight, sound] == [
        round(1000 * part[LABELS[index]]) for part in (result.scores, result.visual, result.audio)
    ]
    assert data["margin"] == round(1000 * (result.scores[order[0]] - result.scores[order[1]]))
    assert data["apart"] == round(500 * sum(abs(result.visual[name] - result.audio[name]) for name in LABELS))
    assert data["both"][::2] == [LABELS.index(segment.label) for segment in result.segments]
    assert data["both"][1::2] == [round(1000 * segment.score) for segment in result.segments]
    assert data["sight"] is None  # these made-up seconds have no scores by sight alone
    alone = [replace(segment, visual=[0.1, 0.7, 0.2], audio=[0.5, 0.3, 0.2]) for segment in result.segments]
    data = clip_data(replace(result, segments=alone), topk=2)
    assert data["sight"][:2] == [1, 700]
    assert data["sound"][:2] == [0, 500]
    assert clip_data(clip(audio=False), topk=2)["apart"] is None


def test_nothing_is_requested_from_anywhere_and_the_policy_is_strict(tmp_path):
    page = Page(page_of(tmp_path, [clip()]))
    assert page.asks_for_nothing()
    [policy] = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "unsafe" not in policy["content"]
    assert policy["content"].startswith("default-src 'none';")
    for content in (page.scripts[1], page.styles[0]):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy["content"]


def test_labels_paths_and_settings_are_never_markup(tmp_path):
    labels = (EVIL, '" onmouseover="x', "</script><b>")
    results = [clip(f"{EVIL}.mp4", labels=labels, warnings=[EVIL], seed=seed) for seed in range(3)]
    results.append(failure(EVIL))
    text = page_of(tmp_path, results, labels=labels, command=f"avfs {EVIL}", warnings=[EVIL], backbone=EVIL)
    page = Page(text)
    assert len(page.all("script")) == 2
    assert EVIL not in text
    assert page.all("b") == []
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert {one["label"] for one in page.data["clips"]} <= set(labels)


def test_characters_that_act_instead_of_being_seen_are_written_out_and_odd_names_can_be_written(tmp_path):
    results = [clip("a\u202egpj.mp4", warnings=["\x1b[2J"]), clip("caf\udce9.mp4"), failure("\udce9")]
    first, _ = Page(page_of(tmp_path, results)).data["clips"]
    assert first["path"] == "a\\u202egpj.mp4"
    assert first["warnings"] == ["\\x1b[2J"]


def test_a_clip_that_lies_beside_the_page_can_be_played(tmp_path):
    inside = clip(str(tmp_path / "my clips" / "a#1.mp4"))
    page = Page(page_of(tmp_path, [inside, clip(str(tmp_path.parent / "b.mp4"))]))
    assert [one.get("file") for one in page.data["clips"]] == ["my%20clips/a%231.mp4", None]
    [policy] = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "media-src 'self' file:" in policy["content"]


def test_only_failures_or_nothing_at_all(tmp_path):
    assert "0 clips classified" in page_of(tmp_path, [failure()])
    assert "stopped after 0 of 5 files" in page_of(tmp_path, [], total=5)


def test_a_failing_page_leaves_nothing_behind(tmp_path):
    def broken(path, count):
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        page_of(tmp_path, [clip()], pictures=broken)
    assert list(tmp_path.iterdir()) == []


def test_a_path_in_steps_and_pictures_that_are_spread_evenly():
    assert step_path([0.0, 1.0, 0.25]) == "M0 1V1H1V0H2V0.75H3V1Z"
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


def test_many_clips_are_small_and_have_their_pictures_in_a_folder(tmp_path):
    (tmp_path / "report-files").mkdir()
    (tmp_path / "report-files" / "999999.jpg").write_bytes(b"of an earlier page")
    (tmp_path / "report-files" / "mine.txt").write_text("kept")
    count = 100
    results = [clip(f"a folder of clips/and a rather long name of a clip {index}.mp4") for index in range(count)]
    alone = {"visual": [0.1, 0.7, 0.2], "audio": [0.5, 0.3, 0.2]}
    results = [replace(one, segments=[replace(part, **alone) for part in one.segments]) for one in results]
    text = page_of(tmp_path, [*results, failure()], total=10_000, pictures=lambda path, count: pictures(path, 1))
    assert len(text.encode()) - 60_000 < count * 900  # 10,000 clips stay below 10 MB
    page = Page(text)
    assert len(page.tags) < 200  # whatever the number of clips
    thumbs = [one["thumb"] for one in page.data["clips"]]
    assert thumbs[:2] == ["report-files/000001.jpg", "report-files/000002.jpg"]
    files = sorted(path.name for path in (tmp_path / "report-files").iterdir())
    assert len(files) == count + 1
    assert files[-1] == "mine.txt"
    assert Image.open(tmp_path / thumbs[0]).size == (16, 16)
