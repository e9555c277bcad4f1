"""What an installation of avfewshot takes on disk, by distribution: its own, and all that it needs without extras.

python scripts/installed_size.py [EXTRA ...]
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

GROUPS = {"nvidia": "CUDA libraries (nvidia-*, cuda-*)", "cuda": "CUDA libraries (nvidia-*, cuda-*)"}


def needed(name: str, extras: set[str], seen: dict[str, Distribution]) -> None:
    """Collect a distribution and what it requires here."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    key = found.metadata["Name"].lower().replace("_", "-")
    again = key in seen
    seen[key] = found
    for line in found.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        asked = [extra for extra in ("", *extras) if marker is None or marker.evaluate({"extra": extra})]
        if asked and (not again or any(asked)) and requirement.name.lower().replace("_", "-") not in seen:
            needed(requirement.name, requirement.extras, seen)


def size(found: Distribution) -> int:
    """Bytes of its files, compiled ones included."""
    paths = {path for file in found.files or () if (path := found.locate_file(file)).is_file()}
    return sum(path.stat().st_size for path in paths)


def main() -> None:
    """Print the table."""
    seen: dict[str, Distribution] = {}
    needed("avfewshot", set(sys.argv[1:]), seen)
    sizes: Counter[str] = Counter()
    for name, found in seen.items():
        sizes[GROUPS.get(name.split("-")[0], name)] += size(found)
    total = sum(sizes.values())
    for name, count in sizes.most_common(14):
        print(f"{count / 1e6:8,.0f} MB  {name}")
    print(f"{total / 1e6:8,.0f} MB  all {len(seen)} distributions")
    print(f"{(total - sizes[GROUPS['cuda']] - sizes['triton']) / 1e6:8,.0f} MB  without CUDA libraries and triton")


if __name__ == "__main__":
    main()
