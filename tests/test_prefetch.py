import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carnet.prefetch import load_ahead


@settings(deadline=None, max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(), max_size=4), max_size=6),
    threads=st.integers(0, 3),
    ahead=st.integers(0, 3),
)
def test_in_order_whatever_the_threads(batches: list[list[int]], threads: int, ahead: int) -> None:
    doubled = [[2 * item for item in batch] for batch in batches]
    assert list(load_ahead(lambda item: 2 * item, batches, threads=threads, ahead=ahead)) == doubled


def test_reads_no_further_ahead_than_it_should() -> None:
    asked = []

    def batches() -> Iterator[list[int]]:
        for number in range(10):
            asked.append(number)
            yield [number]

    loading = load_ahead(lambda item: item, batches(), threads=2, ahead=3)
    assert next(loading) == [0]
    assert asked == [0, 1, 2, 3]
    loading.close()
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_when_its_batch_is_due(threads: int) -> None:
    loading = load_ahead(lambda item: 1 // item, [[1], [0], [1]], threads=threads)
    assert next(loading) == [1]
    with pytest.raises(ZeroDivisionError):
        next(loading)


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=30)
    assert list(load_ahead(lambda _: together.wait() >= 0, [[1, 2]], threads=2)) == [[True, True]]
