"""AVQA: questions about what is seen and heard in videos of music (MUSIC-AVQA, Li et al., CVPR 2022).

The head is their ST-AVQA (section 4). The question and the sound choose places in each second (spatial grounding) and
seconds in the clip (temporal grounding); what is chosen answers the question. Beside the answer, the head learns
whether a picture and a sound belong together, from pictures of other videos.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.data.dataset import SPLITS
from avfewshot.data.music_avqa import BlindPrior, Question, WordList, answer_list, load_music_avqa, split_words
from avfewshot.errors import DataError, UsageError
from avfewshot.supervised.base import Example, Features, Recipe, SupervisedTask, TaskData, TaskHead, ZeroShot

_MATCH_WEIGHT = 0.5  # of the matching loss beside the answer's
_LOG = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What is said to a question."""

    text: str
    probability: float


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


class QuestionEncoder(nn.Module):
    """Word indices ``[B, W]``, 0 behind the last word, to ``[B, dim]``. Padding is not read; the release reads it."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, words: Tensor) -> Tensor:
        """Encode questions of one word or more, int64 ``[B, W]`` to ``[B, dim]``."""
        lengths = (words > 0).sum(1).clamp(min=1).cpu()
        embedded = torch.tanh(self.embedding(words))
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        hidden, cell = self.lstm(packed)[1]
        return self.out(torch.tanh(torch.cat([hidden[-1], cell[-1]], dim=-1)))


class _TemporalGrounding(nn.Module):
    """The question attends to seconds."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, 4, dropout=0.1, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(0.1), nn.Linear(dim, dim), nn.Dropout(0.1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, question: Tensor, seconds: Tensor) -> Tensor:
        """``[B, dim]`` and ``[B, T, dim]`` to ``[B, dim]``: what was attended to beside the mean of all seconds."""
        attended = self.attention(question[:, None], seconds, seconds, need_weights=False)[0][:, 0]
        return self.norm(attended + self.feed(attended)) + seconds.mean(1)


class STAVQA(TaskHead):
    """The head, for so many words, the padding among them, and answers.

    Before places of another width than `dim`, that of everything inside, stands a linear map.
    """

    recipe = Recipe(1e-4, 64, 80, (8, 16, 24), 0.1)
    needs = frozenset({"places", "audio"})
    dim = 512
    answers: tuple[str, ...] = ()  # as texts

    def __init__(
        self, visual_width: int, audio_width: int, words: int, answers: int, *, dim: int | None = None
    ) -> None:
        super().__init__()
        dim = dim or self.dim
        self.question = QuestionEncoder(words, dim)
        self.visual = nn.Identity() if visual_width == dim else nn.Linear(visual_width, dim)
        self.audio = nn.Sequential(nn.Linear(audio_width, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.ground = nn.Linear(2 * dim, dim)
        widths = (2 * dim, dim, dim // 2, dim // 4)
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.match = nn.Sequential(*layers, nn.Linear(widths[-1], 2))
        self.visual_time, self.audio_time = _TemporalGrounding(dim), _TemporalGrounding(dim)
        self.fuse = nn.Linear(2 * dim, dim)
        self.answer = nn.Linear(dim, answers)

    @classmethod
    def build(cls, widths: Mapping[str, Any], about: Mapping[str, Any]) -> STAVQA:
        """See :meth:`TaskHead.build`."""
        built = cls(widths["places"], widths["audio"], len(about["words"]), len(about["answers"]))
        built.answers = tuple(about["answers"])
        return built

    def forward(self, places: Tensor, audio: Tensor, words: Tensor) -> Tensor:
        """Logits of the answers ``[B, answers]``.

        Places are ``[B, T, P, C_v]``, P of a picture, sound ``[B, T, C_a]``, words int64 ``[B, W]``.
        """
        sound = self.audio(audio)
        return self._answer(self._grounded(self.visual(places), sound), sound, words)

    def loss(self, features: Features, examples: Sequence[Example]) -> Tensor:
        """Answers, and whether pictures belong to the sound: pictures of other videos of the batch do not."""
        places = features["places"]
        answers = [self.answers.index(example.target.answer) for example in examples]
        others = other_videos([example.path for example in examples])
        words, truth = _words(examples, places.device), torch.tensor(answers, device=places.device)
        return self.loss_of(places, features["audio"], words, truth, others)

    def predict(self, features: Features, examples: Sequence[Example]) -> list[Any]:
        """The most probable answers."""
        logits = self(features["places"], features["audio"], _words(examples, features["places"].device))
        best = logits.softmax(-1).max(-1)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [Answer(self.answers[index], probability) for probability, index in pairs]

    def loss_of(
        self, places: Tensor, audio: Tensor, words: Tensor, answers: Tensor, others: Sequence[int] | None
    ) -> Tensor:
        """Cross-entropy of the answers, int64 ``[B]``, and of whether pictures belong to the sound.

        The first three are as for :meth:`forward`. `others` has for each row one whose pictures are of another video;
        None: matching is not learnt from.
        """
        pictures, sound = self.visual(places), self.audio(audio)
        visual = self._grounded(pictures, sound)
        loss = F.cross_entropy(self._answer(visual, sound, words), answers)
        if others is None:
            return loss
        wrong = self._grounded(pictures[others], sound)
        pairs = torch.cat([torch.cat([sound, picture], dim=-1).flatten(0, 1) for picture in (visual, wrong)])
        own = (torch.arange(len(pairs), device=pairs.device) < len(pairs) // 2).long()
        return loss + _MATCH_WEIGHT * F.cross_entropy(self.match(pairs), own)

    def _grounded(self, places: Tensor, sound: Tensor) -> Tensor:
        """Pictures ``[B, T, dim]``, with what is at the places that fit the sound."""
        similarity = torch.einsum("btpc,btc->btp", F.normalize(places, dim=-1), F.normalize(sound, dim=-1))
        grounded = torch.einsum("btp,btpc->btc", similarity.softmax(-1), places)
        return self.ground(torch.tanh(torch.cat([places.mean(2), grounded], dim=-1)))

    def _answer(self, visual: Tensor, sound: Tensor, words: Tensor) -> Tensor:
        question = self.question(words)
        both = torch.cat([self.audio_time(question, sound), self.visual_time(question, visual)], dim=-1)
        return self.answer(torch.tanh(self.fuse(torch.tanh(both)) * question))


class SmallSTAVQA(STAVQA):
    """The same, narrow."""

    recipe = Recipe(2e-3, 64, 40, (26, 34), 0.3)
    dim = 128


def accuracy_by_type(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Percentage of right answers: ``all``, then by modality ("Audio", ...) and by type ("Audio Counting", ...)."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        for key in ("all", question.type[0], question.key):
            right[key].append(answer == question.answer)
    return {key: 100 * sum(right[key]) / len(right[key]) for key in sorted(right, key=lambda key: (key != "all", key))}


class QuestionTask(SupervisedTask):
    """A target is a :class:`Question`, what is given is its words as indices, a prediction is an :class:`Answer`."""

    name = "avqa"
    title = "audio-visual question answering (MUSIC-AVQA)"
    dataset = "avqa"
    headline = "accuracy"
    window = 60  # every sixth second of a minute, as published
    heads: ClassVar = {"st-avqa": STAVQA, "st-avqa-small": SmallSTAVQA}

    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """See :meth:`SupervisedTask.read`; subsets are the releases ``update`` and ``original``.

        A :class:`DataError` where no video of a training question is there.
        """
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
        """The example with a person's question; a :class:`UsageError` where it is missing or no word is known."""
        if question is None:
            hint = 'For example --question "How many instruments are sounding in the video?"'
            raise UsageError("What is the question?", hint=hint)
        ids, unknown = WordList(tuple(about["words"])).parse(question)
        if unknown:
            _LOG.warning("Words that no training question has were left out: %s.", ", ".join(unknown))
        return replace(example, target=" ".join(split_words(question)) + "?", given=ids)
