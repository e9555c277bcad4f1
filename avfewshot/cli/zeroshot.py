"""`avfs zeroshot`: classify clips with nothing but a list of labels, or evaluate on a data set without training."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from avfewshot.cli.options import argument, with_options
from avfewshot.cli.runs import command_line, session
from avfewshot.cli.zeroshot_request import check_files, check_task
from avfewshot.config import resolve


@with_options("zeroshot")
def zeroshot(
    context: typer.Context,
    paths: Annotated[list[str] | None, argument("PATH", "Media files, folders, globs or addresses.")] = None,
    **flags: Any,
) -> None:
    """Classify clips by what is seen and heard, with nothing but a list of labels.

    Each PATH is a media file, a folder, a glob, or an address (http://, https://, s3://);
    without any, every media file below the current folder is taken. A file that cannot be
    read is reported, and the others go on.

    [bold]Examples[/bold]

      avfs zeroshot --labels labels.txt
      avfs zeroshot --labels labels.txt clips/ --segments --report report.html
      avfs zeroshot --labels labels.txt a.mp4 b.wav --output results.json
      avfs zeroshot --labels labels.txt 'day-*/*.mp4' --format jsonl | jq .label
      avfs zeroshot --labels labels.txt --backbone large --device cuda:0
      avfs zeroshot --labels labels.txt --adapter runs/llp_cls/RUN
      avfs zeroshot --adapter runs/folder/RUN --reject clips/  `unknown` for what is like nothing learnt
      avfs zeroshot --labels labels.txt --multi-label clips/   all labels that a clip carries
      avfs zeroshot --task llp_cls --root DATA                 evaluate on a test split, without training
      avfs zeroshot --task ave --adapter runs/pretrain/RUN     with what pretraining learnt beside it

    [bold]The label file[/bold] has one label a line; `#` begins a comment.

      dog barking
      violin: a person playing the violin   # what the text branches read

    [bold]Exit status:[/bold] 0 all done, 1 some clips failed, 2 misuse, 130 interrupted; results so far are kept.
    """
    settings = resolve("zeroshot", flags)
    if flags["task"] is not None:
        check_task(settings, flags, paths or [])
        with session() as (display, _):
            from avfewshot.cli.zeroshot_task import evaluate, print_report

            evaluator, report = evaluate(settings, display)
        print_report(settings, evaluator, report)
    else:
        work = check_files(settings, flags, paths or [])
        from avfewshot.cli.zeroshot_files import classify

        if status := classify(work, command_line(context)):
            raise typer.Exit(status)
