"""What tabs say about clips, and how each takes back its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from avfewshot.app.clips import Clips
from avfewshot.app.label_file import NONE, Mark
from avfewshot.errors import UsageError
from avfewshot.labels import LabelSet

MOST_UNDO = 200  # changes of a tab that can be taken back


@dataclass(frozen=True)
class _Change:
    """What a tab did, for its undo: marks by number of the clip, and the classes where they changed."""

    before: dict[int, Mark]
    after: dict[int, Mark]
    classes: dict[str, str] | None
    classes_after: dict[str, str] | None


class Changes:
    """Changes the marks and classes of clips; an OSError where that cannot be kept, and nothing has changed then."""

    def __init__(self, clips: Clips) -> None:
        self._clips = clips
        self._undo: dict[str, list[_Change]] = {}

    def annotate(
        self,
        tab: str,
        numbers: Sequence[int],
        label: str | None,
        start: int | None = None,
        end: int | None = None,
        wording: str | None = None,
    ) -> None:
        """Say what clips hold, or seconds ``[start, end)`` of them; None takes it back. A wording makes a new class.

        A :class:`UsageError` says that there is no such class, or that the seconds are not in the clip.
        """
        with self._clips.lock:
            known, classes = self._clips.classes, None
            if label is not None and wording is not None and label not in known:
                classes = _checked({**known, label: wording or label})
                label = next(reversed(classes))  # without white space around it
            elif label is not None and label not in known and label != NONE:
                raise UsageError(f"There is no class {label!r}.", hint="Add it to the labels first.")
            after: dict[int, Mark] = {}
            for entry in map(self._clips.entry, dict.fromkeys(numbers)):
                mark = after[entry.number] = copy.deepcopy(entry.mark)
                if start is None or end is None:
                    mark.label = label
                    continue
                length = 0 if entry.file is None else max(1, round(entry.file.duration + 0.49))
                if not 0 <= start < end <= length:
                    raise UsageError(f"{entry.name} has the seconds 0 to {length}, not {start} to {end}.")
                for second in range(start, end):
                    mark.seconds.pop(second, None)
                    if label is not None:
                        mark.seconds[second] = label
            self._apply(tab, after, classes)

    def set_classes(self, tab: str, classes: dict[str, str]) -> None:
        """Replace the classes, as :class:`LabelSet` takes them; marks of those that go are taken back, too."""
        classes = _checked(classes) if classes else {}
        with self._clips.lock:
            kept = {*classes, NONE}
            after = {}
            for entry in self._clips.entries:
                mark = entry.mark
                if (mark.label and mark.label not in kept) or not kept.issuperset(mark.seconds.values()):
                    seconds = {second: label for second, label in mark.seconds.items() if label in kept}
                    after[entry.number] = Mark(mark.label if mark.label in kept else None, seconds)
            self._apply(tab, after, classes)

    def undo(self, tab: str) -> bool:
        """Take back this tab's last change; False without any, a :class:`UsageError` if others changed the same."""
        with self._clips.lock:
            changes = self._undo.get(tab, [])
            if not changes:
                return False
            change = changes[-1]
            if any(self._clips.entries[number].mark != mark for number, mark in change.after.items()) or (
                change.classes is not None and self._clips.classes != change.classes_after
            ):
                changes.pop()
                raise UsageError("It was changed elsewhere since, and stays.")
            self._clips.mark(change.before, change.classes)
            changes.pop()
            return True

    def _apply(self, tab: str, after: dict[int, Mark], classes: dict[str, str] | None) -> None:
        before = {number: self._clips.entries[number].mark for number in after}
        done = _Change(before, after, None if classes is None else self._clips.classes, classes)
        self._clips.mark(after, classes)
        changes = self._undo.setdefault(tab, [])
        changes.append(done)
        del changes[:-MOST_UNDO]


def _checked(classes: dict[str, str]) -> dict[str, str]:
    """Classes with white space tidied; a :class:`UsageError` where they cannot be told apart."""
    labels = LabelSet.from_wordings(classes)
    if NONE in labels.names:
        raise UsageError(f"{NONE!r} stands for clips of no class.", hint="Call the class by another name.")
    return dict(zip(labels.names, labels.wordings, strict=True))
