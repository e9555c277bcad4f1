"""Resamples of clips, and each statistic on a resample against scikit-learn on the clips drawn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from avfewshot.evaluation.bootstrap import (
    MacroF1,
    MeanAveragePrecision,
    Ratio,
    distribution,
    estimate,
    interval,
    resample,
)


def drawn_rows(counts: np.ndarray, replicate: int, clips: np.ndarray) -> np.ndarray:
    """Row numbers of one resample, rows of clips drawn twice occurring twice."""
    return np.repeat(np.arange(len(clips)), counts[clips, replicate].astype(int))


@pytest.fixture
def scene() -> dict[str, np.ndarray]:
    """Fifteen clips of four seconds, five classes of which the last never occurs; scores with ties."""
    rng = np.random.default_rng(4)
    clips = np.repeat(np.arange(15), 4)
    labels = rng.random((60, 5)) < 0.25
    labels[:, 4] = False
    labels[:, 3] = clips == 7  # so rare that some resamples lack it
    scores = (rng.random((60, 5)) + labels * 0.5).round(1)
    counts = resample(np.arange(15), 40, 5)
    return {"clips": clips, "labels": labels, "scores": scores, "answers": scores > 0.8, "counts": counts}


def test_resamples_draw_as_many_clips_as_there_are_and_are_seeded():
    counts = resample(np.arange(9), 50, 1)
    assert counts.shape == (9, 50)
    assert (counts.sum(0) == 9).all()
    assert counts.mean() == pytest.approx(1)
    assert (counts == resample(np.arange(9), 50, 1)).all()
    assert (counts != resample(np.arange(9), 50, 2)).any()
    assert (counts[:, :10] == resample(np.arange(9), 10, 1)).all()
    counts = resample(np.array([0, 1, 0, 2]), 30, 0)  # rows of one clip are drawn together
    assert (counts[0] == counts[2]).all()
    assert (counts[0] != counts[1]).any()


def test_share_by_hand_and_of_nothing_it_is_not_defined():
    counts = np.array([[1, 2, 0], [1, 0, 2]], dtype=np.float32)
    share = Ratio(np.array([3, 1]), np.array([4, 2]))
    assert share.value() == pytest.approx(4 / 6)
    assert share.replicates(counts) == pytest.approx([4 / 6, 6 / 8, 2 / 4])
    assert np.isnan(Ratio(np.array([0, 1]), np.array([0, 2])).replicates(counts)[1])
    assert np.isnan(Ratio(np.zeros(2), np.zeros(2)).value())


def mean_average_precision(labels, scores) -> float:
    return np.mean([average_precision_score(labels[:, k], scores[:, k]) for k in labels.any(0).nonzero()[0]])


def macro_f1(labels, answers) -> float:
    return f1_score(labels, answers, labels=labels.any(0).nonzero()[0], average="macro", zero_division=0)


@pytest.mark.parametrize(
    ("statistic", "said", "figure"),
    [(MacroF1, "answers", macro_f1), (MeanAveragePrecision, "scores", mean_average_precision)],
)
def test_figures_agree_with_scikit_learn_on_every_resample(scene, statistic, said, figure):
    labels, values, clips, counts = scene["labels"], scene[said], scene["clips"], scene["counts"]
    found = statistic(values, labels, clips)
    assert found.value() == pytest.approx(figure(labels, values))
    drawn = [drawn_rows(counts, r, clips) for r in range(40)]
    assert found.replicates(counts) == pytest.approx([figure(labels[rows], values[rows]) for rows in drawn])
    assert (counts[7] == 0).any()  # the rare class was absent from some


def test_many_resamples_are_handled_in_blocks(scene):
    counts = resample(np.arange(15), 600, 5)
    statistic = MeanAveragePrecision(scene["scores"], scene["labels"], scene["clips"])
    assert statistic.replicates(counts)[:40] == pytest.approx(statistic.replicates(scene["counts"]))
    assert np.isfinite(statistic.replicates(counts)).all()


def test_no_class_no_figure():
    none = np.zeros((2, 2), dtype=bool)
    counts = resample(np.arange(2), 3, 0)
    for statistic in (MacroF1(none, none, np.arange(2)), MeanAveragePrecision(none * 1.0, none, np.arange(2))):
        assert np.isnan(statistic.value())
        assert np.isnan(statistic.replicates(counts)).all()


def test_interval_of_a_share_is_that_of_the_binomial_and_wider_when_clips_are_drawn_than_their_seconds():
    low, high = interval(Ratio(np.arange(400) < 240).replicates(resample(np.arange(400), 2000, 0)))
    reach = 1.96 * np.sqrt(0.6 * 0.4 / 400)
    assert (low, high) == pytest.approx((0.6 - reach, 0.6 + reach), abs=0.006)
    # Ten alike seconds a clip are no ten clips.
    seconds = Ratio(np.repeat(np.arange(40) < 24, 10))
    rows = (np.repeat(np.arange(40), 10), np.arange(400))
    by_clip, by_second = (interval(seconds.replicates(resample(groups, 500, 0))) for groups in rows)
    assert by_clip[1] - by_clip[0] > 2.5 * (by_second[1] - by_second[0])


def test_intervals_of_rare_classes_hold_the_figure():
    # A hundred classes of about four clips: a clip drawn twice ranks beside itself, so resamples look too good.
    rng = np.random.default_rng(0)
    labels = np.eye(100, dtype=bool)[rng.integers(100, size=400)]
    statistic = MeanAveragePrecision(rng.normal(size=(400, 100)) + labels, labels, np.arange(400))
    counts = resample(np.arange(400), 200, 0)
    raw = statistic.replicates(counts)
    assert interval(raw)[0] > statistic.value()
    centred = distribution(statistic, counts)
    low, high = interval(centred)
    assert low < statistic.value() < high
    assert centred.std() == pytest.approx(raw.std())
    share = Ratio(labels[:, 0])
    assert (distribution(share, counts) == share.replicates(counts)).all()


def test_intervals_stay_within_what_is_possible_and_need_resamples_and_a_value():
    replicates = np.array([0.5, 1.2, -0.2, 0.9])
    assert (estimate(0.6, replicates, 4).low, estimate(0.6, replicates, 4).high) == (0, 1)
    assert estimate(-0.6, replicates - 1.4, 4, lowest=-1.0).low == -1
    assert estimate(0.5, np.array([]), 9).interval is None
    assert estimate(float("nan"), np.array([0.1, 0.2]), 9).value is None
    assert estimate(0.5, np.array([np.nan, np.nan]), 9).low is None
    found = estimate(0.5, np.array([0.4, np.nan, 0.6]), 9)
    assert (found.low, found.high) == pytest.approx((0.405, 0.595))
    assert (found.n, found.interval) == (9, "bootstrap")
