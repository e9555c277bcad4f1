"""Who is told what long work does; the command line shows it, tests look at it, others leave it."""

from __future__ import annotations


class Observer:
    """Is told what is going on; this one does nothing."""

    def begin(self, what: str, total: int) -> None:
        """Something begins that takes `total` clips; 0: nobody knows how many."""

    def advance(self) -> None:
        """One clip of it is done."""

    def say(self, message: str) -> None:
        """Something that a person should know."""
