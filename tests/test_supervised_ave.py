"""AVE with labels by second: reference lines on the official files, and the CMBS head."""

from pathlib import Path

import numpy as np
import pytest
import torch

from avfewshot.data.load import load_dataset
from avfewshot.supervised.ave import CMBS
from avfewshot.supervised.base import Example, TaskData, load_task

OFFICIAL = Path(__file__).parents[2] / "shared/data/AVE"


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no official AVE files here")
def test_reference_lines_on_the_official_files():
    task, dataset = load_task("ave"), load_dataset("ave", OFFICIAL, find_media=False)
    splits = {
        split: [Example(s.id, Path(s.id), dataset.segment_labels(s)) for s in dataset.split(split)]
        for split in ("train", "val", "test")
    }
    data = TaskData(splits, {"classes": list(dataset.classes)})
    task._zero_shot = lambda *_: [np.zeros(10, int) for _ in splits["test"]]
    lines = {
        name: task.metrics(said, splits["test"], data.about)["segment_accuracy"]
        for name, said in task.reference_lines(data, lambda split: []).items()
    }
    assert lines["true class in all seconds"] == pytest.approx(82.21, abs=0.005)
    assert lines["always background"] == pytest.approx(17.79, abs=0.005)
    truth = np.stack([example.target for example in splits["test"]])
    assert max(100 * (truth == label).mean() for label in range(28)) == pytest.approx(4.43, abs=0.005)


def test_metrics_of_seconds():
    examples = [Example("a", Path("a"), np.array([0, 0, 2, 2])), Example("b", Path("b"), np.array([2, 1, 1, 1]))]
    said = [np.array([0, 2, 2, 0]), np.array([2, 1, 1, 0])]
    figures = load_task("ave").metrics(said, examples, {"classes": ["x", "y"]})
    assert figures == {"segment_accuracy": 62.5, "event_seconds": 60.0, "background_share": 37.5}


def clips(count=8, classes=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.arange(count) % classes
    there = torch.rand(count, 10, generator=draw) < 0.7
    there[:, 0] = True
    seconds = torch.where(there, kinds[:, None], classes)
    codes = torch.randn(classes + 1, 24, generator=draw)[seconds]
    places = codes[:, :, None] + 0.3 * torch.randn(count, 10, 9, 24, generator=draw)
    return places, codes[..., :16] + 0.3 * torch.randn(count, 10, 16, generator=draw), seconds


@pytest.mark.parametrize("weak", [False, True])
def test_cmbs_learns_eight_clips(weak):
    torch.manual_seed(0)
    places, audio, seconds = clips()
    head = CMBS(24, 16, 5, weak=weak, dim=32, dropout=0.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(head(places, audio), seconds).backward()
        optimizer.step()
    said = head.eval().answer(head(places, audio))
    right = said == seconds
    # Learnt from classes of clips, one answer is given to all seconds: those with an event are right.
    assert right[seconds < 5].all() if weak else right.float().mean() > 0.97
    # Whatever else is in the batch, a clip's answer stays.
    alone = head(places[3:4], audio[3:4])
    for one, all_ in zip(alone, head(places, audio), strict=True):
        assert torch.allclose(one[0], all_[3], atol=1e-5)


def test_cmbs_counts_and_silent_clips():
    # 13.54 M as released, of which 9.33 M are called (two copies of each layer, and self-attention, are not).
    assert sum(p.numel() for p in CMBS(512, 128, 28).parameters()) == pytest.approx(9.33e6, rel=0.05)
    places, audio, _ = clips()
    head = CMBS(24, 16, 5, dim=32)
    # A batch of clips in which nothing happens has a loss, which teaches no class.
    head.loss(head(places, audio), torch.full((8, 10), 5)).backward()
    assert torch.isfinite(head.relevance.weight.grad).all()
    assert head.event.weight.grad is None
    assert head.relevance.weight.grad.abs().sum() > 0
