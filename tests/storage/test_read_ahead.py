"""Reading the next batch while the current one is in use."""

import threading
from functools import partial

import pytest

from pipeline.storage.read_ahead import read_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_order(count):
    assert list(read_ahead(partial(pow, n, 2) for n in range(count))) == [n * n for n in range(count)]


def test_one_result_is_made_while_another_is_in_use_and_no_more():
    started = [threading.Event() for _ in range(4)]
    results = read_ahead(event.set for event in started)
    for n in range(3):
        next(results)
        assert started[n + 1].wait(timeout=60)
        if n < 2:
            assert not started[n + 2].is_set()


def test_the_calls_are_drawn_in_the_callers_thread():
    """So that random draws come in order, and in no other thread than that of other draws."""
    drawn = []

    def reads():
        for n in range(3):
            drawn.append(threading.get_ident())
            yield partial(threading.get_ident) if n else threading.get_ident

    assert threading.get_ident() not in list(read_ahead(reads()))
    assert set(drawn) == {threading.get_ident()}


def test_an_error_comes_in_the_place_of_its_result():
    def fail():
        raise OSError("damaged")

    results = read_ahead([lambda: 1, fail, lambda: 3])
    assert next(results) == 1
    with pytest.raises(OSError, match="damaged"):
        next(results)
