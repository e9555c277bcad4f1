import os

import pytest
from dataset_files import counts, touch, write_description

from avfewshot.data.folder import load_folder
from avfewshot.errors import AvfsError, DataError, UsageError


def clips(name: str, count: int) -> list[str]:
    return [f"{name}/{number:03d}.mp4" for number in range(count)]


AB = [*clips("a", 3), *clips("b", 3)]


def within(*folders: str) -> list[str]:
    """Classes a and b of three clips in each of the folders."""
    return [f"{folder}/{path}" for folder in folders for path in AB]


def test_class_folders_become_classes(tmp_path):
    touch(tmp_path, [*clips("dog_barking", 5), *clips("Rain", 5), "Rain/sub/folder/deep.mkv", ".git/x.mp4"])
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("dog_barking", "Rain")
    assert dataset.wordings == ("dog barking", "rain")
    assert len(dataset.samples) == 11
    assert "Rain/sub/folder/deep.mkv" in {sample.id for sample in dataset.samples}
    assert all(sample.path.is_file() for sample in dataset.samples)


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["stray.mp4", *AB], {"stray-files": ("stray.mp4",)}),
        (
            ["train/stray.mp4", *within("train"), *clips("extra/c", 1)],
            {"stray-files": ("extra/c/000.mp4", "train/stray.mp4"), "stray-folders": ("extra",)},
        ),
        ([*within("train"), *clips("test/a", 1), *clips("test/c", 1)], {"classes-not-in-train": ("c",)}),
        (
            [*clips("animals/dog", 2), *clips("animals/cat", 2), *clips("machines/car", 2), *clips("machines", 1)],
            {"sub-folders": ("animals/cat", "animals/dog", "machines/car")},
        ),
        (within("part1", "part2"), {"same-sub-folders": ("part1", "part2")}),
        ([*AB, "bird/notes.txt"], {"empty-classes": ("bird (1 other files)",)}),
        (["a/1.mp4", "b/1.mp4"], {"no-test-clips": ()}),
    ],
)
def test_what_is_odd_about_a_folder_is_said(tmp_path, paths, found):
    touch(tmp_path, paths)
    report = load_folder(tmp_path).report
    assert {code: report.find(code).examples for code in found} == found


def test_a_drawn_split_is_stratified_seeded_and_changes_little_when_clips_are_added(tmp_path):
    touch(tmp_path, [*clips("a", 20), *clips("b", 5), *clips("c", 2), *clips("d", 1)])
    dataset = load_folder(tmp_path, seed=3)
    table = {
        name: [sum(s.label == label for s in dataset.split(split)) for split in ("train", "val", "test")]
        for label, name in enumerate(dataset.classes)
    }
    assert table == {"a": [12, 4, 4], "b": [3, 1, 1], "c": [1, 0, 1], "d": [1, 0, 0]}
    assert load_folder(tmp_path, seed=3).samples == dataset.samples
    assert load_folder(tmp_path, seed=4).samples != dataset.samples
    assert "seed 3: 20 % for test, 20 % for val" in dataset.report.find("drawn-splits").message
    touch(tmp_path, ["a/new.mp4", "b/new.mp4"])
    after = {sample.id: sample.split for sample in load_folder(tmp_path, seed=3).samples}
    assert sum(sample.split != after[sample.id] for sample in dataset.samples) <= 4


def test_given_splits_are_kept_and_only_missing_ones_drawn(tmp_path):
    touch(tmp_path, within("train", "valid", "test"))
    dataset = load_folder(tmp_path)
    assert dataset.split_sizes == {"train": 6, "val": 6, "test": 6}
    assert dataset.form == "folder with splits"
    assert counts(dataset.report) == {"split-folders": 1}
    touch(tmp_path / "two", within("train", "test"))
    dataset = load_folder(tmp_path / "two")
    assert dataset.split_sizes == {"train": 4, "val": 2, "test": 6}
    assert "20 % for val." in dataset.report.find("drawn-splits").message
    touch(tmp_path / "class", [*clips("test", 3), *clips("drive", 3)])
    assert load_folder(tmp_path / "class").classes == ("drive", "test")


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("test", lambda path: path.mkdir()),
        ("Testing/dog", lambda path: path.mkdir(parents=True)),
        ("test", lambda path: path.symlink_to("not mounted")),
    ],
    ids=["empty", "empty classes", "link to nothing"],
)
def test_a_split_folder_without_clips_is_named_and_nothing_drawn_in_its_place(tmp_path, path, make):
    touch(tmp_path, within("train", "val"))
    make(tmp_path / path)
    dataset = load_folder(tmp_path)
    assert dataset.split_sizes == {"train": 6, "val": 6}
    assert dataset.report.find("empty-splits").examples == (str(tmp_path / path.split("/")[0]),)
    assert dataset.report.find("no-test-clips") is None


def test_a_description_gives_order_and_wordings(tmp_path):
    classes = [{"name": "rain", "wording": "heavy rain"}, {"name": "Dog barking", "wording": "a barking dog"}]
    write_description(tmp_path, name="mine", reader="folder", tasks=["folder"], classes=classes, files=None)
    touch(tmp_path, [*clips("dog_barking", 3), *clips("rain", 3), *clips("other", 2)])
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("rain", "Dog barking")
    assert dataset.wordings == ("heavy rain", "a barking dog")
    assert dataset.report.find("unknown-classes").examples == ("other (2)",)
    write_description(tmp_path)
    with pytest.raises(UsageError, match="describes mine, not a folder"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        (None, {}, "does not exist"),
        (["notes.txt"], {}, r"no class folder with clips.*FOLDER/rain/2\.mp4"),
        (clips("a", 3), {}, "only the class 'a'"),
        (within("data"), {}, r"only the class 'data'.*Then give .*folder/data"),
        (AB, {"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        (within("val", "test"), {}, "no train/.*FOLDER/train/CLASS"),
        (within("set_train_a", "set_test_a"), {}, "look like splits.*FOLDER/train/CLASS"),
        ([*clips("train", 1), *clips("test", 1)], {}, "no class.*FOLDER/train/CLASS"),
    ],
)
def test_too_little_or_nonsense_is_one_clear_error(tmp_path, paths, options, message):
    if paths is not None:
        touch(tmp_path / "folder", paths)
    with pytest.raises(AvfsError, match=message):
        load_folder(tmp_path / "folder", **options)


def test_splits_and_class_folders_may_be_links(tmp_path):
    touch(tmp_path / "again", within("train", "test"))
    os.symlink("test", tmp_path / "again" / "val")
    dataset = load_folder(tmp_path / "again")
    assert dataset.split_sizes == {"train": 6, "val": 6, "test": 6}
    assert {sample.id for sample in dataset.split("test")} == set(within("test"))
    assert dataset.report.find("cross-split-ids").count == 6
    root = tmp_path / "classes"
    touch(root, within("all", "test"))
    (root / "train").mkdir()
    for name in ("a", "b"):
        os.symlink(root / "all" / name, root / "train" / name)
    os.symlink(root, root / "all" / "round")
    dataset = load_folder(root)
    assert dataset.classes == ("a", "b")
    assert dataset.split_sizes == {"train": 4, "val": 2, "test": 6}
    assert dataset.report.find("stray-folders").examples == ("all",)


def test_a_link_to_a_clip_that_is_there_is_not_drawn_into_another_split(tmp_path):
    touch(tmp_path, [*clips("a", 4), *clips("b", 4)])
    os.symlink(tmp_path / "a" / "000.mp4", tmp_path / "a" / "again.mp4")
    os.symlink(tmp_path / "a" / "001.mp4", tmp_path / "b" / "other.mp4")
    os.symlink("loop.mp4", tmp_path / "a" / "loop.mp4")
    dataset = load_folder(tmp_path)
    assert dataset.report.find("repeated-files").examples == ("a/again.mp4 = a/000.mp4",)
    assert dataset.report.find("several-classes").examples == ("a/001.mp4 = b/other.mp4",)
    assert "a/loop.mp4" in {sample.id for sample in dataset.samples}


def test_a_web_of_links_is_refused(tmp_path):
    (tmp_path / "8").mkdir()
    for level in range(8):
        (tmp_path / str(level)).mkdir()
        for name in "abc":
            os.symlink(tmp_path / str(level + 1), tmp_path / str(level) / name)
    with pytest.raises(DataError, match="more than 100 names"):
        load_folder(tmp_path / "0")


@pytest.mark.parametrize(
    ("train", "test"),
    [("training_set", "test_set"), ("Train-data", "TestData"), ("01_train", "02_test"), ("training", "evaluation")],
)
def test_splits_by_other_names_are_recognised_and_said(tmp_path, train, test):
    touch(tmp_path, within(train, test))
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("a", "b")
    assert len(dataset.split("test")) == 6
    assert f"{train}/ as train" in dataset.report.find("split-folders").message


def test_folders_that_differ_by_spelling_alone_are_one_class(tmp_path):
    touch(tmp_path, [*clips("dog_barking", 3), *clips("dog barking", 2), *clips("Dog  Barking", 1), *clips("cat", 3)])
    touch(tmp_path, [*clips("caf\u00e9", 2), *clips("cafe\u0301", 1), *clips("d\u200bog barking", 1)])
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("caf\u00e9", "cat", "dog_barking")
    assert len(dataset.samples) == 13
    assert dataset.report.find("merged-classes").count == 2
    touch(tmp_path / "s", [*within("train"), *clips("test/A", 1), *clips("test/B", 1)])
    assert [sample.labels for sample in load_folder(tmp_path / "s").split("test")] == [(0,), (1,)]


def test_folder_names_that_cannot_be_shown_are_cleaned_and_said(tmp_path):
    touch(tmp_path, [*clips("dog\nbark\x1b[2J", 2), *clips("\u200bcat", 2), *clips("\u3164", 1)])
    touch(tmp_path, clips(os.fsdecode(b"caf\xe9"), 1))
    dataset = load_folder(tmp_path)
    assert dataset.classes == (r"caf\xe9", "cat", "dog bark [2J")
    assert dataset.report.find("odd-folder-names").count == 4
    assert dataset.report.find("nameless-classes").examples == ("\u3164 (1)",)


def test_folders_that_hold_nothing_for_us_are_named_whatever_the_reason(tmp_path, monkeypatch):
    touch(tmp_path, [*clips("dog.mp4", 2), *clips("cat", 2), *clips("locked", 2), *clips("\ufe0f", 1)])
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scan(f"{path}/gone" if str(path).endswith("locked") else path))
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("cat", "dog.mp4")
    assert dataset.report.find("nameless-classes").count == 1
    assert dataset.report.find("unknown-classes") is None
    said = "Class folders without a clip, left out. (3) E.g. locked (cannot be read), loop (cannot be read), "
    assert said + "nowhere (cannot be read)." in dataset.report.describe()


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training_set", "eval")])
def test_splits_within_class_folders_are_splits(tmp_path, train, test):
    parts = {f"dog/{train}": 3, f"cat/{train}": 3, f"dog/{test}": 1, f"cat/{test}": 2}
    touch(tmp_path, [path for name, count in parts.items() for path in clips(name, count)])
    dataset = load_folder(tmp_path, val_fraction=0)
    assert dataset.classes == ("cat", "dog")
    assert dataset.split_sizes == {"train": 6, "test": 3}
    assert all(f"/{test}/" in sample.id for sample in dataset.split("test"))
    assert dataset.report.find("splits-in-classes").count == 2
    touch(tmp_path, clips("dog", 1))  # a clip beside them: then these folders mean something else
    assert load_folder(tmp_path).report.find("splits-in-classes") is None


def test_none_is_a_class_of_its_own_and_negatives_are_apart(tmp_path):
    touch(tmp_path, [*clips("dog", 4), *clips("cat", 4), *clips("none", 3), *clips("-dog", 2), *clips("-fish", 1)])
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("cat", "dog", "none")
    assert dataset.none_class == 2
    assert [(sample.id, sample.labels) for sample in dataset.negatives] == [(f"-dog/00{n}.mp4", (1,)) for n in (0, 1)]
    assert not {sample.id for sample in dataset.negatives} & {sample.id for sample in dataset.samples}
    assert dataset.report.find("unknown-negatives").examples == ("-fish (1)",)
    assert load_folder(tmp_path / "dog" / "..").none_class == 2
