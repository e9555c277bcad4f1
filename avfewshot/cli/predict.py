"""`avfs predict`: what a supervised run says of new clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from avfewshot.cli.options import TableOrJson, argument, option
from avfewshot.cli.runs import resumed_run, session
from avfewshot.errors import AvfsError, UsageError, explain
from avfewshot.io import user_path, write_text
from avfewshot.text import printable


def predict(
    run: Annotated[str, argument("RUN", "Folder of the run.")],
    paths: Annotated[list[str] | None, argument("PATH", "Clips, folders, globs.")] = None,
    question: Annotated[str | None, option("--question", "TEXT", "What is asked, for tasks with questions.")] = None,
    seed: Annotated[int | None, option("--seed", "INTEGER", "Which training; unless told the first.")] = None,
    device: Annotated[str | None, option("--device", "DEVICE", "Where to compute.")] = None,
    format: TableOrJson = "table",
    output: Annotated[str | None, option("--output", "FILE", "Where JSON lines go; else stdout.")] = None,
) -> None:
    """Answer about new clips with a run of `avfs train`. Long files are cut into windows of the task's length.

    [bold]Examples[/bold]

      avfs predict runs/ave/RUN clips/
      avfs predict runs/avvp/RUN a.mp4 b.mp4 --format json --output answers.jsonl
      avfs predict runs/avqa/RUN clip.mp4 --question "How many instruments are sounding in the video?"

    [bold]Exit status:[/bold] 0 all done, 1 a clip could not be read, 2 misuse.
    """
    from avfewshot.media.discover import find_media

    if not paths:
        raise UsageError("Which clips?", hint="avfs predict RUN PATH...")
    media = find_media(paths)
    files = [path for path in media if isinstance(path, Path)]
    if len(files) < len(media):
        what = "predict answers about files of this machine, not about addresses."
        raise UsageError(what, hint="Download them first.")
    with session() as (display, _):
        from avfewshot.cli.supervised_run import run_on
        from avfewshot.models.checkpoint import load_adapter
        from avfewshot.reports.supervised import told
        from avfewshot.supervised.base import Example, TaskData, load_task

        record = resumed_run("train", run, {"device": device}, may_change=("device",), option="RUN")
        config, folder = record.config, record.folder
        seeds = config.training.seeds
        if seed is not None and seed not in seeds:
            raise UsageError(f"--seed {seed}: was not trained.", hint=f"Seeds: {', '.join(map(str, seeds))}.")
        chosen = folder / f"seed-{seeds[0] if seed is None else seed}"
        about = load_adapter(chosen).config.decision["about"]
        task = load_task(str(config.task))
        asked = [task.ask(Example(path.stem, path), question, about) for path in files]
        trainer = run_on(config, task, TaskData({}, about))
        model = trainer.best_model(chosen)
        lines, failed = [], 0
        for example in asked:
            try:
                windows = task.read_windows(example.path, trainer.store.frame_size, config.model.frame_backend)
                for clip, (start, end) in windows:
                    said = trainer.answer(model, clip, example)
                    line = {"path": str(example.path), "start": start, "end": end}
                    lines.append(line | task.describe(said, example, about))
                    if format == "table" and output is None:
                        typer.echo(printable(f"{line['path']} {line['start']}-{line['end']} s: {told(lines[-1])}"))
            except AvfsError as error:  # noqa: PERF203 - one bad file does not stop the others
                display.say(f"{example.path}: {explain(error)}")
                failed += 1
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if output is not None:
            write_text(user_path(output), text)
            display.say(f"written: {output}")
        elif format == "json":
            typer.echo(text, nl=False)
    if failed:
        raise typer.Exit(1)
