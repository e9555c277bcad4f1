"""Small hand-made annotation files, and the official ones where they are at hand."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml

from avfewshot.data.dataset import DatasetReport

OFFICIAL = Path(__file__).resolve().parents[2] / "shared" / "data"

AVE_FILES = {
    "trainSet.txt": (
        "Church bell&aaaaaaaaaaa&good&0&10\n"
        "Male speech, man speaking&-bbbbbbbbbb&good&2&5\n"
        "Church bell&ccccccccccc&good&0&0\n"
        "Frying (food)&ddddddddddd&good&6&8\n"
        "Cat&eeeeeeeeeee&good&0&10"  # no final newline, as in one fork
    ),
    "valSet.txt": "Church bell&fffffffffff&good&0&10\nCat&ggggggggggg&good&1&9\n",
    "testSet.txt": "Church bell&hhhhhhhhhhh&good&0&5\nBark&-bbbbbbbbbb&good&2&5\n",
}

LLP_FILES = {
    "AVVP_train.csv": (
        "filename\tevent_labels\n"
        "aaaaaaaaaaa_20_30\tSpeech,Dog\n"
        "-bbbbbbbbbb_101.8_111.8\tCello\n"
        "ccccccccccc_0_10\tDog\n"
        "ddddddddddd_5_15\tFrying_(food)\n"
    ),
    "AVVP_val_pd.csv": "filename\tevent_labels\neeeeeeeeeee_0_10\tCat\n",
    "AVVP_test_pd.csv": (
        "filename\tevent_labels\nfffffffffff_0_10\tClapping,Clapping\nggggggggggg_30_40\tSpeech,Violin_fiddle\n"
    ),
    "AVVP_eval_audio.csv": (
        "filename\tonset\toffset\tevent_labels\n"
        "eeeeeeeeeee_0_10\t0\t4\tCat\n"
        "fffffffffff_0_10\t3\t5\tClapping\n"
        "fffffffffff_0_10\t3\t5\tClapping\n"
        "ggggggggggg_30_40\t9\t9\tSpeech\n"
        "ggggggggggg_30_40\t9\t0\tSpeech\n"
        "ggggggggggg_30_40\t0\t10\tSpeech\n"
        "Baby_cry_infant_cry\t0\t4\tSpeech\n"
        "ggggggggggg_30_40`\t0\t1\tCat\n"
        "zzzzzzzzzzz_0_10\t0\t10\tSpeech\n"
    ),
    "AVVP_eval_visual.csv": (
        "filename\tonset\toffset\tevent_labels\nfffffffffff_0_10\t4\t8\tClapping\nggggggggggg_30_40\t2\t4\tViolin_fiddle\n"
    ),
}


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write text or bytes files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_description(folder: Path, **changes: object) -> Path:
    """Write a valid ``dataset.yaml`` in AVE's layout with some keys changed; a value of None removes the key."""
    document: dict[str, object] = {
        "format": 1,
        "name": "ave",
        "title": "mine",
        "reader": "ave",
        "tasks": ["ave", "ave_cls"],
        "classes": [{"name": "red square", "wording": "a red square"}, {"name": "drum, snare", "wording": "a snare"}],
        "files": [{"role": split, "names": [f"{split}Set.txt"]} for split in ("train", "val", "test")],
    }
    document |= changes
    document = {key: value for key, value in document.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def touch(root: Path, paths: Iterable[str], content: bytes = b"x") -> None:
    """Make small files."""
    write_files(root, dict.fromkeys(paths, content))


def official(folder: str) -> Path:
    """A folder of official annotation files; skips the test where it is absent."""
    if not (OFFICIAL / folder).is_dir():
        pytest.skip(f"the official annotation files of {folder} are not in {OFFICIAL}")
    return OFFICIAL / folder


def counts(report: DatasetReport) -> dict[str, int]:
    """Count of each code, summed."""
    totals: dict[str, int] = {}
    for finding in report.findings:
        totals[finding.code] = totals.get(finding.code, 0) + finding.count
    return totals
