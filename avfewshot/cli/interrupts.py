"""Ctrl-C, SIGTERM and SIGHUP, put off while something must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP into ``KeyboardInterrupt``, deferred while a result is being written.

    A second signal is not deferred, so that nobody is kept waiting against their will.
    """

    def __init__(self) -> None:
        self.received: int | None = None  # the last signal
        self._held = False
        self._waiting = False
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """Exit status by custom: 128 and the number of the signal."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in _SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            if self.received and isinstance(around := getattr(handler, "__self__", None), Interrupts):
                around.received = self.received
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def put_off(self) -> Iterator[Callable[[], bool]]:
        """Let the first signal wait until the end of the block; gives what tells whether one is waiting.

        A KeyboardInterrupt follows the block where one was.
        """
        self._held = True
        try:
            yield lambda: self._waiting
        finally:
            self._held = False
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._held and not self._waiting:
            self._waiting = True
            return
        raise KeyboardInterrupt
