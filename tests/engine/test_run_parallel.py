"""run_parallel: any input, constant memory, the first failure, leaving early, and calls from anywhere."""

import concurrent.futures
import contextlib
import gc
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import WATCHDOG, Load, Run, wait_until


@pytest.fixture
def template(load: Load) -> Any:
    return load()


def broken_on(number: int) -> Any:
    def task(item: int) -> int:
        if item == number:
            raise ValueError(f"no {item}s here")
        return -item

    return task


class Endless:
    """Endless items without len(), which count how many were taken."""

    taken = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.taken += 1
            yield self.taken


@pytest.mark.parametrize(
    "items",
    [list(range(500)), (number for number in range(500)), dict.fromkeys(range(500)), map(int, map(str, range(500)))],
    ids=lambda items: type(items).__name__,
)
def test_every_item_comes_back_once_with_its_result_whatever_the_items_are_in(template: Any, items: Any) -> None:
    assert sorted(template.run_parallel(abs, items)) == [(number, number) for number in range(500)]


def test_no_items_are_no_work(template: Any) -> None:
    assert list(template.run_parallel(abs, [])) == []
    assert list(template.run_parallel(abs, iter(()))) == []


def test_results_come_in_completion_order(template: Any) -> None:
    gates = [threading.Event() for _ in range(5)]
    results = template.run_parallel(lambda item: gates[item].wait(WATCHDOG), range(5))
    order = [3, 0, 4, 2, 1]
    for number in order:
        gates[number].set()
        assert next(results) == (number, True)
    assert list(results) == []


def test_few_items_are_in_flight_however_slowly_the_results_are_taken(template: Any) -> None:
    template.main_thread_pool.size = 3
    items, started = Endless(), list[int]()
    results = template.run_parallel(started.append, items)
    for taken in range(1, 20):
        next(results)
        wait_until(lambda: len(started) == items.taken)  # all that were taken are done, and no more are taken
        assert items.taken <= taken + 2 * 3
    results.close()


@pytest.mark.skipif(sys.platform != "linux", reason="weighs the process as Linux tells it")
def test_200_000_items_take_no_more_memory_than_a_thousand(run: Run) -> None:
    grown = int(
        run("""
        import resource

        def peak(items):
            for _ in run_parallel(abs, iter(range(items))):
                pass
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        start = peak(1_000)
        print(peak(200_000) - start)
        """).stdout
    )
    assert grown * 1024 < 5_000_000


def test_the_first_failure_cancels_the_rest_and_is_logged(template: Any, caplog: pytest.LogCaptureFixture) -> None:
    items, taken = Endless(), list[Any]()
    with pytest.raises(ValueError, match="no 30s here"):
        taken.extend(template.run_parallel(broken_on(30), items))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "failed on item 30: ValueError"
    ]
    assert all(item == -result for item, result in taken)
    assert items.taken <= len(taken) + 1 + 2 * template.main_thread_pool.size
    assert dict(template.run_parallel(abs, range(9))) == {number: number for number in range(9)}, "the pool works"


def test_a_failure_waits_for_nobody_and_what_is_queued_never_starts(template: Any) -> None:
    template.main_thread_pool.size = 2
    gate, started = threading.Event(), list[int]()

    def task(item: int) -> None:
        started.append(item)
        if item == 1:
            raise ValueError(item)
        gate.wait(WATCHDOG)

    with pytest.raises(ValueError, match="1"):
        list(template.run_parallel(task, range(100)))
    gate.set()
    template.main_thread_pool.shutdown()
    assert max(started) < 3, "item 0 holds one thread, item 2 the other"


def test_with_return_exceptions_the_exception_is_the_result(template: Any, caplog: pytest.LogCaptureFixture) -> None:
    results = dict(template.run_parallel(broken_on(30), range(100), return_exceptions=True))
    error = results.pop(30)
    assert isinstance(error, ValueError)
    assert str(error) == "no 30s here"
    assert results == {number: -number for number in range(100) if number != 30}
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert re.match(r"failed on item 31: ValueError", record.getMessage()), "the log names the item that failed"


@pytest.mark.parametrize("ending", ["break", "close", "exception"])
def test_leaving_the_loop_early_cancels_what_is_queued(template: Any, ending: str) -> None:
    template.main_thread_pool.size = 2
    gate, started, items = threading.Event(), list[int](), Endless()

    def task(item: int) -> None:
        started.append(item)
        assert item == 1 or gate.wait(WATCHDOG)

    results = template.run_parallel(task, items)
    with contextlib.suppress(KeyError):
        for _ in results:
            if ending == "close":
                results.close()
            elif ending == "exception":
                raise KeyError
            else:
                break
    del results
    gc.collect()
    gate.set()
    template.main_thread_pool.shutdown()
    assert max(started) < 4, "items 2 and 3 hold the threads"
    assert items.taken == 4
    assert len(list(template.run_parallel(abs, range(9)))) == 9, "the pool works"


def test_an_error_of_the_items_themselves_cancels_what_is_queued_and_passes(template: Any) -> None:
    template.main_thread_pool.size = 2
    gate, started = threading.Event(), list[int]()

    def items() -> Iterator[int]:
        yield from range(4)
        raise LookupError("no more pages")

    def task(item: int) -> None:
        started.append(item)
        assert item == 0 or gate.wait(WATCHDOG)

    with pytest.raises(LookupError, match="no more pages"):
        list(template.run_parallel(task, items()))
    gate.set()
    template.main_thread_pool.shutdown()
    assert len(started) <= 3, "the fourth was queued"
    assert len(list(template.run_parallel(abs, range(9)))) == 9, "the pool works"


def test_a_future_cancelled_from_elsewhere_ends_the_loop_instead_of_holding_it(template: Any) -> None:
    template.main_thread_pool.size = 2
    gate, started = threading.Event(), list[int]()

    def task(item: int) -> bool:
        started.append(item)
        return item == 0 or gate.wait(WATCHDOG)

    results = template.run_parallel(task, range(10))
    assert next(results) == (0, True)
    wait_until(lambda: len(started) == 3)  # 1 and 2 are held, and 3 is queued
    template.main_thread_pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(concurrent.futures.CancelledError):
        list(results)
    gate.set()


@pytest.mark.parametrize("sizes", [(1, 1), (4, 2)])
def test_it_runs_inside_tasks_of_either_pool_and_in_itself(template: Any, sizes: tuple[int, int]) -> None:
    template.main_thread_pool.size, template.subtasks_thread_pool.size = sizes

    def total(number: int) -> int:
        return sum(result for _, result in template.run_parallel(abs, range(number)))

    def grand_total(number: int) -> int:
        return sum(result for _, result in template.run_parallel(total, range(number)))

    expected = {number: sum(range(number)) for number in range(12)}
    assert dict(template.run_parallel(total, range(12))) == expected
    assert template.subtasks_thread_pool.submit(total, 12).result(WATCHDOG) == 66
    assert dict(template.run_parallel(grand_total, range(6))) == {
        number: sum(list(expected.values())[:number]) for number in range(6)
    }


def test_inside_a_task_of_the_main_pool_the_work_is_done_by_the_subtasks_pool(template: Any) -> None:
    def task() -> set[str]:
        names = template.run_parallel(lambda _: threading.current_thread().name, range(50))
        return {name.split("_")[0] for _, name in names}

    assert template.main_thread_pool.submit(task).result(WATCHDOG) == {"subtasks"}


def test_a_pipeline_of_one_into_the_other_runs(template: Any) -> None:
    template.main_thread_pool.size = 1
    first = (result for _, result in template.run_parallel(abs, range(-50, 0)))
    second = template.run_parallel(lambda number: number * 2, first)
    assert sorted(result for _, result in second) == [2 * number for number in range(1, 51)]


def test_two_threads_can_run_it_at_once(template: Any) -> None:
    template.main_thread_pool.size = 2
    together, counts = threading.Barrier(2, timeout=WATCHDOG), Counter[str]()

    def loop(name: str) -> None:
        for number, (_, result) in enumerate(template.run_parallel(lambda item: (name, item), range(200))):
            if number == 0:
                together.wait()  # both have begun, neither has ended
            counts[name] += result[0] == name

    threads = [threading.Thread(target=loop, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert counts == {"one": 200, "two": 200}


@pytest.mark.parametrize(
    "todo",
    [
        "run_parallel(print, ['seen'])",
        "results = run_parallel(print, ['seen'])",
        "zip([], run_parallel(print, ['seen']))",
    ],
    ids=["thrown away", "kept", "never begun"],
)
def test_one_that_nobody_loops_over_says_so_and_how_to(run: Run, todo: str) -> None:
    done = run(todo)
    assert done.stdout == ""
    words = "run_parallel(print, ...) has done nothing: loop over it, or take list(run_parallel(...))"
    assert words in done.stderr
    assert words in done.log


def test_one_that_was_looped_over_or_begun_says_nothing(run: Run) -> None:
    todo = "next(run_parallel(abs, [1]))\nlist(run_parallel(abs, []))\nfor _ in run_parallel(abs, [1, 2]):\n    break"
    done = run(todo)
    assert len(done.stderr.splitlines()) == 1, done.stderr
