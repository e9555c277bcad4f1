import io
from pathlib import Path

import pytest

from avfewshot.errors import Faults, UsageError
from avfewshot.labels import LabelSet, parse_labels


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def test_lines_comments_blanks_and_wordings(tmp_path):
    text = "# animals\n\n  dog   barking \nviolin: a person playing the violin # long\r\nC# major\ntrack #1\n"
    labels = parse_labels(write(tmp_path, text))
    assert labels.names == ("dog barking", "violin", "C# major", "track #1")
    assert labels.wordings == ("dog barking", "a person playing the violin", "C# major", "track #1")
    assert len(labels) == 4
    # A colon without a space belongs to the label; a byte order mark does not; other scripts are letters.
    assert parse_labels(write(tmp_path, "re:zero\n12:30: a chime\n")).names == ("re:zero", "12:30")
    labels = parse_labels(write(tmp_path, "\ufeffchien qui aboie\n犬の鳴き声: dog\n"))
    assert labels.names == ("chien qui aboie", "犬の鳴き声")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("dog\ncat\ndog\n", ("line 3", "line 1")),
        ("Dog\n\ndog\n", ("line 3", "line 1")),
        ("dog:\n", ("line 1",)),
        (": a wording\n", ("line 1",)),
        ("dog: animal\ncat: animal\n", ("line 2", "line 1")),
        ("dog\nc\x1bat\n", ("line 2",)),
        (b"dog\r\nc\xe4t\n", ("line 2",)),
        (b"\xff\xfed\x00o\x00g\x00", ("line 1",)),
    ],
)
def test_faults_name_the_file_and_the_line(tmp_path, content, lines):
    path = write(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        parse_labels(path)
    assert str(path) in caught.value.message
    for line in lines:
        assert line in caught.value.message


def test_all_faults_come_at_once(tmp_path):
    with pytest.raises(Faults) as caught:
        parse_labels(write(tmp_path, "dog\ncat:\ndog\n"))
    assert [fault.message.partition(", ")[2].partition(":")[0] for fault in caught.value.faults] == ["line 2", "line 3"]


def test_missing_file_folder_and_video_named_by_mistake(tmp_path, monkeypatch):
    for content in ("", "\n\n", "# only a comment\n"):
        with pytest.raises(UsageError, match=r"no label.*one label a line"):
            parse_labels(write(tmp_path, content))
    with pytest.raises(UsageError, match="no such label file"):
        parse_labels(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="is a folder"):
        parse_labels(tmp_path)
    monkeypatch.setattr("avfewshot.labels.MAX_BYTES", 10)
    with pytest.raises(UsageError, match="too large"):
        parse_labels(write(tmp_path, "a label\n" * 10))


def test_from_names():
    assert LabelSet.from_names([" dog ", "cat"]) == LabelSet(("dog", "cat"), ("dog", "cat"))
    for wrong in ([], ["dog", "DOG"], ["dog", ""], "dog", [1], None, 5, [None]):
        with pytest.raises(UsageError):
            LabelSet.from_names(wrong)


def test_invisible_characters_are_no_labels_and_hide_no_duplicates(tmp_path):
    persian, family = "\u0645\u06cc\u200c\u0631\u0648\u062f", "\U0001f468\u200d\U0001f469"
    flag = "\U0001f3f4\U000e0067\U000e007f"
    text = f"dog\u00ad barking\n\u200b\n\u3164\n\ufeff# note\n{persian}\n{family}\n{flag}\n"
    assert parse_labels(write(tmp_path, text)).names == ("dog barking", persian, family, flag)
    again = "dog barking\n\u200b\n\ufeffdog barking\n\u200bcat\ncat\n\u202ecat\ndog_barking\n"
    with pytest.raises(Faults) as caught:
        parse_labels(write(tmp_path, again))
    lines = [fault.message.split(", ")[1].split(":")[0] for fault in caught.value.faults]
    assert lines == ["line 3", "line 5", "line 6", "line 7"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("dog,1\ncat,2\n", "CSV"),
        ("index,mid,display_name\n0,/m/1,dog\n", "CSV"),
        ("0\tdog\n1\tcat\n", "CSV"),
        ('["dog", "cat"]', "JSON"),
        ('["dog",\n "cat",\n', "JSON"),
        ('"dog"\n"cat"\n', "JSON lines"),
        ("- dog\n- cat\n", "bullets"),
        ("label\ndog\ncat\n", "CSV"),
        ("label,wording\ndog,a dog\n", "CSV"),
        ("id,label,score\n1,dog,0.3\n", "CSV"),
        ("dog,0.3\ncat,-1.5\n", "CSV"),
        ("dog;1\ncat;2\n", "CSV"),
        ("dog, 0\ncat, 1\n", "CSV"),
        ("dog,\ncat,\n", "CSV"),
        ('0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n', "CSV"),
        ("| dog | barks |\n|---|---|\n| cat | meows |\n", "CSV"),
        ("'dog'\n'cat'\n", "CSV"),
        ("# Labels\n\n* dog\n* cat\n", "bullets"),
        ("1. dog\n2. cat\n", "numbered"),
        ("1 ApplyEyeMakeup\n2 Archery\n3 Typing\n", "numbered"),
        ("dog, cat, rain\n", "one line"),
        ("dog; cat\n", "one line"),
        ("names:\n  - dog\n  - cat\n", "YAML"),
        ("classes: [dog, cat]\n", "YAML"),
        ("{\\rtf1\\ansi dog}", "no text"),
        (b"%PDF-1.4\n1 0 obj\nendobj\n", "no text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "no text"),
        (b"\0\0\0 ftypisom\0" + bytes(range(256)) * 20, "no text"),
    ],
)
def test_another_kind_of_file_is_one_message(tmp_path, content, kind):
    with pytest.raises(UsageError, match=f"{kind}.*one label a line") as caught:
        parse_labels(write(tmp_path, content))
    assert not isinstance(caught.value, Faults)


def test_other_encodings_of_unicode_are_named(tmp_path):
    for codec in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        with pytest.raises(UsageError, match="UTF-16" if "16" in codec else "UTF-16|no text"):
            parse_labels(write(tmp_path, "dog\ncat\n".encode(codec)))


def test_marks_that_show_nothing_are_no_label_and_make_no_other_one(tmp_path):
    for mark in ("\ufe0f", "\U000e0100", "\u180b", "\u17b4", "\u034f", "\u2800\ufe0f"):
        assert parse_labels(write(tmp_path, f"{mark}\ndog\n")).names == ("dog",)
        with pytest.raises(UsageError, match=r"line 2: .* repeats 'dog'"):
            parse_labels(write(tmp_path, f"dog\ndog{mark}\n"))


def test_endless_lines_and_endless_faults_are_bounded(tmp_path):
    with pytest.raises(UsageError, match=r"line 1: 'dog dog .*longer than 10,000 letters") as caught:
        parse_labels(write(tmp_path, "dog " * 3000 + "\ncat\n"))
    assert len(str(caught.value)) < 400
    with pytest.raises(Faults) as caught:
        parse_labels(write(tmp_path, "dog\n" * 500))
    assert len(caught.value.faults) == 100
    assert caught.value.faults[-1].message == "... and 400 faults more."


def test_labels_that_look_like_something_else_are_labels(tmp_path):
    for end in ("\n", "\r", "\r\n", "\u2028", "\x85", "\f"):
        for names in (
            ("Violin, fiddle", "Baby cry, infant cry"),
            ("0 people", "1 person", "2 people", "3 people"),
            ("1", "2", "3"),
            ("Male speech, man speaking",),
            ("a - b", "+1"),
        ):
            assert parse_labels(write(tmp_path, end.join(names))).names == names, (names, end)


def test_labels_as_texts_and_from_standard_input(monkeypatch):
    texts = ["dog barking", "rain: heavy rain # on a roof"]
    assert LabelSet.from_texts(texts) == LabelSet(("dog barking", "rain"), ("dog barking", "heavy rain # on a roof"))
    for wrong in (["dog", "Dog"], ["rain:"], [], ["\u200b"]):
        with pytest.raises(UsageError, match="--label"):
            LabelSet.from_texts(wrong)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"dog\n# no\ncat: a cat # quiet\n")))
    assert parse_labels("-").wordings == ("dog", "a cat")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"dog\ndog\n")))
    with pytest.raises(UsageError, match="standard input, line 2"):
        parse_labels("-")
