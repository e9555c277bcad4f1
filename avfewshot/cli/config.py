"""`avfs config`: every setting, its value and where it came from."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from avfewshot.cli.options import TableOrJson, argument
from avfewshot.cli.terminal import say_warning
from avfewshot.config import COMMANDS, environment_name, resolve, table_settings
from avfewshot.errors import UsageError, did_you_mean, raise_faults
from avfewshot.io import cache_dir
from avfewshot.text import printable


def config(
    tables: Annotated[
        list[str] | None, argument("TABLE", "zeroshot, fewshot, data, ...; all of them unless told.")
    ] = None,
    format: TableOrJson = "table",
) -> None:
    r"""Show every setting, its value and where it came from.

    A flag comes before the environment (AVFS_NAME), that before `avfs.toml` in
    the current folder, and that before the default. In the file, keys outside every
    table count for all commands, and those of a table for its command:

      backbone = "tiny"

      \[zeroshot]
      segments = true

    [bold]Examples[/bold]

      avfs config
      avfs config zeroshot --format json
      AVFS_DEVICE=cpu avfs config
    """
    unknown, hint = [name for name in tables or () if name not in COMMANDS], f"Valid: {', '.join(COMMANDS)}."
    faults = [
        UsageError(f"There are no settings for {name!r}.{did_you_mean(name, COMMANDS)}", hint=hint) for name in unknown
    ]
    resolved = {table: resolve(table) for table in COMMANDS}
    # A fault of the file is met once for each table.
    raise_faults([*faults, *{str(fault): fault for one in resolved.values() for fault in one.faults}.values()])
    rows = [
        {
            "table": table,
            "name": single.name,
            "value": None if (value := resolved[table][key]) is None else single.show(value),
            "shown": single.show(value),
            "source": resolved[table].sources[key],
            "help": single.help,
        }
        for table in COMMANDS
        if table in (tables or COMMANDS)
        for key, single in table_settings(table).items()
    ]
    if not tables:
        source = next((name for name in ("AVFS_CACHE", "XDG_CACHE_HOME") if os.environ.get(name)), "default")
        cache = {"table": "", "name": "cache", "value": str(cache_dir()), "shown": str(cache_dir()), "source": source}
        rows.append(cache | {"help": "Folder for what can be computed again."})
    if format == "json":
        typer.echo(json.dumps([{key: row[key] for key in row if key != "shown"} for row in rows], indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    columns = (Column(name, overflow="fold") for name in ("", "setting", "value", "from"))
    shown, before = Table(*columns, box=None, pad_edge=False, header_style="bold"), None
    for row in rows:
        set_by_person = row["source"] != "default"
        shown.add_row(
            Text(f"[{row['table']}]" if row["table"] and row["table"] != before else "", style="dim"),
            Text(row["name"]),
            Text(printable(row["shown"]), style="bold" if set_by_person else ""),
            Text(row["source"], style="" if set_by_person else "dim"),
        )
        before = row["table"]
    Console(highlight=False).print(shown)
    variables = {environment_name(table, key) for table in COMMANDS for key in table_settings(table)}
    variables |= {"AVFS_CACHE", "AVFS_DEBUG", "AVFS_TIMEOUT"}
    for variable in sorted(name for name in os.environ if name.startswith("AVFS_") and name not in variables):
        say_warning(f"{variable} is set, but there is no such setting.{did_you_mean(variable, variables)}")
