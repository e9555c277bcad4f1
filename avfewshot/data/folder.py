"""Somebody's own clips: ``CLASS/*.mp4``, with ``train/``, ``val/`` and ``test/`` above or a seeded split.

Two kinds of folder are special: ``none/`` holds clips that show none of the classes, and ``-CLASS/`` clips that look
or sound like CLASS and are not.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from avfewshot.data.class_names import ClassNames
from avfewshot.data.dataset import SPLITS, Dataset, DatasetReport, Sample, ranked
from avfewshot.data.description import DESCRIPTION_FILE, ClassEntry, Description, default_wording, read_description
from avfewshot.data.rows import normalise_split, youtube_id
from avfewshot.errors import DataError, UsageError
from avfewshot.media.discover import walk_media
from avfewshot.text import fold, visible

NONE_FOLDER = "none"
_TIMED = re.compile(r"([A-Za-z0-9_-]{11})(?:_\d+(?:\.\d+)?){0,2}")
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|test|valid|val|dev|eval)", re.IGNORECASE)
_HINT = "Put the clips of each class into a folder of its name: FOLDER/dog barking/1.mp4, FOLDER/rain/2.mp4."
_SPLITS_HINT = "With splits: FOLDER/train/CLASS/1.mp4, and likewise in val/ and test/, which may be left out."


def load_folder(root: str | Path, *, seed: int = 0, val_fraction: float = 0.2, test_fraction: float = 0.2) -> Dataset:
    """Read a folder of clips; ids are paths relative to `root`.

    Class folders may have sub-folders; a class is named by its folder, its wording is that name with ``_`` as space,
    and a ``dataset.yaml`` (reader ``folder``) in `root` can give other wordings and the order. Folders whose names
    differ by case, ``_``, white space or Unicode form alone are one class. Splits that have no folder are drawn from
    the training clips, per class and by a seeded hash of the file names, so that a clip stays in its split when others
    are added; each drawn split gets at least one clip of a class that has three or more.

    ``none_class`` and ``negatives`` are set where there are folders ``none/`` and ``-CLASS/``.

    Raises:
        UsageError: `root` is not a folder, or a fraction is out of range.
        DataError: There are fewer than two classes with clips, or it cannot be told which folders are the classes.
    """
    root = Path(root)
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"The data folder {root} {kind}.", hint=_HINT)
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        message = f"Fractions of {val_fraction} for validation and {test_fraction} for test leave nothing to train on."
        raise UsageError(message, hint="Both are at least 0 and together less than 1.")
    report = DatasetReport()
    clips, unfilled = _clips(root, report)
    description, classes = _classes(root, clips, report)
    samples, negatives = _samples(root, clips, description, classes, report)
    _check_classes(root, description, clips, samples)
    splits = {split for split, _, _ in clips} | unfilled
    fractions = {
        split: fraction
        for split, fraction in (("test", test_fraction), ("val", val_fraction))
        if split not in splits and fraction > 0
    }
    samples = _without_repeats(samples, report)
    if fractions:
        samples = _draw_splits(samples, fractions, description.class_names, seed)
        shares = ", ".join(f"{100 * fraction:g} % for {split}" for split, fraction in fractions.items())
        message = f"Drawn from the training clips, seed {seed}: {shares}."
        report.add("info", "drawn-splits", message, count=sum(sample.split in fractions for sample in samples))
    trained = {label for sample in samples if sample.split == "train" for label in sample.labels}
    lacking = [name for label, name in enumerate(description.class_names) if label not in trained]
    report.note("warning", "classes-not-in-train", "Classes without a training clip.", lacking)
    if "test" not in {sample.split for sample in samples} | unfilled:
        message = "No clip is left to test on: a class needs two clips for that. What is learnt is saved all the same."
        report.add("warning", "no-test-clips", message)
    none = [index for index, name in enumerate(description.class_names) if fold(name) == NONE_FOLDER]
    return Dataset(
        description=description,
        root=root,
        classes=description.class_names,
        wordings=description.wordings,
        samples=tuple(sorted(samples, key=lambda sample: (SPLITS.index(sample.split), sample.row))),
        form="folder with splits" if splits != {"train"} else "folder",
        report=report,
        drawn_splits=tuple(fractions),
        none_class=none[0] if none else None,
        negatives=tuple(negatives),
    )


def _clips(root: Path, report: DatasetReport) -> tuple[list[tuple[str, str, Path]], set[str]]:
    """(split, class folder, file) by path, split being ``train`` where no folder says; and splits without a clip."""
    barren: dict[str, int] = {}
    files = sorted(Path(file).relative_to(root) for file in walk_media([root], barren))
    folders = {file.parts[0] for file in files if len(file.parts) > 1}
    # A folder called "test" is a class of its own unless there is also one for training with class folders in it.
    with_classes = {file.parts[0] for file in files if len(file.parts) > 2}
    split_at, class_at = None, 0  # which folder of a path names the split, and which the class
    if any(normalise_split(top) == "train" for top in with_classes):
        split_at, class_at = 0, 1
    elif len(with_classes) > 1 and "train" in (
        inner := {normalise_split(f.parts[1]) for f in files if len(f.parts) > 2}
    ):
        split_at = 1 if None not in inner and len(inner) > 1 and all(len(file.parts) > 2 for file in files) else None
    if split_at is None:
        _refuse_splits_as_classes(root, files, folders, report)
    depth = 1 if split_at is None else 2
    clips: list[tuple[str, str, Path]] = []
    stray: list[str] = []
    for file in files:
        split = "train" if split_at is None else normalise_split(file.parts[split_at])
        if split is None or len(file.parts) <= depth:
            stray.append(file.as_posix())
        else:
            clips.append((split, file.parts[class_at], file))
    report.note("warning", "stray-files", "Clips that lie in no class folder, left out.", stray)
    if split_at is not None:
        named = {file.parts[split_at] for file in files if len(file.parts) > split_at + 1}
        others = sorted(name for name in named if normalise_split(name) is None)
        report.note("warning", "stray-folders", "Folders beside train, val and test, left out.", others)
        read_as = {name: split for name in sorted(named) if (split := normalise_split(name)) not in (None, name)}
        if read_as:
            renamed = ", ".join(f"{name}/ as {split}" for name, split in read_as.items())
            report.add("info", "split-folders", f"Split folders by other names: {renamed}.", read_as)
    if split_at == 1:
        message = "The splits lie within the class folders (CLASS/train/, CLASS/test/)."
        report.add("info", "splits-in-classes", message, count=len(folders))
    elif deeper := sorted({"/".join(file.parts[: depth + 1]) for file in files if len(file.parts) > depth + 1}):
        message = "Clips in sub-folders of a class folder; they are of that class."
        report.add("info", "sub-folders", message, deeper)
    bare = {} if split_at is None else {path: Path(path).relative_to(root).parts[split_at:] for path in barren}
    filled = {split for split, _, _ in clips}
    unfilled = {path: split for path, parts in bare.items() if len(parts) == 1 and (split := normalise_split(parts[0]))}
    unfilled = {path: split for path, split in unfilled.items() if split not in filled}
    message = "Split folders without a clip that can be read: nothing is drawn in their place. Fill or remove them."
    report.note("warning", "empty-splits", message, sorted(unfilled))
    used = {folder for _, folder, _ in clips}
    empty: dict[str, str] = {}
    for path, others in barren.items():
        parts = Path(path).relative_to(root).parts
        if len(parts) == class_at + 1 and parts[class_at] not in used and (not class_at or normalise_split(parts[0])):
            why = {-1: " (cannot be read)", 0: ""}.get(others, f" ({others} other files)")
            empty[parts[class_at]] = f"{parts[class_at]}{why}"
    if empty:
        report.add("warning", "empty-classes", "Class folders without a clip, left out.", sorted(empty.values()))
    return clips, set(unfilled.values())


def _refuse_splits_as_classes(root: Path, files: list[Path], folders: set[str], report: DatasetReport) -> None:
    """See that top folders are not the splits of somebody's own naming: a model would learn to tell those apart."""
    below = defaultdict(set)
    for file in files:
        if len(file.parts) > 2:
            below[file.parts[0]].add(fold(file.parts[1]))
    splits = {normalise_split(top) for top in folders}
    shown = ", ".join(f"{top}/" for top in sorted(folders))
    if None not in splits and len(splits) > 1:
        if "train" in splits:
            problem = "hold clips and no class folders"
        else:
            problem = "are splits, and there is no train/ among them"
        raise DataError(f"{root}: {shown} {problem}.", hint=_SPLITS_HINT)
    if len(folders) > 1 and len(below) == len(folders) and len({frozenset(names) for names in below.values()}) == 1:
        names = sorted(next(iter(below.values())))
        if len(names) > 1 and all(_SPLIT_WORD.search(top) for top in folders):
            problem = "look like splits: all hold the same folders, and none is called train"
            raise DataError(f"{root}: {shown} {problem}.", hint=_SPLITS_HINT)
        if len(names) > 1:
            message = f"All of {shown} hold the same folders ({', '.join(names[:3])}): are those the classes?"
            report.add("warning", "same-sub-folders", message, sorted(folders))


def _classes(
    root: Path, clips: list[tuple[str, str, Path]], report: DatasetReport
) -> tuple[Description, dict[str, int | None]]:
    """The description, and the class of each folder; None for one that is no class. ``-CLASS`` is no class."""
    counts = Counter(folder for _, folder, _ in clips)
    names = {folder: clean_name(folder) for folder in counts}
    if odd := sorted(f"{folder!r} as {name!r}" for folder, name in names.items() if folder != name):
        report.add(
            "warning", "odd-folder-names", "Class folders whose names hold characters that cannot be shown.", odd
        )
    positives = [folder for folder in counts if names[folder] and not names[folder].startswith("-")]
    groups: dict[str, list[str]] = defaultdict(list)
    trained = Counter(folder for split, folder, _ in clips if split == "train")
    for folder in sorted(positives, key=lambda folder: (-trained[folder], -counts[folder], names[folder])):
        groups[fold(names[folder])].append(folder)
    description = None
    if (root / DESCRIPTION_FILE).is_file():
        description = read_description(root / DESCRIPTION_FILE)
        if description.reader != "folder":
            message = f"{root / DESCRIPTION_FILE} describes {description.title}, not a folder of clips."
            raise UsageError(message, hint=f"Use --task {description.tasks[0]} --root {root}.")
    if description is None or not description.classes:
        chosen = sorted((names[group[0]] for group in groups.values()), key=lambda name: (name.casefold(), name))
        entries = tuple(ClassEntry(name, default_wording(name)) for name in chosen)
        name = root.resolve().name or "folder"
        description = Description(name, f"the clips in {root}", "folder", ("folder",), entries, ())
    class_names = ClassNames(description.class_names)
    folded = {fold(name): index for index, name in reversed(list(enumerate(description.class_names)))}
    classes: dict[str, int | None] = {}
    for folder in counts:
        name = names[folder].removeprefix("-")
        index = class_names.index(name)
        classes[folder] = folded.get(fold(name)) if index is None else index
    merged = defaultdict(list)
    for group in groups.values():
        for folder in group:
            if (index := classes[folder]) is not None:
                merged[index].append(folder)
    twice = [" = ".join(sorted(group)) for group in merged.values() if len(group) > 1]
    message = "Class folders whose names differ by spelling alone; each group is one class."
    report.note("warning", "merged-classes", message, sorted(twice))
    return description, classes


def clean_name(text: str) -> str:
    """A folder's name as it can be shown: nothing invisible, bytes that are no UTF-8 in hexadecimal."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return visible("".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text))


def _samples(
    root: Path,
    clips: list[tuple[str, str, Path]],
    description: Description,
    classes: dict[str, int | None],
    report: DatasetReport,
) -> tuple[list[Sample], list[Sample]]:
    samples: list[Sample] = []
    negatives: list[Sample] = []
    unknown: Counter[str] = Counter()
    for row, (split, folder, file) in enumerate(clips):
        label = classes[folder]
        if label is None:
            unknown[folder] += 1
            continue
        match = _TIMED.fullmatch(file.stem)
        video = youtube_id(match[1]) if match else None
        sample = Sample(file.as_posix(), (label,), split, row, youtube_id=video, path=root / file)
        (negatives if clean_name(folder).startswith("-") else samples).append(sample)
    for code, message, matches in (
        ("nameless-classes", "Class folders in whose names nothing can be seen, left out.", ""),
        ("unknown-classes", f"Class folders that {DESCRIPTION_FILE} does not name, left out.", "[^-]"),
        ("unknown-negatives", "Folders -NAME hold clips that are not of a class NAME; there is none, left out.", "-"),
    ):
        strangers = [
            f"{name} ({count})" for name, count in unknown.items() if re.fullmatch(matches, clean_name(name)[:1])
        ]
        report.note("warning", code, message, strangers)
    if negatives:
        per_class = Counter(description.class_names[sample.label] for sample in negatives)
        message = "Clips in -CLASS folders, which are not of that class."
        examples = [f"{name} ({count})" for name, count in per_class.items()]
        report.add("info", "negatives", message, examples, count=len(negatives))
    return samples, negatives


def _check_classes(
    root: Path, description: Description, clips: list[tuple[str, str, Path]], samples: list[Sample]
) -> None:
    used = {label for sample in samples for label in sample.labels}
    if len(used) < 2:
        held = f"only the class {description.class_names[used.pop()]!r}" if used else "no class folder with clips"
        tops = {file.parts[0] for _, _, file in clips}
        inner = {file.parts[1] for _, _, file in clips if len(file.parts) > 2}
        hint = _HINT
        if len(tops) == 1 and len(inner) > 1:
            hint = f"Are the class folders in it ({', '.join(sorted(inner)[:3])})? Then give {root / tops.pop()}."
        raise DataError(f"{root} holds {held}; at least two are needed.", hint=hint)


def _without_repeats(samples: list[Sample], report: DatasetReport) -> list[Sample]:
    """One sample for each file in a split and class, however many links lead to it; the same file elsewhere is told."""
    groups: dict[tuple[int, int], list[Sample]] = defaultdict(list)
    kept: list[Sample] = []
    repeated: list[str] = []
    for sample in samples:
        try:
            status = os.stat(sample.path or "")
        except OSError:
            kept.append(sample)
            continue
        group = groups[status.st_dev, status.st_ino]
        if any((sample.split, sample.labels) == (other.split, other.labels) for other in group):
            repeated.append(f"{sample.id} = {group[0].id}")
            continue
        group.append(sample)
        kept.append(sample)
    report.note("warning", "repeated-files", "Files that are there twice (links), read once.", repeated)
    for code, what, key in (
        ("cross-split-ids", "in more than one split (links)", lambda sample: sample.split),
        ("several-classes", "in more than one class (links)", lambda sample: sample.labels),
    ):
        if shared := [
            " = ".join(sample.id for sample in group) for group in groups.values() if len(set(map(key, group))) > 1
        ]:
            report.add("warning", code, f"Files that are {what}.", shared)
    return kept


def _draw_splits(
    samples: list[Sample], fractions: dict[str, float], class_names: tuple[str, ...], seed: int
) -> list[Sample]:
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.split == "train":
            by_class[sample.label].append(sample)
    drawn: dict[str, str] = {}
    for label, group in by_class.items():
        order = ranked(group, seed=seed, purpose="folder-split", group=class_names[label])
        free = len(order) - 1  # One clip always stays to train on.
        start = 0
        for split, fraction in fractions.items():
            count = min(max(1, round(fraction * len(order))), free - start)
            drawn.update({sample.id: split for sample in order[start : start + count]})
            start += count
    return [replace(sample, split=drawn.get(sample.id, sample.split)) for sample in samples]
