"""Streaming embedding over stand-in towers: batches across files, chunks, failures, memory that runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from standin_towers import make_backbone, make_inputs

from avfewshot.errors import AvfsError
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.media.clip import Failure
from avfewshot.models.audio_visual import AudioVisualModel

CPU = torch.device("cpu")


@pytest.fixture
def model() -> AudioVisualModel:
    return AudioVisualModel(make_backbone())


def clip(name: str, segments: int, *, modality: str = "av", last: bool = True, seed: int = 0, warnings=()):
    frames, audio = make_inputs(1, segments, seed)
    return SimpleNamespace(
        path=name,
        duration=float(segments),
        frames=frames[0] if modality != "audio" else None,
        audio_segments=audio[0] if modality != "visual" else None,
        warnings=warnings,
        last=last,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_files_that_share_batches_come_out_whole_and_in_order(model, batch_size):
    clips = [clip("a", 5, seed=1), clip("b", 1, seed=2), clip("c", 7, modality="audio", seed=3), clip("d", 2, seed=4)]

    files = list(Embedder(model, CPU, batch_size).embed(clips))

    assert [file.path for file in files] == ["a", "b", "c", "d"]
    assert files[2].visual is None
    for file, source in zip(files, clips, strict=True):
        assert file.duration == source.duration
        torch.testing.assert_close(file.audio, model(None, source.audio_segments[None])[1][0])
        if source.frames is not None:
            torch.testing.assert_close(file.visual, model(source.frames[None], None)[0][0])


@pytest.mark.parametrize("batch_size", [2, 100])
def test_chunks_of_a_long_file_become_one_with_each_warning_once(model, batch_size):
    chunks = [clip("long", 3, last=False, seed=number, warnings=("odd",)) for number in range(4)]
    chunks.append(clip("long", 1, seed=9, warnings=("odd", "end")))

    files = list(Embedder(model, CPU, batch_size).embed(chunks))

    assert len(files) == 1
    expected = torch.cat([model(chunk.frames[None], None)[0][0] for chunk in chunks])
    torch.testing.assert_close(files[0].visual, expected)
    assert files[0].audio.shape == (13, 7)
    assert files[0].warnings == ("odd", "end")


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_file_that_breaks_off_is_one_failure_and_the_others_go_on(model, batch_size):
    items = [
        clip("good", 2, seed=1),
        clip("bad", 3, last=False, seed=2),
        Failure("bad", "the file ends too early"),
        Failure("worse", "no such file"),
        clip("fine", 2, seed=3),
    ]

    files = list(Embedder(model, CPU, batch_size).embed(items))

    assert [file.path for file in files] == ["good", "bad", "worse", "fine"]
    assert files[1:3] == [Failure("bad", "the file ends too early"), Failure("worse", "no such file")]
    torch.testing.assert_close(files[3].visual, model(items[4].frames[None], None)[0][0])


def counted(items: list, taken: list) -> Iterator:
    for item in items:
        taken.append(item)
        yield item


def test_results_stream_while_input_is_still_coming(model):
    taken: list = []
    stream = Embedder(model, CPU, 4).embed(counted([clip(str(i), 2, seed=i) for i in range(50)], taken))

    for number, file in enumerate(stream):
        assert file.path == str(number)
        assert len(taken) <= number + 3  # a batch of two clips, and the one that filled it


def test_a_rare_modality_does_not_hold_up_the_others(model):
    taken: list = []
    items = [clip("av", 1)] + [clip(str(i), 4, modality="audio", seed=i) for i in range(20)]

    first = next(Embedder(model, CPU, 4).embed(counted(items, taken)))

    assert first.path == "av"
    assert len(taken) == 2


class SmallDevice(torch.nn.Module):
    """A model that has room for so many segments."""

    def __init__(self, model: AudioVisualModel, room: int, message: str | None = None) -> None:
        super().__init__()
        self.model, self.room, self.message, self.tried = model, room, message, []
        self.adapters = model.adapters

    def forward(self, frames, audio):
        size = len(audio if frames is None else frames)
        self.tried.append(size)
        if size > self.room:
            raise RuntimeError(self.message) if self.message else torch.OutOfMemoryError("out of memory")
        return self.model(frames, audio)


@pytest.mark.parametrize("message", [None, "MPS backend out of memory (MPS allocated: 1 GB)"])
def test_running_out_of_memory_halves_the_batch_and_goes_on(model, caplog, message):
    small = SmallDevice(model, 3, message)
    source = clip("a", 20)
    embedder = Embedder(small, CPU, 16)
    with caplog.at_level(logging.WARNING, "avfewshot"):
        (file,) = embedder.embed([source])

    torch.testing.assert_close(file.visual, model(source.frames[None], None)[0][0])
    torch.testing.assert_close(file.audio, model(None, source.audio_segments[None])[1][0])
    assert embedder.batch_size == 2
    assert small.tried[:4] == [16, 8, 4, 2]
    assert max(small.tried[3:]) == 2  # it does not try the large size again
    assert [record.getMessage().split(";")[1] for record in caplog.records] == [
        " going on with 8.",
        " going on with 4.",
        " going on with 2.",
    ]


def test_a_batch_that_was_not_full_is_halved_from_what_it_was(model):
    small = SmallDevice(model, 3)

    list(Embedder(small, CPU, 16).embed([clip("a", 6, modality="audio")]))

    assert small.tried == [6, 3, 3]


def test_memory_for_not_even_one_segment_is_an_error_with_advice(model):
    with pytest.raises(AvfsError, match="single second") as caught:
        list(Embedder(SmallDevice(model, 0), CPU, 4).embed([clip("a", 3)]))

    assert "--device cpu" in caught.value.hint


def test_other_errors_are_not_taken_for_lack_of_memory(model):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(Embedder(SmallDevice(model, 0, "mat1 and mat2 shapes differ"), CPU, 4).embed([clip("a", 3)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_fail_that_file_alone(model, value):
    broken = clip("broken", 2)
    broken.audio_segments[1, 5] = value

    files = list(Embedder(model, CPU, 100).embed([clip("a", 2), broken, clip("b", 2)]))

    assert [type(file) for file in files] == [EmbeddedFile, Failure, EmbeddedFile]
    assert "audio" in files[1].error


def test_embeddings_are_ordinary_tensors_that_can_take_part_in_training(model):
    (file,) = Embedder(model, CPU).embed([clip("a", 2)])

    weight = torch.ones(6, requires_grad=True)
    (file.visual * weight).sum().backward()

    assert not file.visual.is_inference()
    torch.testing.assert_close(weight.grad, file.visual.sum(0))
