"""MUSIC-AVQA (Li et al., CVPR 2022): questions about what is seen and heard in videos of music.

``avqa-{train,val,test}.json`` are lists of questions whose ``type`` and ``templ_values`` are JSON inside of JSON and
whose answer is called ``anser``. Splits are by question, not by video. The first release asks some questions twice
and answers them differently; the second one, in a folder ``json_update``, does not.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from avfewshot.data.annotations import Annotations, locate, make_dataset
from avfewshot.data.dataset import SPLITS, Dataset, DatasetReport, Sample
from avfewshot.data.description import ClassEntry, Description, load_description
from avfewshot.data.rows import other_form, read_json_text
from avfewshot.errors import DataError, UsageError

VERSIONS = ("update", "original")
MAX_WORDS = 14  # words of the longest official question; longer ones are cut
PAD = "<pad>"

_FOLDERS = {"update": "json_update", "original": "json"}
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_MARKS = "?？"  # 430 official test questions end in the full-width one


@dataclass(frozen=True)
class Question:
    """A question about a video."""

    id: int  # unique within the updated release alone
    video: str  # name of its file without the suffix
    type: tuple[str, str]  # modality and kind, for example ``("Audio-Visual", "Counting")``
    template: str  # text with placeholders such as <Object>
    values: tuple[str, ...]  # what stands in their places, in order
    answer: str
    split: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """Words of the filled template, without its mark."""
        values = iter(self.values)
        return tuple(next(values, word) if word.startswith("<") else word for word in split_words(self.template))

    @property
    def text(self) -> str:
        """The question as people read it."""
        return " ".join(self.words) + "?"

    @property
    def key(self) -> str:
        """Its type as one text, for example ``"Audio-Visual Counting"``."""
        return " ".join(self.type)


@dataclass(frozen=True)
class MusicAvqa:
    """All questions, and the videos that are here."""

    questions: dict[str, list[Question]]  # by split, in the order of the files
    videos: dict[str, Path]  # by name
    report: DatasetReport = field(default_factory=DatasetReport)

    def usable(self, split: str) -> list[Question]:
        """The questions of a split whose video is here."""
        return [question for question in self.questions[split] if question.video in self.videos]


def split_words(text: str) -> list[str]:
    """Words of a question, without the mark at its end and blanks around it."""
    return text.strip().rstrip(_MARKS).split()


def read_questions(path: str | Path, split: str = "") -> list[Question]:
    """Read a question file, without deleted ones; a :class:`DataError` names the entry that is no question."""
    path = Path(path)
    rows = read_json_text(path)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: holds no list of questions.", hint=other_form(path))
    return [
        _question(row, split, f"{path}: entry {number}")
        for number, row in enumerate(rows)
        if not (isinstance(row, dict) and row.get("question_deleted"))
    ]


def _question(row: Any, split: str, place: str) -> Question:
    try:
        modality, kind = json.loads(row["type"])
        values = tuple(map(str, json.loads(row["templ_values"])))
        template, answer, video = row["question_content"].strip(), row["anser"], row["video_id"]
        if not all(isinstance(text, str) and text for text in (template, answer, video, modality, kind)):
            raise ValueError("texts are needed")
        if Path(video).name != video or video.startswith("."):
            raise ValueError(f"video_id {video!r} is not a plain name")
        if (places := sum(word.startswith("<") for word in template.split())) != len(values):
            raise ValueError(f"{places} placeholders and {len(values)} values")
        return Question(int(row["question_id"]), video, (modality, kind), template, values, answer, split)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        hint = "Needed: video_id, question_id, type, question_content, templ_values, anser."
        raise DataError(f"{place} is not a question of MUSIC-AVQA ({reason}).", hint=hint) from error


def load_music_avqa(root: str | Path, version: str | None = None, media: Sequence[Path] = ()) -> MusicAvqa:
    """Read MUSIC-AVQA, or a data set in its layout.

    `root` holds ``json_update/`` or ``json/`` with the three lists, at the top or in ``data/``, and the videos anywhere
    below as ``VIDEO_ID.mp4``, unless `media` names their folders. `version` None takes the updated lists where they
    are.

    Raises:
        UsageError: The root is not a folder, or an unknown version.
        DataError: Lists are missing or damaged.
    """
    if version not in (None, *VERSIONS):
        raise UsageError(f"MUSIC-AVQA has no version {version!r}.", hint=f"Valid: {', '.join(VERSIONS)}.")
    return _read(load_description("avqa", root), root, version, media)[0]


def _read(
    description: Description,
    root: str | Path,
    version: str | None,
    media: Sequence[str | Path],
    find_media: bool = True,
) -> tuple[MusicAvqa, Annotations]:
    found = locate(description, root)
    if version is not None and found.folder.name != _FOLDERS[version]:
        folder = found.folder.with_name(_FOLDERS[version])
        found = Annotations(folder, {role: folder / path.name for role, path in found.files.items()})
        if not all(path.is_file() for path in found.files.values()):
            names = ", ".join(path.name for path in found.files.values())
            raise DataError(f"{folder}: holds no {names}.", hint="The lists are in data/ of GeWu-Lab/MUSIC-AVQA.")
    questions = {split: read_questions(found.files[split], split) for split in SPLITS}
    wanted = {question.video for part in questions.values() for question in part}
    # Sorted, so that of two files of one name the same is taken everywhere.
    folders = [*map(Path, media)] or [Path(root)] if find_media else []
    paths = (p for base in folders for end in _VIDEO_SUFFIXES for p in sorted(base.rglob(f"*{end}"), reverse=True))
    dataset = MusicAvqa(questions, {path.stem: path for path in paths if path.stem in wanted})
    _check(dataset, found.folder)
    return dataset, found


def avqa_dataset(
    description: Description, root: str | Path, media: Sequence[str | Path] = (), *, find_media: bool = True
) -> Dataset:
    """The same for ``avfs data check``: a sample a question, its id the video, its class the answer."""
    read, annotations = _read(description, root, None, media, find_media)
    answers = answer_list(question for part in read.questions.values() for question in part)
    index = {answer: number for number, answer in enumerate(answers)}
    samples = [
        Sample(question.video, (index[question.answer],), split, row, path=read.videos.get(question.video))
        for split, part in read.questions.items()
        for row, question in enumerate(part)
    ]
    if find_media and not read.videos:
        read.report.add("error", "no-media", f"None of the videos of {len(samples)} questions is here.")
    counts = {split: len(part) for split, part in read.questions.items()}
    form = f"{annotations.folder.name}, questions about {len({sample.id for sample in samples}):,} videos"
    classes = [ClassEntry(answer, answer) for answer in answers]
    return make_dataset(description, annotations, samples, counts, read.report, form=form, classes=classes)


def _check(dataset: MusicAvqa, folder: Path) -> None:
    report, questions = dataset.report, dataset.questions
    missing = {question.video for part in questions.values() for question in part} - dataset.videos.keys()
    message = "Videos of questions that are not here; their questions are left out."
    report.note("warning", "missing-media", message, sorted(missing))
    for split, part in questions.items():
        message = f"{folder.name}/avqa-{split}.json: questions asked more than once with answers that differ."
        report.note("warning", "contradicting-answers", message, contradictions(part))
    for first, second in combinations(SPLITS, 2):
        videos, asked = (
            [{key(question) for question in questions[split]} for split in (first, second)]
            for key in (lambda question: question.video, lambda question: f"{question.video} {question.text}")
        )
        message = f"Videos of {first} that {second} asks about as well: splits are by question, not by video."
        report.note("info", "shared-videos", message, sorted(videos[0] & videos[1]))
        message = f"Questions of {first} that {second} asks about the same video."
        report.note("warning", "shared-questions", message, sorted(asked[0] & asked[1]))
    answers = {question.answer for question in questions["train"]}
    message = "Answers that no training question has: they cannot be given."
    asked = {question.answer for split in ("val", "test") for question in questions[split]}
    report.note("warning", "unknown-answers", message, sorted(asked - answers))


def contradictions(questions: Iterable[Question]) -> list[str]:
    """Questions about one video that are asked more than once and answered differently."""
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for question in questions:
        answers[question.video, question.text].add(question.answer)
    return [f"{video} {text}" for (video, text), different in answers.items() if len(different) > 1]


def answer_list(questions: Iterable[Question]) -> list[str]:
    """The answers in the order of their first appearance; a checkpoint keeps the list, nobody builds it again."""
    return list(dict.fromkeys(question.answer for question in questions))


@dataclass(frozen=True)
class WordList:
    """The words of the training questions; index 0 pads."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, questions: Iterable[Question]) -> WordList:
        """All words of filled templates, sorted, behind the padding."""
        return cls((PAD, *sorted({word for question in questions for word in question.words})))

    def encode(self, words: Sequence[str]) -> tuple[list[int], list[str]]:
        """Indices of words, padded to :data:`MAX_WORDS`, and the words that are not known and left out."""
        index = {word: number for number, word in enumerate(self.words)}
        plain = {word.lower(): number for word, number in reversed(index.items())}
        ids = [index.get(word, plain.get(word.lower())) for word in words]
        unknown = [word for word, number in zip(words, ids, strict=True) if number is None]
        kept = [number for number in ids if number is not None][:MAX_WORDS]
        return kept + [0] * (MAX_WORDS - len(kept)), unknown

    def parse(self, text: str) -> tuple[list[int], list[str]]:
        """As :meth:`encode`, of a question that a person typed: "acoustic guitar" is one word where the list has it so.

        A :class:`UsageError` where none of its words is known.
        """
        words, vocabulary = split_words(text), {word.lower() for word in self.words}
        joined: list[str] = []
        for word in words:
            if joined and f"{joined[-1]}_{word}".lower() in vocabulary:
                joined[-1] = f"{joined[-1]}_{word}"
            else:
                joined.append(word)
        ids, unknown = self.encode(joined)
        if not any(ids):
            hint = 'It was trained on questions such as "How many instruments are sounding in the video?".'
            raise UsageError(f"No word of the question {text!r} is known.", hint=hint)
        return ids, unknown


class BlindPrior:
    """The most frequent answer of a question's template: what is known without looking and listening."""

    def __init__(self, questions: Sequence[Question]) -> None:
        by_template: dict[str, Counter[str]] = defaultdict(Counter)
        for question in questions:
            by_template[question.template][question.answer] += 1
        self._answers = {template: counts.most_common(1)[0][0] for template, counts in by_template.items()}
        self._overall = Counter(question.answer for question in questions).most_common(1)[0][0]

    def answer(self, question: Question) -> str:
        """Its answer."""
        return self._answers.get(question.template, self._overall)
