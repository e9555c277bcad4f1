"""Which files a person means."""

import os
import re
from pathlib import Path

import pytest

from avfewshot.errors import DataError, UsageError
from avfewshot.media.discover import MEDIA_SUFFIXES, find_media


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    for name in "b.mp4 a.MP4 sound.flac notes.txt .hidden.mp4 deep/c.webm deep/er/d.wav .git/e.mp4".split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "void").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def names(*paths: str, **options) -> list[str]:
    return [path.as_posix() for path in find_media(paths, **options)]


ALL = "a.MP4 b.mp4 deep/c.webm deep/er/d.wav sound.flac"


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (".", ALL),
        ("", ALL),  # nothing named: the current folder
        ("notes.txt missing.mp4 .hidden.mp4", ".hidden.mp4 missing.mp4 notes.txt"),  # kept, whatever they are
        ("*.mp4", "b.mp4"),
        ("*", ALL),
        ("**/*.w*", "deep/c.webm deep/er/d.wav"),
        ("deep/**", "deep/c.webm deep/er/d.wav"),
        ("take[1].mp4", "take[1].mp4"),  # brackets that belong to a name
        ("[ab].*", "a.MP4 b.mp4"),
        ("b.mp4 deep ./b.mp4 ~/b.mp4 *.mp4 a.MP4", "a.MP4 b.mp4 deep/c.webm deep/er/d.wav"),  # each once
        ("*.*ts", "camera.mts film.ts"),  # TypeScript is no transport stream
    ],
)
def test_folders_globs_and_names(tree, paths, found):
    if "take" in paths:
        (tree / "take[1].mp4").write_bytes(b"x")
    if paths == "*.*ts":
        (tree / "code.ts").write_text("export const answer: number = 42;\n")
        (tree / "film.ts").write_bytes(b"\x47\x40\x00\x10" + bytes(184))
        (tree / "camera.mts").write_bytes(bytes(4) + b"\x47" + bytes(187))
    assert [os.path.relpath(path) for path in names(*paths.split())] == found.split()


def test_forms_of_a_path_and_reading_without_sub_folders(tree):
    assert names(".", recursive=False) == ["a.MP4", "b.mp4", "sound.flac"]
    assert names("*", recursive=False) == ["a.MP4", "b.mp4", "deep/c.webm", "sound.flac"]
    assert find_media([tree / "deep"]) == [tree / "deep/c.webm", tree / "deep/er/d.wav"]
    assert find_media("deep") == [Path("deep/c.webm"), Path("deep/er/d.wav")]


@pytest.mark.parametrize(("path", "word"), [("void", "folder 'void'"), ("*.avi", "matches '*.avi'"), ("v*", "'v*'")])
def test_finding_nothing_is_an_error_that_names_the_place(tree, path, word):
    with pytest.raises(UsageError, match=rf"{re.escape(word)}.*\.flac"):
        find_media(["b.mp4", path])


def test_a_folder_under_two_names_is_read_under_both_and_a_web_of_links_ends(tree):
    os.symlink(tree / "deep", tree / "again", target_is_directory=True)
    assert names(".")[1:5] == ["again/c.webm", "again/er/d.wav", "b.mp4", "deep/c.webm"]
    os.symlink(tree / "deep", tree / "void/link", target_is_directory=True)
    os.symlink(tree, tree / "deep/er/loop", target_is_directory=True)
    found = names("void")
    assert found[:2] == ["void/link/c.webm", "void/link/er/d.wav"]
    assert len(found) == len(set(found)) < 20
    web = tree / "web"
    for one in range(6):
        (web / str(one)).mkdir(parents=True)
        (web / str(one) / "a.mp4").touch()
        for other in range(6):
            os.symlink(web / str(other), web / str(one) / f"to{other}", target_is_directory=True)
    with pytest.raises(DataError, match="more than 100 names"):
        names("web")


def test_suffixes_are_lower_case_and_of_both_kinds():
    assert {".mp4", ".mkv", ".wav", ".mp3", ".flac", ".m4a"} <= MEDIA_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in MEDIA_SUFFIXES)


def test_folders_named_like_files_are_folders_and_a_link_to_itself_is_a_file(tmp_path):
    (tmp_path / "dog.mp4").mkdir()
    (tmp_path / "dog.mp4" / "bark.wav").touch()
    (tmp_path / "empty.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    expected = [tmp_path / "dog.mp4" / "bark.wav", tmp_path / "loop.mp4"]
    assert find_media([tmp_path]) == expected
    assert find_media([tmp_path / "*.mp4"]) == expected
    assert find_media([tmp_path / "dog.mp4", tmp_path / "loop.mp4"]) == expected
