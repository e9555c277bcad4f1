"""`avfs zeroshot`: classify clips with nothing but a list of labels."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from avfewshot.cli.options import setting_option

app = typer.Typer(add_completion=False)

HELP = """
Classify clips by what is seen and heard, with nothing but a list of labels.

Each PATH is a media file, a folder or a glob; without any, every media file below
the current folder is taken. A file that cannot be read is reported, and the
others go on.

[bold]Examples[/bold]

  avfs zeroshot --labels labels.txt
  avfs zeroshot --labels labels.txt clips/ --segments --report report.html
  avfs zeroshot --labels labels.txt a.mp4 b.wav --output results.json
  avfs zeroshot --labels labels.txt 'day-*/*.mp4' --format jsonl | jq .label
  avfs zeroshot --labels labels.txt --backbone large --device cuda:0
  avfs zeroshot --labels labels.txt --adapter runs/llp_cls/RUN
  avfs zeroshot --task llp_cls --root DATA                 evaluate on a test split, without training
  avfs zeroshot --task ave --adapter runs/pretrain/RUN     with what pretraining learnt beside it

[bold]The label file[/bold] has one label a line; `#` begins a comment.

  dog barking
  violin: a person playing the violin   # what the text branches read

[bold]Exit status:[/bold] 0 all done, 1 some clips failed, 2 misuse, 130 interrupted; results so far are kept.
"""

_MODEL = "Model"
_METHOD = "Method"
_OUTPUT = "Output"
_FILES = "Weights by path"
_TASK = "A task instead of files"
_TASK_OPTIONS = ("task", "root", "media", "list_file", "vggsounder", "background")


def _task_option(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, rich_help_panel=_TASK, show_default=False, help=text)


@app.command(help=HELP)
def zeroshot(
    context: typer.Context,
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Media files, folders or globs.", show_default=False)
    ] = None,
    labels: Annotated[str | None, setting_option("labels")] = None,
    recursive: Annotated[bool | None, setting_option("recursive")] = None,
    modality: Annotated[str | None, setting_option("modality")] = None,
    backbone: Annotated[str | None, setting_option("backbone", _MODEL)] = None,
    adapter: Annotated[str | None, setting_option("adapter", _MODEL)] = None,
    device: Annotated[str | None, setting_option("device", _MODEL)] = None,
    precision: Annotated[str | None, setting_option("precision", _MODEL)] = None,
    batch_size: Annotated[str | None, setting_option("batch_size", _MODEL)] = None,
    weights: Annotated[str | None, setting_option("weights", _MODEL)] = None,
    seed: Annotated[str | None, setting_option("seed", _MODEL)] = None,
    templates: Annotated[str | None, setting_option("templates", _METHOD)] = None,
    fusion: Annotated[str | None, setting_option("fusion", _METHOD)] = None,
    pool: Annotated[str | None, setting_option("pool", _METHOD)] = None,
    frame_backend: Annotated[str | None, setting_option("frame_backend", _METHOD)] = None,
    clip_weights: Annotated[str | None, setting_option("clip_weights", _FILES)] = None,
    clap_weights: Annotated[str | None, setting_option("clap_weights", _FILES)] = None,
    roberta: Annotated[str | None, setting_option("roberta", _FILES)] = None,
    topk: Annotated[str | None, setting_option("topk", _OUTPUT)] = None,
    segments: Annotated[bool | None, setting_option("segments", _OUTPUT)] = None,
    format: Annotated[str | None, setting_option("format", _OUTPUT)] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="PATH",
            rich_help_panel=_OUTPUT,
            show_default=False,
            help="File for the results, whose suffix chooses the format where --format does not; for `--format all` a "
            "folder or a path without suffix. [dim](default: stdout)[/dim]",
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            rich_help_panel=_OUTPUT,
            show_default=False,
            help="Also write one self-contained page with pictures, scores and timelines.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        _task_option(
            "--task",
            "ave|ave_cls|llp_cls|vggsound_cls",
            "Evaluate on the test clips of a data set: no labels, no PATH.",
        ),
    ] = None,
    root: Annotated[str | None, _task_option("--root", "DIR", "Folder of the task's data set.")] = None,
    media: Annotated[
        list[str] | None, _task_option("--media", "DIR", "Folder of its clips, if elsewhere; may be repeated.")
    ] = None,
    list_file: Annotated[str | None, _task_option("--list", "FILE", "For vggsound_cls: the list to read.")] = None,
    vggsounder: Annotated[
        str | None, _task_option("--vggsounder", "FILE", "For vggsound_cls: several labels a clip, by vggsounder.csv.")
    ] = None,
    background: Annotated[
        str | None,
        _task_option(
            "--background",
            "threshold|prompt|none",
            "For ave: how seconds without an event are told. [dim](default: threshold, by validation)[/dim]",
        ),
    ] = None,
) -> None:
    """Parse, check, run; `context.params` holds the options by the names of their settings."""
    own = {"paths", "output", "report", *_TASK_OPTIONS}
    flags = {name: value for name, value in context.params.items() if name not in own}
    given = [name for name in _TASK_OPTIONS if context.params[name]]
    if task is not None:
        from avfewshot.cli.zeroshot_task import build_task_request, execute_task

        status = execute_task(build_task_request({name: context.params[name] for name in own}, flags))
        if status:
            raise typer.Exit(status)
        return
    if given:
        from avfewshot.errors import UsageError

        raise UsageError(
            f"--{given[0].replace('list_file', 'list')} needs --task.", hint="avfs zeroshot --task llp_cls --root DIR"
        )

    from avfewshot.cli.zeroshot_request import build_request

    request = build_request(flags, paths or [], output, report)

    from avfewshot.cli.zeroshot_run import execute

    status = execute(request, shlex.join(["avfs", *(context.obj or ())]))
    if status:
        raise typer.Exit(status)
