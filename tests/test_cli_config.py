from __future__ import annotations

import json

from avfewshot.cli.app import run
from avfewshot.config import table_settings


def test_every_setting_with_its_source(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVFS_DEVICE", "cpu")
    (tmp_path / "avfs.toml").write_text('backbone = "tiny"\n[zeroshot]\ntopk = 3\n')
    assert run(["config", "--format", "json"]) == 0
    rows = {(row["table"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    assert {name for table, name in rows if table == "zeroshot"} == set(table_settings("zeroshot"))
    assert {name for table, name in rows if table == "data"} == set(table_settings("data"))
    for name, value, source in (
        ("backbone", "tiny", "avfs.toml"),
        ("topk", "3", "avfs.toml [zeroshot]"),
        ("device", "cpu", "AVFS_DEVICE"),
        ("seed", "0", "default"),
        ("templates", None, "default"),
    ):
        assert (rows["zeroshot", name]["value"], rows["zeroshot", name]["source"]) == (value, source)
    assert rows["", "cache"]["source"] == "AVFS_CACHE"
    assert run(["config", "zeroshot"]) == 0
    shown = capsys.readouterr().out
    assert "tiny" in shown
    assert "avfs.toml [zeroshot]" in shown
    assert "root" not in shown


def test_faults_of_the_file_are_told_once_and_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "avfs.toml").write_text('bakbone = "tiny"\ntopk = "many"\n')
    assert run(["config"]) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 2
    assert "Did you mean 'backbone'?" in message
    assert "Valid keys: " in message


def test_a_misspelt_variable_is_pointed_out(monkeypatch, capsys):
    monkeypatch.setenv("AVFS_BACKBON", "tiny")
    monkeypatch.setenv("AVFS_DEBUG", "0")
    assert run(["config"]) == 0
    assert (
        capsys.readouterr().err
        == "warning: AVFS_BACKBON is set, but there is no such setting. Did you mean 'AVFS_BACKBONE'?\n"
    )


def test_a_token_is_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("AVFS_TOKEN", "my-secret-word")
    for form in ("table", "json"):
        assert run(["config", "serve", "--format", form]) == 0
        out = capsys.readouterr().out
        assert "my-secret-word" not in out
        assert "not shown" in out
