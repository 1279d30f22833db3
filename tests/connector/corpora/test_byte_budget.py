import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector.corpora.byte_budget import ByteBudget


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 100), st.lists(st.integers(0, 150), max_size=12))
def test_threads_never_hold_more_than_the_budget_unless_one_is_alone(size: int, wanted: list[int]) -> None:
    budget, held, lock = ByteBudget(size), dict[int, int](), threading.Lock()
    seen: list[dict[int, int]] = []

    def hold(number: int) -> None:
        with budget.reserve(wanted[number]):
            with lock:
                held[number] = wanted[number]
                seen.append(dict(held))
            time.sleep(0.001)
            with lock:
                del held[number]

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(seen) == len(wanted)
    assert all(sum(holders.values()) <= size or len([v for v in holders.values() if v]) == 1 for holders in seen)


def test_what_a_failed_block_held_is_free_again() -> None:
    budget = ByteBudget(10)
    with pytest.raises(ZeroDivisionError), budget.reserve(10):
        raise ZeroDivisionError
    done = threading.Thread(target=lambda: budget.reserve(10).__enter__(), daemon=True)
    done.start()
    done.join(timeout=5)
    assert not done.is_alive()
