from __future__ import annotations

import pytest
from dataset_files import write_description

from avfewshot.data.description import (
    all_descriptions,
    dataset_of_task,
    description_names,
    load_description,
    read_description,
    task_names,
)
from avfewshot.errors import DataError, UsageError


def test_the_packaged_descriptions_are_those_of_the_paper_and_of_public_lists():
    names = ("ave", "avqa", "avs", "avs_ms3", "llp", "ovave", "vggsound", "vggsound40k")
    assert description_names() == names
    sizes = {entry.name: len(entry.classes) for entry in all_descriptions()}
    assert sizes == dict.fromkeys(names, 0) | {"ave": 28, "llp": 25, "ovave": 67, "vggsound": 309}


def test_official_orders_on_which_published_figures_depend():
    ave, llp = load_description("ave"), load_description("llp")
    assert ave.class_names[:3] == ("Church bell", "Male speech, man speaking", "Bark")
    assert ave.class_names[-1] == "Mandolin"
    assert (llp.class_names[0], llp.class_names[5], llp.class_names[-1]) == ("Speech", "Frying_(food)", "Clapping")


@pytest.mark.parametrize("name", description_names())
def test_every_packaged_description_has_sources_licences_and_wordings_without_symbols(name):
    entry = load_description(name)
    assert entry.source.startswith("https://")
    assert entry.how_to_get
    assert set(entry.licence) == {"annotations", "media"}
    assert entry.paper
    assert not [wording for wording in entry.wordings if any(mark in wording for mark in "_(),")]


def test_tasks_lead_to_their_data_set():
    assert task_names() == (
        "ave", "ave_cls", "avqa", "avs", "avs_ms3", "avvp", "llp_cls", "ovave",
        "vggsound", "vggsound40k", "vggsound_cls",
    )  # fmt: skip
    assert dataset_of_task("ave_cls") == "ave"
    assert dataset_of_task("llp") == "llp"
    assert dataset_of_task("vggsound_cls") == "vggsound40k"


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"no task 'lp_cls'. Did you mean 'llp_cls'.*avvp, llp_cls.*`folder`"):
        dataset_of_task("lp_cls")
    with pytest.raises(UsageError, match="avs_ms3, llp, ovave"):
        load_description("llp_cls")


def test_a_local_description_takes_precedence_in_the_root_and_in_its_usual_sub_folder(tmp_path):
    write_description(tmp_path / "direct")
    write_description(tmp_path / "above" / "AVE")
    for root in (tmp_path / "direct", tmp_path / "above"):
        assert load_description("ave", root).class_names == ("red square", "drum, snare")
    assert len(load_description("ave", tmp_path).classes) == 28
    write_description(tmp_path, name="llp", reader="llp", tasks=["llp_cls"])
    assert len(load_description("ave", tmp_path).classes) == 28


def test_defaults_of_what_may_be_left_out(tmp_path):
    entry = read_description(write_description(tmp_path, classes=["Fire_alarm", {"name": "b"}]))
    assert entry.wordings == ("fire alarm", "b")
    assert entry.segments == 10
    assert entry.folders == ("ave",)
    assert entry.file("train").required
    assert entry.pinned_fingerprint("nested", 1, 1) is None


def test_all_faults_are_reported_at_once(tmp_path):
    path = write_description(tmp_path, format=2, reader="avi", title=None, classes=["a", "a"], colour="blue")
    with pytest.raises(DataError) as caught:
        read_description(path)
    for fault in ("format must be 1", "reader must be one of", "title is missing", "'a' more than once", "colour"):
        assert fault in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"files": [{"role": "train", "names": ["../../etc/passwd"]}]}, "plain file name"),
        ({"files": [{"role": "train", "names": ["a\\b"]}]}, "plain file name"),
        ({"folders": [".."]}, "plain file name"),
        ({"files": [{"role": "train", "names": ["a"], "sha256": "abc"}]}, "64 hexadecimal digits"),
        ({"files": [{"role": "train", "names": ["a"], "rows": -1}]}, "whole number"),
        ({"files": []}, "files is empty"),
        ({"classes": []}, "classes is empty"),
        ({"classes": [True]}, "quote names"),
        ({"classes": [{"name": "a", "wording": "x"}, {"name": "b", "wording": "x"}]}, "words 'x' more than once"),
        ({"segments": 10**9}, "segments is too large"),
        ({"segments": 0}, "segments must be a positive whole number"),
        ({"multi_label": "yes"}, "multi_label must be true or false"),
        ({"splits": {"train": "many"}}, "splits.train must be a whole number"),
        ({"supports": {"nested": {1: {1: 5}}}}, "supports: nested"),
        ({"supports": {"nested": "x"}}, "supports: nested"),
        ({"classes": [{"name": "a_b"}, {"name": "A b"}]}, "names 'a b' more than once"),
        ({"classes": ["a", "\u200ba"]}, "names 'a' more than once"),
        ({"classes": ["a", "\u200b"]}, "classes.1..name must be a text, not empty"),
        ({"classes": [{"name": "a", "word": "x"}, "b"]}, "unknown key classes.0..word"),
        ({"files": [{"role": "train"}]}, "files.0..names is missing"),
        ({"files": [{"role": "a", "names": ["x"]}] * 2}, "role 'a' more than once"),
        ({"path": "/etc/passwd"}, "unknown key path"),
        ({"tasks": "ave"}, "tasks must be a list"),
    ],
)
def test_a_faulty_key_is_named(tmp_path, changes, fault):
    with pytest.raises(DataError, match=fault):
        read_description(write_description(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: !!python/object/apply:os.system ['touch owned']\n", "not valid YAML at line 1"),
        (b"- just\n- a list\n", "top level must be a mapping"),
        (b"name: \xff\n", "not UTF-8"),
        (b"#" * (2 << 20), "too large"),
        (None, "No such file"),
    ],
    ids=["object", "list", "latin", "large", "absent"],
)
def test_files_that_are_no_description_give_one_error(tmp_path, content, message):
    path = tmp_path / "dataset.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_description(path)


def test_an_edited_description_is_read_again(tmp_path):
    assert read_description(write_description(tmp_path)).title == "mine"
    assert read_description(write_description(tmp_path, title="another title")).title == "another title"
