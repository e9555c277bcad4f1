"""Whether annotation files are the official ones, by SHA-256 and row counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from avfewshot.data.description import Description
from avfewshot.data.findings import DatasetReport


def compare_with_official(
    description: Description, files: dict[str, Path], rows: dict[str, int], report: DatasetReport
) -> None:
    """Say for each file whether it is the official one.

    Args:
        description: With the official SHA-256 and row counts.
        files: Files read, by role.
        rows: Data rows read per role.
        report: Gets ``official-files``, ``other-release`` and ``differs-from-official`` per file with a known digest,
            and ``row-count`` where the digest is unknown but the number of rows is not.
    """
    as_published: list[str] = []
    for role, path in files.items():
        official = description.file(role)
        if official is None:
            continue
        count = rows.get(role)
        bears_the_name = path.name in official.names
        wrong_count = official.rows is not None and count is not None and count != official.rows
        numbers = f"{count} rows; the official file has {official.rows}"
        if official.sha256 is None:
            if wrong_count and bears_the_name:
                report.add("warning", "row-count", f"{path.name} has {numbers}.")
            continue
        data = path.read_bytes()
        if _sha256(data) == official.sha256:
            as_published.append(path.name)
        elif _sha256(data) in official.variants:
            report.add("info", "other-release", f"{path.name} is another official release of {official.names[0]}.")
        elif any(_sha256(form) == official.sha256 for form in _line_end_forms(data)):
            as_published.append(f"{path.name} (with other line ends)")
        elif bears_the_name:  # A list given by path claims nothing.
            note = f"it has {numbers}" if wrong_count else "its rows are as many, but not the same"
            report.add("warning", "differs-from-official", f"{path.name} is not as published: {note}.")
    if as_published:
        report.add("info", "official-files", f"As published: {', '.join(as_published)}.", as_published)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _line_end_forms(data: bytes) -> list[bytes]:
    """The same text with Unix and with Windows line ends, with and without a final one, without byte order mark."""
    plain = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").rstrip(b"\n")
    windows = plain.replace(b"\n", b"\r\n")
    return [plain, plain + b"\n", windows, windows + b"\r\n"]
