"""Connections: no idle one is kept, there are no more than calls, and none takes forever to open."""

import gc
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from helpers import OWN_CALLS, Load, Run, Start, answer, wait_until
from server import Simulator
from sockets import Silent

SOON = 20  # seconds; the platform itself keeps idle connections for 75
IDLE = {"_IDLE_SECONDS": 0.5}


def all_closed(platform: Simulator) -> Callable[[], bool]:
    return lambda: platform.seen()["open_connections"] == 0


# ----------------------------------------------------------------------------------------------------- Idle connections


def test_threads_that_have_ended_keep_no_connection_not_even_for_a_moment(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, _IDLE_SECONDS=600)
    for _ in range(10):
        with ThreadPoolExecutor(10) as own:
            assert list(own.map(template.echo, range(10))) == list(range(10))
    wait_until(all_closed(platform), within=SOON)


def test_after_a_loop_no_connection_is_kept(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, **IDLE)
    assert len(list(template.run_parallel(template.echo, range(200)))) == 200
    wait_until(all_closed(platform), within=SOON)


def test_after_a_call_of_the_main_thread_no_connection_is_kept(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, **IDLE)
    assert template.echo(1) == 1
    wait_until(all_closed(platform), within=SOON)
    assert template.echo(2) == 2, "a new one is made"


def test_after_a_call_of_a_thread_of_its_own_no_connection_is_kept(platform: Simulator, logged_in: Load) -> None:
    template, over = logged_in(platform, **IDLE), threading.Event()

    def call_and_wait() -> None:
        template.echo(1)
        over.wait()

    thread = threading.Thread(target=call_and_wait)
    thread.start()
    try:
        wait_until(lambda: platform.seen()["requests"]["echo"] == 1)
        wait_until(all_closed(platform), within=SOON)
    finally:
        over.set()
        thread.join()


def test_while_tasks_wait_for_something_else_no_connection_is_kept(platform: Simulator, logged_in: Load) -> None:
    template, over = logged_in(platform, **IDLE), threading.Event()

    def call_and_wait(number: int) -> int:
        result = template.echo(number)
        over.wait()
        return int(result)

    with template.main_thread_pool as executor:
        futures = [executor.submit(call_and_wait, number) for number in range(20)]
        try:
            wait_until(lambda: platform.seen()["requests"]["echo"] == 20)
            wait_until(all_closed(platform), within=SOON)
        finally:
            over.set()
    assert [future.result() for future in futures] == list(range(20))


def test_calls_come_through_whole_while_idle_connections_are_closed(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, **IDLE)

    def call_now_and_then(number: int) -> list[int]:
        pauses = threading.Event()
        results = []
        for round_ in range(3):
            results.append(template.echo(number * 10 + round_))
            pauses.wait(0.1 * (1 + number % 7))  # around the time after which an idle one is closed
        return results

    results = dict(template.run_parallel(call_now_and_then, range(40)))
    assert results == {number: [number * 10 + round_ for round_ in range(3)] for number in range(40)}
    assert platform.seen()["requests"]["echo"] == 120, "none was sent twice"


def test_a_call_within_a_stream_leaves_no_connection_in_use_to_be_closed(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, _IDLE_SECONDS=0.2)
    address = template.url_of("RC", "organizations")
    bearer = {"Authorization": f"Bearer {template.tokens['RC']['access_token']}"}
    with template.get_httpx_client().stream("GET", address, headers=bearer) as response:
        assert template.echo(1) == 1
        response.read()
    platform.control(latency=0.8)
    assert [template.create(f"key {number}") for number in range(2)] == [1, 2]


# ------------------------------------------------------------------------------------------------ As many as are needed


def test_there_are_no_more_connections_than_threads_that_call(simulator: Start, run: Run) -> None:
    platform = simulator()
    todo = "print(sum(number == n for number, n in run_parallel(echo, range(300))))"
    done = run(OWN_CALLS + todo, on=platform, EB_THREADS="4")
    assert (done.returncode, done.stdout) == (0, "300\n")
    assert platform.seen()["peak_connections"] <= 4


def test_subtasks_have_no_more_connections_than_both_pools_have_threads(simulator: Start, run: Run) -> None:
    platform = simulator("--latency", "0.01")
    todo = """
        def counts(organization):
            get_all_inclusions(organization["id"])
            calls = [subtasks_thread_pool.submit(get_statistics, organization["id"]) for _ in range(8)]
            return sum(call.result()["total"] for call in calls)

        print(len(list(run_parallel(counts, get_all_organizations() * 10))))
        """
    done = run(todo, on=platform, SUBTASKS_POOL_SIZE=6, EB_THREADS="4")
    assert (done.returncode, done.stdout) == (0, "50\n"), done.stderr
    assert platform.seen()["peak_connections"] <= 4 + 6 + 1, "the main thread has made a call, too"


def test_connections_that_the_platform_closes_are_not_kept_in_memory(platform: Simulator, module: Any) -> None:
    platform.control(answer={"echo": answer(200, b'{"n": 1}', connection="close")})
    before = sockets_in_memory()
    for _ in range(50):
        module.echo(1)
    assert sockets_in_memory() - before < 5


def sockets_in_memory() -> int:
    gc.collect()
    return sum(isinstance(each, socket.socket) for each in gc.get_objects())


# ------------------------------------------------------------------------------------------------ Connections that hang

needs_silence = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux, a full queue sends no response")


@needs_silence
@pytest.mark.timeout(60)  # a watchdog: the timeout of 600 s that the call sets must not be waited for
@pytest.mark.parametrize("timeout", [600, None, httpx.Timeout(600), httpx.Timeout(600, connect=600)], ids=repr)
def test_a_dead_host_is_given_up_after_a_few_seconds_whatever_timeout_the_call_has(
    platform: Simulator, logged_in: Load, timeout: Any
) -> None:
    template = logged_in(platform, ERROR_MAX_RETRY=1, _CONNECT_SECONDS=0.5)
    with Silent() as dead:

        @template.api_call_with_retry("RC")
        def call_dead_host() -> None:
            template.get_httpx_client().get(f"http://127.0.0.1:{dead.port}/", timeout=timeout)

        with pytest.raises(template.httpx.ConnectTimeout):
            call_dead_host()


@needs_silence
@pytest.mark.timeout(60)
def test_a_short_timeout_of_a_call_holds_for_its_connection_too(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, ERROR_MAX_RETRY=1)
    with Silent() as dead, pytest.raises(template.httpx.ConnectTimeout):
        template.get_httpx_client().get(f"http://127.0.0.1:{dead.port}/", timeout=0.2)


@needs_silence
@pytest.mark.timeout(150)
def test_a_host_whose_first_address_is_dead_is_called_by_its_second(
    platform: Simulator, logged_in: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, port = socket.getaddrinfo, int(platform.url.rpartition(":")[2])
    with Silent() as dead:

        def two_addresses(host: str, asked: int, *arguments: Any, **options: Any) -> list[Any]:
            first = look_up(host, dead.port, *arguments, **options) if asked == port else []
            return [*first, *look_up(host, asked, *arguments, **options)]

        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", two_addresses)
            template = logged_in(platform, API_TIMEOUT=600, _CONNECT_SECONDS=1.2)
            assert sorted(n for _, n in template.run_parallel(template.echo, range(40))) == list(range(40))
