"""The model card of pretrained adapters: what they are, what they were trained on, what to expect."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.text import printable
from avfewshot.training.protocol import Progress


def model_card(config: AdapterConfig, progress: Progress, command: str, notes: Sequence[str] = ()) -> str:
    """A model card in Markdown; `notes` say what a person should know about the data."""
    training, support = config.training, config.support
    validation = config.metrics.get("validation", {})
    judged = "figure" in validation and validation.get("loss", -1) >= 0  # without validation clips it is below zero
    rows = [
        ("made by", f"avfewshot {config.version}"),
        ("command", command),
        ("backbone", f"{config.backbone} ({', '.join(f'{k} {v[:12]}' for k, v in sorted(config.identity.items()))})"),
        ("adapters", f"{training['adapter']}, hidden {training['hidden']}; projectors {training['projector']}"),
        ("list", f"{support.get('list', '')}: {support.get('clips', 0):,} clips, {len(config.labels)} classes"),
        ("list fingerprint", str(support.get("fingerprint", ""))),
        ("objective", f"{training['objective']}, matching {training['matching']}"),
        (
            "batch",
            f"{training['batch_size'] * training['accumulation']} clips on each of {support.get('ranks', 1)} ranks",
        ),
        ("optimizer", f"{training['optimizer']}, learning rate {training['lr']:g}, {training['schedule']}"),
        (
            "steps",
            f"{progress.step:,} in {progress.epoch} epochs ({progress.finished}); best after {progress.best_epoch}",
        ),
        ("validation", f"{100 * validation['figure']:.1f} % top-1" if judged else "none"),
        ("share of trained logits", f"{config.decision.get('blend', 1.0):g}"),
        ("seed", str(config.seed)),
    ]
    table = "\n".join(f"| {name} | {cell(text)} |" for name, text in rows)
    classes = ", ".join(cell(label) for label in config.labels)
    remarks = "".join(f"- {cell(note)}\n" for note in notes)
    return f"""# Adapters pretrained on {cell(str(support.get("list", "a list of clips")))}

DG-SCT adapters and projectors between a frozen CLIP and a frozen CLAP (Duan et al., NeurIPS 2023). They hold no part of
either: the backbone's own weights are needed beside them, and are checked by their SHA-256.

| | |
|---|---|
{table}

## Use

    avfs zeroshot --task ave_cls --adapter THIS_FOLDER
    avfs zeroshot --labels labels.txt --adapter THIS_FOLDER clips/
    avfs fewshot --shots 16 --task llp_cls --adapter THIS_FOLDER

## Data

{remarks}
Clips of YouTube: their licences are those of their uploaders.

## Limits

- Figures on other data sets come from `avfs zeroshot --task`; the validation figure above is on the list's own classes.
- A text that is far from these classes is matched by what CLIP and CLAP know; how far the adapters help or harm there
  has to be measured.

## Classes

{classes}
"""


def cell(text: str) -> str:
    """Text of others inside Markdown: neither marks nor HTML, on one line."""
    return html.escape(re.sub(r"([\\`*\[\]|])", r"\\\1", printable(text.replace("\n", " "))), quote=False)
