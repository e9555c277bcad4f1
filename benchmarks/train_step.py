"""One training step of few-shot DG-SCT against the plain way, in the same run, with the same weights.

    python benchmarks/train_step.py --output train-step.json

A step is: embed a batch of clips, compare with the labels, combined loss, backward pass, gradient clipping, Adam. Clips
are noise, all weights random; the adapters' zero-initialised outputs are given values, so that nothing is equal only
because it vanishes. Each variant runs in a process of its own, by turns and several times over:

* ``plain`` (benchmarks/plain_dgsct.py): text encoders run at every step, the libraries' own attention and spectrogram,
  adapters that map tokens before channels and pool after all linear maps, no checkpointing.
* ``fp32``: the model of this package; text features are computed once and the text encoders let go.
* ``fp32-checkpointing``: the same with activation checkpointing, as `avfs fewshot` trains unless told otherwise.
* ``bf16`` and ``bf16-checkpointing``: the same with towers in bfloat16 and adapters in autocast.
* ``fp32-graphs`` and ``bf16-graphs``, with ``--device cuda`` only: passes replayed as CUDA graphs, as with
  `avfs fewshot --cuda-graphs`.

Printed is one JSON object: seconds of a step and of its parts, ratios to ``plain`` (above 1 is faster) from runs that
follow each other, peak memory of the process, and how far loss and gradient of the first step are from those of
``plain``. ``--table`` also writes the figures as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from zeroshot import machine, memory, reported

CPU_VARIANTS = ("plain", "fp32", "fp32-checkpointing", "bf16", "bf16-checkpointing")
VARIANTS = (*CPU_VARIANTS, "fp32-graphs", "bf16-graphs")
TASK = "llp_cls"
SAMPLE_RATE = 48_000
TARGETS = {"fp32": 3.0, "bf16": 6.0}
PEAK_TARGET_MIB = 3e9 / 2**20


def main() -> None:
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backbone", default="base", help="preset, with random weights")
    parser.add_argument("--batch-size", type=int, default=2, help="clips of a batch")
    parser.add_argument("--segments", type=int, default=10, help="seconds of each clip")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each variant")
    parser.add_argument("--steps", type=int, default=1, help="timed steps of each process, after one that is not")
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use, one thread on each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the steps are computed")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="all that the device has, unless named")
    parser.add_argument(
        "--equations", choices=("paper", "compact"), default="paper", help="`--variant` of the adapters"
    )
    parser.add_argument("--preload", type=Path, help="a memory allocator (LD_PRELOAD) that all variants run with")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    parser.add_argument("--table", type=Path, help="also write a Markdown table to this file")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in ("batch_size", "segments", "repeats", "steps", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    possible = CPU_VARIANTS if arguments.device == "cpu" else VARIANTS
    arguments.variants = arguments.variants or list(possible)
    if set(arguments.variants) - set(possible):
        parser.error("CUDA graphs need --device cuda")
    if arguments.worker:
        print(json.dumps(work(arguments.worker, arguments)))
        return
    print(json.dumps(compare(arguments), indent=2))


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every variant by turns and join what they report."""
    if arguments.preload:
        os.environ["LD_PRELOAD"] = str(arguments.preload.resolve(strict=True))
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads] if hasattr(os, "sched_getaffinity") else []
    if cores:
        os.sched_setaffinity(0, cores)
    load = [round(value, 2) for value in os.getloadavg()]
    variants = [name for name in VARIANTS if name == "plain" or name in arguments.variants]
    runs: dict[str, list[dict[str, Any]]] = {}
    report: dict[str, Any] = {}
    for _ in range(arguments.repeats):
        for variant in variants:
            run = start_worker(variant, arguments)
            runs.setdefault(variant, []).append(run)
            print(f"{variant}: {run['seconds']:.3f} s a step, {run['peak_mib']:.0f} MiB", file=sys.stderr)
            results = {name: summary(done, runs["plain"]) for name, done in runs.items()}
            report = {
                "benchmark": "train_step",
                "command": "python benchmarks/train_step.py " + " ".join(sys.argv[1:]),
                "repeats": arguments.repeats,
                "timed_steps_of_each": arguments.steps,
                "settings": runs["plain"][0]["settings"],
                "machine": {**machine(), "cores_used": len(cores) or None, "load_before": load},
                "bf16_units": precision_reason(),
                "variants": results,
                "demands": demands(results) if arguments.device == "cpu" else {},
            }
            write(report, arguments)  # minutes went into every run: an interruption loses one of them
    return report


def write(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write the files that were asked for."""
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.table:
        arguments.table.write_text(table(report), encoding="utf-8")


def start_worker(variant: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one variant in a process of its own, so that its peak of memory is its own."""
    options = ["--backbone", arguments.backbone, "--device", arguments.device, "--equations", arguments.equations]
    for name in ("batch_size", "segments", "steps", "threads"):
        options += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return reported(__file__, variant, options, threads=arguments.threads)


def summary(runs: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions, the extent of the times, and what they are beside those of plain."""
    times = [run["seconds"] for run in runs]
    result: dict[str, Any] = {
        "seconds": round(statistics.median(times), 3),
        "fastest_and_slowest": [round(min(times), 3), round(max(times), 3)],
        "processor_seconds": round(statistics.median(run["processor_seconds"] for run in runs), 3),
        "seconds_without_a_core": [round(run["seconds_without_a_core"], 3) for run in runs],
        "parts": {part: round(statistics.median(run["parts"][part] for run in runs), 3) for part in runs[0]["parts"]},
        "texts_once_seconds": round(statistics.median(run["texts_once_seconds"] for run in runs), 3),
        "peak_mib": round(max(run["peak_mib"] for run in runs)),
        "before_the_steps_mib": round(statistics.median(run["before_the_steps_mib"] for run in runs)),
        "first_loss": runs[0]["first_loss"],
        "first_adapter_gradient_norm": runs[0]["first_adapter_gradient_norm"],
    }
    if runs is plain:
        return result
    # Runs of one turn share the state of the machine, so their ratio is steadier than that of the medians.
    ratios = [other["seconds"] / run["seconds"] for other, run in zip(plain, runs, strict=False)]
    result["times_faster_than_plain"] = round(statistics.median(ratios), 2)
    fastest = min(run["seconds"] for run in plain) / min(times)
    result["times_faster_by_the_fastest_runs"] = round(fastest, 2)
    processor = statistics.median(run["processor_seconds"] for run in plain)
    result["times_less_processor_time_than_plain"] = round(processor / result["processor_seconds"], 2)
    result["ratio_of_each_turn"] = [round(ratio, 2) for ratio in ratios]
    result["peak_memory_of_plain"] = round(result["peak_mib"] / max(run["peak_mib"] for run in plain), 2)
    for name in ("first_loss", "first_adapter_gradient_norm"):
        reference = plain[0][name]
        result[f"{name}_relative_difference"] = float(f"{abs(runs[0][name] - reference) / abs(reference):.2g}")
    return result


def demands(results: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What is asked of the package (on processors with bfloat16 units, for bf16), and whether this run met it."""
    met: dict[str, bool] = {}
    for name, target in TARGETS.items():
        if name in results:
            met[f"{name} at least {target:g} times as fast"] = results[name]["times_faster_than_plain"] >= target
    if "fp32" in results:
        met["fp32 with no more memory"] = results["fp32"]["peak_memory_of_plain"] <= 1
    for name, result in results.items():
        if name.endswith("-checkpointing"):
            met[f"{name} below 3 GB at its peak"] = result["peak_mib"] < PEAK_TARGET_MIB
    for name, result in results.items():
        if name.startswith("fp32"):
            met[f"{name}: loss within 1e-3 of plain"] = result["first_loss_relative_difference"] < 1e-3
    return met


def precision_reason() -> dict[str, Any]:
    """What `--precision auto` chooses on this processor, and why."""
    import torch

    from avfewshot.inference.devices import cpu_has_bf16, resolve_precision

    native = cpu_has_bf16()
    return {
        "present": native,
        "precision_auto_is": resolve_precision("auto", torch.device("cpu")),
        "reason": "the processor computes in bfloat16"
        if native
        else "the processor has no bfloat16 units (AVX512-BF16 or AMX) and emulates it: bfloat16 cannot be fast here",
    }


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown, a column for each variant."""
    results = report["variants"]
    names = list(results)
    rows = {
        "seconds a step": lambda r: f"{r['seconds']:.3g}",
        "fastest and slowest": lambda r: " to ".join(f"{value:.3g}" for value in r["fastest_and_slowest"]),
        "of these: texts, forward, backward, update": lambda r: ", ".join(f"{s:.2g}" for s in r["parts"].values()),
        "of these, all threads, without a core": lambda r: "/".join(f"{s:.1f}" for s in r["seconds_without_a_core"]),
        "times as fast as plain, median of turns": lambda r: f"{r.get('times_faster_than_plain', 1):g}",
        "times as fast as plain, fastest runs": lambda r: f"{r.get('times_faster_by_the_fastest_runs', 1):g}",
        "processor time, times less than plain": lambda r: f"{r.get('times_less_processor_time_than_plain', 1):g}",
        "peak memory, MiB": lambda r: str(r["peak_mib"]),
        "loss, relative difference to plain": lambda r: f"{r.get('first_loss_relative_difference', 0):g}",
        "norm of the adapters' gradient, likewise": lambda r: (
            f"{r.get('first_adapter_gradient_norm_relative_difference', 0):g}"
        ),
    }
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(results[key]) for key in names) + " |" for name, cell in rows.items()]
    return "\n".join(lines) + "\n"


# What runs in the processes of their own.


def work(variant: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Build the model, take one step to warm up and the timed ones, and report the cost."""
    import torch

    from avfewshot.config import TrainingConfig
    from avfewshot.encoders.backbone import build_backbone
    from avfewshot.inference.devices import PRECISIONS
    from avfewshot.models.build import build_model
    from avfewshot.training.cuda_graphs import make_runner
    from avfewshot.training.distributed import single_device

    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    precision, _, way = variant.partition("-")
    config = TrainingConfig(
        task=TASK,
        batch_size=arguments.batch_size,
        precision="fp32" if precision == "plain" else precision,
        checkpointing=way == "checkpointing",
        cuda_graphs=way == "graphs",
        variant=arguments.equations,
    )
    backbone = build_backbone(arguments.backbone, weights="random", seed=0)
    backbone.to(device, None if precision == "plain" else PRECISIONS[precision])
    model = build_model(backbone, config, seed=0)
    wake(model)
    model.to(device)
    visual_texts, audio_texts = wordings()
    prepare = prepare_plain if variant == "plain" else prepare_ours
    start = time.perf_counter()
    forward, texts_once = prepare(backbone, model, visual_texts, audio_texts, device)
    texts_once_seconds = time.perf_counter() - start if texts_once else 0.0
    del backbone  # ours lets the text encoders go with it; the plain forward holds them
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=config.lr, fused=variant != "plain")  # as a training updates
    batch = make_batch(arguments, model.visual_tower.image_size, len(visual_texts))
    if precision != "plain":
        fabric = single_device(device, config.precision)
        runner = make_runner(fabric, ByFabric(fabric, model), model, config.cuda_graphs)
        forward = forward[0], runner
    before = in_use(device)
    first = step(model, forward, optimizer, trainable, config, batch)
    if way == "graphs":
        step(model, forward, optimizer, trainable, config, batch)
        runner.prepare()
    processor, waited = time.process_time(), waiting()
    timed = [step(model, forward, optimizer, trainable, config, batch) for _ in range(arguments.steps)]
    processor = (time.process_time() - processor) / arguments.steps
    waited = (waiting() - waited) / arguments.steps
    return {
        "seconds": statistics.median(sum(taken["parts"].values()) for taken in timed),
        "processor_seconds": processor,
        "seconds_without_a_core": waited,
        "parts": {part: statistics.median(taken["parts"][part] for taken in timed) for part in first["parts"]},
        "texts_once_seconds": texts_once_seconds,
        "peak_mib": peak(device),
        "before_the_steps_mib": before,
        "first_loss": first["loss"],
        "first_adapter_gradient_norm": first["adapter_gradient_norm"],
        "settings": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "backbone": arguments.backbone,
            "weights": "random, seed 0",
            "task": TASK,
            "classes": len(visual_texts),
            "templates": "single",
            "batch_size": arguments.batch_size,
            "segments": arguments.segments,
            "threads": torch.get_num_threads(),
            "trainable_parameters": sum(parameter.numel() for parameter in trainable),
            "frozen_tower_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
            "adapter": {"name": config.adapter, **model.adapters.settings},
            "projector": config.projector,
            "objective": config.objective,
            "matching": config.matching,
            "optimizer": config.optimizer,
            "lr": config.lr,
            "clip_norm": config.clip_norm,
        },
    }


class ByFabric:
    """A model's forward pass in Fabric's precision, as a training runs it."""

    def __init__(self, fabric: Any, model: Any) -> None:
        self._fabric, self._model = fabric, model

    def __call__(self, *inputs: Any, **masks: Any) -> Any:
        """See :meth:`avfewshot.models.audio_visual.AudioVisualModel.forward`."""
        with self._fabric.autocast():
            return self._model(*inputs, **masks)


def in_use(device: Any) -> float:
    """MiB of the device's tensors now; on a processor, of the whole process."""
    import torch

    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else memory()


def peak(device: Any) -> float:
    """MiB at the most: of the allocator on a GPU, of the whole process on a processor."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def waiting() -> float:
    """Seconds in which the threads of this process could have run, but others had the cores; NaN where unknown."""
    try:
        threads = [entry.read_text().split() for entry in Path("/proc/self/task").glob("*/schedstat")]
    except OSError:
        return float("nan")
    return sum(int(delay) for _, delay, _ in threads) / 1e9 if threads else float("nan")


def wake(model: Any) -> None:
    """Give values to all trainable tensors that begin at zero, the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module, deviation in ((model.adapters, 0.2), (model.projectors, 0.02)):
            for parameter in module.parameters():
                if not parameter.any():
                    parameter.normal_(0, deviation, generator=generator)


def wordings() -> tuple[list[str], list[str]]:
    """A text for each class of the task, for either text encoder."""
    from avfewshot.data.description import dataset_of_task, load_description
    from avfewshot.prompts import load_templates

    classes = load_description(dataset_of_task(TASK)).classes
    templates = load_templates("single")
    sides = (templates.visual[0], templates.audio[0])
    return tuple([template.replace("{}", entry.wording) for entry in classes] for template in sides)


def make_batch(arguments: argparse.Namespace, side: int, classes: int) -> dict[str, Any]:
    """Clips of noise, with a label each."""
    import torch

    generator = torch.Generator().manual_seed(2)
    size = arguments.batch_size, arguments.segments
    labels = torch.randint(classes, (arguments.batch_size,), generator=generator)
    return {
        "frames": torch.randint(256, (*size, 3, side, side), dtype=torch.uint8, generator=generator),
        "audio": 0.1 * torch.randn(*size, SAMPLE_RATE, generator=generator),
        "positives": labels[:, None] == torch.arange(classes),
    }


def prepare_plain(
    backbone: Any, model: Any, visual_texts: list[str], audio_texts: list[str], device: Any
) -> tuple[Any, bool]:
    """The plain way, which encodes the texts whenever it is called."""
    from plain_dgsct import PlainModel

    plain = PlainModel(backbone, model)
    tokens = [rows.to(device) for rows in plain.tokenize(visual_texts, audio_texts)]
    return (lambda: plain.embed_texts(*tokens), plain.embed), False


def prepare_ours(
    backbone: Any, model: Any, visual_texts: list[str], audio_texts: list[str], device: Any
) -> tuple[Any, bool]:
    """The package's way: text features once, without the cache on disk, then no text encoders."""
    from avfewshot.encoders.text import label_features
    from avfewshot.inference.devices import free_memory

    features = (
        label_features(backbone.visual_text, visual_texts, ["{}"]).to(device),
        label_features(backbone.audio_text, audio_texts, ["{}"]).to(device),
    )
    backbone.visual_text = backbone.audio_text = None
    free_memory(device)
    return (lambda: features, model), True


def step(model: Any, forward: Any, optimizer: Any, trainable: list, config: Any, batch: dict[str, Any]) -> dict:
    """One training step, and the time of its parts."""
    import torch

    from avfewshot.models.losses import combined_loss

    texts, embed = forward
    device = model.temperatures.visual.device

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    optimizer.zero_grad(set_to_none=True)
    times = [now()]
    features = texts()
    times.append(now())
    embeddings = embed(batch["frames"].to(device), batch["audio"].to(device))
    logits = model.logits(*embeddings, *model.project_texts(*features))
    seen, heard = (values.mean(1) for values in logits)  # a clip is the mean of its seconds
    positives = batch["positives"].to(device)
    loss = combined_loss(seen, heard, positives, objective=config.objective, matching=config.matching).total
    times.append(now())
    loss.backward()
    times.append(now())
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.adapters.parameters() if p.grad is not None])
    times.append(now())
    torch.nn.utils.clip_grad_norm_(trainable, config.clip_norm)
    optimizer.step()
    times.append(now())
    parts = ("texts", "forward", "backward", None, "update")  # the norm of the adapters alone is no part of a step
    taken = {part: end - start for part, start, end in zip(parts, times, times[1:], strict=False) if part}
    return {"parts": taken, "loss": loss.item(), "adapter_gradient_norm": norm.item()}


if __name__ == "__main__":
    main()
