"""One way in for every data set: its annotation files are read, and its media looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from avfewshot.data.ave import load_ave
from avfewshot.data.avsbench import avsbench_dataset
from avfewshot.data.dataset import Dataset
from avfewshot.data.description import dataset_of_task, load_description
from avfewshot.data.llp import load_llp
from avfewshot.data.media_index import attach_media
from avfewshot.data.music_avqa import avqa_dataset
from avfewshot.data.vggsound import load_vggsound
from avfewshot.errors import DataError, UsageError


def outside_datasets() -> dict[str, Callable[[Path], Dataset]]:
    """What reads the data sets of other packages, by name: their entry points of the group ``avfewshot.datasets``.

    Each is given the root, and returns the data set, with or without the paths of its media. A :class:`UsageError`
    where its package cannot be imported.
    """

    def read(point: EntryPoint, root: Path) -> Dataset:
        try:
            reader = point.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"The data set {point.name!r} cannot be imported: {error}.") from error
        return reader(root)

    return {point.name: partial(read, point) for point in entry_points(group="avfewshot.datasets")}


def load_dataset(
    name: str,
    root: str | Path,
    *,
    media: Sequence[str | Path] = (),
    list_file: str | Path | None = None,
    find_media: bool = True,
) -> Dataset:
    """Read a data set and find its media below `media` (default: `root`); its report says what is missing.

    `name` is a data set (``ave``), a task that uses it (``ave_cls``), or a data set of another package; `root` the
    folder of the annotation files or one above it; `list_file` a list of VGG-Sound clips to read instead.

    Raises:
        UsageError: The name is unknown, a folder does not exist, or `list_file` is given for another kind of data set.
        DataError: Annotation files are missing or cannot be read.
    """
    if (outside := outside_datasets().get(name)) is not None:
        if list_file is not None:
            raise UsageError(f"The data set {name} has split files of its own: a list cannot be given for it.")
        dataset = outside(Path(root))
        find_media = find_media and not dataset.available()  # it may know where its media are
        return attach_media(dataset, media or [root]) if find_media else dataset
    description = load_description(dataset_of_task(name), root)
    if description.reader in {"vggsound", "ovave"}:
        dataset = load_vggsound(description, root, list_file=list_file)
    elif list_file is not None:
        raise UsageError(f"{description.title} has split files of its own: a list cannot be given for it.")
    elif description.reader == "ave":
        dataset = load_ave(description, root)
    elif description.reader == "llp":
        dataset = load_llp(description, root)
    elif description.reader == "avs":
        if media:
            raise UsageError("--media: the files of AVSBench lie beside its lists.", hint="Give --root alone.")
        return avsbench_dataset(description, root, find_media=find_media)
    elif description.reader == "avqa":
        return avqa_dataset(description, root, media, find_media=find_media)
    else:
        raise UsageError(f"{description.path} describes a folder of clips.", hint="Use --data FOLDER for it.")
    return attach_media(dataset, media or [root]) if find_media else dataset


def require_media(dataset: Dataset, folders: Iterable[str | Path]) -> None:
    """Raise a :class:`DataError` for a data set, after :func:`attach_media`, none of whose clips is there."""
    if dataset.available():
        return
    names = dataset.report.find("no-media")
    raise DataError(
        f"{dataset.description.title}: the annotation files are there, but none of its {len(dataset.samples):,} clips "
        f"below {', '.join(map(str, folders))}." + (f" {names.message}" if names else ""),
        hint="Name the folder of the clips with --media DIR. To try things without them: avfs data toy --root toy.",
    )
