"""Damaged files of the kinds that are read: each is understood or refused in words, none ends in a traceback.

``AVFS_FUZZ=5000 pytest tests/test_fuzz.py`` tries so many of each; the seeds are fixed, and a failure names its own.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dataset_files import AVE_FILES, LLP_FILES, write_files
from methods_worlds import world

from avfewshot.data.description import read_description
from avfewshot.data.importing import read_stretches
from avfewshot.data.load import load_dataset
from avfewshot.data.music_avqa import load_music_avqa
from avfewshot.data.vggsound import with_vggsounder
from avfewshot.encoders.presets import load_preset
from avfewshot.errors import AvfsError
from avfewshot.labels import parse_labels
from avfewshot.methods.method import Scorer, find_method
from avfewshot.prompts import load_templates

ROUNDS = int(os.environ.get("AVFS_FUZZ", "25"))
ODD = [
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", "\u202e\u200b\ufe0f".encode(), b"\r", b"\x85", b"\x1b[2J", b"&", b","),
    *(b"\t", b'"', b"'", b"[", b"]", b"{", b"}", b":", b"- ", b"*a", b"&a", b"!!python/object:os.system", b"<<: *a"),
    *(b"%", b"|", b"1e309", b"-1", b"nan", b"inf", b"9" * 400, b"0x10", b"1_000", b"2026-99-99", "\u0663".encode()),
    *(b"1/0", b"null", b"../../etc/passwd", b"/dev/zero", b"=cmd|'/c calc'!A1", b"x" * 70_000),
    *(b"\n" * 50, b"<!DOCTYPE x>", b"<x/>", b""),
]  # fmt: skip
VALUES = [None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x" * 5000, "\ud800", "\x00", [], {}, [[]], {"": None}]
VALUES += [["a", 1]]


def mangled(draw: random.Random, content: bytes) -> bytes:
    """The bytes of a file with one to three things wrong."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        lines = content.split(b"\n")
        at, line = draw.randrange(len(content) + 1), draw.randrange(len(lines))
        way = draw.randrange(9)
        if way == 0:
            content = content[:at]
        elif way == 1 and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        elif way == 2:
            content = content[:at] + draw.choice(ODD) + content[at:]
        elif way == 3:
            content = b"\n".join([*lines[:line], *draw.choices(lines, k=3), *lines[line:]])
        elif way == 4:
            content = b"\n".join(lines[:line] + lines[line + 1 :])
        elif way == 5:
            marks = [mark for mark in (b"&", b",", b"\t", b":") if mark in lines[line]]
            cells = lines[line].split(draw.choice(marks)) if marks else [lines[line]]
            cells[draw.randrange(len(cells))] = draw.choice(ODD)
            lines[line] = draw.choice(marks or [b" "]).join(cells)
            content = b"\n".join(lines)
        elif way == 6:
            content = content[:at] + content[at + draw.randrange(40) :]
        elif way == 7:
            old, new = draw.choice([(b",", b";"), (b"\n", b"\r"), (b"\t", b"    "), (b"&", b","), (b'"', b"'")])
            content = content.replace(old, new)
        else:
            text = content.decode("utf-8", "replace")
            content = draw.choice([text.encode("utf-16"), text.encode("utf-16-le"), text.encode("latin-1", "replace")])
    return content


def mangled_json(draw: random.Random, content: bytes) -> bytes:
    """A JSON document of which a value was exchanged, taken away or doubled."""
    document = json.loads(content)
    places: list[tuple[dict | list, str | int]] = []

    def walk(node: object) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            walk(value)

    walk(document)
    for _ in range(draw.choice([1, 1, 2])):
        node, key = draw.choice(places)
        if draw.random() < 0.2 and isinstance(node, dict):
            node.pop(key, None)
        elif draw.random() < 0.1:
            node[key] = json.loads("[" * 400 + "]" * 400)
        elif isinstance(node, dict) or key < len(node):
            node[key] = draw.choice([*VALUES, "a"])
    return json.dumps(document).encode()


def attack(tmp_path: Path, files: dict[str, bytes], read: Callable[[Path], object], seed: str) -> None:
    """Damage one of some files again and again; `read` may raise nothing but errors for people."""
    write_files(tmp_path, files)
    read(tmp_path)  # what is whole is understood
    for number in range(ROUNDS):
        draw = random.Random(f"{seed} {number}")
        name = draw.choice(list(files))
        as_json = name.endswith(".json") and draw.random() < 0.7
        content = mangled_json(draw, files[name]) if as_json else mangled(draw, files[name])
        (tmp_path / name).write_bytes(content)
        message = told = ""
        try:
            read(tmp_path)
        except AvfsError as error:
            message = error.message
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        assert not told, (seed, number, told, content[:300])
        assert len(message) < 4000, (seed, number, message[:300])
        (tmp_path / name).write_bytes(files[name])


def as_bytes(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in files.items()}


VGGSOUND = {"vggsound.csv": 'aaaaaaaaaa1,5,horse neighing,train\naaaaaaaaaa2,300,"bird chirping, tweeting",test\n'}
VGGSOUNDER = {**VGGSOUND, "vggsounder.csv": "video_id,label,modality\naaaaaaaaaa2_000300,bird chirping tweeting,AV\n"}
AVEL = {
    "vggsound-avel40k.csv": "category,video_id,split,label\n"
    'horse neighing,aaaaaaaaaa1,train,"[0, 1, 1]"\npeople marching,aaaaaaaaaa2,test,"[1, 1, 1]"\n'
}
QUESTION = {
    "video_id": "00000001", "question_id": 1, "type": '["Audio", "Counting"]', "question_content": "How many <Object>?",
    "templ_values": '["violin"]', "question_deleted": 0, "anser": "two",
}  # fmt: skip
AVQA = {
    f"json/avqa-{split}.json": json.dumps([QUESTION, QUESTION | {"question_id": 2, "anser": "yes"}])
    for split in ("train", "val", "test")
}


def vggsounder(folder: Path) -> None:
    with_vggsounder(load_dataset("vggsound", folder, find_media=False), folder / "vggsounder.csv")


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (AVE_FILES, lambda folder: load_dataset("ave", folder, find_media=False)),
        (LLP_FILES, lambda folder: load_dataset("llp", folder, find_media=False)),
        (VGGSOUND, lambda folder: load_dataset("vggsound", folder, find_media=False)),
        (AVEL, lambda folder: load_dataset("vggsound40k", folder, find_media=False)),
        (VGGSOUNDER, vggsounder),
        (AVQA, load_music_avqa),
    ],
    ids=["ave", "llp", "vggsound", "avel", "vggsounder", "avqa"],
)  # fmt: skip
def test_annotation_files(tmp_path, files, read, request):
    attack(tmp_path, as_bytes(files), read, request.node.name)


def test_label_files(tmp_path):
    text = "dog barking\nviolin: a person playing the violin # a comment\n# no label\n\nC#\nViolin, fiddle\n"
    attack(tmp_path, {"labels.txt": text.encode()}, lambda folder: parse_labels(folder / "labels.txt"), "labels")


LABEL_STUDIO = [{
    "data": {"video": "/data/upload/1/1a2b3c4d-a.mp4"},
    "annotations": [{"result": [
        {"type": "timelinelabels", "value": {"ranges": [{"start": 1, "end": 20}], "timelinelabels": ["dog"]}},
        {"type": "choices", "value": {"choices": ["cat"]}},
        {"type": "labels", "value": {"start": 0.5, "end": 2, "labels": ["rain"]}},
    ]}],
}]  # fmt: skip
FIFTYONE = {"classes": ["dog"], "labels": {"1": [{"label": 0, "support": [1, 10]}]}}
ELAN = """<?xml version="1.0"?><ANNOTATION_DOCUMENT>
<HEADER TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR MEDIA_URL="a.mp4"/></HEADER>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="0"/><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="1500"/></TIME_ORDER>
<TIER TIER_ID="a"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="1" TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2">
<ANNOTATION_VALUE>dog</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>
"""


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", json.dumps(LABEL_STUDIO)), ("labels.json", json.dumps(FIFTYONE)), ("a.eaf", ELAN)],
)
def test_labels_of_other_programs(tmp_path, name, content):
    attack(tmp_path, {name: content.encode()}, lambda folder: read_stretches(folder / name, 25.0), name)


DESCRIPTION = {
    "format": 1, "name": "mine", "title": "mine", "reader": "folder", "tasks": ["folder"],
    "classes": [{"name": "dog", "wording": "a dog"}, "cat"], "licence": {"media": "mine"},
}  # fmt: skip
MODEL = {"embed_dim": 64, "text_cfg": {"context_length": 10}, "vision_cfg": {"layers": 2}}
BACKBONE = {
    "templates": "default",
    "clip": {"model": MODEL, "file": "x.pt"},
    "clap": {"audio": "HTSAT-tiny", "text": "roberta", "file": "y.pt", "tokenizer": "roberta"},
}
TEMPLATES = {"visual": ["a photo of {}."], "audio": ["the sound of {}."]}


def test_what_a_run_has_learnt(tmp_path):
    support, texts = world()
    folder = find_method("kernel_ridge").fit(support, texts).save(tmp_path)
    files = {name: (folder / name).read_bytes() for name in ("scorer.json", "scorer.safetensors")}

    def read(folder: Path) -> None:
        scorer = Scorer.load(folder)
        scorer.segment_logits(support.features)

    attack(tmp_path, files, read, "scorer")


@pytest.mark.parametrize(
    ("name", "document", "read"),
    [
        ("dataset.yaml", DESCRIPTION, read_description),
        ("backbone.yaml", BACKBONE, load_preset),
        ("templates.yaml", TEMPLATES, load_templates),
    ],
)
def test_yaml(tmp_path, name, document, read):
    files = {name: yaml.safe_dump(document).encode()}
    attack(tmp_path, files, lambda folder: read(folder / name), name)
