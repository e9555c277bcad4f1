from pathlib import Path

import pytest

from avfewshot.config import COMMANDS, environment_name, read_config, resolve, settings_of, table_settings
from avfewshot.errors import Faults, UsageError


def config(folder: Path, text: str) -> Path:
    (folder / "avfs.toml").write_text(text, encoding="utf-8")
    return folder


def test_defaults_without_anything(tmp_path):
    resolved = resolve("zeroshot", folder=tmp_path, environ={}).check()
    assert resolved["backbone"] == "base"
    assert resolved["topk"] == 5
    assert resolved["recursive"] is True
    assert {resolved.sources[name] for name in table_settings("zeroshot")} == {"default"}


def test_flag_beats_environment_beats_table_beats_top_level(tmp_path):
    folder = config(tmp_path, 'backbone = "a"\ndevice = "cpu"\nseed = 1\n[zeroshot]\nbackbone = "b"\ndevice = "mps"\n')
    environ = {"AVFS_BACKBONE": "c"}
    resolved = resolve("zeroshot", {"backbone": "d"}, folder=folder, environ=environ).check()
    assert (resolved["backbone"], resolved.sources["backbone"]) == ("d", "--backbone")
    resolved = resolve("zeroshot", {"backbone": None}, folder=folder, environ=environ).check()
    assert (resolved["backbone"], resolved.sources["backbone"]) == ("c", "AVFS_BACKBONE")
    resolved = resolve("zeroshot", folder=folder, environ={}).check()
    assert (resolved["backbone"], resolved.sources["backbone"]) == ("b", "avfs.toml [zeroshot]")
    assert (resolved["device"], resolved.sources["device"]) == ("mps", "avfs.toml [zeroshot]")
    assert (resolved["seed"], resolved.sources["seed"]) == (1, "avfs.toml")


def test_values_from_flags_variables_and_files_are_typed(tmp_path):
    flags = {"topk": "3", "batch_size": "auto", "device": "cuda:1", "clip_weights": "~/x.pt"}
    resolved = resolve("zeroshot", flags, folder=tmp_path, environ={"AVFS_RECURSIVE": "0"}).check()
    values = [resolved[name] for name in ("topk", "batch_size", "recursive", "clip_weights")]
    assert values == [3, "auto", False, Path.home() / "x.pt"]
    # A false flag counts, and an empty variable does not.
    folder = config(tmp_path, "[zeroshot]\nsegments = true\n")
    assert resolve("zeroshot", {"segments": False}, folder=folder, environ={})["segments"] is False
    assert resolve("zeroshot", folder=folder, environ={"AVFS_SEGMENTS": ""})["segments"] is True
    assert resolve("zeroshot", folder=folder, environ={"AVFS_SEGMENTS": "off"})["segments"] is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("topk", "0"), ("topk", "-1"), ("topk", "many"), ("batch_size", "0"), ("batch_size", "1.5")),
        *(("device", "gpu"), ("device", "cuda:"), ("precision", "fp8"), ("format", "xml"), ("format", "jsno")),
        *(("modality", "video"), ("backbone", " "), ("labels", "")),
    ],
)
def test_wrong_values_name_their_flag(tmp_path, name, value):
    resolved = resolve("zeroshot", {name: value}, folder=tmp_path, environ={})
    assert resolved[name] == table_settings("zeroshot")[name].default  # so that further checks can go on
    with pytest.raises(UsageError) as caught:
        resolved.check()
    assert caught.value.message.startswith(f"--{name.replace('_', '-')}: ")
    assert caught.value.exit_code == 2
    assert ("Did you mean 'json'" in caught.value.message) == (value == "jsno")
    formats = "table, json, jsonl, csv, csv-segments, srt, vtt, eaf, labelstudio, fiftyone, all"
    assert (formats in caught.value.message) == (name == "format")


def test_faults_of_flags_environment_and_file_come_at_once(tmp_path):
    folder = config(
        tmp_path, 'bakbone = "tiny"\ntopk = "five"\n[zeroshot]\ndevice = 1\nseed = true\n[zerosho]\nx = 1\n'
    )
    with pytest.raises(Faults) as caught:
        resolve("zeroshot", {"format": "xml"}, folder=folder, environ={"AVFS_TOPK": "no"}).check()
    text = str(caught.value)
    path = str(folder / "avfs.toml")
    assert text.count(path) == 5
    for part in (
        "bakbone is unknown. Did you mean 'backbone'?",
        "[zerosho] is unknown",
        f"Valid tables: {', '.join(sorted(COMMANDS))}",
    ):
        assert part in text
    for part in ("topk: a whole number", "[zeroshot] device:", "[zeroshot] seed:", "--format:", "AVFS_TOPK:"):
        assert part in text


def test_both_spellings_of_a_key_but_not_together(tmp_path):
    assert resolve("zeroshot", folder=config(tmp_path, "batch-size = 4\n"), environ={})["batch_size"] == 4
    with pytest.raises(UsageError, match="given twice"):
        read_config(config(tmp_path, "batch-size = 4\nbatch_size = 5\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone = tiny\n", "not valid TOML"),
        ("zeroshot = 1\n", "is a table"),
        ("[data]\nbackbone = 'x'\n", "unknown"),
        (b'backbone = "\xff"\n', "not UTF-8"),
    ],
)
def test_broken_files_are_explained(tmp_path, text, message):
    (tmp_path / "avfs.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message) as caught:
        read_config(tmp_path)
    assert "avfs.toml" in caught.value.message


def test_data_folders_have_their_own_table_and_variables(tmp_path):
    folder = config(tmp_path, '[data]\nroot = "videos"\n')
    resolved = resolve("data", folder=folder, environ={"AVFS_DATA_AVE": "/ave", "AVFS_ROOT": "/no"}).check()
    assert resolved["root"] == Path("videos")
    assert (resolved["ave"], resolved.sources["ave"]) == (Path("/ave"), "AVFS_DATA_AVE")
    with pytest.raises(UsageError, match="root is unknown"):
        read_config(config(tmp_path, 'root = "videos"\n'))


def test_every_default_is_valid_and_every_variable_unique():
    """Commands that share a setting share its variable; no variable stands for two settings, or for two defaults."""
    meanings = {}
    for table in COMMANDS:
        known = table_settings(table)
        variables = [environment_name(table, key) for key in known]
        assert len(set(variables)) == len(variables)
        for variable, setting in zip(variables, known.values(), strict=True):
            meaning = (setting.name, setting.default, setting.metavar)
            assert meanings.setdefault(variable, meaning) == meaning
    for model in COMMANDS.values():
        for setting in settings_of(model).values():
            if setting.default is not None:
                assert setting.parse(setting.default, from_text=False) == setting.default
