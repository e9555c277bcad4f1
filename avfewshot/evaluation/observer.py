"""Who is told what long work does; the command line shows it, tests look at it, others leave it."""

from __future__ import annotations


class Observer:
    """Is told what is going on; this one does nothing."""

    def begin(self, what: str, total: int, done: int = 0, *, unit: str = "clip") -> None:
        """Something begins that takes `total` clips, or another `unit`, of which some are `done`; 0: nobody knows."""

    def advance(self) -> None:
        """One of them is done."""

    def say(self, message: str) -> None:
        """Something that a person should know."""
