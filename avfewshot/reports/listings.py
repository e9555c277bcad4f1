"""Plain tables for the terminal: names in the first column, figures in the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.box import HEAVY_HEAD, SIMPLE_HEAD, Box
from rich.table import Table
from rich.text import Text

from avfewshot.text import printable

if TYPE_CHECKING:
    from avfewshot.models.complexity import ParameterCount


def figures_table(
    *columns: str,
    title: str | None = None,
    caption: str | Text | None = None,
    box: Box = SIMPLE_HEAD,
    pad_edge: bool = False,
) -> Table:
    """A table with a line below its head."""
    table = Table(title=title, caption=caption, box=box, pad_edge=pad_edge)
    table.title_justify = table.caption_justify = "left"
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="ellipsis" if place else "fold")
    return table


@dataclass(frozen=True)
class Listing:
    """A plain table: what goes with the figures of a page, and on the terminal."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def turned(self) -> Listing:
        """Its columns as rows."""
        names, *figures = zip(self.head, *self.rows, strict=True)
        return replace(self, head=("", *names[1:]), rows=figures)

    def table(self, most: int = 20) -> Table:
        """For the terminal, its first rows."""
        more = f"{len(self.rows) - most:,} more are in the files. " if len(self.rows) > most else ""
        table = figures_table(title=printable(self.title), caption=more + self.note or None)
        for name in self.head:
            table.add_column(printable(name), overflow="fold")
        for row in self.rows[:most]:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return table


def components_table(components: Sequence[ParameterCount]) -> Table:
    """Parameters and operations of the parts of a model; the part called ``all`` below a line."""
    columns = ("part", "trainable", "parameters", "GFLOPs for 10 s")
    table = figures_table(*columns, box=HEAVY_HEAD, pad_edge=True)
    for part in components:
        if part.component == "all":
            table.add_section()
        flops = "-" if part.flops is None else f"{part.flops / 1e9:,.1f}"
        table.add_row(Text(part.component), f"{part.trainable:,}", f"{part.total:,}", flops)
    return table
