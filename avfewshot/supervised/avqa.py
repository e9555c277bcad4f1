"""AVQA: questions about what is seen and heard in videos of music (MUSIC-AVQA, Li et al., CVPR 2022)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from avfewshot.data.dataset import SPLITS
from avfewshot.data.music_avqa import BlindPrior, Question, WordList, answer_list, load_music_avqa, split_words
from avfewshot.errors import DataError, UsageError
from avfewshot.evaluation.question_answering import accuracy_by_type
from avfewshot.supervised.base import Example, Features, Recipe, SupervisedTask, TaskData, ZeroShot

_WIDTHS = {"st-avqa": 512, "st-avqa-small": 128}
_LOG = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What is said to a question."""

    text: str
    probability: float


class QuestionTask(SupervisedTask):
    """A target is a :class:`Question`, what is given is its words as indices, a prediction is an :class:`Answer`."""

    name = "avqa"
    title = "audio-visual question answering (MUSIC-AVQA)"
    dataset = "avqa"
    headline = "accuracy"
    window = 60  # every sixth second of a minute, as published
    heads: ClassVar[Mapping[str, Recipe]] = {
        "st-avqa": Recipe(1e-4, 64, 80, (8, 16, 24), 0.1),
        "st-avqa-small": Recipe(2e-3, 64, 40, (26, 34), 0.3),
    }

    def needs(self, head: str) -> frozenset[str]:
        """Places, which the sound chooses among."""
        return frozenset({"places", "audio"})

    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """See :meth:`SupervisedTask.read`; subsets are the releases ``update`` and ``original``."""
        dataset = load_music_avqa(root, subset, media)
        train = dataset.usable("train")
        if not train:
            raise DataError(f"{root}: no video of a training question is here.", hint="Look at --root and --media.")
        words = WordList.of(train)
        splits = {
            split: [
                Example(f"{q.video}-{q.id}", dataset.videos[q.video], q, words.encode(q.words)[0])
                for q in dataset.usable(split)
            ]
            for split in SPLITS
        }
        about = {"answers": answer_list(train), "words": list(words.words)}
        return TaskData(splits, about, dataset.report.describe())

    def build_head(self, head: str, widths: Mapping[str, Any], about: Mapping[str, Any]) -> nn.Module:
        """ST-AVQA; it keeps its list of answers."""
        from avfewshot.heads.question_answering import STAVQA

        sizes = widths["places"], widths["audio"], len(about["words"]), len(about["answers"])
        built: Any = STAVQA(*sizes, dim=_WIDTHS[head])
        built.answers = tuple(about["answers"])
        return built

    def loss(self, head: Any, features: Features, examples: Sequence[Example]) -> Tensor:
        """Answers, and whether pictures belong to the sound: pictures of other videos of the batch do not."""
        places = features["places"]
        answers = [head.answers.index(example.target.answer) for example in examples]
        others = other_videos([example.path for example in examples])
        words, truth = _words(examples, places.device), torch.tensor(answers, device=places.device)
        return head.loss(places, features["audio"], words, truth, others)

    def predict(self, head: Any, features: Features, examples: Sequence[Example]) -> list[Any]:
        """The most probable answers."""
        logits = head(features["places"], features["audio"], _words(examples, features["places"].device))
        best = logits.softmax(-1).max(-1)
        return [
            Answer(head.answers[index], probability)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def metrics(
        self, predictions: Sequence[Any], examples: Sequence[Example], about: Mapping[str, Any]
    ) -> dict[str, float]:
        """Accuracy over all questions, by modality and by type."""
        said = accuracy_by_type([example.target for example in examples], [answer.text for answer in predictions])
        return {"accuracy": said.pop("all"), **said}

    def reference_lines(self, data: TaskData, zero_shot: ZeroShot | None) -> dict[str, list[Any]]:
        """What training questions say to somebody who neither looks nor listens."""
        train = [example.target for example in data.splits["train"]]
        prior = BlindPrior(train)
        answers = [question.answer for question in train]
        common = max(dict.fromkeys(answers), key=answers.count)
        test = data.splits["test"]
        return {
            f"always {common}": [Answer(common, 1.0) for _ in test],
            "blind prior of the template": [Answer(prior.answer(example.target), 1.0) for example in test],
        }

    def describe(self, prediction: Any, example: Example, about: Mapping[str, Any]) -> dict[str, Any]:
        """Question, answer, probability."""
        text = example.target.text if isinstance(example.target, Question) else example.target
        return {"question": text, "answer": prediction.text, "probability": round(prediction.probability, 4)}

    def ask(self, example: Example, question: str | None, about: Mapping[str, Any]) -> Example:
        """The example with a question that a person typed."""
        if question is None:
            hint = 'For example --question "How many instruments are sounding in the video?"'
            raise UsageError("What is the question?", hint=hint)
        ids, unknown = WordList(tuple(about["words"])).parse(question)
        if unknown:
            _LOG.warning("Words that no training question has were left out: %s.", ", ".join(unknown))
        return replace(example, target=" ".join(split_words(question)) + "?", given=ids)


def other_videos(paths: Sequence[Path]) -> list[int] | None:
    """For each row the next one, in a circle, of another video; None where all are of one."""
    if len(set(paths)) < 2:
        return None
    count = len(paths)
    return [
        next((row + step) % count for step in range(1, count) if paths[(row + step) % count] != paths[row])
        for row in range(count)
    ]


def _words(examples: Sequence[Example], device: torch.device) -> Tensor:
    return torch.tensor([example.given for example in examples], device=device)
