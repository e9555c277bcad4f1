"""Results for people at a terminal: the best labels of each clip with bars, and what each second holds."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.reports.strip import Mark, Run, cells, marks, runs
from avfewshot.reports.text import percent, rate, reason, seconds, shorten
from avfewshot.reports.writers import Summary, Writer, distribution
from avfewshot.text import printable

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_PERCENT_WIDTH = len("100.0 %")
_COLUMNS = (("both", "bold green"), ("visual", "cyan"), ("audio", "magenta"))
_LONGEST_LABEL = 32
_LONGEST_BAR = 16
_WANTED_BAR = 8
_MOST_RUNS = 12  # from more changes on, times of every single one would fill the screen


class TableWriter(Writer):
    """A block a clip, printed as soon as it is done; blocks are aligned with each other.

    The console decides on width, colour and characters; `segments` shows what each second holds.
    """

    def __init__(self, console: Console, run: RunInfo, *, topk: int, segments: bool) -> None:
        self._console, self._run, self._topk, self._segments = console, run, topk, segments
        longest = max((cell_len(printable(label)) for label in run.labels), default=0)
        # Two spaces of indent; each column is two spaces, a bar, a space and a percentage.
        room = console.width - 2 - len(_COLUMNS) * (3 + _PERCENT_WIDTH)
        self._label_width = max(8, min(longest, _LONGEST_LABEL, max(16, room - len(_COLUMNS) * _WANTED_BAR), room))
        self._bar_width = max(0, min(_LONGEST_BAR, (room - self._label_width) // len(_COLUMNS)))
        if self._bar_width < 4:  # too short to tell anything: leave bars out
            self._bar_width = 0

    def failed(self, failure: Failure) -> None:
        """Print what is wrong with a file."""
        self._print(Text(printable(failure.path), style="bold"))
        self._print(Text(f"  failed: {reason(failure.path, failure.error)}", style="red"))
        self._print(Text())

    def end(self, summary: Summary) -> None:
        """Print how the run went."""
        self._print(footer(self._run, summary, plain=self._plain))

    def clip(self, result: ClipResult) -> None:
        """Print a block."""
        head = Text(printable(result.path), style="bold")
        head.append(f"  {seconds(result.duration)} s", style="dim")
        if result.labels is not None:
            head.append(f"  {', '.join(map(printable, result.labels)) or printable(result.label)}", style="bold green")
        elif result.label not in result.scores:
            head.append(f"  {printable(result.label)}", style="bold yellow")
        self._print(head)
        shares = (distribution(result.scores), result.visual, result.audio)
        self._print(self._header(result, shares))
        for label in sorted(result.scores, key=result.scores.__getitem__, reverse=True)[: self._topk]:
            chosen = label == result.label
            line = Text("  ")
            line.append(self._fit(printable(label)), style="bold" if chosen else "")
            for (_, style), values in zip(_COLUMNS, shares, strict=True):
                line.append("  ")
                line.append_text(self._bar(None if values is None else values[label], style))
            self._print(line)
        if self._segments and result.segments:
            self._strip(result)
        for warning in result.warnings:
            self._print(Text(f"  warning: {printable(warning)}", style="yellow"))
        self._print(Text())

    def _header(self, result: ClipResult, shares: tuple[dict[str, float] | None, ...]) -> Text:
        """Names of the columns, with the modalities' weights as long as there is room, in one manner for all."""
        room = self._bar_width + 1 + _PERCENT_WIDTH
        times = "x" if self._plain else "×"
        manners = (", weight {:.2f}", f" {times} {{:.2f}}", "")
        titles: list[str] = []
        for manner in manners:
            titles = [
                name if name == "both" or values is None else name + manner.format(result.weights[name])
                for (name, _), values in zip(_COLUMNS, shares, strict=True)
            ]
            if all(len(title) <= room for title in titles):
                break
        header = Text("  " + " " * self._label_width)
        for title in titles:
            header.append("  " + set_cell_size(title, room), style="dim")
        return header

    def _fit(self, label: str) -> str:
        if cell_len(label) > self._label_width:
            label = shorten(label, self._label_width, "..." if self._plain else "…")
        return set_cell_size(label, self._label_width)

    def _bar(self, share: float | None, style: str) -> Text:
        if share is None:
            dash = "-" if self._plain else "–"
            return Text(" " * (self._bar_width + 1) + dash.rjust(_PERCENT_WIDTH), style="dim")
        drawn = Text()
        if self._bar_width:
            drawn.append(bar(share, self._bar_width, plain=self._plain) + " ", style=style)
        else:
            drawn.append(" ")
        drawn.append(percent(share).rjust(_PERCENT_WIDTH))
        return drawn

    def _strip(self, result: ClipResult) -> None:
        table = marks(self._run.labels, (segment.label for segment in result.segments))
        room = max(10, self._console.width - 2)
        labels, span = cells([segment.label for segment in result.segments], room)
        coloured = self._console.color_system is not None
        wide = 3 if coloured and 3 * len(labels) <= room else 1
        line = Text("  ")
        for label in labels:
            line.append(table[label].letter.center(wide), style=_style(table[label]))
        if span > 1:
            line.append(f"\n  one letter is {span} s", style="dim")
        self._print(line)
        legend = Text()
        for index, (label, when) in enumerate(_legend(runs(result.segments))):
            legend.append((" ; " if self._plain else " · ") if index else "", style="dim")
            legend.append(table[label].letter, style=_style(table[label]))
            legend.append(f" {when} {printable(label)}")
        self._console.print(Padding(legend, (0, 0, 0, 2), expand=False), highlight=False)

    @property
    def _plain(self) -> bool:
        return self._console.options.ascii_only

    def _print(self, line: Text) -> None:
        # Long paths and messages must stay whole, for copying: the terminal wraps them, not rich.
        self._console.print(line, soft_wrap=True, highlight=False)


def bar(share: float, width: int, *, plain: bool = False) -> str:
    """A bar of `width` characters, in eighths of a character; `plain` uses ``#`` in whole ones."""
    share = min(max(share, 0.0), 1.0)
    if plain:
        return ("#" * round(share * width)).ljust(width)
    whole, part = divmod(round(share * width * 8), 8)
    return ("█" * whole + (_EIGHTHS[part] if part else "")).ljust(width)


def footer(run: RunInfo, summary: Summary, *, plain: bool = False) -> Text:
    """One line on the whole run; `plain` keeps to ASCII."""
    dot = ";" if plain else " ·"
    line = Text()
    if not summary.complete:
        done = summary.clips + summary.failed
        line.append(f"stopped after {done} of {summary.total}: ", style="yellow")
    line.append(f"{summary.clips} clip{'' if summary.clips == 1 else 's'}")
    if summary.failed:
        line.append(f", {summary.failed} failed", style="red")
    if summary.clips:
        line.append(f"{dot} {rate(summary.rate)} clips/s", style="dim")
    adapted = f" with {printable(run.adapter)}" if run.adapter else ""
    line.append(f"{dot} {run.backbone}{adapted} on {run.device}, {run.precision}", style="dim")
    return line


def _legend(found: list[Run]) -> list[tuple[str, str]]:
    """Labels with the seconds of each run, or of many runs the sum for each label."""
    if len(found) <= _MOST_RUNS:
        return [(run.label, f"{seconds(run.start)}-{seconds(run.end)} s") for run in found]
    sums: dict[str, float] = {}
    for run in found:
        sums[run.label] = sums.get(run.label, 0.0) + run.end - run.start
    order = sorted(sums, key=sums.__getitem__, reverse=True)
    return [(label, f"{seconds(sums[label])} s") for label in order]


def _style(mark: Mark) -> str:
    return f"{mark.paint.ink} on {mark.paint.fill}"
