"""`avfs eval`: figures of a supervised run on a split, perhaps with a modality switched off."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from avfewshot.cli.options import TableOrJson, argument, choice, option
from avfewshot.cli.runs import resumed_run, session
from avfewshot.errors import UsageError
from avfewshot.io import user_path

_ZERO_SHOT = "zero-shot by second"  # the reference line that stands beside the model in timelines


def evaluate(
    run: Annotated[str, argument("RUN", "Folder of the run.")],
    split: Annotated[str, choice("--split", "test", "val", help="Which clips.")] = "test",
    modality: Annotated[
        str | None, choice("--modality", "av", "visual", "audio", help="What is used; unless told as trained.")
    ] = None,
    root: Annotated[str | None, option("--root", "DIR", "Folder of the data set, if it has moved.")] = None,
    device: Annotated[str | None, option("--device", "DEVICE", "Where to compute.")] = None,
    figures: Annotated[
        str | None, option("--figures", "DIR", "Write what the papers draw: t-SNE, maps, timelines.")
    ] = None,
    format: TableOrJson = "table",
) -> None:
    """Evaluate a run of `avfs train` again: on test or validation clips, with sight or sound switched off, on other
    data.

    [bold]Examples[/bold]

      avfs eval runs/ave/RUN
      avfs eval runs/ave/RUN --modality visual    without sound
      avfs eval runs/avvp/RUN --split val --format json
      avfs eval runs/avvp/RUN --figures pictures/  t-SNE, where adapters look, timelines
    """  # noqa: D205
    with session() as (display, _):
        from avfewshot.cli.supervised_run import load_run, results_document
        from avfewshot.reports.supervised import print_results

        record = resumed_run("train", run, {"device": device}, may_change=("device",), option="RUN")
        config = record.config
        if root is not None:
            config = config.replace(data=config.data.replace(root=user_path(root), media=()))
        trainer = load_run(config, display)
        examples = trainer.examples(split)
        if not examples:
            raise UsageError(f"There is no {split} clip to evaluate on.", hint="Look at --root.")
        seeds = trainer.config.seeds
        runs = [
            trainer.predict(trainer.best_model(record.folder / f"seed-{seed}"), examples, modality) for seed in seeds
        ]
        systems = {trainer.head_name: trainer.estimates(runs, examples)}
        lines = trainer.reference_lines() if split == "test" else {}
        systems = {name: trainer.estimates([said], examples) for name, said in lines.items()} | systems
        document = results_document(trainer, systems, split) | {"modality": modality or trainer.config.modality}
        if figures is not None:
            from avfewshot.reports.supervised import write_figures
            from avfewshot.supervised.figures import embed, look, parse

            page = user_path(figures) / "figures.html"
            said = {trainer.head_name: runs[0]}
            if _ZERO_SHOT in lines:
                said[_ZERO_SHOT] = lines[_ZERO_SHOT]
            model = trainer.best_model(record.folder / f"seed-{seeds[0]}")
            embedded, looks = embed(trainer, model, examples), look(trainer, model, examples)
            page.parent.mkdir(parents=True, exist_ok=True)
            write_figures(page, document, trainer.config.adapter, embedded, looks, parse(trainer, examples, said))
            display.say(f"written: {page}")
    if format == "json":
        typer.echo(json.dumps(document, indent=2))
    else:
        print_results(document)
