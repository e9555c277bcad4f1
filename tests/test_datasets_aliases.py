from __future__ import annotations

import pytest

from avfewshot.data.aliases import ClassNames, name_key
from avfewshot.data.description import load_description


@pytest.mark.parametrize(
    ("dataset", "spelling", "name"),
    [
        ("ave", "Frying_(food)", "Frying (food)"),
        ("ave", "frying (food)", "Frying (food)"),
        ("ave", "Violin_fiddle", "Violin, fiddle"),
        ("ave", "violin", "Violin, fiddle"),
        ("ave", "Male speech", "Male speech, man speaking"),
        ("ave", "Baby_cry_infant_cry", "Baby cry, infant cry"),
        ("ave", "  Toilet   flush ", "Toilet flush"),
        ("ave", "Fixed-wing aircraft", "Fixed-wing aircraft, airplane"),
        ("llp", "Frying (food)", "Frying_(food)"),
        ("llp", "Violin, fiddle", "Violin_fiddle"),
        ("llp", "violin", "Violin_fiddle"),
        ("llp", "Chicken, rooster", "Chicken_rooster"),
        ("llp", "chicken", "Chicken_rooster"),
        ("llp", "Baby cry, infant cry", "Baby_cry_infant_cry"),
        ("llp", "Baby cry", "Baby_cry_infant_cry"),
        ("llp", "Telephone bell", "Telephone_bell_ringing"),
    ],
)
def test_classes_are_known_by_their_other_spellings(dataset, spelling, name):
    classes = load_description(dataset).class_names
    assert classes[ClassNames(classes).index(spelling)] == name


def test_open_vocabulary_names_cut_at_a_comma_are_those_of_vggsound():
    classes = load_description("vggsound").class_names
    names = ClassNames(classes)
    assert classes[names.index("playing violin")] == "playing violin, fiddle"
    assert classes[names.index("electric blender running")] == "eletric blender running"
    assert all(names.index(name) is not None for name in load_description("ovave").class_names)


def test_what_is_not_a_class_or_could_be_two_is_no_match():
    names = ClassNames(["dog, big", "dog, small", "cat"])
    assert names.index("dog") is None
    assert names.index("Dog big") == 0
    assert names.index("horse") is None
    assert names.index("") is None
    assert names.respelt() == {"Dog big": 0}


def test_names_without_latin_letters_stay_apart():
    assert name_key("犬") != name_key("猫")
    names = ClassNames(["犬", "猫", "!", "?"])
    assert [names.index(name) for name in ("犬", "猫", "!", "?")] == [0, 1, 2, 3]
