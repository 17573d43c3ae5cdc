"""Images that arrive together are computed together, each answer goes to its own image, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from carnet.errors import ImageError
from carnet.preprocess import Images
from carnet.server.batching import Batcher


def load(content: bytes) -> Images:
    """An image of one pixel from one byte; none from no byte."""
    if not content:
        raise ImageError("image", "empty")
    return np.full((1, 1, 1), content[0], np.uint8)


@contextmanager
def batching(compute: Callable[[Images], Any], **options: Any) -> Iterator[tuple[Batcher, list[int]]]:
    """A batcher, and the sizes of its batches."""
    sizes: list[int] = []
    settings = {"max_batch": 4, "max_wait": 60.0, "pool": ThreadPoolExecutor(2)} | options
    batcher = Batcher(load, compute, on_batch=sizes.append, **settings)
    try:
        yield batcher, sizes
    finally:
        batcher.close()


def mean(images: Images) -> Any:
    return images.astype(float).mean(axis=(1, 2, 3))[:, None]


def test_each_image_gets_its_own_answer() -> None:
    with batching(mean) as (batcher, sizes):
        futures = [batcher.submit(bytes([number])) for number in range(200)]
        assert [float(future.result()[0]) for future in futures] == list(range(200))
    assert sum(sizes) == 200
    assert max(sizes) <= 4


def test_what_arrives_during_a_batch_is_the_next_batch() -> None:
    computing, go_on = threading.Event(), threading.Event()

    def slow(images: Images) -> Any:
        computing.set()
        assert go_on.wait(60)
        return mean(images)

    with batching(slow) as (batcher, sizes):
        first = batcher.submit(b"\1")
        assert computing.wait(60)
        others = [batcher.submit(bytes([number])) for number in (2, 3, 4)]
        go_on.set()
        assert [float(one.result()[0]) for one in (first, *others)] == [1, 2, 3, 4]
    assert sizes == [1, 3]


def test_a_single_image_waits_for_nobody() -> None:
    # It would otherwise wait for an hour.
    with batching(mean, max_wait=3600.0) as (batcher, sizes):
        assert float(batcher.submit(b"\7").result(timeout=60)[0]) == 7
    assert sizes == [1]


def test_an_image_that_cannot_be_decoded_harms_no_other() -> None:
    with batching(mean) as (batcher, _):
        bad, good = batcher.submit(b""), batcher.submit(b"\5")
        with pytest.raises(ImageError):
            bad.result(timeout=60)
        assert float(good.result(timeout=60)[0]) == 5


def test_a_batch_that_fails_is_not_the_last_one() -> None:
    def fails_for_nine(images: Images) -> Any:
        if 9 in images:
            raise MemoryError("nine")
        return mean(images)

    with batching(fails_for_nine, max_batch=1) as (batcher, _):
        nine, ten = batcher.submit(b"\x09"), batcher.submit(b"\x0a")
        with pytest.raises(MemoryError):
            nine.result(timeout=60)
        assert float(ten.result(timeout=60)[0]) == 10


def test_an_image_that_nobody_waits_for_is_not_decoded() -> None:
    decoding, go_on, decoded = threading.Event(), threading.Event(), []

    def slow(content: bytes) -> Images:
        decoding.set()
        assert go_on.wait(60)
        decoded.append(content)
        return load(content)

    pool = ThreadPoolExecutor(1)
    batcher = Batcher(slow, mean, max_batch=4, max_wait=60.0, pool=pool)
    first, second = batcher.submit(b"\1"), batcher.submit(b"\2")
    assert decoding.wait(60)
    assert second.cancel()
    go_on.set()
    batcher.close()
    assert float(first.result()[0]) == 1
    assert decoded == [b"\1"]


def test_an_image_that_nobody_waits_for_any_more_is_not_computed() -> None:
    computing, go_on, seen = threading.Event(), threading.Event(), []

    def slow(images: Images) -> Any:
        computing.set()
        assert go_on.wait(60)
        seen.extend(images.ravel().tolist())
        return mean(images)

    with batching(slow) as (batcher, _):
        first = batcher.submit(b"\1")
        assert computing.wait(60)
        left, kept = batcher.submit(b"\2"), batcher.submit(b"\3")
        assert left.cancel()
        go_on.set()
        assert [float(one.result()[0]) for one in (first, kept)] == [1, 3]
        # A batch of which nothing is left ends nothing.
        assert float(batcher.submit(b"\5").result()[0]) == 5
    assert seen == [1, 3, 5]


def test_closing_finishes_what_was_submitted() -> None:
    with batching(mean) as (batcher, _):
        futures = [batcher.submit(bytes([number])) for number in range(50)]
        batcher.close()
        assert all(future.done() for future in futures)
