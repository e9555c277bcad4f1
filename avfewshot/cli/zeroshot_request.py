"""What `avfs zeroshot` is asked to do, checked as a whole before torch is even imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfewshot.cli.outputs import Target, check_file, check_overwrite, plan_targets
from avfewshot.errors import UsageError, flatten, raise_faults
from avfewshot.inference.results import RunInfo
from avfewshot.labels import LabelSet, parse_labels
from avfewshot.settings import TABLES, Resolved, resolve

_LEFT_TO_ADAPTER = ("backbone", "templates", "fusion", "pool")
"""Settings that are as a model was trained, unless somebody sets them."""


@dataclass(frozen=True)
class ZeroshotRequest:
    """A checked request.

    Attributes:
        settings: Values and their sources.
        labels: What to choose from.
        files: Media files, in order.
        targets: Where results go.
        report: The HTML page, or None.
    """

    settings: Resolved
    labels: LabelSet
    files: list[Path]
    targets: list[Target]
    report: Path | None

    def chosen(self, name: str) -> Any:
        """The value of a setting; None where nobody set it and the adapter's own counts."""
        return None if self._left_to_adapter(name) else self.settings[name]

    def shown_settings(self, run: RunInfo) -> list[tuple[str, str, str]]:
        """Name, value and source of every setting, as text.

        Args:
            run: Tells what the adapter decided.
        """
        rows = []
        for name, setting in TABLES["zeroshot"].items():
            value, source = self.settings[name], self.settings.source(name)
            shown = setting.unset if value is None else setting.kind.show(value)
            if self._left_to_adapter(name):
                shown, source = getattr(run, name, "the adapter's"), "the adapter"
            rows.append((name, shown, source))
        return rows

    def _left_to_adapter(self, name: str) -> bool:
        given = self.settings["adapter"] is not None
        return given and name in _LEFT_TO_ADAPTER and self.settings.source(name) == "default"


def build_request(
    flags: Mapping[str, Any], paths: Sequence[str], output: str | None, report: str | None
) -> ZeroshotRequest:
    """Check everything that can be checked without the model.

    Args:
        flags: Values of the options that are settings; None where not given.
        paths: Files, folders and globs; none means the current folder.
        output: ``--output``.
        report: ``--report``.

    Raises:
        UsageError: All that is wrong, at once.
    """
    faults: list[UsageError] = []
    settings = resolve("zeroshot", flags)
    faults += settings.faults
    labels = _collect(faults, lambda: _labels(settings["labels"]))
    files = _collect(faults, lambda: _media(paths, recursive=settings["recursive"]))
    faults += _model_faults(settings)
    targets, wrong = plan_targets(settings["format"], output, form_given=settings.source("format") != "default")
    faults += wrong
    page = None
    if report is not None:
        page = Path(report).expanduser()
        faults += _report_faults(report, page)
    written = [("--output", target.path) for target in targets if target.path is not None]
    written += [("--report", page)] if page is not None else []
    read = [*(files or []), *([settings["labels"]] if settings["labels"] else [])]
    faults += check_overwrite(written, read)
    raise_faults(faults)
    assert labels is not None
    assert files is not None
    return ZeroshotRequest(settings, labels, files, targets, page)


def _collect(faults: list[UsageError], check: Any) -> Any:
    try:
        return check()
    except UsageError as error:
        faults.extend(flatten(error))
        return None


def _labels(path: Path | None) -> LabelSet:
    if path is None:
        hint = "Write one label a line into a file and add `--labels labels.txt`."
        raise UsageError("No label file is given.", hint=hint)
    return parse_labels(path)


def _media(paths: Sequence[str], *, recursive: bool) -> list[Path]:
    from avfewshot.media.discover import find_media

    return find_media(paths or ["."], recursive=recursive)


def _model_faults(settings: Resolved) -> list[UsageError]:
    from avfewshot.encoders.presets import load_preset
    from avfewshot.prompts import load_templates

    faults: list[UsageError] = []
    _collect(faults, lambda: load_preset(settings["backbone"]))
    if settings["templates"] is not None:
        _collect(faults, lambda: load_templates(settings["templates"]))
    for name in ("adapter", "clip_weights", "clap_weights", "roberta"):
        path = settings[name]
        if path is None:
            continue
        option = TABLES["zeroshot"][name].flag
        if settings["weights"] == "random" and name.endswith("_weights"):
            hint = "Leave one of them out."
            faults.append(UsageError(f"{option} and --weights random exclude each other.", hint=hint))
        elif not path.exists():
            faults.append(UsageError(f"{option} {path}: there is nothing at this path.", hint="Check the path."))
    return faults


def _report_faults(given: str, page: Path) -> list[UsageError]:
    if page.suffix.lower() not in {".html", ".htm"}:
        hint = f"Write `--report {given or 'report'}.html`."
        return [UsageError(f"--report {given}: the page's name must end in .html.", hint=hint)]
    return check_file(page, "--report")
