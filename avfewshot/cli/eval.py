"""`avfs eval`: figures of a supervised run on a split, perhaps with a modality switched off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from avfewshot.cli.runs import resumed_run
from avfewshot.cli.terminal import Interrupts, Notices, debugging, library_messages
from avfewshot.errors import UsageError, did_you_mean

app = typer.Typer(add_completion=False)

HELP = """
Evaluate a run of `avfs train` again: on test or validation clips, with sight or sound switched off, on other data.

[bold]Examples[/bold]

  avfs eval runs/ave/RUN
  avfs eval runs/ave/RUN --modality visual    without sound
  avfs eval runs/avvp/RUN --split val --format json
"""

CHOICES = {"split": ("test", "val"), "modality": ("av", "visual", "audio"), "format": ("table", "json")}


@app.command(name="eval", help=HELP)
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)],
    split: Annotated[str, typer.Option("--split", metavar="test|val", help="Which clips.")] = "test",
    modality: Annotated[
        str | None,
        typer.Option(
            "--modality", metavar="av|visual|audio", help="What is used; unless told as trained.", show_default=False
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="DIR", help="Folder of the data set, if it has moved.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Where to compute.", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option("--format", metavar="table|json", help="Form of the answer.")] = "table",
) -> None:
    """Load, predict, print."""
    check_choices({"split": split, "modality": modality, "format": format})
    with library_messages(Notices(), debug=debugging()), Interrupts():
        from avfewshot.cli.progress import Display
        from avfewshot.cli.train import load_run, results_document
        from avfewshot.reports.supervised import print_results

        record = resumed_run("train", Path(run).expanduser(), {"device": device}, may_change=("device",), option="RUN")
        config = record.config
        if root is not None:
            config = config.replace(data=config.data.replace(root=Path(root).expanduser(), media=()))
        with Display() as display:
            trainer = load_run(config, display)
            examples = trainer.examples(split)
            if not examples:
                raise UsageError(f"There is no {split} clip to evaluate on.", hint="Look at --root.")
            runs = [
                trainer.predict(trainer.best_model(record.folder / f"seed-{seed}"), examples, modality)
                for seed in trainer.config.seeds
            ]
            systems = {trainer.head_name: trainer.estimates(runs, examples)}
            if split == "test":
                lines = trainer.reference_lines()
                systems = {name: trainer.estimates([said], examples) for name, said in lines.items()} | systems
    document = results_document(trainer, systems, split) | {"modality": modality or trainer.config.modality}
    if format == "json":
        typer.echo(json.dumps(document, indent=2))
    else:
        print_results(document)


def check_choices(given: dict[str, str | None]) -> None:
    """Refuse words that an option does not know."""
    for name, value in given.items():
        if value is not None and value not in CHOICES[name]:
            guess = did_you_mean(value, CHOICES[name])
            raise UsageError(f"--{name}: {value!r} is not one of {', '.join(CHOICES[name])}.{guess}")
