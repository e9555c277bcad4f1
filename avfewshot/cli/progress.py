"""Progress of a training on the terminal: one bar at a time, and a line for whatever should stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avfewshot.cli.terminal import progress_bar, say
from avfewshot.io import write_text
from avfewshot.media.clip import Failure
from avfewshot.reports.text import duration
from avfewshot.text import csv_text
from avfewshot.training.fewshot_setting import RunObserver
from avfewshot.training.protocol import Callback, Pace
from avfewshot.training.validation import ValMetrics

_ESTIMATE_AFTER = 5
_LONG = 6 * 3600.0


class Display(RunObserver):
    """Shows what a run does; bars only on a terminal."""

    def __init__(self) -> None:
        self.validated = True  # whether there are validation clips; without them their figures are not shown
        self.chief = True  # whether this is rank 0: the others say nothing
        self._bar: Any = None
        self._left: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.show(None)

    def begin(self, what: str, total: int, done: int = 0, *, unit: str = "clip") -> None:
        """See :class:`~avfewshot.evaluation.observer.Observer`."""
        if self.chief:
            self.show(None)
            self.show(progress_bar(total or None, unit, what, done))

    def advance(self) -> None:
        """See :class:`~avfewshot.evaluation.observer.Observer`."""
        if self._bar is not None:
            self._bar.update()

    def say(self, message: str) -> None:
        """See :class:`~avfewshot.evaluation.observer.Observer`."""
        if self.chief:
            say(message)

    def show(self, bar: Any) -> None:
        """Put a bar in the place of the current one."""
        if self._bar is not None:
            self._bar.close()
        self._bar = bar

    def training(self, seed: int, epochs: int) -> Callback:
        """See :class:`~avfewshot.training.fewshot_setting.RunObserver`."""
        return ProgressBar(self, f"seed {seed}, epoch", epochs)

    def methods(self, seed: int, diagnostics: Mapping[str, Mapping[str, Any]]) -> None:
        """See :class:`~avfewshot.training.fewshot_setting.RunObserver`."""
        from avfewshot.reports.methods import left_out_table

        self.show(None)
        say(left_out_table(seed, diagnostics))

    def unreadable(self, failure: Failure) -> None:
        """Remember a clip that could not be read; say the first ones."""
        if str(failure.id) not in self._left:
            self._left[str(failure.id)] = (str(failure.path), failure.error)
            if len(self._left) <= 3:
                self.say(f"left out: {failure.path}: {failure.error}")

    def write_left(self, path: Path) -> None:
        """Write the clips that could not be read; nothing where all could be."""
        if self._left:
            rows = ((name, *rest) for name, rest in self._left.items())
            write_text(path, csv_text((("id", "path", "reason"), *rows)))
            self.say(f"{len(self._left):,} clips could not be read: {path}")


class ProgressBar(Callback):
    """A bar an epoch, and a line for each validation; with `pace` also throughput, waiting, memory, and time left."""

    def __init__(self, display: Display, title: str, epochs: int, *, pace: bool = False) -> None:
        self._display, self._title, self._epochs, self._pace = display, title, epochs, pace
        self._bar: Any = None
        self._sum, self._steps, self._steps_in_all = 0.0, 0, 0

    def on_epoch_start(self, epoch: int, steps: int, done: int) -> None:
        """See :class:`~avfewshot.training.protocol.Callback`."""
        self._sum, self._steps = 0.0, 0
        if self._display.chief:
            self._display.show(None)
            self._bar = progress_bar(steps, "step", f"{self._title} {epoch}/{self._epochs}", done)
            self._display.show(self._bar)

    def on_step(self, step: int, loss: float, pace: Pace) -> None:
        """See :class:`~avfewshot.training.protocol.Callback`."""
        self._sum, self._steps, self._steps_in_all = self._sum + loss, self._steps + 1, self._steps_in_all + 1
        if self._bar is not None:
            text = f"loss {loss:.3f}"
            if self._pace:
                memory = "" if pace.memory is None else f", {pace.memory / 1e9:.1f} GB"
                text += f", {pace.clips:.1f} clips/s, {100 * pace.waiting:.0f} % waiting{memory}"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        if self._pace and self._steps_in_all == _ESTIMATE_AFTER:
            text = f"{pace.clips:.1f} clips/s: about {duration(pace.left)} to the end of epoch {self._epochs}"
            if pace.left > _LONG:
                text += "; a GPU, fewer --epochs or prepared --shards would shorten that"
            self._display.say(f"{text}. Interrupt it whenever you like: --resume goes on.")

    def on_validate(self, epoch: int, metrics: ValMetrics, best: bool) -> None:
        """See :class:`~avfewshot.training.protocol.Callback`."""
        parts = [f"loss {self._sum / self._steps:.3f}"] if self._steps else []
        if self._display.validated:
            share = "" if metrics.details else f" with {metrics.blend:g} of the trained logits"
            share += ", multiplied" if metrics.fitted.fusion == "product" else ""
            parts.append(f"validation {100 * metrics.figure:.1f} %{share}{' (best so far)' if best else ''}")
        if parts:
            self._display.say(f"{self._title} {epoch}/{self._epochs}: {', '.join(parts)}")

    def on_warning(self, message: str) -> None:
        """See :class:`~avfewshot.training.protocol.Callback`."""
        self._display.say(message)
