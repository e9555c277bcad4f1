"""Work on many machines: Ray Data distributes it, starts workers anew that die, and holds back what runs ahead."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from avfewshot.errors import AvfsError, UsageError

_T = TypeVar("_T")
_R = TypeVar("_R")
Work = Callable[[Sequence[Any]], Iterable[Any]]
"""Gives a result for each of some items, in order."""

_BLOCK = 16  # items that a worker takes at a time, and that are done again when it dies
_MOST_BLOCKS = 20_000  # of a longer list the blocks are larger: Ray's scheduler handles about so many


def check_engine(engine: str, address: str | None) -> None:
    """Raise :class:`UsageError` where Ray is asked for and not installed, or an address without it."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray: Ray is not installed.", hint="pip install 'avfewshot[ray]'")
    if engine != "ray" and address is not None:
        raise UsageError("--address is of a Ray cluster.", hint="Add --engine ray.")


def ray_map(
    load: Callable[[], Callable[[Sequence[_T]], Iterable[_R]]],
    items: Sequence[_T],
    *,
    address: str | None = None,
    gpus: bool = False,
    block: int = _BLOCK,
) -> Generator[_R, None, None]:
    """Results of items in order, from the workers of a Ray cluster: one for each GPU, or for each processor.

    All machines need this package, and see the files under the same paths. A block of items whose worker dies is done
    again by another.

    Args:
        load: Called once in each worker; gives what works on items. It and the results travel by Ray's serialisation.
        items: What is worked on.
        address: ``HOST:PORT`` of the cluster, or ``auto`` for the one that this machine belongs to. None: Ray starts on
            this machine, unless RAY_ADDRESS is set.
        gpus: Give each worker a GPU, where the cluster has any.
        block: Items that a worker takes at a time, at most unless the list is very long.

    Raises:
        AvfsError: There is no such cluster, or workers fail.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own log, on standard error
    import ray
    import ray.data
    import ray.exceptions

    if not items:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    try:
        if started:
            _connect(ray, address)
        resources = ray.cluster_resources()
        each = "GPU" if gpus and resources.get("GPU") else "CPU"
        workers = max(1, min(len(items), int(resources.get(each, 1))))
        blocks = min(max(-(-len(items) // block), workers), _MOST_BLOCKS)
        boxed = [{"number": number, "box": _Box(item)} for number, item in enumerate(items)]
        results = ray.data.from_items(boxed, override_num_blocks=blocks).map_batches(
            _Worker,
            fn_constructor_args=(load, os.getcwd()),
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=1 if each == "GPU" else 0,
        )
        due = 0
        for row in results.iter_rows():
            assert row["number"] == due, "Ray gave results in another order"
            due += 1
            yield row["box"].content
        assert due == len(items)
    except (ray.exceptions.RayError, ConnectionError) as error:
        cause = getattr(error, "cause", None) or error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise AvfsError(f"Ray: {lines[-1].strip()}", hint="AVFS_DEBUG=1 shows all of it.") from error
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        del options["include_dashboard"]
    try:
        ray.init(address, **options)
        _print_to_stderr(ray._private.worker)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "`ray status --address HOST:PORT` tells whether it runs; `ray start --head` starts one."
        raise AvfsError(f"--address {address}: there is no Ray cluster to join: {error}", hint=hint) from error
    finally:
        with contextlib.suppress(ValueError):  # not the main thread
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _print_to_stderr(worker: Any) -> None:
    """What Ray says of workers that die belongs beside the results, which go to standard output."""
    told = worker.print_to_stdstream
    if getattr(told, "__module__", "") != __name__:

        def tell(data: dict[str, Any], ignore_prefix: bool) -> None:
            told({**data, "is_err": True}, ignore_prefix)

        worker.print_to_stdstream = tell


@dataclass(frozen=True)
class _Box:
    """Keeps Arrow from making columns of what is inside."""

    content: Any


class _Worker:
    """A process of Ray's that has loaded what it works with."""

    def __init__(self, load: Callable[[], Work], folder: str) -> None:
        try:
            os.chdir(folder)
        except OSError as error:
            raise AvfsError(f"{folder}: is not there on one of the machines ({error.strerror}).") from None
        self._work = load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        boxes = np.empty(len(batch["box"]), dtype=object)
        boxes[:] = [_Box(result) for result in self._work([box.content for box in batch["box"]])]
        return {"number": batch["number"], "box": boxes}
