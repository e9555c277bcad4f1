"""`avfs fewshot`: train adapters between frozen towers on a handful of clips a class, and evaluate them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.data import data_root
from avfewshot.cli.loading import on_device, open_store
from avfewshot.cli.options import backbone_faults, option, with_options
from avfewshot.cli.runs import (
    DryRun,
    Resume,
    Run,
    command_line,
    load_parts,
    new_run,
    print_dry_run,
    resumed_run,
    run_faults,
    say_without_graphs,
    session,
)
from avfewshot.cli.terminal import Interrupts, say
from avfewshot.config import CompareConfig, FewshotConfig, resolve
from avfewshot.errors import UsageError, collect, raise_faults
from avfewshot.io import write_text

if TYPE_CHECKING:
    from avfewshot.cli.progress import Display
    from avfewshot.encoders.backbone import Backbone
    from avfewshot.training.fewshot import FewShot, SeedResult
    from avfewshot.training.plan import Plan


_ROLES = {"train": "support", "val": "selection", "test": "evaluation"}


@with_options("fewshot")
def fewshot(
    context: typer.Context,
    resume: Resume = None,
    dry_run: DryRun = False,
    seed: Annotated[str | None, option("--seed", "INTEGER", "The same as --seeds, for one seed.")] = None,
    **flags: Any,
) -> None:
    """Learn from a handful of clips of each class, evaluate once on test clips.

    At once: kernel ridge and other light methods on frozen embeddings, chosen by leaving out clips of the support. Then
    DG-SCT adapters are trained and join them (--no-tune leaves that out). The run folder holds settings, what was
    learnt, metrics and reports; CLIP only, CLAP only and zero-shot stand beside, on the same clips.

    [bold]Examples[/bold]

      avfs fewshot --shots 16 --task llp_cls
      avfs fewshot --shots 4 --data my_clips             folders of clips, one for each class
      avfs fewshot --shots 4 --data my_clips --no-tune   the light methods alone: seconds
      avfs fewshot --shots 8 --task ave --seeds 1,2,3    mean and 95 % interval over seeds
      avfs fewshot --shots 16 --task llp_cls --dry-run   what it would take
      avfs fewshot --resume runs/llp_cls/20260101-120000-16-shot

    Tasks: ave (seconds of AVE clips, with background), ave_cls, llp_cls, vggsound_cls (clips), folder (your own).

    [bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted; --resume goes on.
    """
    if seed is not None and flags["seeds"] is not None:
        raise UsageError("--seed and --seeds exclude each other.", hint="Leave one out.")
    if seed is not None and not seed.isdecimal():
        raise UsageError(f"--seed: one whole number of at least 0 is needed, not {seed!r}.")
    flags["seeds"] = flags["seeds"] if seed is None else seed
    if resume is not None:
        run = resumed_run("fewshot", resume, flags, may_change=("device", "tracker"))
    else:
        run = _requested(flags, command_line(context))
    if dry_run:
        with session() as (display, interrupts):
            trainer = _load(run, display, interrupts, claim=False)
            plan = _plan(trainer) if trainer.trains else None
        _print_plan(run, trainer, plan)
    else:
        _execute(run)


def _requested(flags: dict[str, Any], command: str) -> Run:
    """Check everything that can be checked without reading data or weights, and tell all that is wrong at once."""
    settings = resolve("fewshot", flags | ({"task": "folder"} if flags["data"] and not flags["task"] else {}))
    faults = settings.faults
    root = clips_root(settings.config, named=settings.source("task") != "default", faults=faults)
    faults += [*backbone_faults(settings), *run_faults(settings)]
    raise_faults(faults)
    config: FewshotConfig = settings.config
    settings.config = config.replace(data=config.data.replace(root=root))
    return new_run(settings, config.training.task, f"{config.training.shots}-shot", command)


def clips_root(config: FewshotConfig | CompareConfig, *, named: bool, faults: list[UsageError]) -> Path | None:
    """Where the clips of the task are; None for a folder of one's own."""
    data, task = config.data, config.task if isinstance(config, CompareConfig) else config.training.task
    if task != "folder":
        if data.data is not None:
            hint = f"Use --root {data.data} instead."
            faults.append(UsageError(f"--data is for folders of your own clips, not for {task}.", hint=hint))
            return None
        return collect(faults, lambda: data_root(task, data.root))
    if data.data is None:
        if not any(str(fault).startswith("--task") for fault in faults):
            what = "--task folder needs --data DIR." if named else "Which task? There is neither --task nor --data."
            hint = "--task ave, ave_cls, llp_cls or vggsound_cls; or --data DIR with a folder of clips a class."
            faults.append(UsageError(what, hint=hint))
        return None
    given = (("--root", data.root), ("--media", data.media), ("--list", data.list_file))
    if extra := [flag for flag, value in given if value]:
        faults.append(UsageError(f"{' and '.join(extra)} cannot be given with --data.", hint="Leave them out."))
    return None


def _execute(run: Run) -> None:
    """Train each seed, write the run folder, print figures."""
    with session(run.how_to_resume) as (display, interrupts):
        trainer = _load(run, display, interrupts)
        plan = _plan(trainer) if trainer.trains else None
        _say_plan(trainer, plan, display)
        display.validated = trainer.trains and bool(trainer.evaluator.scored("val").samples)
        if trainer.trains and not display.validated:
            from avfewshot.training.validation import BLIND_ALPHA

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
        written = _write(run, trainer, plan, results, chosen)
    _print_results(trainer, results, written)


def _load(run: Run, display: Display, interrupts: Interrupts, *, claim: bool = True) -> FewShot:
    config: FewshotConfig = run.config
    display.begin("reading annotations, looking for clips", 0)
    dataset = load_data(config)
    device, training = on_device(config.model, config.training)
    say_without_graphs(training, device, display)
    training, backbone, initial = load_parts(run, training, display)
    make = few_shot(config, dataset, backbone, display, interrupts)
    if claim:
        run.claim()
    return make(training, run.folder, initial=initial, callbacks=run.trackers)


def few_shot(
    config: FewshotConfig | CompareConfig, dataset: Any, backbone: Backbone, display: Display, interrupts: Interrupts
) -> Callable[..., FewShot]:
    """What makes a run of settings and a folder, with these parts."""
    from avfewshot.inference.devices import resolve_device
    from avfewshot.prompts import load_templates
    from avfewshot.training.fewshot import FewShot

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
        from avfewshot.data.folder import load_folder

        assert data.data is not None
        dataset = load_folder(data.data)
        if config.training.multi_label:
            from avfewshot.evaluation.few_shot import with_several_labels

            return with_several_labels(dataset)
        return dataset
    from avfewshot.data.load import load_dataset, require_media

    assert data.root is not None
    dataset = load_dataset(task, data.root, media=data.media, list_file=data.list_file)
    require_media(dataset, data.media or [data.root])
    return dataset


def _plan(trainer: FewShot) -> Plan:
    """What a run takes; supports are drawn, clips are not read."""
    import torch

    from avfewshot.inference.devices import PRECISIONS
    from avfewshot.models.build import build_model
    from avfewshot.training.data import draw
    from avfewshot.training.plan import make_plan

    config = trainer.config
    support = draw(trainer.dataset, config, config.seeds[0])
    trainer.backbone.to("cpu", torch.float32)
    try:
        model = build_model(trainer.backbone, config, device=trainer.device)
        return make_plan(model, trainer.backbone, config, len(support.samples))
    finally:
        trainer.backbone.to(trainer.device, PRECISIONS[config.precision])


def _say_plan(trainer: FewShot, plan: Plan | None, display: Display) -> None:
    config, dataset = trainer.config, trainer.dataset
    display.say(
        f"{dataset.description.title}: "
        + ", ".join(
            f"{len(dataset.available(split)):,} of {size:,} {split} clips have media"
            for split, size in dataset.split_sizes.items()
            if trainer.trains or split != "val"  # else it is the support once more, for thresholds
        )
        + "."
    )
    for line in dataset.report.describe():
        display.say(line)
    if plan is None:
        display.say(f"{config.task}, {config.shots} shots: {config.method} on frozen embeddings; nothing is trained.")
        return
    trainable = next(count.trainable for count in plan.parameters if count.component == "all")
    display.say(
        f"{config.task}, {config.shots} shots: {plan.clips:,} clips, up to {plan.steps:,} steps in {config.epochs} "
        f"epochs; {trainable / 1e6:.1f} M trainable parameters, {plan.flops['all'] / 1e9:.1f} GFLOPs a clip, about "
        f"{plan.memory / 1e9:.1f} GB; {trainer.device}, {config.precision}."
    )


def _print_plan(run: Run, trainer: FewShot, plan: Plan | None) -> None:
    config, dataset = trainer.config, trainer.dataset
    rows = [
        ("data", f"{dataset.description.title}, {dataset.root}"),
        *(
            (split, f"{len(dataset.available(split)):,} of {size:,} clips have media")
            for split, size in dataset.split_sizes.items()
        ),
        (
            "method",
            f"{config.method} with {config.adapter_title} trained beside it"
            if trainer.trains
            else f"{config.method} on frozen embeddings",
        ),
        ("support", f"{config.shots} clips a class, sampler {config.sampler}"),
        ("labels", f"the support's, and of {trainer.validation_used:,} validation clips"),
        ("seeds", ", ".join(map(str, config.seeds))),
    ]
    training = [] if plan is None else [
        ("steps", f"up to {plan.steps:,} a seed: {plan.batches:,} batches of {config.batch_size} an epoch, "
                  f"{config.epochs} epochs"),
        ("device", f"{trainer.device}, {config.precision}"),
        ("memory", plan.memory_by_part()),
    ]  # fmt: skip
    print_dry_run([*rows, *training, ("run folder", str(run.folder))], plan)


def _write(
    run: Run, trainer: FewShot, plan: Plan | None, results: Sequence[SeedResult], chosen: dict[str, Any] | None
) -> list[Path]:
    """Write results, tables, the lists of clips and the report; gives what a person may want to open."""
    from avfewshot.evaluation.evaluate import average_comparisons
    from avfewshot.evaluation.evaluator import UNTRAINED
    from avfewshot.reports.methods import classes_csv, comparison_csv, comparison_markdown, write_methods_page
    from avfewshot.reports.run_html import run_page
    from avfewshot.training.fewshot import TRAINED
    from avfewshot.training.recording import collect as collect_record
    from avfewshot.version import __version__

    folder = run.folder
    compared = [result.comparison for result in results if result.comparison is not None]
    comparison = average_comparisons(compared) if compared else None
    begun = trainer.initial is not None
    rows = run.rows(trainer.backbone, trainer.config) if begun else run.rows()
    record = None
    if plan is not None and comparison is not None:
        # First, since it looks at the clips: a run that was done before has not looked at any yet.
        main = [name for name in (*UNTRAINED, TRAINED) if name in comparison.systems]
        shown = comparison.only(main)
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
        table = (f"{trainer.config.shots} shots", comparison, [result.methods for result in results])
        title = f"{trainer.config.task}: few-shot methods"
        notes = [] if chosen is None else [f"Seed {chosen['seed']} answers for the run: {chosen['why']}."]
        write_methods_page(folder / "methods.html", [table], title=title, command=run.command, notes=notes)
        pages.append(folder / "methods.html")
    return [*pages, folder / "results.json"]


def _print_results(trainer: FewShot, results: Sequence[SeedResult], written: Sequence[Path]) -> None:
    """The comparison on stdout, and where files are on stderr."""
    from rich.console import Console

    from avfewshot.evaluation.evaluate import average_comparisons
    from avfewshot.reports.methods import comparison_table
    from avfewshot.reports.text import reject_text

    compared = [result.comparison for result in results if result.comparison is not None]
    console = Console(highlight=False)
    if not compared:
        console.print("There was no test clip: what was learnt is saved, and nothing tells how good it is.")
    else:
        from avfewshot.reports.methods import details_table, methods_table

        figures, runs = average_comparisons(compared), [result.methods for result in results]
        console.print(methods_table(figures, runs) if trainer.has_methods else comparison_table(figures))
        console.print(details_table(figures, runs))
    for result in results:
        if reject := result.methods.get(trainer.config.method, {}).get("reject"):
            say(f"seed {result.seed}: `unknown` (zeroshot --adapter RUN --reject): {reject_text(reject)}.")
    for split, listed, used, left in trainer.evaluator.usage.counts(trainer.dataset):
        if left:
            say(f"{split}: {used:,} of {listed:,} clips used, {left:,} cannot be: see clips.csv.")
    for path in written:
        say(f"written: {path}")
