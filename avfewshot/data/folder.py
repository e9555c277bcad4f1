"""Somebody's own clips: ``CLASS/*.mp4``, with ``train/``, ``val/`` and ``test/`` above or a seeded split."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from avfewshot.data.aliases import ClassNames
from avfewshot.data.dataset import SPLITS, Dataset, Sample
from avfewshot.data.description import DESCRIPTION_FILE, read_description
from avfewshot.data.findings import DatasetReport
from avfewshot.data.media_index import walk_media
from avfewshot.data.ranking import ranked
from avfewshot.data.schema import ClassEntry, Description, default_wording
from avfewshot.data.textfiles import normalise_split, youtube_id
from avfewshot.errors import DataError, UsageError

_TIMED = re.compile(r"([A-Za-z0-9_-]{11})(?:_\d+(?:\.\d+)?){0,2}")
_HINT = "Put the clips of each class into a folder of its name: FOLDER/dog barking/1.mp4, FOLDER/rain/2.mp4."


def load_folder(root: str | Path, *, seed: int = 0, val_fraction: float = 0.2, test_fraction: float = 0.2) -> Dataset:
    """Read a folder of clips.

    Class folders may have sub-folders; a class is named by its folder, its wording is that name with ``_`` as space,
    and a ``dataset.yaml`` (reader ``folder``) in `root` can give other wordings and the order. Splits that have no
    folder are drawn from the training clips, per class and by a seeded hash of the file names, so that a clip stays
    in its split when others are added; each drawn split gets at least one clip of a class that has three or more.

    Args:
        root: The folder.
        seed: Seed of the drawn splits.
        val_fraction: Share of a class that goes into a drawn validation split.
        test_fraction: Share of a class that goes into a drawn test split.

    Returns:
        The data set; ids are paths relative to `root`.

    Raises:
        UsageError: `root` is not a folder, or a fraction is out of range.
        DataError: There are fewer than two classes with clips.
    """
    root = Path(root)
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"The data folder {root} {kind}.", hint=_HINT)
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise UsageError(
            f"Fractions of {val_fraction} for validation and {test_fraction} for test leave nothing to train on.",
            hint="Both are at least 0 and together less than 1.",
        )
    report = DatasetReport()
    found = _clips(root, report)
    description = _description(root, found)
    names = ClassNames(description.class_names)
    samples = _samples(root, found, names, report)
    _check_classes(root, description, samples)
    given = {sample.split for sample in samples}
    fractions = {
        split: fraction
        for split, fraction in (("test", test_fraction), ("val", val_fraction))
        if split not in given and fraction > 0
    }
    if fractions:
        samples = _draw_splits(samples, fractions, description.class_names, seed)
        shares = ", ".join(f"{100 * fraction:g} % for {split}" for split, fraction in fractions.items())
        message = f"Drawn from the training clips, seed {seed}: {shares}."
        report.add("info", "drawn-splits", message, count=sum(sample.split in fractions for sample in samples))
    trained = {label for sample in samples if sample.split == "train" for label in sample.labels}
    if lacking := [name for label, name in enumerate(description.class_names) if label not in trained]:
        report.add("warning", "classes-not-in-train", "Classes without a training clip.", lacking)
    return Dataset(
        description=description,
        root=root,
        classes=description.class_names,
        wordings=description.wordings,
        samples=tuple(sorted(samples, key=lambda sample: (SPLITS.index(sample.split), sample.row))),
        form="folder with splits" if given != {"train"} else "folder",
        report=report,
    )


def _clips(root: Path, report: DatasetReport) -> list[tuple[str, str, Path]]:
    """(split, class folder, file), sorted by path; split is ``train`` where no folder says otherwise."""
    files = sorted(Path(file).relative_to(root) for file in walk_media([root]))
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    # A folder called "test" is a class of its own unless there is also one for training with class folders in it.
    with_classes = {file.parts[0] for file in files if len(file.parts) > 2}
    has_splits = any(normalise_split(top) == "train" for top in with_classes)
    depth = 1 if has_splits else 0
    clips: list[tuple[str, str, Path]] = []
    stray: list[str] = []
    for file in files:
        split = normalise_split(file.parts[0]) if has_splits else "train"
        if split is None or len(file.parts) < depth + 2:
            stray.append(file.as_posix())
        else:
            clips.append((split, file.parts[depth], file))
    if stray:
        report.add("warning", "stray-files", "Clips that lie in no class folder, left out.", stray)
    if has_splits and (others := sorted(top for top in tops if normalise_split(top) is None)):
        report.add("warning", "stray-folders", "Folders beside train, val and test, left out.", others)
    return clips


def _description(root: Path, clips: list[tuple[str, str, Path]]) -> Description:
    if (root / DESCRIPTION_FILE).is_file():
        description = read_description(root / DESCRIPTION_FILE)
        if description.reader != "folder":
            raise UsageError(
                f"{root / DESCRIPTION_FILE} describes {description.title}, not a folder of clips.",
                hint=f"Use --task {description.tasks[0]} --root {root}.",
            )
        if description.classes:
            return description
    folders = sorted({name for _, name, _ in clips}, key=lambda name: (name.casefold(), name))
    classes = tuple(ClassEntry(name, default_wording(name)) for name in folders)
    name = root.resolve().name or "folder"
    return Description(name, f"the clips in {root}", "folder", ("folder",), classes, ())


def _samples(root: Path, clips: list[tuple[str, str, Path]], names: ClassNames, report: DatasetReport) -> list[Sample]:
    samples: list[Sample] = []
    unknown: dict[str, int] = defaultdict(int)
    for row, (split, name, file) in enumerate(clips):
        label = names.index(name)
        if label is None:
            unknown[name] += 1
            continue
        match = _TIMED.fullmatch(file.stem)
        samples.append(
            Sample(
                id=file.as_posix(),
                labels=(label,),
                split=split,
                row=row,
                youtube_id=youtube_id(match[1]) if match else None,
                path=root / file,
            )
        )
    if unknown:
        message = f"Class folders that {DESCRIPTION_FILE} does not name, left out."
        report.add("warning", "unknown-classes", message, [f"{name} ({count})" for name, count in unknown.items()])
    return samples


def _check_classes(root: Path, description: Description, samples: list[Sample]) -> None:
    used = {label for sample in samples for label in sample.labels}
    if len(used) < 2:
        found = f"only the class {description.class_names[used.pop()]!r}" if used else "no class folder with clips"
        raise DataError(f"{root} holds {found}; at least two are needed.", hint=_HINT)


def _draw_splits(
    samples: list[Sample], fractions: dict[str, float], class_names: tuple[str, ...], seed: int
) -> list[Sample]:
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.split == "train":
            by_class[sample.label].append(sample)
    drawn: dict[str, str] = {}
    for label, group in by_class.items():
        order = ranked(group, lambda sample: sample.id, seed=seed, purpose="folder-split", group=class_names[label])
        free = len(order) - 1  # One clip always stays to train on.
        start = 0
        for split, fraction in fractions.items():
            count = min(max(1, round(fraction * len(order))), free - start)
            drawn.update({sample.id: split for sample in order[start : start + count]})
            start += count
    return [replace(sample, split=drawn.get(sample.id, sample.split)) for sample in samples]
