"""Work spread over threads: order, errors, nesting, and the linear algebra's threads as before."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from align.neighbors import nearest
from align.parallel import in_order, on_every_core


def threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_results_come_in_order_and_the_threads_are_as_before() -> None:
    before = threads()
    assert list(in_order(lambda i: i * i, range(50))) == [i * i for i in range(50)]
    workers = on_every_core(lambda worker, workers: (worker, workers))
    assert workers == [(i, len(workers)) for i in range(len(workers))]
    assert threads() == before


def test_items_are_taken_as_results_are() -> None:
    taken = []

    def items():  # type: ignore[no-untyped-def]
        for i in range(1000):
            taken.append(i)
            yield i

    results = in_order(lambda i: i, items())
    next(results)
    assert len(taken) < 100
    results.close()


def test_an_error_of_a_worker_comes_out_and_leaves_nothing_set() -> None:
    before = threads()
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // (3 - i), range(10)))
    assert threads() == before


def test_a_worker_may_use_what_spreads_its_own_work() -> None:
    rng = np.random.default_rng(0)
    keys, queries = rng.normal(size=(2, 3000, 4))
    expected = nearest(queries, keys, 1)[1]
    for _, found in in_order(lambda _: nearest(queries, keys, 1), range(3)):
        np.testing.assert_array_equal(found, expected)
