"""Progress of a few-shot run on the terminal: one bar at a time, and a line for whatever should stay."""

from __future__ import annotations

import sys
from typing import Any

from avfewshot.cli.console import paused_progress, progress_bar
from avfewshot.training.fewshot import RunObserver
from avfewshot.training.loop import Watcher
from avfewshot.training.selection import Verdict


class Display(RunObserver):
    """Shows what a run does; bars only on a terminal.

    Attributes:
        validated: Whether there are validation clips; without them their figures mean nothing, and are not shown.
    """

    def __init__(self) -> None:
        self.validated = True
        self._bar: Any = None
        self._outer: Any = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def begin(self, what: str, total: int) -> None:
        """See :class:`~avfewshot.evaluation.observer.Observer`."""
        self._close_bar()
        self._bar = progress_bar(total or None, "clip", what)

    def advance(self) -> None:
        """See :class:`~avfewshot.evaluation.observer.Observer`."""
        if self._bar is not None:
            self._bar.update()

    def say(self, message: str) -> None:
        """See :class:`~avfewshot.evaluation.observer.Observer`."""
        with paused_progress():
            print(message, file=sys.stderr)  # noqa: T201

    def watcher(self, seed: int, epochs: int) -> Watcher:
        """See :class:`~avfewshot.training.fewshot.RunObserver`."""
        return _EpochBar(self, seed, epochs)

    def replace(self, bar: Any) -> None:
        """Let another bar take the place of the current one."""
        self._close_bar()
        self._bar = bar

    def close(self) -> None:
        """Remove the bar."""
        self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _EpochBar(Watcher):
    """A bar an epoch, and a line for each validation."""

    def __init__(self, display: Display, seed: int, epochs: int) -> None:
        self._display, self._seed, self._epochs = display, seed, epochs
        self._bar: Any = None
        self._sum, self._steps = 0.0, 0

    def begin_epoch(self, epoch: int, batches: int, done: int) -> None:
        self._bar = progress_bar(batches, "batch", f"seed {self._seed}, epoch {epoch}/{self._epochs}")
        self._bar.update(done)
        self._sum, self._steps = 0.0, 0
        self._display.replace(self._bar)

    def stepped(self, batches: int, loss: float) -> None:
        self._sum, self._steps = self._sum + loss, self._steps + 1
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update(batches)

    def judged(self, epoch: int, verdict: Verdict, best: bool) -> None:
        parts = [f"loss {self._sum / self._steps:.3f}"] if self._steps else []
        if self._display.validated:
            parts.append(
                f"validation {100 * verdict.figure:.1f} % with {verdict.blend:g} of the trained logits"
                f"{' (best so far)' if best else ''}"
            )
        if parts:
            self._display.say(f"seed {self._seed}, epoch {epoch}/{self._epochs}: {', '.join(parts)}")
