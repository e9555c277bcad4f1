"""Work done ahead in threads, in order and in bounded memory. Decoders leave Python's lock while they work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, threads: int) -> Iterator[R]:
    """``map(function, items)``, computed ahead.

    At most two items a thread are in work or waiting to be taken. `items` is only advanced by the caller's thread.
    Closing the iterator, or an exception in the caller's loop, ends the threads after what they are doing.

    Args:
        function: Called in threads; an exception is raised where its result would have come.
        items: What to call it with.
        threads: Number of threads; 0 calls it in the caller's own.

    Yields:
        The results, in the order of `items`.
    """
    if threads < 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="avfs-clips")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            del item
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
