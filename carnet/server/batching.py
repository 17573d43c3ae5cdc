"""Compute images that arrive together as one batch.

Images are decoded on a few threads. One further thread takes all that are ready and computes them together; while it
does, the next ones gather. Pillow and the runtimes work without the interpreter's lock, so the event loop stays free.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carnet.errors import ImageError
from carnet.preprocess import Images

Probabilities = NDArray[np.floating[Any]]


class Batcher:
    """Decode images and compute their probabilities, in batches of what is there.

    Args:
        load: the bytes of an image file -> uint8 (S, S, C); an error it raises is that of the image's future.
        compute: uint8 (N, S, S, C) -> (N, classes).
        max_batch: the largest number of images that are computed together.
        max_wait: the longest time in seconds that decoded images wait for others that are being decoded.
        pool: the threads that decode.
        on_batch: is called with the number of images of each batch.
    """

    def __init__(
        self,
        load: Callable[[bytes], Images],
        compute: Callable[[Images], Probabilities],
        *,
        max_batch: int,
        max_wait: float,
        pool: ThreadPoolExecutor,
        on_batch: Callable[[int], object] = lambda number: None,
    ) -> None:
        self.load, self.compute, self.on_batch = load, compute, on_batch
        self.max_batch, self.max_wait = max_batch, max_wait
        self._changed = threading.Condition()
        self._ready: deque[tuple[Images, Future[Probabilities]]] = deque()
        self._num_loading = 0
        self._is_closed = False
        self._pool = pool
        self._thread = threading.Thread(target=self._compute_batches, name="carnet-compute", daemon=True)
        self._thread.start()

    def submit(self, content: bytes) -> Future[Probabilities]:
        """Return the future probabilities (classes,) of an image file; a cancelled one is not computed."""
        answer: Future[Probabilities] = Future()
        with self._changed:
            self._num_loading += 1
        try:
            self._pool.submit(self._load, content, answer)
        except BaseException:
            self._loaded(None)
            raise
        return answer

    def close(self) -> None:
        """Finish what was submitted, and end the threads."""
        self._pool.shutdown()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _load(self, content: bytes, answer: Future[Probabilities]) -> None:
        item = None
        try:
            if not answer.cancelled():
                item = self.load(content), answer
        except BaseException as error:
            if answer.set_running_or_notify_cancel():
                # What could not be decoded is an answer. Its traceback would keep the file in memory.
                answer.set_exception(error.with_traceback(None) if isinstance(error, ImageError) else error)
        finally:
            self._loaded(item)

    def _loaded(self, item: tuple[Images, Future[Probabilities]] | None) -> None:
        with self._changed:
            self._num_loading -= 1
            if item is not None:
                self._ready.append(item)
            self._changed.notify_all()

    def _compute_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            if not batch:
                continue
            try:
                self.on_batch(len(batch))
                rows = self.compute(np.stack([pixels for pixels, _ in batch]))
            except BaseException as error:
                for _, answer in batch:
                    answer.set_exception(error)
            else:
                for (_, answer), row in zip(batch, rows, strict=True):
                    answer.set_result(row)

    def _next_batch(self) -> list[tuple[Images, Future[Probabilities]]] | None:
        """Wait for images and return those that somebody still waits for; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_closed)
            if not self._ready:
                return None
            # Nobody waits for images that nobody sends.
            self._changed.wait_for(
                lambda: len(self._ready) >= self.max_batch or not self._num_loading, timeout=self.max_wait
            )
            batch = [self._ready.popleft() for _ in range(min(self.max_batch, len(self._ready)))]
        return [(pixels, answer) for pixels, answer in batch if answer.set_running_or_notify_cancel()]
