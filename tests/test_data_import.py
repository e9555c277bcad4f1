"""Labels from Label Studio, FiftyOne and ELAN: round trips, odd names, hostile files."""

import dataclasses
import io
import json
import os

import pytest
from media_factory import write_media
from sample_results import clip, failure, run_info

from avfewshot.cli.destinations import Target
from avfewshot.cli.outputs import open_writer
from avfewshot.data.importing import Stretch, folder_name, read_stretches
from avfewshot.errors import UsageError
from avfewshot.reports.strip import runs
from avfewshot.reports.timelines import FiftyOneWriter
from avfewshot.reports.writers import Summary


@pytest.fixture
def clips(tmp_path):
    (tmp_path / "clips").mkdir()
    return write_media(tmp_path / "clips" / "a b%20.mp4", seconds=4.0, size=(32, 32))


@pytest.fixture
def import_labels(avfs, clips):
    """Import a file for the clips to `out`; gives what is said on stdout and stderr."""
    return lambda file, status=0: avfs("data", "import", file, "--clips", clips.parent, "--root", "out", status=status)


def export(form, path, folder):
    """What `zeroshot --format FORM` writes of a clip with two spans: the file to import, and these."""
    result = clip(str(path))
    spans = [dataclasses.replace(s, label=label) for s, label in zip(result.segments, "xxy", strict=False)]
    result = dataclasses.replace(result, segments=spans)
    target = Target(form, folder if form == "fiftyone" else folder / f"labels.{form}")
    writer = open_writer(target, run_info(), topk=1, segments=True)
    writer.add(result)
    writer.finish(Summary(clips=1, failed=0, total=1, elapsed=1.0))
    file = folder / "labels.json" if form == "fiftyone" else target.path
    return file, [Stretch(str(path), span.label, span.start, span.end) for span in runs(spans)]


@pytest.mark.parametrize("form", ["labelstudio", "fiftyone", "eaf"])
def test_what_zeroshot_writes_comes_back_as_clips(clips, import_labels, tmp_path, form):
    out = tmp_path / "out"
    file, spans = export(form, clips, tmp_path / "made")
    assert [(s.label, s.start, s.end) for s in read_stretches(file)] == [(s.label, s.start, s.end) for s in spans]
    import_labels(file)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert sorted(path.parent.name for path in made) == sorted(span.label for span in spans)
    assert f"0 cut, {len(spans)} there already" in import_labels(file)[0]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == made


def test_fiftyone_is_told_where_clips_lie_and_how_sure_a_span_is(clips, tmp_path):
    file, [first, _] = export("fiftyone", clips, tmp_path)
    key, suffix = os.path.splitext(clips)
    assert json.loads((tmp_path / "data.json").read_text()) == {f"{key}{suffix}": str(clips)}
    found = json.loads(file.read_text())
    assert found["classes"] == list(run_info().labels)
    scores = [segment.score for segment in clip(str(clips)).segments[:2]]
    assert found["labels"][key][0] == {
        "label": "x", "timestamps": [first.start, first.end], "confidence": pytest.approx(sum(scores) / 2)
    }  # fmt: skip


def test_fiftyone_finds_the_clip_of_every_label_and_takes_no_sound_alone():
    media, labels = io.StringIO(), io.StringIO()
    writer = FiftyOneWriter(media, labels, run_info())
    paths = ["./x/a.mp4", "x/a.mkv", "x/a-2.mp4", "v1.2.mp4", "v1.mp4", "none"]
    for path in paths:
        writer.add(clip(path))
    with pytest.warns(UserWarning, match=r"a\.WAV: is sound alone"):
        writer.add(clip("a.WAV"))
    writer.add(failure())
    writer.end(Summary(clips=len(paths), failed=1, total=len(paths) + 1, elapsed=1.0))
    # What its importer makes of the keys of a manifest.
    places = {os.path.normpath(os.path.splitext(k)[0]): place for k, place in json.loads(media.getvalue()).items()}
    assert [places[key] for key in json.loads(labels.getvalue())["labels"]] == [os.path.abspath(p) for p in paths]


def test_pictures_are_counted_from_one_at_the_rate_that_is_given(tmp_path):
    value = {"ranges": [{"start": 1, "end": 25}, {"start": 26, "end": 26}], "timelinelabels": ["x"]}
    (tmp_path / "studio.json").write_text(json.dumps([task("a.mp4", value, "timelinelabels")]))
    found = {"classes": ["x"], "labels": {"a": [{"label": 0, "support": [1, 25]}, {"label": "y", "support": [26, 26]}]}}
    (tmp_path / "labels.json").write_text(json.dumps(found))
    for name, clip_name, second in (("studio.json", "a.mp4", "x"), ("labels.json", "a", "y")):
        spans = read_stretches(tmp_path / name, 25.0)
        assert spans == [Stretch(clip_name, "x", 0.0, 1.0), Stretch(clip_name, second, 1.0, 1.04)]
        with pytest.raises(UsageError, match="--frame-rate"):
            read_stretches(tmp_path / name)


def test_clips_that_fiftyone_names_without_suffix_are_found(clips, import_labels, tmp_path):
    (clips.parent / "sub").mkdir()
    (clips.parent / "sub" / clips.name).write_bytes(b"another of this name")
    for key in (clips.stem, f"sub/{clips.stem}"):
        labels = {"none of them": None, key: [{"label": "x", "timestamps": [0, 1]}]}
        (tmp_path / "labels.json").write_text(json.dumps({"labels": labels}))
        cut = key == clips.stem
        assert ("1 cut, 0 there already, 0 failed" in import_labels("labels.json", status=not cut)[0]) == cut


def task(video, value=None, kind="labels", **more):
    return {"data": {"video": video}, "annotations": [{"result": [{"type": kind, "value": value}], **more}]}


def span(label="x", start=0, end=1):
    return {"start": start, "end": end, "labels": [label]}


def test_a_missing_clip_is_named_and_the_others_go_on(clips, import_labels, tmp_path):
    (clips.parent / "broken.mp4").write_bytes(b"no video")
    names = ["../../gone.mp4", "broken.mp4", "/data/upload/1/0a1b2c3d-a%20b%2520.mp4"]
    tasks = [task(name, {"choices": ["../up"]}, "choices") for name in names]
    tasks.append(task(clips.name, span("cancelled"), was_cancelled=True))
    (tmp_path / "e.json").write_text(json.dumps(tasks))
    out, err = import_labels("e.json", status=1)
    assert all(name in err for name in ("gone.mp4", "broken.mp4"))
    assert "1 cut, 0 there already, 2 failed" in out
    assert [path.parent.name for path in (tmp_path / "out").rglob("*.mp4")] == ["_.._up"]


def test_a_link_out_of_the_folder_is_not_followed(clips, import_labels, tmp_path):
    for name in ("elsewhere", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "x").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "e.json").write_text(json.dumps([task(clips.name, span())]))
    assert "leads out of" in import_labels("e.json", status=1)[1]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("label", "name"),
    [("a/b", "a_b"), ("..", "_"), (".x", "_.x"), ("-dog", "_-dog"), ("Train", "_Train"), ("train horn", "train horn")],
)
def test_names_of_class_folders(label, name):
    assert folder_name(label) == name


EAF = '<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///a.mp4"/></HEADER>{}</ANNOTATION_DOCUMENT>'
PICTURES = {"ranges": [{"start": 1, "end": 5}], "timelinelabels": ["x"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{}"),
        ("a.json", "[1]"),
        ("a.json", "[" * 100_000),
        ("a.json", "[" + "9" * 5000 + "]"),
        ("a.json", [task(3, span())]),
        ("a.json", [task("a.mp4", span(3))]),
        ("a.json", [task("a.mp4", span(start=2))]),
        ("a.json", [task("a.mp4", span(end=10**400))]),
        ("a.json", [task("a.mp4", span(end=float("nan")))]),
        ("a.json", [task("a.mp4", PICTURES, "timelinelabels")]),
        ("a.json", {"labels": {"a": [{"label": 3, "timestamps": [0, 1]}]}, "classes": ["x"]}),
        ("a.json", {"labels": {"a": [{"label": "x", "timestamps": [0, 1, 2]}]}}),
        ("a.json", {"labels": {"a": [{"label": "x", "support": [0, 4]}]}}),
        ("a.json", {"labels": [1]}),
        ("a.eaf", '<!DOCTYPE x [<!ENTITY e "rain">]>' + EAF.format("&e;")),
        ("a.eaf", "<svg/>"),
        ("a.eaf", "<"),
        ("a.eaf", EAF.format('<T><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1"/></T>')),
    ],
)
def test_hostile_files(name, content, import_labels, tmp_path):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert name in import_labels(name, status=2)[1]
    assert not (tmp_path / "out").exists()
