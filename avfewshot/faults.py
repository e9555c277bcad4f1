"""Several mistakes reported at once, so that the person fixes them in one go."""

from __future__ import annotations

from collections.abc import Sequence

from avfewshot.errors import UsageError


class Faults(UsageError):
    """More than one thing is wrong with a request.

    Args:
        faults: The single errors, in the order to show them; at least two.
    """

    def __init__(self, faults: Sequence[UsageError]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


def flatten(error: UsageError) -> tuple[UsageError, ...]:
    """The single errors inside `error`: those of a :class:`Faults`, else itself alone."""
    return error.faults if isinstance(error, Faults) else (error,)


def raise_faults(faults: Sequence[UsageError]) -> None:
    """Raise what was collected.

    Args:
        faults: Errors in the order to show them; nested :class:`Faults` are flattened.

    Raises:
        UsageError: The one error there is, or a :class:`Faults` with all of them. Nothing is raised for none.
    """
    single = [part for fault in faults for part in flatten(fault)]
    if len(single) == 1:
        raise single[0]
    if single:
        raise Faults(single)
