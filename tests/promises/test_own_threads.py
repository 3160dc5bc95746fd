"""Work outside `main()` counts: a script's threads and executors are waited for, and its errors are noticed."""

import re
import sys
import textwrap
import threading

import pytest
from helpers import OWN_CALLS, Load, Run, summary_of
from server import Simulator

HOLD = 0.2  # seconds that a call takes; main() ends long before

THREAD = "threading.Thread(target=get_all_organizations).start()"
THREAD_OF_A_THREAD = """
def start_another():
    get_all_organizations()
    threading.Thread(target=get_all_organizations).start()

threading.Thread(target=start_another).start()
"""
EXECUTOR = "ThreadPoolExecutor(2).submit(get_all_organizations)"
IDLE_EXECUTOR = """
global executor
executor = concurrent.futures.{}(2)
executor.submit(int).result()
"""
QUEUE_OF_AN_EXECUTOR = """
global executor
executor = ThreadPoolExecutor(1)
for _ in range(3):
    executor.submit(get_all_organizations)
"""
WAYS = {
    "a thread": (THREAD, 1),
    "a timer": ("threading.Timer(0.1, get_all_organizations).start()", 1),
    "a thread that starts another": (THREAD_OF_A_THREAD, 2),
    "an executor": (EXECUTOR, 1),
    "the queue of an executor that is kept": (QUEUE_OF_AN_EXECUTOR, 3),
}


@pytest.mark.parametrize(("todo", "calls"), WAYS.values(), ids=WAYS.keys())
def test_work_that_outlives_main_is_in_the_table_and_the_closing_line_comes_after_it(
    platform: Simulator, run: Run, todo: str, calls: int
) -> None:
    platform.control(hold=HOLD)
    done = run(todo)
    assert done.returncode == 0
    assert done.stderr.startswith(f"my_script: done; {3 + calls} calls in "), done.stderr
    assert summary_of(done.log)["get_all_organizations"]["calls"] == calls
    assert "my_script: done; " in done.log.splitlines()[-1]


def test_a_thread_that_fails_after_main_fails_the_run(platform: Simulator, run: Run) -> None:
    platform.control(hold=HOLD)
    done = run(THREAD.replace("get_all_organizations", "get_statistics, args=('no such centre',)"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("my_script: failed: outside main(): "), done.stderr
    assert "1 failure" in done.stderr.splitlines()[-1]
    assert summary_of(done.log)["get_statistics"]["failures"] == 1


def test_a_call_that_fails_in_an_executor_after_main_is_told_in_the_closing_line(platform: Simulator, run: Run) -> None:
    platform.control(hold=HOLD)
    done = run(EXECUTOR.replace("get_all_organizations", "get_statistics, 'no such centre'"))
    assert "4 calls, 1 failure in " in done.stderr
    assert summary_of(done.log)["get_statistics"]["failures"] == 1


@pytest.mark.parametrize(
    "todo",
    [
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
        IDLE_EXECUTOR.format("ThreadPoolExecutor"),
        IDLE_EXECUTOR.format("ProcessPoolExecutor"),
    ],
    ids=["a daemon thread", "an idle executor", "an idle executor of processes"],
)
def test_a_run_waits_neither_for_daemons_nor_for_workers_without_work(run: Run, todo: str) -> None:
    done = run(todo)
    assert done.returncode == 0
    assert done.stderr.startswith("my_script: done; ")


def test_subtasks_that_outlive_main_are_waited_for_and_their_failures_told(platform: Simulator, run: Run) -> None:
    platform.control(latency=0.02)
    todo = """
    def part(number):
        return echo(number) / (number % 5)

    def task(number):
        time.sleep(0.05)
        for each in range(5):
            subtasks_thread_pool.submit(part, 5 * number + each)

    for number in range(10):
        main_thread_pool.submit(task, number)
    """
    done = run(OWN_CALLS + textwrap.dedent(todo))
    assert done.returncode == 1
    assert "the first of 10 such failures; 53 calls in " in done.stderr
    assert summary_of(done.log)["echo"]["calls"] == 50


MODULE_POOL = "POOL = ThreadPoolExecutor(4)\n"
EXECUTORS = {
    "one beside main": (MODULE_POOL, "print(sum(POOL.map(echo, range(20))))"),
    "one of a thread that comes late": (
        "",
        "def late():\n    global POOL\n    time.sleep(0.3)\n    POOL = ThreadPoolExecutor(4)\n"
        "    print(sum(POOL.map(echo, range(20))))\nthreading.Thread(target=late).start()",
    ),
    "one with a shutdown of its own": (
        "class Odd(ThreadPoolExecutor):\n    def shutdown(self, wait=True):\n        super().shutdown(wait=wait)\n\n"
        "POOL = Odd(4)\n",
        "print(sum(POOL.map(echo, range(20))))",
    ),
}


@pytest.mark.parametrize(("beside", "todo"), EXECUTORS.values(), ids=EXECUTORS)
def test_a_run_ends_whatever_executor_the_script_leaves_open(run: Run, beside: str, todo: str) -> None:
    guard = "\nif __name__ =="
    done = run(OWN_CALLS + todo, edits={guard: f"\n{beside}\n{guard}"})
    assert (done.returncode, done.stdout) == (0, "190\n"), done.stderr
    assert "my_script: done; 23 calls in" in done.stderr


def test_a_log_handler_that_raises_in_the_last_line_is_not_taken_for_anything_else(run: Run) -> None:
    todo = """
class Broken(logging.Handler):
    def emit(self, record):
        if "my_script: done" in record.getMessage():
            raise OSError("the share is gone")

logging.getLogger().addHandler(Broken())
"""
    done = run(todo)
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: the share is gone\n")


def test_a_log_handler_that_raises_holds_no_task(run: Run) -> None:
    todo = """
    class Broken(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("task "):
                raise LookupError("broken")

    def task(number):
        raise ValueError(number)

    logging.getLogger().addHandler(Broken())
    print(len(list(run_parallel(task, range(100), return_exceptions=True))))
    """
    done = run(todo)
    assert (done.returncode, done.stdout) == (0, "100\n"), done.stderr


# -------------------------------------------------------------------------------------------- Errors that nobody raises

CALLBACK = """
    def remember(future):
        raise ValueError("Zoé Nemo")

    with main_thread_pool as executor:
        for _ in range(2):
            executor.submit(get_all_organizations).add_done_callback(remember)
"""
FINALIZER = """
    class Table:
        def __del__(self):
            raise ValueError("Zoé Nemo")

    for _ in range(2):
        Table()
"""
GENERATOR = """
    def rows():
        try:
            yield 1
        finally:
            raise ValueError("Zoé Nemo")

    for _ in range(2):
        next(rows())
"""
WEAK = """
    import weakref

    class Table:
        pass

    def forget():
        raise ValueError("Zoé Nemo")

    tables = [Table(), Table()]
    for table in tables:
        weakref.finalize(table, forget)
    del table, tables
"""
ASYNCIO = """
    import asyncio
    import gc

    async def work():
        raise ValueError("Zoé Nemo")

    async def start_and_forget():
        for _ in range(2):
            asyncio.ensure_future(work())
        await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(start_and_forget())
"""
ASYNCIO_IN_A_CIRCLE = """
    import asyncio

    class Work:
        async def do(self):
            raise ValueError("Zoé Nemo")

        async def start(self):
            self.tasks = [asyncio.create_task(self.do()) for _ in range(2)]
            await asyncio.wait(self.tasks)

    asyncio.run(Work().start())
"""
UNHEARD = {
    "a task of asyncio": ASYNCIO,
    "a task of asyncio in a circle of references": ASYNCIO_IN_A_CIRCLE,
    "a done-callback": CALLBACK,
    "a done-callback of an executor of the script's own": CALLBACK.replace("main_thread_pool", "ThreadPoolExecutor(2)"),
    "__del__": FINALIZER,
    "the finally of a generator": GENERATOR,
    "a finalizer": WEAK,
}


@pytest.mark.parametrize("todo", UNHEARD.values(), ids=UNHEARD.keys())
def test_an_error_that_python_only_prints_is_logged_fails_the_run_and_shows_no_patient(run: Run, todo: str) -> None:
    done = run(todo)
    assert done.returncode == 1
    assert re.search("failed: .*, the first of 2 such failures; ", done.stderr.splitlines()[-1])
    assert "Nemo" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.log.splitlines() if "ValueError" in line]) >= 2
    assert ", the first of 2 such failures; " in done.log.splitlines()[-1]


@pytest.mark.parametrize(
    "setting",
    [
        'logging.basicConfig(filename="mine.log", force=True)',
        'import logging.config\n    logging.config.dictConfig({"version": 1})',
        "",
    ],
    ids=["another log", "no logger of a library", "a log of the engine"],
)
@pytest.mark.parametrize("error", ["raise KeyError", 'sys.exit("a column is missing")'])
def test_a_callback_that_fails_fails_the_run_whatever_the_script_logs(run: Run, setting: str, error: str) -> None:
    todo = f"""
    {setting}

    def collect(future):
        {error}

    with main_thread_pool as executor:
        future = executor.submit(get_all_organizations)
        future.add_done_callback(collect)
    print(len(future.result()))
    """
    done = run(todo)
    assert (done.returncode, done.stdout) == (1, "5\n")
    assert re.search(r"failed: a callback: (KeyError|SystemExit) \(my_script.py line \d+\); ", done.stderr)


def test_one_such_error_is_one(run: Run) -> None:
    done = run(FINALIZER.replace("range(2)", "range(1)"))
    assert re.search(r"failed: outside main\(\): ValueError \(my_script.py line \d+\); ", done.stderr.splitlines()[-1])


def test_a_run_puts_the_hook_for_such_errors_back(platform: Simulator, load: Load) -> None:
    before, during = sys.unraisablehook, list[object]()
    assert load(platform).run(lambda: during.append(sys.unraisablehook)) == 0
    assert during != [before]
    assert sys.unraisablehook is before


def test_an_error_in_a_destructor_may_come_while_figures_are_counted(load: Load) -> None:
    template = load()

    def count_within() -> None:
        with template._figures.lock:  # where the garbage collector may run
            template._figures.count("count", "calls")

    thread = threading.Thread(target=count_within, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert template._figures.total("calls") == 1
