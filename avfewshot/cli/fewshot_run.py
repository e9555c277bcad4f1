"""A few-shot run of `avfs fewshot`: load it, say what it takes, train each seed, write and print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from avfewshot.cli.adapter_training import load_parts, print_dry_run, say_without_graphs
from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.loading import on_device, open_store
from avfewshot.cli.progress import Display
from avfewshot.cli.runs import Run
from avfewshot.cli.terminal import say
from avfewshot.config import AUTO, CompareConfig, FewshotConfig
from avfewshot.data.folder import load_folder
from avfewshot.data.load import load_dataset, require_media
from avfewshot.data.sampler import describe_short
from avfewshot.encoders.backbone import Backbone
from avfewshot.evaluation.evaluate import average_comparisons
from avfewshot.evaluation.evaluator import UNTRAINED
from avfewshot.evaluation.few_shot import with_several_labels
from avfewshot.evaluation.results import Comparison
from avfewshot.inference.devices import PRECISIONS, resolve_device
from avfewshot.io import write_text
from avfewshot.models.build import build_model
from avfewshot.prompts import load_templates
from avfewshot.reports.comparison import classes_csv, comparison_csv, comparison_markdown, comparison_table
from avfewshot.reports.methods import details_table, methods_table, write_methods_page
from avfewshot.reports.run_html import run_page
from avfewshot.reports.text import count, reject_text
from avfewshot.training.data import draw
from avfewshot.training.fewshot import FewShot, SeedResult
from avfewshot.training.outcome import TRAINED
from avfewshot.training.plan import Plan, make_plan
from avfewshot.training.recording import collect as collect_record
from avfewshot.training.validation import BLIND_ALPHA
from avfewshot.version import __version__


def load(run: Run, display: Display, interrupts: Interrupts, *, claim: bool) -> tuple[FewShot, Plan | None]:
    """What trains, and what that takes where something is trained through the towers."""
    config: FewshotConfig = run.config
    display.begin("reading annotations, looking for clips", 0)
    dataset = load_data(config)
    device, training = on_device(config.model, config.training)
    say_without_graphs(training, device, display)
    training, backbone, initial = load_parts(run, training, display)
    make = few_shot(config, dataset, backbone, display, interrupts)
    if claim:
        run.claim()
    trainer = make(training, run.folder, initial=initial, callbacks=run.trackers)
    return trainer, _plan(trainer) if trainer.trains else None


def few_shot(
    config: FewshotConfig | CompareConfig, dataset: Any, backbone: Backbone, display: Display, interrupts: Interrupts
) -> Callable[..., FewShot]:
    """What makes a run of settings and a folder, with these parts."""
    model, store = config.model, open_store(config.data.store)
    templates = str(model.templates or backbone.templates)
    parts: dict[str, Any] = {"backbone": backbone, "templates": load_templates(templates), "templates_name": templates}
    parts |= {"device": resolve_device(model.device), "frame_backend": model.frame_backend, "observer": display}
    parts |= {"put_off": interrupts.put_off, "look_up": None if store is None else store.cache}
    return lambda training, folder, **more: FewShot(dataset, training, folder=folder, **parts, **more)


def load_data(config: FewshotConfig) -> Any:
    """Read the data set of a training, with its media."""
    data, task = config.data, config.training.task
    if task == "folder":
        assert data.data is not None
        dataset = load_folder(data.data)
        return with_several_labels(dataset) if config.training.multi_label else dataset
    assert data.root is not None
    dataset = load_dataset(task, data.root, media=data.media, list_file=data.list_file)
    require_media(dataset, data.media or [data.root])
    return dataset


def _plan(trainer: FewShot) -> Plan:
    """What a run takes; supports are drawn, clips are not read."""
    config = trainer.config
    support = draw(trainer.dataset, config, config.seeds[0])
    trainer.backbone.to("cpu", torch.float32)
    try:
        model = build_model(trainer.backbone, config, device=trainer.device)
        return make_plan(model, trainer.backbone, config, len(support.samples))
    finally:
        trainer.backbone.to(trainer.device, PRECISIONS[config.precision])


def print_plan(run: Run, trainer: FewShot, plan: Plan | None, display: Display) -> None:
    """Print what a run would do and take."""
    display.show(None)
    config, dataset, title = trainer.config, trainer.dataset, trainer.dataset.description.title
    rows = [
        ("data", title if str(dataset.root) in title else f"{title}, {dataset.root}"),
        *((split, f"{clips} clips have media") for split, clips in _media(trainer).items()),
        (
            "method",
            f"{config.method} with {config.adapter_title} trained beside it{_why_apart(trainer)}"
            if trainer.trains
            else f"{config.method} on frozen embeddings",
        ),
        ("support", f"{config.shots} clips a class, sampler {config.sampler}"),
        ("labels", f"the support's, and of {trainer.validation_used:,} validation clips"),
        ("seeds", ", ".join(map(str, config.seeds))),
    ]
    training = [] if plan is None else [
        ("steps", f"up to {plan.steps:,} a seed: {plan.batches:,} batches of {config.batch_size} an epoch, "
                  f"{count(int(config.epochs), 'epoch')}"),
        ("device", f"{trainer.device}, {config.precision}"),
        ("memory", plan.memory_by_part()),
    ]  # fmt: skip
    print_dry_run([*rows, *training, ("run folder", str(run.folder))], plan)


def execute(run: Run, trainer: FewShot, plan: Plan | None, display: Display) -> None:
    """Train each seed, write the run folder, print figures."""
    _say_plan(trainer, plan, display)
    display.validated = trainer.trains and bool(trainer.evaluator.scored("val").samples)
    if trainer.trains and not display.validated:
        share = BLIND_ALPHA if trainer.config.blend == "auto" else trainer.config.blend
        display.say(
            "There is no validation clip to choose by: the last epoch will be taken, with "
            f"{share:g} of the trained logits."
        )
    results = [trainer.run(seed) for seed in trainer.config.seeds]
    display.begin("report", 0)
    chosen = trainer.choose(results)
    if chosen is not None:
        told = ", ".join(f"seed {seed} {value:.3f}" for seed, value in chosen["figures"].items())
        rule = f"{chosen['why']} ({told})" if told else chosen["why"]
        display.say(f"Seed {chosen['seed']} answers for the run (--adapter RUN): {rule}.")
    compared = [result.comparison for result in results if result.comparison is not None]
    comparison = average_comparisons(compared) if compared else None
    written = write_results(run, trainer, plan, results, comparison, chosen)
    display.show(None)
    print_results(run, trainer, results, comparison, written)


def _media(trainer: FewShot) -> dict[str, str]:
    """How many clips of each split have media; without training the validation split is the support once more."""
    dataset, sizes = trainer.dataset, trainer.dataset.split_sizes.items()
    return {
        split: f"{len(dataset.available(split)):,} of {size:,}"
        for split, size in sizes
        if trainer.trains or split != "val"
    }


def _say_plan(trainer: FewShot, plan: Plan | None, display: Display) -> None:
    config, dataset = trainer.config, trainer.dataset
    shots = f"{config.task}, {count(config.shots, 'shot')}"
    display.say(
        f"{dataset.description.title}: "
        + ", ".join(f"{clips} {split} clips have media" for split, clips in _media(trainer).items())
        + "."
    )
    for line in dataset.report.describe():
        display.say(line)
    if plan is None:
        display.say(f"{shots}: {config.method} on frozen embeddings; nothing is trained.")
        return
    trainable = next(part.trainable for part in plan.parameters if part.component == "all")
    display.say(
        f"{shots}: {plan.clips:,} clips, up to {count(plan.steps, 'step')} in "
        f"{count(int(config.epochs), 'epoch')}; {trainable / 1e6:.1f} M trainable parameters, "
        f"{plan.flops['all'] / 1e9:.1f} GFLOPs a clip, about {plan.memory / 1e9:.1f} GB; "
        f"{trainer.device}, {config.precision}."
    )
    if apart := _why_apart(trainer):
        display.say(f"{config.method}: {config.adapter_title} stands beside it{apart}.")


def _why_apart(trainer: FewShot) -> str:
    """Why what is trained will not join the light methods of `auto`, if that is known before the training."""
    if trainer.config.method == AUTO and not trainer.validation_used:
        return ", which no validation clip lets join (--val-shots; --no-tune leaves it out)"
    return ""


_ROLES = {"train": "support", "val": "selection", "test": "evaluation"}


def write_results(
    run: Run,
    trainer: FewShot,
    plan: Plan | None,
    results: Sequence[SeedResult],
    comparison: Comparison | None,
    chosen: dict[str, Any] | None,
) -> list[Path]:
    """Write results, tables, the lists of clips and the report; gives what a person may want to open."""
    folder = run.folder
    rows = run.rows() if trainer.initial is None else run.rows(trainer.backbone, trainer.config)
    for split in () if comparison is None else ("val", "test"):
        trainer.evaluator.scored(split)  # seeds that were done before have not looked at the clips yet, which are told
    record = None
    if plan is not None and comparison is not None:
        shown = comparison.only((*UNTRAINED, TRAINED))
        record = collect_record(trainer, plan, results, shown, command=run.command, settings=rows, roles=_ROLES)
    document = {
        "version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": run.command,
        "config": trainer.config.to_dict(),
        "clips": {
            split: {"listed": listed, "used": used, "unusable": left}
            for split, listed, used, left in trainer.evaluator.usage.counts(trainer.dataset)
        },
        "labels_used": {
            **results[0].methods.get(trainer.config.method, {}).get("labels_used", {}),
            "support": len(results[0].support["ids"]),
            "validation": trainer.validation_used,
        },
        "parameters": {
            count.component: {"trainable": count.trainable, "total": count.total}
            for count in (plan.parameters if plan else ())
        },
        "flops_per_clip": plan.flops if plan else {},
        "comparison": None if comparison is None else comparison.model_dump(mode="json"),
        "seeds": [result.to_dict() for result in results],
        **({} if chosen is None else {"chosen": chosen}),
    }
    write_text(folder / "results.json", json.dumps(document, indent=1))
    if comparison is not None:
        write_text(folder / "results.csv", comparison_csv(comparison))
        write_text(folder / "results.md", comparison_markdown(comparison))
    write_text(folder / "config.yaml", trainer.config.to_yaml())
    for result in results:
        for name, scored in result.results.items():
            write_text(result.folder / f"classes-{name.replace(' ', '-').lower()}.csv", classes_csv(scored))
    trainer.evaluator.usage.write(folder / "clips.csv")
    pages = []
    if record is not None:
        write_text(folder / "report.html", run_page(record))
        pages.append(folder / "report.html")
    if trainer.has_methods and comparison is not None:
        table = (count(trainer.config.shots, "shot"), comparison, [result.methods for result in results])
        title = f"{trainer.config.task}: few-shot methods"
        notes = describe_short(results[0].support["short"], trainer.config.shots)
        if chosen is not None:
            notes.append(f"Seed {chosen['seed']} answers for the run: {chosen['why']}.")
        options: dict[str, Any] = {"title": title, "command": run.command, "notes": notes}
        write_methods_page(folder / "methods.html", [table], seeds=trainer.config.seeds, **options)
        pages.append(folder / "methods.html")
    return [*pages, folder / "results.json"]


def print_results(
    run: Run,
    trainer: FewShot,
    results: Sequence[SeedResult],
    comparison: Comparison | None,
    written: Sequence[Path],
) -> None:
    """The comparison on stdout; where files are, and how to predict, on stderr."""
    console = Console(highlight=False)
    if comparison is None:
        console.print("There was no test clip: what was learnt is saved, and nothing tells how good it is.")
    else:
        runs = [result.methods for result in results]
        console.print(methods_table(comparison, runs) if trainer.has_methods else comparison_table(comparison))
        console.print()
        console.print(details_table(comparison, runs))
    for result in results:
        if reject := result.methods.get(trainer.config.method, {}).get("reject"):
            say(f"seed {result.seed}: `unknown` (zeroshot --adapter RUN --reject): {reject_text(reject)}.")
    for split, listed, used, left in trainer.evaluator.usage.counts(trainer.dataset):
        if left:
            say(f"{split}: {used:,} of {listed:,} clips used, {left:,} cannot be: see clips.csv.")
    for path in written:
        say(f"written: {path}")
    say(f"predict with it: avfs zeroshot --adapter {shlex.quote(str(run.folder))} CLIPS")
