"""`avfs compare --efficiency`: parameters and computation of the systems (Table 6 of the paper)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from avfewshot.cli.loading import load_backbone
from avfewshot.cli.terminal import say
from avfewshot.config import ADAPTER_METHODS, AUTO, NONE, CompareConfig, TrainerConfig
from avfewshot.io import write_text
from avfewshot.media.clip import SAMPLE_RATE
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model
from avfewshot.models.complexity import count_flops, count_parameters, flops_of
from avfewshot.text import csv_text
from avfewshot.tuning.methods import TUNED

_SECONDS = 10
_PUBLISHED = (  # system, trainable and total parameters, GFLOPs of ten seconds; for localisation on AVE
    # Table 6 prints "43.6 of 461.3 M" and "30.6 of 374.9 M": the first figures are percentages of the second, as the
    # script prints them that made them; the two rows above them are millions.
    ("CMBS (VGG-19, VGGish)", 14_400_000, 216_700_000, 40.9),
    ("LAVISH (Swin-V2-L)", 10_036_061, 238_800_000, 406.7),
    ("LAVISH* (Swin-V2-L, HTS-AT)", 114_770_000, 374_900_000, 416.1),
    ("DG-SCT (Swin-V2-L, HTS-AT)", 201_160_647, 461_300_000, 460.8),
)


def compare_efficiency(config: CompareConfig) -> None:
    """Systems on this backbone (on the CPU), measured, then those that are published; printed, and as CSV."""
    backbone, methods = load_backbone(config.model), [name for name in config.methods if name != AUTO]
    size = int(backbone.visual.image_size)
    frames = torch.zeros(1, _SECONDS, 3, size, size, dtype=torch.uint8)
    audio = torch.zeros(1, _SECONDS, SAMPLE_RATE)
    plain = AudioVisualModel(backbone).requires_grad_(False)
    total = count_parameters(plain, backbone)[-1].total
    cost = count_flops(plain, frames, audio)["all"]
    rows: list[tuple[Any, ...]] = [("frozen towers and text branches", "measured", 0, total, 0.0, cost / 1e9)]
    for name in methods or (*ADAPTER_METHODS, *TUNED):
        if name in ADAPTER_METHODS:
            model = build_model(backbone, TrainerConfig(adapter=name, projector=NONE))
            own = sum(parameter.numel() for parameter in model.adapters.parameters()) if model.adapters else 0
            flops: float | None = count_flops(model.eval(), frames, audio)["all"] / 1e9
        elif name in TUNED:
            method = TUNED[name](backbone, ("a thing", "nothing"))
            own = method.num_trainable
            flops = cost / 1e9  # prompts are encoded once for all clips
            if name == "cocoop":
                flops = None  # it encodes every class for every clip
            elif method.uses_pixels:
                walks = partial(method.embed, "visual", frames[0]), partial(method.embed, "audio", audio[0])
                flops = sum(map(flops_of, walks)) / 1e9
        else:
            continue
        rows.append((name, "measured", own, total + own, 100 * own / (total + own), flops))
    rows += [(name, "published", own, all_, 100 * own / all_, flops) for name, own, all_, flops in _PUBLISHED]
    note = (
        "CoCoOp computes every class for every clip. Projectors and temperatures are left out. Table 6 prints 43.6 and "
        "30.6 for the last two: these are percentages."
    )
    figures = (Column(name, justify="right") for name in ("trainable, M", "total, M", "share", "GFLOPs"))
    table = Table("system", "", *figures, title=f"Parameters, and computation of {_SECONDS} seconds", caption=note)
    for name, source, own, all_, percent, flops in rows:
        shown = "–" if flops is None else f"{flops:,.1f}"
        table.add_row(name, source, f"{own / 1e6:,.2f}", f"{all_ / 1e6:,.1f}", f"{percent:.1f} %", shown)
    Console(highlight=False).print(table)
    path = Path(config.runs) / "compare" / (config.name or "efficiency") / "efficiency.csv"
    write_text(path, csv_text((("system", "source", "trainable", "total", "percent", "gflops"), *rows)))
    say(f"written: {path}")
