"""What joining DG-SCT with the light methods gives, on clips that no run has learnt from, chosen by or reported.

    avfs fewshot --task llp_cls --shots 4 --seeds 1,2,3 --root toy --backbone tiny
    python benchmarks/joining.py runs/llp_cls/RUN ... --root toy

Runs of `auto` with DG-SCT, of tasks that label clips. Judged by the clips of the train split that are not in the support
of the seed: several times as many as the test clips have, and these stay out of it. A row a run, a mean over its seeds:
percent of the clips whose best label they carry, by the light method alone, by DG-SCT with the sum and with the product
of its modalities, and by what the run answers with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from avfewshot import load
from avfewshot.data.load import load_dataset
from avfewshot.inference.features import EmbeddedFile

SYSTEMS = ("light", "sum", "product", "auto")


def right_answers(seed: Path, root: Path) -> dict[str, float]:
    """Percent of right answers of each system, by the clips that the seed did not learn from."""
    config = json.loads((seed / "scorer" / "config.json").read_text(encoding="utf-8"))
    dataset, used = load_dataset(config["task"], root), set(config["support"]["ids"])
    samples = [one for one in dataset.split("train") if one.path is not None and one.id not in used]
    classifier = load(adapter=seed)
    head = classifier.head(dataset.classes)
    own = 0 if head._zero_shot._options["fusion"] == "weighted" else 1
    found: dict[str, list[bool]] = {name: [] for name in SYSTEMS}
    files = classifier.embed([one.path for one in samples if one.path is not None])
    for sample, file in zip(samples, files, strict=True):
        if not isinstance(file, EmbeddedFile):
            continue
        light = head._scorer.logits(head._features(file.by_clip))[0]
        ways = [one.numpy() for one in head._zero_shot.both_fusions(file)]
        auto = np.array(list(head.result(file, segments=False).scores.values()))
        for name, said in zip(SYSTEMS, (light, ways[own], ways[1 - own], auto), strict=True):
            found[name].append(int(said.argmax()) in sample.labels)
    return {name: 100 * float(np.mean(right)) for name, right in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    options = parser.parse_args()
    print("  ".join(f"{name:>8}" for name in SYSTEMS))
    for run in options.runs:
        seeds = [right_answers(seed, options.root) for seed in sorted(run.glob("seed-*"))]
        print("  ".join(f"{np.mean([seed[name] for seed in seeds]):8.1f}" for name in SYSTEMS), run.name, flush=True)


if __name__ == "__main__":
    main()
