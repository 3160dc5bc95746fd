"""Pools: they cannot deadlock, they can be used repeatedly, and they support the forms that scripts use."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
from helpers import WATCHDOG, Load, Run, wait_until
from hypothesis import HealthCheck, Phase, example, given, settings, strategies as st

POOLS = ("main_thread_pool", "subtasks_thread_pool")


@pytest.fixture
def template(load: Load) -> Any:
    return load()


def in_time(template: Any, work: Callable[[], Any]) -> Any:
    """The result of `work` in its own thread; if it hangs, release the threads and fail."""
    done: Future[Any] = Future()

    def worker() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=worker, daemon=True).start()
    try:
        return done.result(timeout=WATCHDOG)
    except TimeoutError:
        template._stop.request(1, "the watchdog")
        pytest.fail("it hangs")


def resize(template: Any, *sizes: int) -> None:
    for name, size in zip(POOLS, sizes, strict=True):
        getattr(template, name).size = size


def works(template: Any) -> bool:
    return all(getattr(template, name).submit(abs, -1).result(WATCHDOG) == 1 for name in POOLS)


# ---------------------------------------------------------------------------- programs that hypothesis draws


class Broken(Exception):
    """What a task raises if it should raise."""


@dataclass(frozen=True)
class Step:
    """What a task does with its own tasks: `how` is submit, with, map, parallel or shutdown."""

    how: str
    pool: str
    wait: bool
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Task:
    """A task: steps, then a result or an exception."""

    steps: tuple[Step, ...]
    breaks: bool


def steps_of(tasks: st.SearchStrategy[Task]) -> st.SearchStrategy[Step]:
    some = st.lists(tasks, min_size=1, max_size=4).map(tuple)
    how = st.sampled_from(("submit", "with", "map", "parallel", "shutdown"))
    return st.builds(Step, how, st.sampled_from(POOLS), st.booleans(), some)


LEAVES = st.builds(Task, st.just(()), st.booleans())
TASKS = st.recursive(
    LEAVES,
    lambda tasks: st.builds(Task, st.lists(steps_of(tasks), max_size=3).map(tuple), st.booleans()),
    max_leaves=12,
)
PROGRAMS = st.lists(steps_of(TASKS), min_size=1, max_size=4).map(lambda steps: Task(tuple(steps), False))


class Program:
    """Runs a task on a template's pools, and counts the tasks that were started."""

    def __init__(self, template: Any) -> None:
        self.template = template
        self.started: Counter[Task] = Counter()
        self.lock = threading.Lock()

    def carry_out(self, task: Task) -> list[Any]:
        with self.lock:
            self.started[task] += 1
        results = [result for step in task.steps for result in self.results(step)]
        if task.breaks:
            raise Broken
        return results

    def results(self, step: Step) -> list[Any]:
        pool = getattr(self.template, step.pool)
        if step.how == "parallel":
            found = self.template.run_parallel(self.carry_out, step.tasks, return_exceptions=True)
            return sorted([outcome_of(result) for _, result in found], key=str)
        if step.how == "map":
            return list(pool.map(self.outcome, step.tasks))
        if step.how == "with":
            with pool as executor:
                futures = [executor.submit(self.carry_out, task) for task in step.tasks]
                first = [self.future_outcome(future) for future in futures] if step.wait else []
            assert all(future.done() for future in futures), "the end of the with did not wait"
            return first or [self.future_outcome(future) for future in futures]
        futures = [pool.submit(self.carry_out, task) for task in step.tasks]
        if step.how == "shutdown":
            pool.shutdown(wait=step.wait)
        return [self.future_outcome(future) for future in futures] if step.wait else []

    def outcome(self, task: Task) -> Any:
        try:
            return self.carry_out(task)
        except Broken as error:
            return outcome_of(error)

    def future_outcome(self, future: Future[Any]) -> Any:
        return outcome_of(future.exception() or future.result())


def outcome_of(result: Any) -> Any:
    return "broken" if isinstance(result, Broken) else result


def expected(task: Task) -> Any:
    """The result of a task if its steps are done one after the other, without threads."""
    found: list[Any] = []
    for step in task.steps:
        results = [expected(child) for child in step.tasks]
        if step.how == "parallel":
            found += sorted(results, key=str)
        elif step.wait or step.how in ("with", "map"):
            found += results
    return "broken" if task.breaks else found


def everything(task: Task) -> Iterator[Task]:
    yield task
    for step in task.steps:
        for child in step.tasks:
            yield from everything(child)


def nested(pool: str, how: str, depth: int) -> Task:
    """A task that does something and waits, inside a task that does the same, and so on."""
    task = Task((), False)
    for _ in range(depth):
        task = Task((Step(how, pool, True, (task,) * 2),), False)
    return task


def opened(task: Task, *pools: str) -> Task:
    """A task that opens pools one after the other, each twice, with many tasks."""
    return Task(tuple(Step("with", pool, False, (task,) * 50) for pool in (*pools, *pools)), False)


@example(program=opened(Task((), False), *POOLS), sizes=(8, 2))
@example(program=opened(opened(Task((), False), "subtasks_thread_pool"), "main_thread_pool"), sizes=(8, 2))
@example(program=nested("main_thread_pool", "submit", 5), sizes=(1, 1))
@example(program=nested("subtasks_thread_pool", "with", 5), sizes=(1, 1))
@example(program=nested("main_thread_pool", "shutdown", 3), sizes=(2, 1))
@example(program=nested("main_thread_pool", "parallel", 4), sizes=(1, 1))
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # no shrinking: each of its steps would wait for the watchdog
    suppress_health_check=(HealthCheck.function_scoped_fixture,),
)
@given(program=PROGRAMS, sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_no_program_deadlocks_and_its_results_are_right(template: Any, program: Task, sizes: tuple[int, int]) -> None:
    resize(template, *sizes)
    carried = Program(template)

    def work() -> Any:
        result = carried.carry_out(program)
        for name in POOLS:
            getattr(template, name).shutdown()
        return result

    assert in_time(template, work) == expected(program)
    assert carried.started == Counter(everything(program))
    for name in POOLS:
        getattr(template, name).renew_threads()  # so that the next program starts with pools of the size that it sets


# ------------------------------------------------------------------------------- the forms that scripts use


@pytest.mark.parametrize("name", POOLS)
def test_two_threads_can_have_a_pool_open_and_each_waits_for_its_own_tasks_alone(template: Any, name: str) -> None:
    pool, slow_may_end, slow_is_open = getattr(template, name), threading.Event(), threading.Event()

    def slow() -> bool:
        with pool as executor:
            future = executor.submit(slow_may_end.wait, WATCHDOG)
            slow_is_open.set()
        return bool(future.result(0))

    with_slow: list[bool] = []
    other = threading.Thread(target=lambda: with_slow.append(slow()))
    other.start()
    assert slow_is_open.wait(WATCHDOG)

    def quick() -> int:
        with pool as executor:
            future = executor.submit(abs, -7)
        return int(future.result(0))

    assert in_time(template, quick) == 7
    assert not with_slow, "the other with had to wait for its own task"
    slow_may_end.set()
    other.join(WATCHDOG)
    assert with_slow == [True]


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("waiting", ["with", "shutdown"])
def test_the_callbacks_are_over_when_a_with_or_a_shutdown_has_waited(template: Any, name: str, waiting: str) -> None:
    pool, gate, called = getattr(template, name), threading.Event(), list[int]()

    def call_back(future: Future[int]) -> None:
        gate.wait(WATCHDOG)
        called.append(future.result())

    def work() -> None:
        threading.Timer(0.2, gate.set).start()
        if waiting == "shutdown":
            pool.submit(abs, -1).add_done_callback(call_back)
            pool.shutdown()
            return
        with pool as executor:
            executor.submit(abs, -1).add_done_callback(call_back)

    in_time(template, work)
    assert called == [1]


# In the main thread, leaving a `with` or calling `shutdown` in it also waits for what others submit.
OTHERS = {
    "a task of the other pool": "with subtasks_thread_pool as subtasks, main_thread_pool as executor:\n"
    "    executor.submit(submit_four)",
    "a task of the pool that is left last": "with main_thread_pool as executor, subtasks_thread_pool as subtasks:\n"
    "    executor.submit(lambda: (time.sleep(0.2), submit_four()))",
    "a thread": "with subtasks_thread_pool:\n    in_a_thread(submit_four)",
    "a thread, before": "in_a_thread(submit_four)\nwith subtasks_thread_pool:\n    pass",
    "a thread, before a shutdown": "with subtasks_thread_pool as subtasks:\n    in_a_thread(submit_four)\n"
    "    subtasks.shutdown()\n    print(len(done))\n    done.clear()\ndone.extend('....')",
}


@pytest.mark.parametrize("way", OTHERS.values(), ids=OTHERS)
def test_a_with_in_the_main_thread_waits_for_what_tasks_and_threads_without_one_submit(run: Run, way: str) -> None:
    todo = """
done = []

def submit_four():
    for _ in range(4):
        subtasks_thread_pool.submit(lambda: (time.sleep(0.2), done.append("a subtask")))

def in_a_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

"""
    done = run(f"{todo}{way}\nprint(len(done))")
    assert (done.returncode, set(done.stdout.split())) == (0, {"4"}), done.stderr


def test_a_with_does_not_wait_for_what_its_thread_has_submitted_before(template: Any) -> None:
    gate = threading.Event()
    before = template.main_thread_pool.submit(gate.wait, WATCHDOG)
    with template.main_thread_pool as executor:
        assert executor.submit(abs, -1).result(WATCHDOG) == 1
    assert not before.done()
    gate.set()


def test_an_inner_with_leaves_the_tasks_of_the_outer_one_alone(template: Any) -> None:
    resize(template, 1, 1)
    gate = threading.Event()
    with template.main_thread_pool as outer:
        held = outer.submit(gate.wait, WATCHDOG)
        waiting = outer.submit(abs, -1)
        with contextlib.suppress(Broken), template.main_thread_pool as inner:
            dropped = inner.submit(abs, -2)
            raise Broken
        gate.set()
    assert dropped.cancelled()
    assert (held.result(0), waiting.result(0)) == (True, 1)


def test_an_exception_in_a_with_cancels_what_is_queued_and_passes(template: Any) -> None:
    resize(template, 2, 1)
    gate, started = threading.Event(), threading.Semaphore(0)

    def task() -> bool:
        started.release()
        return gate.wait(WATCHDOG)

    futures: list[Future[bool]] = []

    def work() -> None:
        with template.main_thread_pool as executor:
            futures.extend(executor.submit(task) for _ in range(200))
            assert all(started.acquire(timeout=WATCHDOG) for _ in range(2))
            threading.Thread(target=lambda: wait_until(futures[-1].cancelled) or gate.set()).start()
            raise Broken

    with pytest.raises(Broken):
        in_time(template, work)
    assert Counter(future.cancelled() for future in futures) == {True: 198, False: 2}
    assert works(template)


@pytest.mark.parametrize("name", POOLS)
def test_executor_map_keeps_the_order_and_a_failure_leaves_the_pool_working(template: Any, name: str) -> None:
    pool = getattr(template, name)
    assert list(pool.map(pow, range(200), [3] * 200)) == [number**3 for number in range(200)]
    results = pool.map(int, ["1", "2", "x", *map(str, range(200))])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="'x'"):
        next(results)
    assert works(template)


@pytest.mark.parametrize("name", POOLS)
def test_shutdown_waits_for_all_and_the_pool_starts_again(template: Any, name: str) -> None:
    pool, done = getattr(template, name), list[int]()
    for number in range(300):
        pool.submit(done.append, number)
    pool.shutdown()
    assert sorted(done) == list(range(300))
    pool.shutdown(cancel_futures=True)
    assert works(template)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("asked", POOLS)
def test_a_task_that_shuts_a_pool_down_does_not_wait_for_itself(template: Any, pool: str, asked: str) -> None:
    resize(template, 1, 1)

    def task() -> str:
        getattr(template, asked).shutdown()
        return "went on"

    def work() -> Any:
        submitted = threading.Event()
        future = getattr(template, pool).submit(lambda: submitted.wait(WATCHDOG) and task())
        submitted.set()
        return future.result()

    assert in_time(template, work) == "went on"


def test_a_subtask_that_shuts_the_main_pool_down_does_not_wait_for_the_task_that_waits_for_it(template: Any) -> None:
    resize(template, 1, 1)

    def task() -> Any:
        return template.subtasks_thread_pool.submit(lambda: template.main_thread_pool.shutdown() or "went on").result()

    assert in_time(template, lambda: template.main_thread_pool.submit(task).result()) == "went on"


def test_a_submit_sideways_or_up_runs_inline_and_returns_a_finished_future(template: Any) -> None:
    resize(template, 2, 2)

    def asked_from(pool: str, *others: str) -> list[tuple[bool, bool]]:
        def task() -> list[tuple[bool, bool]]:
            here = threading.get_ident()
            futures = [getattr(template, other).submit(threading.get_ident) for other in others]
            return [(future.done(), future.result() == here) for future in futures]

        return list(getattr(template, pool).submit(task).result(WATCHDOG))

    assert asked_from("main_thread_pool", "main_thread_pool") == [(True, True)]
    assert asked_from("subtasks_thread_pool", *POOLS) == [(True, True)] * 2
    down = template.main_thread_pool.submit(
        lambda: template.subtasks_thread_pool.submit(threading.get_ident).result() != threading.get_ident()
    )
    assert down.result(WATCHDOG), "work goes down on a thread of the other pool"


@pytest.mark.parametrize("raised", [Broken, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("name", POOLS)
def test_what_a_task_raises_comes_out_and_ends_no_worker(template: Any, name: str, raised: type[BaseException]) -> None:
    resize(template, 1, 1)

    def task() -> None:
        raise raised

    def inline() -> BaseException | None:
        return getattr(template, name).submit(task).exception()  # type: ignore[no-any-return]

    with pytest.raises(raised):
        getattr(template, name).submit(task).result(WATCHDOG)
    assert isinstance(getattr(template, name).submit(inline).result(WATCHDOG), raised)
    assert works(template)


@pytest.mark.parametrize("name", POOLS)
def test_the_data_of_a_failed_task_are_freed_with_its_future(template: Any, name: str) -> None:
    class Record:
        pass

    worked_on: list[weakref.ref[Record]] = []

    def fail() -> None:
        record = Record()
        worked_on.append(weakref.ref(record))
        raise ValueError

    gc.disable()  # which would free it at some time in any case
    try:
        with contextlib.suppress(ValueError):
            getattr(template, name).submit(fail).result()
        wait_until(lambda: worked_on[0]() is None, within=10)
    finally:
        gc.enable()


def test_a_with_whose_tasks_were_stopped_does_not_end_as_if_they_were_done(run: Run) -> None:
    todo = """
    control(restart=True, password="another")
    with main_thread_pool as executor:
        executor.submit(get_all_organizations)
    print("a short file")
    """
    done = run(todo)
    assert (done.returncode, done.stdout) == (1, "")
    assert "my_script: IAM login: refused with HTTP 401" in done.stderr


@pytest.mark.parametrize("argument", ["", "0", "'no such centre'"])
def test_a_task_that_calls_sys_exit_fails_and_cannot_end_the_run_as_if_it_were_done(run: Run, argument: str) -> None:
    todo = f"""
    for number, _ in run_parallel(lambda number: number == 50 and sys.exit({argument}), range(100)):
        pass
    """
    done = run(todo)
    assert done.returncode == 1
    assert "failed: a task has called sys.exit(); only main() can" in done.stderr


@pytest.mark.parametrize("opening", ["executor = main_thread_pool\nif True:", "with main_thread_pool as executor:"])
def test_what_was_submitted_before_sys_exit_without_an_error_is_still_done(run: Run, opening: str) -> None:
    todo = f"""{opening}
    executor.submit(time.sleep, 0.2)
    for number in range(200):
        executor.submit(sys.stdout.write, f"{{number}}\\n")
    sys.exit(0)
    """
    done = run(todo, EB_THREADS="1")
    assert (done.returncode, len(done.stdout.split())) == (0, 200)


def test_a_callback_may_submit_the_next_task(template: Any) -> None:
    resize(template, 1, 1)
    reached = threading.Event()

    def go_on(future: Future[int]) -> None:
        if future.result() == 50:
            reached.set()
        else:
            template.main_thread_pool.submit(abs, future.result() + 1).add_done_callback(go_on)

    template.main_thread_pool.submit(abs, 0).add_done_callback(go_on)
    assert reached.wait(WATCHDOG)


def test_no_thread_is_started_by_the_import_and_not_more_than_the_size_by_the_work(template: Any) -> None:
    before = set(threading.enumerate())
    resize(template, 3, 2)
    with template.main_thread_pool as executor:
        for _ in range(500):
            executor.submit(template.subtasks_thread_pool.submit, abs, -1)
    template.subtasks_thread_pool.shutdown()
    assert not [thread for thread in before if thread.name.startswith(("main_", "subtasks_"))]
    assert len(set(threading.enumerate()) - before) <= 5


def test_a_generator_that_is_closed_leaves_the_tasks_of_others_alone(template: Any) -> None:
    resize(template, 1, 1)

    def rows() -> Iterator[int]:
        with template.main_thread_pool as executor:
            while True:
                yield executor.submit(int).result()

    source = rows()
    next(source)
    futures = [template.main_thread_pool.submit(time.sleep, 0.01) for _ in range(20)]
    source.close()
    assert [future.result(WATCHDOG) for future in futures] == [None] * 20
