from __future__ import annotations

import json

import pytest
import torch
from shards_support import CLASSES, SIDE, make_dataset, media_folder

from avfewshot.data.clip_source import read_start
from avfewshot.data.shards.codec import decode_members, encode_members
from avfewshot.data.shards.record import ClipRecord, DamagedClipError
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.media.clip_cache import rounded

DATASET = make_dataset()
SAMPLE = DATASET.samples[2]


def encoded(name: str = "both.mp4", **options) -> tuple[Clip, dict[str, bytes]]:
    clip = read_start(media_folder() / name, frame_size=SIDE, **options)
    return clip, encode_members(clip, ClipRecord.of(SAMPLE, CLASSES, clip))


def test_sound_comes_back_to_the_bit_of_its_rounding(tmp_path):
    clip, members = encoded()
    again, _ = decode_members(members, tmp_path)
    assert torch.equal(again.waveform, rounded(clip.waveform))
    assert (again.waveform - clip.waveform).abs().max() <= 2**-16


def test_extreme_samples_survive(tmp_path):
    wave = torch.tensor([-1.0, 1.0, 0.0, 2**-15]).repeat(SAMPLE_RATE // 4)
    clip = Clip(tmp_path, 1.0, 0, None, wave)
    again, _ = decode_members(encode_members(clip, ClipRecord.of(SAMPLE, CLASSES, clip)), tmp_path)
    assert again.waveform[:4].tolist() == [-1.0, 1 - 2**-15, 0.0, 2**-15]


def test_pictures_come_back_within_what_jpeg_loses(tmp_path):
    clip, members = encoded()
    again, _ = decode_members(members, tmp_path)
    assert again.frames.shape == clip.frames.shape
    assert (again.frames.float() - clip.frames.float()).abs().mean() < 3
    # Each second has a picture of its own; they must not be exchanged.
    assert (clip.frames[0].float() - clip.frames[1].float()).abs().mean() > 10


def test_lower_quality_takes_less_room():
    clip, members = encoded()
    smaller = encode_members(clip, ClipRecord.of(SAMPLE, CLASSES, clip), quality=40)
    assert len(smaller["0.jpg"]) < len(members["0.jpg"])


@pytest.mark.parametrize(
    ("name", "members", "seen", "heard"),
    [
        ("both.mp4", {"0.jpg", "1.jpg", "flac", "json"}, True, True),
        ("seen.mp4", {"0.jpg", "1.jpg", "json"}, True, False),
        ("heard.wav", {"flac", "json"}, False, True),
    ],
)
def test_modalities_that_a_file_lacks_are_lacking(tmp_path, name, members, seen, heard):
    _, found = encoded(name)
    assert set(found) == members
    clip, record = decode_members(found, tmp_path)
    assert (clip.frames is not None, clip.waveform is not None) == (seen, heard)
    assert (record.frame_side, record.has_sound) == (SIDE if seen else None, heard)


def test_record_holds_all_that_is_known_of_a_sample():
    clip, members = encoded()
    record = ClipRecord.parse(members["json"])
    assert record.id == "train/a.b/2.mp4"
    assert record.labels == ("violin/fiddle",)
    assert record.segments == ("violin/fiddle", None)
    assert [(e.label, e.onset, e.offset, e.modality) for e in record.events] == [("violin/fiddle", 0, 1, "audio")]
    assert (record.split, record.row, record.youtube_id, record.start, record.end) == (
        "train",
        2,
        "-bbbbbbbbbb",
        20.0,
        22.0,
    )
    assert record.duration == clip.duration
    assert json.loads(members["json"])["version"] == 1


def test_only_the_first_seconds_are_kept_and_said_to_be_a_part(tmp_path):
    _, members = encoded(seconds=1)
    clip, record = decode_members(members, tmp_path)
    assert (clip.num_segments, clip.last, record.whole) == (1, False, False)
    assert clip.duration == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", ["json", "0.jpg", "flac"])
def test_missing_and_damaged_members_are_told(tmp_path, name):
    _, members = encoded()
    with pytest.raises(DamagedClipError, match="member"):
        decode_members({key: value for key, value in members.items() if key != name}, tmp_path)
    with pytest.raises(DamagedClipError):
        decode_members({**members, name: b"\x00" + members[name][:40]}, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"frame_side": 16}, {"seconds": 1, "frame_side": None}, {"duration": "long"}, {"labels": [1]}]
)
def test_a_record_that_does_not_fit_is_damage(tmp_path, changes):
    _, members = encoded()
    document = json.loads(members["json"]) | changes
    with pytest.raises(DamagedClipError):
        decode_members({**members, "json": json.dumps(document).encode()}, tmp_path)


def test_ids_that_are_not_valid_utf8_survive():
    clip, _ = encoded("heard.wav")
    record = ClipRecord.of(SAMPLE, CLASSES, clip)
    odd = ClipRecord(**{**record.__dict__, "id": "na\udcefve.mp4"})
    assert ClipRecord.parse(odd.to_json()).id == "na\udcefve.mp4"
