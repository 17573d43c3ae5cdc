"""Prepare the next batches on threads while the current one is being used.

Threads, because decoding and resizing happen in Pillow, which lets other threads run meanwhile: they start at once,
share the trainer's memory, and need neither pickling nor a guarded main module as worker processes do.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from carnet.text import OnProgress

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def available_cores() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def loading_threads() -> int:
    """How many threads should decode images: one per core, but no more than memory for large photos allows."""
    return min(8, available_cores())


def each_on_threads(
    work: Callable[[Item], Loaded], items: Sequence[Item], progress: OnProgress | None = None
) -> Iterator[Loaded]:
    """`work` of every item, in order, done on several threads.

    Args:
        work: what to do.
        items: with what.
        progress: told how many are done, of how many.
    """
    with ThreadPoolExecutor(max_workers=loading_threads()) as pool:
        try:
            for done, answer in enumerate(pool.map(work, items), start=1):
                yield answer
                if progress is not None:
                    progress(done, len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def load_ahead(
    load: Callable[[Item], Loaded], batches: Iterable[Sequence[Item]], *, threads: int, ahead: int = 2
) -> Iterator[list[Loaded]]:
    """Apply `load` to every item, batch by batch, in order.

    Args:
        load: must depend on its item alone, so that neither `threads` nor `ahead` can change a result.
        batches: items to load together.
        threads: how many load at the same time; 0: none, every batch is loaded when it is asked for.
        ahead: batches under way beyond the one in use.

    Raises:
        Exception: whatever `load` raises, when its batch is due; whatever `batches` raises, after what came before it.
    """
    if threads == 0:
        for batch in batches:
            yield [load(item) for item in batch]
        return
    under_way: deque[list[Future[Loaded]]] = deque()
    problem: Exception | None = None

    def begun() -> Iterator[list[Future[Loaded]]]:
        nonlocal problem
        try:
            for batch in batches:
                yield [pool.submit(load, item) for item in batch]
        except Exception as error:
            problem = error

    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            for futures in begun():
                under_way.append(futures)
                if len(under_way) > ahead:
                    yield [future.result() for future in under_way.popleft()]
            while under_way:
                yield [future.result() for future in under_way.popleft()]
            if problem is not None:
                raise problem
        finally:
            # Whoever stops early need not wait for what nobody will use.
            pool.shutdown(wait=False, cancel_futures=True)
