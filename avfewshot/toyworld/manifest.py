"""The record that a toy world keeps of itself: made with which settings, holding which files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from avfewshot.errors import DataError
from avfewshot.io import write_text

MANIFEST = "toy-world.json"
_FORMAT = 1
# What decides about the bytes of the files. The tiny backbone's training samples (samples.py) are made elsewhere.
_SOURCES = ("vocabulary", "looks", "sounds", "script", "recordings", "render", "layouts", "writer")


@dataclass(frozen=True)
class Recipe:
    """What the files follow from.

    Attributes:
        seed: Seed of the world.
        clips_per_class: Clips of each class.
        generator: Digest of the generator's source.
    """

    seed: int
    clips_per_class: int
    generator: str


@dataclass
class Manifest:
    """State of a toy world on disk.

    Attributes:
        recipe: What its files follow from.
        datasets: Names of the data sets that it holds or is about to.
        files: SHA-256 of each file by path below the root; None for one that is planned.
    """

    recipe: Recipe
    datasets: tuple[str, ...]
    files: dict[str, str | None] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        """Write it to `root` atomically."""
        document = {
            "format": _FORMAT,
            "made_by": "avfs data toy",
            "seed": self.recipe.seed,
            "clips_per_class": self.recipe.clips_per_class,
            "generator": self.recipe.generator,
            "datasets": list(self.datasets),
            "complete": all(self.files.values()),
            "files": dict(sorted(self.files.items())),
        }
        write_text(root / MANIFEST, json.dumps(document, indent=1) + "\n")


def read_manifest(root: Path) -> Manifest | None:
    """The manifest in `root`, or None if there is none.

    Raises:
        DataError: It is damaged, or names a file outside of `root`.
    """
    path = root / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']!r} is unknown")
        recipe = Recipe(int(document["seed"]), int(document["clips_per_class"]), str(document["generator"]))
        return Manifest(recipe, tuple(map(str, document["datasets"])), _checked_files(document["files"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: damaged ({type(error).__name__}: {error}).",
            hint="Remove the folder, or give another --root.",
        ) from error


def _checked_files(files: Mapping[str, object]) -> dict[str, str | None]:
    """Since obsolete files are removed by this list, it must not reach outside."""
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or any(c in name for c in "\\:\0"):
            raise ValueError(f"{name!r} is outside of the folder")
        if not (digest is None or isinstance(digest, str)):
            raise ValueError(f"the digest of {name!r} is {digest!r}")
    return dict(files)


def generator_digest() -> str:
    """Digest of the source code that the files follow from."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8").encode())
    return digest.hexdigest()
