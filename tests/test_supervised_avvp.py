"""LLP parsed by second: the published F-scores and reference lines, HAN and MGN."""

from pathlib import Path

import numpy as np
import pytest
import torch

from avfewshot.data.load import load_dataset
from avfewshot.evaluation.published import parsing_scores, runs
from avfewshot.supervised.avvp import HAN, MGN

OFFICIAL = Path(__file__).parents[2] / "shared/data/LLP"
NAMES = ("A", "V", "AV", "Type", "Event")


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no official LLP files here")
def test_reference_lines_on_the_official_files():
    dataset = load_dataset("llp_cls", OFFICIAL, find_media=False)
    test = dataset.split("test")
    truth = [(dataset.event_matrix(s, "audio"), dataset.event_matrix(s, "visual")) for s in test]
    nothing = np.zeros((10, 25), dtype=bool)
    speech = nothing.copy()
    speech[:, dataset.classes.index("Speech")] = True
    # Segment, then event: A, V, AV, Type@AV, Event@AV; Event@AV as 2TP/(2TP+FP+FN) of A and V together.
    expected = {
        "nothing": ([(nothing, nothing)] * 1200, (0.5, 10.1, 14.5, 8.4, 0.0), (0.5, 10.1, 14.5, 8.4, 0.0)),
        "Speech": ([(speech, nothing)] * 1200, (16.6, 10.1, 14.5, 13.7, 14.4), (9.3, 10.1, 14.5, 11.3, 7.7)),
        "labels": (
            [(np.tile(dataset.multi_hot([s]), (10, 1)),) * 2 for s in test],
            (76.1, 60.3, 52.6, 63.0, 71.7),
            (63.0, 55.8, 44.7, 54.5, 61.6),
        ),
        "truth": (truth, (100,) * 5, (100,) * 5),
    }
    for said, segment, event in expected.values():
        scores = parsing_scores(said, truth)
        assert [round(scores[f"segment_{name}"], 1) for name in NAMES] == list(segment)
        assert [round(scores[f"event_{name}"], 1) for name in NAMES] == list(event)


def stream(*spans, classes=2):
    active = np.zeros((10, classes), dtype=bool)
    for label, start, stop in spans:
        active[start:stop, label] = True
    return active


def test_scores_by_hand():
    assert runs(np.array([1, 1, 0, 1], dtype=bool)) == [(0, 2), (3, 4)]
    true = [(stream((0, 0, 4)), stream((0, 0, 2), (1, 5, 7)))]
    said = [(stream((0, 2, 6)), stream((0, 0, 4)))]
    scores = parsing_scores(said, true)
    # Heard: 2 of 4 seconds hit, 2 false, 2 missed. Seen: class 0 2/(2 + 1), class 1 missed.
    assert scores["segment_A"] == pytest.approx(50)
    assert scores["segment_V"] == pytest.approx(100 * (4 / 6 + 0) / 2)
    # Both at once: true 0-2, said 2-4.
    assert scores["segment_AV"] == 0
    # A and V counts together: class 0 hits 4, false 4, missed 2; class 1 missed.
    assert scores["segment_Event"] == pytest.approx(100 * (8 / 14 + 0) / 2)
    # As events: 2-6 against 0-4 has an IoU of a third, 0-4 against 0-2 of a half, which is enough.
    assert (scores["event_A"], scores["event_V"]) == (0, 50)
    assert scores["segment_Type"] == pytest.approx((scores["segment_A"] + scores["segment_V"]) / 3)


def clips(classes=4, count=8):
    draw = torch.Generator().manual_seed(1)
    truth = torch.zeros(count, 2, 10, classes)
    for row in range(count):
        for modality, label in ((0, row % classes), (1, (row // 2) % classes)):
            start = int(torch.randint(0, 6, (), generator=draw))
            truth[row, modality, start : start + 4, label] = 1
    codes = torch.randn(2, classes, 24, generator=draw)
    audio, visual = (2 * truth[:, m] @ codes[m] + 0.3 * torch.randn(count, 10, 24, generator=draw) for m in (0, 1))
    return audio, visual, (truth.amax((1, 2)) > 0).float(), truth


@pytest.mark.parametrize("kind", ["han", "mgn"])
def test_heads_learn_eight_clips_from_their_labels(kind):
    torch.manual_seed(0)
    audio, visual, labels, _ = clips()
    small = {"dim": 32, "dropout": 0.0}
    head = HAN(24, [24], 4, **small) if kind == "han" else MGN(24, [24], 4, **small, heads=4, depths=(1, 1, 1))
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        head(audio, visual).loss(labels).backward()
        optimizer.step()
    head.eval()
    said = head(audio, visual)
    assert ((said.clip >= 0.5).float() == labels).all()
    heard, _ = said.answer()
    assert not (heard & ~(labels[:, None] > 0)).any()
    alone = head(audio[3:4], visual[3:4])
    for one, several in zip(alone[:-1], said[:-1], strict=True):
        assert torch.allclose(one[0], several[3], atol=1e-5)


def test_published_counts():
    with torch.device("meta"):
        assert sum(p.numel() for p in HAN(128, [2048, 512], 25).parameters()) == 4_569_675
        # Published 4.37 M; what the released code builds beside is not told.
        assert sum(p.numel() for p in MGN(128, [2048, 512], 25).parameters()) == pytest.approx(4.37e6, rel=0.02)


def test_pooling_is_the_attended_mean_of_seconds():
    torch.manual_seed(0)
    head = HAN(8, [8], 3, dim=16).eval()
    said = head(torch.randn(2, 10, 8), torch.randn(2, 10, 8))
    for seconds, clip in ((said.audio_seconds, said.audio), (said.visual_seconds, said.visual)):
        assert (seconds.amin(1) <= clip).all()
        assert (clip <= seconds.amax(1)).all()
    head.when.weight.data.zero_()
    head.when.bias.data.zero_()  # all seconds count the same: the mean of them
    said = head(torch.randn(2, 10, 8), torch.randn(2, 10, 8))
    assert torch.allclose(said.audio, said.audio_seconds.mean(1), atol=1e-6)
