"""Accuracy of answers to questions, by type, as published for MUSIC-AVQA."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from avfewshot.data.music_avqa import Question


def accuracy_by_type(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Percentage of right answers.

    Returns:
        ``all`` over all questions (micro), then each modality ("Audio", ...) and each type ("Audio Counting", ...) that
        occurs, sorted.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        for key in ("all", question.type[0], question.key):
            right[key].append(answer == question.answer)
    return {key: 100 * sum(right[key]) / len(right[key]) for key in sorted(right, key=lambda key: (key != "all", key))}
