"""One Python thread a core, each with single-threaded products: what is done between products is then spread as well."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

_LIMITING = threading.RLock()
"""The limit belongs to the process: two threads that set and restored it at once would leave it set."""
_WORKER = threading.local()


@contextmanager
def _cores() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    def begin() -> None:
        _WORKER.active = True

    with _LIMITING:
        blas = ThreadpoolController().select(user_api="blas")
        workers = max((library["num_threads"] for library in blas.info()), default=1)
        with blas.limit(limits=1), ThreadPoolExecutor(workers, initializer=begin) as pool:
            yield pool, workers


def on_every_core(function: Callable[[int, int], Result]) -> list[Result]:
    """`function(worker, workers)` for each worker, as many as the linear algebra library may use threads.

    Called by such a worker, it is the only one: function(0, 1).
    """
    if getattr(_WORKER, "active", False):
        return [function(0, 1)]
    with _cores() as (pool, workers):
        return list(pool.map(lambda worker: function(worker, workers), range(workers)))


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(function, items)` on every core, one item ahead of the workers: what waits to be taken stays small."""
    with _cores() as (pool, workers):
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
