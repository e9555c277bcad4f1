"""Prompt templates: packaged ones, custom files, and what is told about faulty ones."""

import pytest
import toy_captions as vocabulary

from avfewshot.encoders.presets import load_preset
from avfewshot.encoders.tokenizer import ClipTokenizer
from avfewshot.errors import UsageError
from avfewshot.prompts import Templates, load_templates, template_names


def faults(path) -> str:
    with pytest.raises(UsageError) as caught:
        load_templates(path)
    return str(caught.value)


def test_packaged_templates_are_whole():
    assert {"default", "single", "toy", "video"} <= set(template_names())
    for templates in map(load_templates, template_names()):
        assert all(template.count("{}") == 1 for template in templates.visual + templates.audio)
        assert all("{}" not in template for template in templates.background_visual + templates.background_audio)
        assert all((templates.visual, templates.audio, templates.background_visual, templates.background_audio))


def test_toy_templates_are_captions_that_tiny_was_trained_on():
    templates = load_templates("toy")
    assert set(templates.visual) <= set(vocabulary.TEMPLATES_VISUAL)
    assert set(templates.audio) <= set(vocabulary.TEMPLATES_AUDIO)
    assert set(templates.background_visual) <= set(vocabulary.BACKGROUND_VISUAL)
    assert set(templates.background_audio) <= set(vocabulary.BACKGROUND_AUDIO)
    known = ClipTokenizer(load_preset("tiny").clip.tokenizer)
    assert known.unknown_words(text.replace("{}", "") for text in templates.visual + templates.audio) == []


def test_a_yaml_file_of_ones_own_and_the_default_background(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        'visual: ["{} seen"]\naudio:\n  - a {}\n  - the {}\nbackground:\n  visual: [nothing]\n  audio: [hush, noise]\n',
        encoding="utf-8-sig",
    )
    assert load_templates(path) == Templates(("{} seen",), ("a {}", "the {}"), ("nothing",), ("hush", "noise"))
    path = tmp_path / "mine.yaml"
    path.write_text('visual: ["{}"]\naudio: ["{}"]\nbackground: {audio: [hush]}\n')
    templates = load_templates(path)
    assert templates.background_visual == load_templates("default").background_visual
    assert templates.background_audio == ("hush",)


def test_a_text_file_serves_both_sides(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# birds\r\n\r\n  a field recording of a {}  \r\n{} outside\r\n".encode())
    templates = load_templates(str(path))
    assert templates.visual == templates.audio == ("a field recording of a {}", "{} outside")
    assert templates.background_audio == load_templates("default").background_audio


def test_all_faults_of_a_file_are_told_with_their_entries(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "visual:\n  - a photo\n  - a {} and a {}\n  - a {}\n  - a {}\n  - 7\nadio: []\n"
        "background: {visual: ['a {}'], x: 1}\n"
    )
    told = faults(path)
    for expected in (
        "visual, entry 1: 'a photo' must hold {} once",
        "visual, entry 2: 'a {} and a {}' must hold {} once",
        "visual, entry 4: 'a {}' is there already",
        "visual, entry 5: a sentence is needed, not 7",
        "adio is unknown",
        "audio: a list of sentences is needed",
        "background.visual, entry 1: 'a {}' must not hold {}",
        "background.x is unknown",
    ):
        assert expected in told, expected
    assert told.count(str(path)) == 8


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"a {}\n\na {label}\n", "line 3: 'a {label}' must hold {} once"),
        ("a.txt", b"# nothing\n", "holds no template"),
        ("a.txt", b"\xff\xfe{}", "not UTF-8"),
        ("a.txt", "a {}\na\u00ad {}\n".encode(), "there already"),
        ("a.yaml", b"- {}\n", "keys and lists are needed (visual, audio, background)"),
        ("a.yaml", b"visual: {} seen\n", "not valid YAML"),
        ("a.yaml", b"", "keys and lists are needed"),
    ],
)
def test_other_faulty_files(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert expected in faults(tmp_path / name)


def test_an_unknown_name_lists_the_valid_ones(tmp_path):
    told = faults("defualt")
    assert "Did you mean 'default'?" in told
    assert "default, single, toy" in told
    assert "is a folder" in faults(tmp_path)


def test_invisible_characters_are_no_part_of_a_template(tmp_path):
    (tmp_path / "t.txt").write_text("\u200b\n\ufeffa photo of a {}\u200b\n")
    assert load_templates(tmp_path / "t.txt").visual == ("a photo of a {}",)
