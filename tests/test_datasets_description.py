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


def test_the_packaged_descriptions_and_the_orders_on_which_published_figures_depend():
    names = ("ave", "avqa", "avs", "avs_ms3", "llp", "ovave", "vggsound", "vggsound40k")
    assert description_names() == names
    sizes = {entry.name: len(entry.classes) for entry in all_descriptions()}
    assert sizes == dict.fromkeys(names, 0) | {"ave": 28, "llp": 25, "ovave": 67, "vggsound": 309}
    ave, llp = load_description("ave").class_names, load_description("llp").class_names
    assert (*ave[:3], ave[-1]) == ("Church bell", "Male speech, man speaking", "Bark", "Mandolin")
    assert (llp[0], llp[5], llp[-1]) == ("Speech", "Frying_(food)", "Clapping")


def test_every_packaged_description_has_sources_licences_and_wordings_without_symbols():
    for entry in all_descriptions():
        assert entry.source.startswith("https://"), entry.name
        assert entry.how_to_get, entry.name
        assert entry.paper, entry.name
        assert set(entry.licence) == {"annotations", "media"}, entry.name
        assert not [wording for wording in entry.wordings if any(mark in wording for mark in "_(),")], entry.name


def test_tasks_lead_to_their_data_set_and_an_unknown_one_lists_them():
    assert task_names() == (
        "ave", "ave_cls", "avqa", "avs", "avs_ms3", "avvp", "llp_cls", "ovave",
        "vggsound", "vggsound40k", "vggsound_cls",
    )  # fmt: skip
    assert [dataset_of_task(task) for task in ("ave_cls", "llp", "vggsound_cls")] == ["ave", "llp", "vggsound40k"]
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


def test_defaults_of_what_may_be_left_out_and_an_edited_description_is_read_again(tmp_path):
    entry = read_description(write_description(tmp_path, classes=["Fire_alarm", {"name": "b"}]))
    assert entry.wordings == ("fire alarm", "b")
    assert (entry.title, entry.segments, entry.folders) == ("mine", 10, ("ave",))
    assert entry.file("train").required
    assert entry.pinned_fingerprint("nested", 1, 1) is None
    assert read_description(write_description(tmp_path, title="another title")).title == "another title"


def test_all_faults_are_reported_at_once(tmp_path):
    path = write_description(tmp_path, format=2, reader="avi", title=None, classes=["a", "a"], colour="blue")
    with pytest.raises(DataError) as caught:
        read_description(path)
    faults = ("format must be 1", "reader must be one of", "title is missing", "'a' more than once", "colour")
    assert [fault for fault in (*faults, str(path)) if fault not in str(caught.value)] == []


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


def test_files_that_are_no_description_give_one_error(tmp_path):
    path = tmp_path / "dataset.yaml"
    for content, message in (
        (None, "No such file"),
        (b"name: !!python/object/apply:os.system ['touch owned']\n", "not valid YAML at line 1"),
        (b"- just\n- a list\n", "top level must be a mapping"),
        (b"name: \xff\n", "not UTF-8"),
        (b"#" * (2 << 20), "too large"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_description(path)
