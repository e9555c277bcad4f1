"""`avfs eval`: figures of a supervised run on a split, perhaps with a modality switched off."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.options import TableOrJson, choice
from avfewshot.cli.runs import resumed_run, session
from avfewshot.errors import UsageError
from avfewshot.io import user_path

if TYPE_CHECKING:
    from avfewshot.supervised.training import SupervisedModel, SupervisedRun

app = typer.Typer(add_completion=False)

HELP = """
Evaluate a run of `avfs train` again: on test or validation clips, with sight or sound switched off, on other data.

[bold]Examples[/bold]

  avfs eval runs/ave/RUN
  avfs eval runs/ave/RUN --modality visual    without sound
  avfs eval runs/avvp/RUN --split val --format json
  avfs eval runs/avvp/RUN --figures pictures/  t-SNE, where adapters look, timelines
"""

ZERO_SHOT = "zero-shot by second"  # the reference line that stands beside the model in timelines


@app.command(name="eval", help=HELP)
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)],
    split: Annotated[str, choice("--split", "test", "val", help="Which clips.")] = "test",
    modality: Annotated[
        str | None, choice("--modality", "av", "visual", "audio", help="What is used; unless told as trained.")
    ] = None,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="DIR", help="Folder of the data set, if it has moved.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Where to compute.", show_default=False)
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option(
            "--figures", metavar="DIR", help="Write what the papers draw: t-SNE, maps, timelines.", show_default=False
        ),
    ] = None,
    format: TableOrJson = "table",
) -> None:
    """Load, predict, print."""
    with session() as (display, _):
        from avfewshot.cli.train import load_run, results_document
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
            page = user_path(figures) / "figures.html"
            said = {trainer.head_name: runs[0]}
            if ZERO_SHOT in lines:
                said[ZERO_SHOT] = lines[ZERO_SHOT]
            draw(page, trainer, trainer.best_model(record.folder / f"seed-{seeds[0]}"), document, said)
            display.say(f"written: {page}")
    if format == "json":
        typer.echo(json.dumps(document, indent=2))
    else:
        print_results(document)


def draw(
    page: Path,
    trainer: SupervisedRun,
    model: SupervisedModel,
    document: dict[str, Any],
    said: Mapping[str, Sequence[Any]],
) -> None:
    """Write the page of pictures, of the examples of a document's split."""
    from avfewshot.reports.supervised import write_figures
    from avfewshot.supervised.figures import embed, look, parse

    examples = trainer.examples(document["split"])
    embedded, looks = embed(trainer, model, examples), look(trainer, model, examples)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_figures(page, document, trainer.config.adapter, embedded, looks, parse(trainer, examples, said))
