"""`avfs data`: make toy clips; check data sets, prepare shards of them, import labels."""

from __future__ import annotations

import typer

from avfewshot.cli.data_check import check
from avfewshot.cli.data_labels import import_labels
from avfewshot.cli.data_prepare import prepare
from avfewshot.cli.data_toy import toy

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make and look after data sets.")
for name, command in (("check", check), ("prepare", prepare), ("import", import_labels), ("toy", toy)):
    app.command(name)(command)
