"""How finished few-shot runs do on clips of the train split that they did not learn from.

    avfs fewshot --task llp_cls --shots 4 --seeds 1,2,3 --root toy --backbone tiny
    python benchmarks/unseen.py runs/llp_cls/RUN --root toy
    avfs compare --task llp_cls --shots 4 --methods clip-lora --root toy --backbone tiny
    python benchmarks/unseen.py runs/compare/llp_cls/4-shot-* --part clip-lora --root toy

Several times as many as a toy task has test clips, and no choice was made by them. A row a run, a mean over its seeds:
percent of the clips whose answer is one of their labels, as the run answers; and where DG-SCT is joined with a light
method, of that alone and of DG-SCT with the sum and the product of its modalities. For tasks that label seconds:
percent of the seconds, as the run answers and by the light method alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from avfewshot import load
from avfewshot.data.load import load_dataset
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.head import LearnedHead

SYSTEMS = ("answers", "light", "sum", "product")


def right_answers(folder: Path, root: Path) -> dict[str, float]:
    """Percent of right answers of what one seed left in a folder, and of its parts."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dataset, used = load_dataset(config["task"], root), set(config["support"]["ids"])
    samples = {one.path: one for one in dataset.split("train") if one.path is not None and one.id not in used}
    classifier = load(adapter=folder.parent if folder.name == "scorer" else folder)
    assert classifier.own_labels is not None
    head = classifier.head(classifier.own_labels)
    found: dict[str, list[bool]] = {name: [] for name in SYSTEMS}
    for sample, file in zip(samples.values(), classifier.embed_files(list(samples)), strict=True):
        if not isinstance(file, EmbeddedFile):
            continue
        scorer = head._scorer if isinstance(head, LearnedHead) else None
        if scorer is not None and scorer.second is not None:
            features, tuned = head._features(file), head._tuned(file)[1]
            said = {"answers": scorer.segment_logits(features, tuned=tuned), "light": scorer.segment_logits(features)}
            truth = dataset.segment_labels(sample, len(said["light"][0]))
            for name, [rows] in said.items():
                found[name] += (rows.argmax(1) == truth).tolist()
            continue
        said = {"answers": list(head.result(file, segments=False).scores.values())}
        if scorer is not None and scorer.is_tuned:
            names = ("sum", "product") if head._zero_shot._options["fusion"] == "weighted" else ("product", "sum")
            said |= zip(names, (one.tolist() for one, _ in head._zero_shot.both_ways(file.by_clip)), strict=True)
            said["light"] = scorer.logits(head._features(file.by_clip))[0]
        for name, scores in said.items():
            found[name].append(int(np.argmax(scores)) in sample.labels)
    return {name: 100 * float(np.mean(right)) if right else float("nan") for name, right in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--part", default="scorer", help="what a seed left: scorer, or a method trained by itself")
    options = parser.parse_args()
    print("  ".join(f"{name:>8}" for name in SYSTEMS))
    for run in options.runs:
        seeds = [right_answers(folder, options.root) for folder in sorted(run.glob(f"seed-*/{options.part}"))]
        print("  ".join(f"{np.mean([seed[name] for seed in seeds]):8.1f}" for name in SYSTEMS), run, flush=True)


if __name__ == "__main__":
    main()
