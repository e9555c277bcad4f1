"""Whether the files of a backbone are here and whole, and whether it loads and tells texts apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.kinds.base import Preset
from avfewshot.encoders.weights.locate import Needed, expected_sha256, file_sha256, locate, looked_in
from avfewshot.errors import AvfsError

OK, MISSING, DAMAGED = "ok", "missing", "damaged"


@dataclass(frozen=True)
class Finding:
    """What was found about one file, or about the backbone as a whole."""

    part: str  # what it is, for people
    status: str  # "ok", "missing" or "damaged"
    detail: str  # where it lies or was looked for, and what is wrong
    sha256: str | None = None  # of the file; None for none


def check(
    preset: Preset,
    *,
    clip_weights: str | Path | None = None,
    clap_weights: str | Path | None = None,
    roberta: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Check every file of a backbone, then, if none is missing or damaged, that it loads and encodes two texts.

    Paths are those of :func:`~avfewshot.encoders.backbone.build_backbone`; `progress` is told what is being checked.
    """
    paths = {"clip_weights": clip_weights, "clap_weights": clap_weights, "roberta": roberta}
    progress = progress or (lambda what: None)
    findings = []
    for needed in preset.files(**paths):
        if (path := locate(needed)) is not None:
            progress(f"{needed.part}: {path}")
            findings.append(_check_file(needed, path))
        elif not needed.optional:
            where = f"{needed.title}: not in {looked_in(needed)}. {preset.how_to_get([needed])}"
            findings.append(Finding(needed.part, MISSING, where))
    if all(finding.status == OK for finding in findings):
        progress("loading the backbone")
        findings.append(_load(preset, paths))
    return findings


def _check_file(needed: Needed, path: Path) -> Finding:
    if not path.is_file():
        return Finding(needed.part, DAMAGED, f"{path}: is not a file")
    try:
        digest = file_sha256(path, remember=False)
    except OSError as error:
        return Finding(needed.part, DAMAGED, f"{path}: cannot be read: {error.strerror}")
    if (expected := expected_sha256(needed, path)) and digest != expected:
        return Finding(needed.part, DAMAGED, f"{path}: its SHA-256 is {digest}, {expected} was expected", digest)
    return Finding(needed.part, OK, str(path), digest)


def _load(preset: Preset, paths: dict[str, Any]) -> Finding:
    part = f"backbone {preset.name}"
    texts = ["a dog is barking", "a train is whistling"]
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            backbone = build_backbone(preset, **paths)
    except AvfsError as error:
        return Finding(part, DAMAGED, str(error))
    for name, branch in () if backbone.wordless else (("CLIP", backbone.visual_text), ("CLAP", backbone.audio_text)):
        features = branch.encode(texts)
        if not features.isfinite().all() or (features[0] - features[1]).abs().max() < 1e-6:
            return Finding(part, DAMAGED, f"{name} gives the same or no vectors for different texts")
    notes = [str(warning.message) for warning in told if issubclass(warning.category, UserWarning)]
    sizes = f"loads: embeddings of {backbone.visual.output_dim} and {backbone.audio.output_dim} numbers"
    return Finding(part, OK, ". ".join([sizes, *notes]))
