"""Streaming embedding over stand-in towers: batches and windows across files, chunks, failures, want of memory."""

import itertools
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from standin_towers import make_backbone, make_inputs, stirred

from avfewshot.adapters.base import pair_towers
from avfewshot.adapters.dgsct import DGSCT
from avfewshot.adapters.settings import GuidanceSettings
from avfewshot.errors import AvfsError
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.media.clip import Failure
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.projectors import Projectors

CPU = torch.device("cpu")


@pytest.fixture
def plain() -> AudioVisualModel:
    return AudioVisualModel(make_backbone())


@pytest.fixture
def adapted() -> AudioVisualModel:
    """A model whose adapters say something that depends on the neighbouring seconds."""
    backbone = make_backbone()
    layers = pair_towers(backbone.visual, backbone.audio)
    adapters = DGSCT(layers, GuidanceSettings(hidden=8, gamma=2.0))
    return AudioVisualModel(backbone, stirred(adapters, 0.5)).eval()


@pytest.fixture(params=["plain", "adapted"])
def model(request) -> AudioVisualModel:
    return request.getfixturevalue(request.param)


def clip(name: str, segments: int, *, modality: str = "av", last: bool = True, seed: int = 0, warnings=()):
    frames, audio = make_inputs(1, segments, seed)
    frames, sound = frames[0] if modality != "audio" else None, audio[0] if modality != "visual" else None
    return SimpleNamespace(
        path=name, duration=float(segments), frames=frames, audio_segments=sound, warnings=warnings, last=last
    )


def chunks(source, *lengths: int) -> list:
    """The same clip as :func:`iter_clips` would give it in chunks of these lengths."""
    assert sum(lengths) == round(source.duration)
    parts, start = [], 0
    for stop in itertools.accumulate(lengths):
        cut = {name: getattr(source, name)[start:stop] for name in ("frames", "audio_segments")}
        parts.append(SimpleNamespace(**{**vars(source), **cut, "last": stop == source.duration}))
        start = stop
    return parts


def by_hand(model, source, window: int) -> tuple:
    """Each window of a clip through the model on its own."""
    results = ([], [])
    with torch.no_grad():
        for start in range(0, round(source.duration), window):
            inputs = [
                None if values is None else values[None, start : start + window]
                for values in (source.frames, source.audio_segments)
            ]
            for kept, embeddings in zip(results, model(*inputs), strict=True):
                kept.append(embeddings)
    return tuple(None if None in parts else torch.cat(parts, 1)[0] for parts in results)


def assert_as_by_hand(files, model, sources, window: int = 4) -> None:
    for file, source in zip(files, sources, strict=True):
        assert (file.path, file.duration) == (source.path, source.duration)
        for got, expected in zip((file.visual, file.audio), by_hand(model, source, window), strict=True):
            assert (got is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def watch(model, name: str = "audio") -> list:
    """What each pass through a model will be given as `name`."""
    passed: list = []
    model.register_forward_pre_hook(lambda _, args, kwargs: passed.append(kwargs.get(name)), with_kwargs=True)
    return passed


def counted(items: list, taken: list) -> Iterator:
    for item in items:
        taken.append(item)
        yield item


class SmallDevice(torch.nn.Module):
    """A model that has room for so many segments."""

    def __init__(self, model: AudioVisualModel, room: int, message: str | None = None) -> None:
        super().__init__()
        self.model, self.room, self.message, self.tried = model, room, message, []
        self.adapters = model.adapters

    def forward(self, frames, audio, **masks):
        self.tried.append((frames if audio is None else audio).shape[:2].numel())
        if self.tried[-1] > self.room:
            raise RuntimeError(self.message) if self.message else torch.OutOfMemoryError("out of memory")
        return self.model(frames, audio, **masks)


@pytest.mark.parametrize("batch_size", [1, 12, 100])
def test_files_that_share_batches_come_out_whole_and_in_order_as_each_alone(model, batch_size):
    sources = [clip("a", 9, seed=1), clip("b", 4, seed=2), clip("c", 1, seed=3), clip("d", 7, modality="audio", seed=4)]
    files = list(Embedder(model, CPU, batch_size, window=4).embed(sources))
    assert files[3].visual is None
    assert_as_by_hand(files, model, sources)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_chunks_of_a_long_file_become_one_with_each_warning_once(plain, batch_size):
    chunks = [clip("long", 3, last=False, seed=number, warnings=("odd",)) for number in range(4)]
    chunks.append(clip("long", 1, seed=9, warnings=("odd", "end")))
    files = list(Embedder(plain, CPU, batch_size).embed(chunks))
    assert len(files) == 1
    expected = torch.cat([plain(chunk.frames[None], None)[0][0] for chunk in chunks])
    torch.testing.assert_close(files[0].visual, expected)
    assert files[0].audio.shape == (13, 7)
    assert files[0].warnings == ("odd", "end")


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_file_that_breaks_off_is_one_failure_and_the_others_go_on(model, batch_size):
    good, bad, fine = clip("good", 3, seed=1), clip("bad", 6, last=False, seed=2), clip("fine", 5, seed=3)
    failures = [Failure("bad", "the file ends too early"), Failure("worse", "no such file")]
    first, *failed, last = Embedder(model, CPU, batch_size, window=4).embed([good, bad, *failures, fine])
    assert failed == failures
    assert_as_by_hand([first, last], model, [good, fine])


def test_results_stream_while_input_is_still_coming(plain):
    taken: list = []
    stream = Embedder(plain, CPU, 4).embed(counted([clip(str(i), 2, seed=i) for i in range(50)], taken))
    for number, file in enumerate(stream):
        assert file.path == str(number)
        assert len(taken) <= number + 3  # a batch of two clips, and the one that filled it


def test_a_rare_modality_does_not_hold_up_the_others(plain):
    taken: list = []
    items = [clip("av", 1)] + [clip(str(i), 4, modality="audio", seed=i) for i in range(20)]
    first = next(Embedder(plain, CPU, 4).embed(counted(items, taken)))
    assert first.path == "av"
    assert len(taken) == 2


@pytest.mark.parametrize("message", [None, "MPS backend out of memory (MPS allocated: 1 GB)"])
def test_running_out_of_memory_halves_the_batch_and_goes_on(plain, caplog, message):
    small, source = SmallDevice(plain, 3, message), clip("a", 20)
    embedder = Embedder(small, CPU, 16)
    with caplog.at_level(logging.WARNING, "avfewshot"):
        assert_as_by_hand(embedder.embed([source]), plain, [source], 20)
    assert embedder.batch_size == 2
    assert small.tried[:4] == [16, 8, 4, 2]
    assert max(small.tried[3:]) == 2  # it does not try the large size again
    told = [record.getMessage().split(";")[1] for record in caplog.records]
    assert told == [f" going on with {size}." for size in (8, 4, 2)]
    small.tried.clear()
    list(Embedder(small, CPU, 16).embed([clip("a", 6, modality="audio")]))
    assert small.tried == [6, 3, 3]  # a batch that was not full is halved from what it was


@pytest.mark.parametrize(
    ("which", "room", "said"), [("plain", 0, "single second"), ("adapted", 3, "window of 4 seconds")]
)
def test_memory_for_not_even_one_is_an_error_with_advice(request, which, room, said):
    small = SmallDevice(request.getfixturevalue(which), room)
    with pytest.raises(AvfsError, match=f"{said}.*--device cpu"):
        list(Embedder(small, CPU, 8, window=4).embed([clip("a", 8)]))


def test_other_errors_are_not_taken_for_lack_of_memory(model):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(Embedder(SmallDevice(model, 0, "mat1 and mat2 shapes differ"), CPU, 4).embed([clip("a", 3)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_fail_that_file_alone(model, value):
    broken = clip("broken", 4)
    broken.audio_segments[1, 5] = value
    files = list(Embedder(model, CPU, 100, window=4).embed([clip("a", 4), broken, clip("b", 4)]))
    assert [type(file) for file in files] == [EmbeddedFile, Failure, EmbeddedFile]
    assert "embeddings hold numbers that are not finite" in files[1].error


def test_embeddings_are_ordinary_tensors_that_can_take_part_in_training(model):
    (file,) = Embedder(model, CPU).embed([clip("a", 2)])
    weight = torch.ones(6, requires_grad=True)
    (file.visual * weight).sum().backward()
    assert not file.visual.is_inference()
    torch.testing.assert_close(weight.grad, file.visual.sum(0))


def test_windows_of_mixed_lengths_that_come_back_out_of_order_are_put_in_order(adapted):
    # Four windows of three seconds fill a batch while the four-second window before the last of them still waits.
    sources = [*(clip(f"short {seed}", 3, seed=seed) for seed in range(3)), clip("mixed", 7, seed=4)]
    passed = watch(adapted)
    files = list(Embedder(adapted, CPU, 12, window=4).embed(sources))
    assert [audio.shape[1] for audio in passed] == [3, 4]
    assert_as_by_hand(files, adapted, sources)


def test_adapters_see_whole_windows_and_not_single_seconds(adapted):
    source = clip("a", 8, seed=1)
    (file,) = Embedder(adapted, CPU, 100, window=4).embed([source])
    single = by_hand(adapted, source, 1)
    assert (file.visual - single[0]).abs().max() > 1e-3
    assert (file.audio - single[1]).abs().max() > 1e-3


@pytest.mark.parametrize("lengths", [(11,), (3, 8), (4, 4, 3), (1,) * 11, (10, 1)])
def test_windows_are_counted_from_the_beginning_of_the_file_however_it_is_chunked(adapted, lengths):
    source = clip("long", 11, seed=5)
    for window, options in ((4, {"window": 4}), (10, {})):  # ten seconds unless told otherwise
        files = Embedder(adapted, CPU, 8, **options).embed(chunks(source, *lengths))
        assert_as_by_hand(files, adapted, [source], window)


def test_a_clip_without_a_modality_is_masked_among_others_and_has_no_embeddings_of_it(adapted):
    kinds = [("both", 4, "av"), ("mute", 4, "visual"), ("dark", 6, "audio"), ("more", 4, "av")]
    sources = [clip(name, length, modality=kind, seed=seed) for seed, (name, length, kind) in enumerate(kinds)]
    files = list(Embedder(adapted, CPU, 100, window=4).embed(sources))
    assert files[1].audio is None
    assert files[2].visual is None
    assert_as_by_hand(files, adapted, sources)


def test_clips_that_all_lack_a_modality_run_without_it(adapted):
    passed = watch(adapted)
    sources = [clip(str(seed), 4, modality="visual", seed=seed) for seed in range(3)]
    files = list(Embedder(adapted, CPU, 100, window=4).embed(sources))
    assert passed == [None]
    assert_as_by_hand(files, adapted, sources)


def test_windows_of_one_length_share_a_batch_across_files(adapted):
    passed = watch(adapted)
    list(Embedder(adapted, CPU, 8, window=4).embed([clip(str(seed), 6, seed=seed) for seed in range(4)]))
    assert sorted(audio.shape[:2] for audio in passed) == [(2, 4), (2, 4), (4, 2)]


def test_a_window_of_a_rare_length_does_not_hold_up_the_others_for_long(adapted):
    taken: list = []
    items = [clip("rare", 3)] + [clip(str(seed), 4, seed=seed) for seed in range(60)]
    first = next(Embedder(adapted, CPU, 8, window=4).embed(counted(items, taken)))
    assert first.path == "rare"
    assert len(taken) <= 10  # 4 x 8 seconds, and the clip that made it too long


def test_windows_of_many_lengths_do_not_pile_up(adapted):
    taken: list = []
    items = [clip(str(length), length, seed=length) for length in range(1, 31)]
    stream = Embedder(adapted, CPU, 30, window=30).embed(counted(items, taken))
    next(stream)
    assert sum(item.duration for item in taken) <= 4 * 30 + 30


def test_running_out_of_memory_halves_the_windows_at_once_and_keeps_masks_with_their_clips(adapted):
    small = SmallDevice(adapted, 8)
    sources = [clip(str(seed), 4, modality="audio" if seed == 3 else "av", seed=seed) for seed in range(6)]
    embedder = Embedder(small, CPU, 24, window=4)
    assert_as_by_hand(embedder.embed(sources), adapted, sources)
    assert small.tried == [24, 12, 4, 4, 4, 4, 4, 4]
    assert embedder.batch_size == 4


def test_projectors_without_adapters_need_no_windows():
    model, source = AudioVisualModel(make_backbone(), projectors=Projectors(6, 7, kind="mlp")), clip("a", 7)
    expected = model(source.frames[None], None)[0][0].detach()
    seen = watch(model, "frames")
    (file,) = Embedder(model, CPU, 3, window=4).embed([source])
    assert [tuple(frames.shape[:2]) for frames in seen if frames is not None] == [(3, 1), (3, 1), (1, 1)]
    torch.testing.assert_close(file.visual, expected)


def test_a_window_of_no_length_is_refused(adapted):
    with pytest.raises(ValueError, match="at least one second"):
        Embedder(adapted, CPU, window=0)
