"""Progress of a pretraining on the terminal of rank 0: steps with throughput, waiting for data and memory."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from avfewshot.cli.console import progress_bar
from avfewshot.cli.fewshot_progress import Display
from avfewshot.io import csv_cell, write_text
from avfewshot.media.clip import Failure
from avfewshot.training.config import TrainingConfig
from avfewshot.training.pretrain import Pace, PretrainWatcher
from avfewshot.training.selection import Verdict

_ESTIMATE_AFTER = 5
_LONG = 6 * 3600.0


class PretrainDisplay(Display):
    """Shows what a pretraining does, on rank 0 alone.

    Attributes:
        chief: Whether this is rank 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chief = True
        self._left: dict[str, tuple[str, str]] = {}

    def begin(self, what: str, total: int) -> None:
        """See :class:`~avfewshot.evaluation.observer.Observer`."""
        if self.chief:
            super().begin(what, total)

    def say(self, message: str) -> None:
        """See :class:`~avfewshot.evaluation.observer.Observer`."""
        if self.chief:
            super().say(message)

    def watcher(self, config: TrainingConfig, clips: int, device: Any) -> PretrainWatcher:
        """Who watches the training.

        Args:
            config: Its settings.
            clips: Clips of an epoch.
            device: Where it runs.
        """
        return _StepBar(self, config, clips, device)

    def unreadable(self, failure: Failure) -> None:
        """Remember a clip that could not be read; say the first ones."""
        if failure.id not in self._left:
            self._left[failure.id] = (str(failure.path), failure.error)
            if len(self._left) <= 3:
                self.say(f"left out: {failure.path}: {failure.error}")

    def write_left(self, path: Path) -> None:
        """Write the clips that could not be read; nothing where all could be."""
        if not self._left:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("id", "path", "reason"))
        writer.writerows(map(csv_cell, (name, *rest)) for name, rest in self._left.items())
        write_text(path, text.getvalue())
        self.say(f"{len(self._left):,} clips could not be read: {path}")


class _StepBar(PretrainWatcher):
    def __init__(self, display: PretrainDisplay, config: TrainingConfig, clips: int, device: Any) -> None:
        self._display, self._epochs, self._clips, self._device = display, config.epochs, clips, device
        self._bar: Any = None
        self._seen = 0
        self._sum, self._steps = 0.0, 0

    def begin_epoch(self, epoch: int, steps: int, done: int) -> None:
        self._sum, self._steps = 0.0, 0
        if self._display.chief:
            self._bar = progress_bar(steps, "step", f"epoch {epoch}/{self._epochs}")
            self._bar.update(done)
            self._display.replace(self._bar)

    def stepped(self, step: int, loss: float, pace: Pace) -> None:
        self._seen += 1
        self._sum, self._steps = self._sum + loss, self._steps + 1
        if self._bar is not None:
            memory = "" if pace.memory is None else f", {pace.memory / 1e9:.1f} GB"
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, {pace.clips:.1f} clips/s, {100 * pace.waiting:.0f} % waiting{memory}", refresh=False
            )
            self._bar.update()
        if self._seen == _ESTIMATE_AFTER:
            self._estimate(pace)

    def judged(self, epoch: int, verdict: Verdict, best: bool) -> None:
        loss = f"loss {self._sum / self._steps:.3f}, " if self._steps else ""
        figure = f"validation {100 * verdict.figure:.1f} % with {verdict.blend:g} of the trained logits"
        if verdict.loss < 0:
            figure = "no validation clips"
        self._display.say(f"epoch {epoch}/{self._epochs}: {loss}{figure}{' (best so far)' if best else ''}")

    def unreadable(self, failure: Failure) -> None:
        self._display.unreadable(failure)

    def _estimate(self, pace: Pace) -> None:
        text = f"{pace.clips:.1f} clips/s: about {_duration(pace.left)} to the end of epoch {self._epochs}"
        if pace.left > _LONG:
            text += "; a GPU, fewer --epochs or prepared --shards would shorten that"
        self._display.say(f"{text}. Interrupt it whenever you like: --resume goes on.")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 86400:.1f} days"
