"""The contenders of tests/benchmark: each does the same work in its own way and its own process.

`python tests/benchmark/contenders.py JOB` runs one job (JSON) and prints what it cost as JSON. If it cannot, because a
package is not installed, it prints the reason, and the exit code is 3.
"""

import asyncio
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import study_contenders
from measure import (
    SKIPPED,
    Cost,
    Job,
    Skipped,
    build_of,
    in_plain_pool,
    in_run_parallel,
    measured,
    per_thread,
    template_of,
    use_up,
)

TIMEOUT = 60  # seconds; the template's API_TIMEOUT
BEARER = {"Authorization": "Bearer " + "a" * 200}
PATH = "/api/records/byPatient?patient=any"
# Without click: if another package installed it, httpx imports its own command line, which is not measured here.
IMPORT = """
import json, sys, time
sys.modules["click"] = None
wall, cpu = time.perf_counter(), time.process_time()
{}
print(json.dumps(dict(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)))
"""


def template_calls(job: Job) -> Cost:
    """Make the calls with an API function of the template."""
    template = template_of(job)
    return in_run_parallel(job, template, lambda _: template.get_record_by_patient("any"))


def template_existing_form(job: Job) -> Cost:
    """Make the calls as existing scripts do."""
    template = template_of(job)

    @template.api_call_with_retry("RC")  # type: ignore[untyped-decorator]
    def call(_: int) -> Any:
        client = template.get_httpx_client()
        client.base_url = template.MICROSERVICES["RC"]["base_url"]
        headers = {"Authorization": f"Bearer {template.tokens['RC']['access_token']}"}
        response = client.get(PATH, headers=headers, timeout=template.API_TIMEOUT)
        response.raise_for_status()
        return response.json()

    return in_run_parallel(job, template, call)


def template_on_other_python(job: Job) -> Cost:
    """Make the calls on another Python of the same version, with the packages of this one."""
    python, ours, other = job["python"], build_of(sys.executable), build_of(job["python"])
    if other == ours or other.split(".")[:2] != ours.split(".")[:2]:
        raise Skipped(f"{python} is not another build of Python {sys.version_info[0]}.{sys.version_info[1]}")
    packages = [path for path in sys.path if path.endswith("-packages")]
    command = [python, __file__, json.dumps({**job, "contender": "template_calls"})]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    cost: Cost = json.loads(subprocess.check_output(command, env=settings))
    return cost


def bare_httpx(job: Job) -> Cost:
    """Make the calls as existing scripts do, without the template."""
    import httpx

    context = httpx.create_ssl_context()
    client_of_thread = per_thread(lambda: httpx.Client(verify=context))

    def call(_: int) -> Any:
        client = client_of_thread()
        client.base_url = job["url"] + "/rc"
        response = client.get(PATH, headers=BEARER, timeout=TIMEOUT)
        response.raise_for_status()
        return response.json()

    return in_plain_pool(job, call)


def requests_calls(job: Job) -> Cost:
    """Make the calls with requests, with a session per thread."""
    import requests

    session_of_thread, url = per_thread(requests.Session), job["url"] + "/rc" + PATH

    def call(_: int) -> Any:
        response = session_of_thread().get(url, headers=BEARER, timeout=TIMEOUT)
        response.raise_for_status()
        return response.json()

    return in_plain_pool(job, call)


def pycurl_calls(job: Job) -> Cost:
    """Make the calls with pycurl, with a handle per thread."""
    import pycurl

    url = job["url"] + "/rc" + PATH

    def handle() -> Any:
        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in BEARER.items()])
        curl.setopt(pycurl.TIMEOUT, TIMEOUT)
        curl.setopt(pycurl.NOSIGNAL, 1)
        return curl

    handle_of_thread = per_thread(handle)

    def call(_: int) -> Any:
        curl, body = handle_of_thread(), io.BytesIO()
        curl.setopt(pycurl.WRITEDATA, body)
        curl.perform()
        assert curl.getinfo(pycurl.RESPONSE_CODE) == 200
        return json.loads(body.getvalue())

    return in_plain_pool(job, call)


def aiohttp_calls(job: Job) -> Cost:
    """Make the calls with aiohttp, with as many workers as the others have threads."""
    import aiohttp

    url, loop = job["url"] + "/rc" + PATH, asyncio.new_event_loop()

    async def worker(session: aiohttp.ClientSession, items: Iterable[int]) -> None:
        for _ in items:
            async with session.get(url, headers=BEARER) as response:
                response.raise_for_status()
                await response.json()

    async def calls(session: aiohttp.ClientSession, count: int) -> None:
        items = iter(range(count))
        await asyncio.gather(*(worker(session, items) for _ in range(job["threads"])))

    async def opened() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=job["threads"])
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(TIMEOUT))

    session = loop.run_until_complete(opened())
    cost = measured(job, lambda count: loop.run_until_complete(calls(session, count)))
    loop.run_until_complete(session.close())
    return cost


def template_clients(job: Job) -> Cost:
    """Create the template's clients, each in its own thread, all at once."""
    import httpcore  # noqa: F401 - httpx does so with the first client

    template = template_of(job)

    def work(count: int) -> None:
        with ThreadPoolExecutor(count) as pool:
            all_at_work = threading.Barrier(count)
            use_up(pool.map(lambda _: (all_at_work.wait(), template.get_httpx_client()), range(count)))

    return measured(job, work)


def naive_clients(job: Job) -> Cost:
    """Create clients in the obvious way, one after the other: 60 threads at once take far longer."""
    import httpcore  # noqa: F401 - httpx does so with the first client
    import httpx

    return measured(job, lambda count: use_up([httpx.Client() for _ in range(count)]))


def template_items(job: Job) -> Cost:
    """Send items that cost nothing through run_parallel."""
    return in_run_parallel(job, template_of(job), lambda item: item)


def all_submitted(job: Job) -> Cost:
    """Send items that cost nothing through an executor that gets all of them at once."""
    return in_plain_pool(job, lambda item: item)


def importing(job: Job) -> Cost:
    """Measure a statement in a new interpreter; the first time is not counted, because it may include compilation."""
    shutil.copy(job["template"], "script.py")
    cached = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", IMPORT.format(job["statement"])]
    for _ in range(2):
        cost: Cost = json.loads(subprocess.check_output(command, env=cached))
    return cost


def versions(job: Job) -> dict[str, str | None]:
    """Return the versions of packages; None for one that is not installed."""
    installed = {each.name.replace("_", "-"): each.version for each in importlib.metadata.distributions()}
    return {package: installed.get(package) for package in job["packages"]}


CONTENDERS: dict[str, Callable[[Job], object]] = {
    each.__name__: each
    for each in (
        *(template_calls, template_existing_form, template_on_other_python),
        *(bare_httpx, requests_calls, pycurl_calls, aiohttp_calls),
        *(template_clients, naive_clients, template_items, all_submitted, importing, versions),
        *(study_contenders.template, study_contenders.aiohttp_connections, study_contenders.requests_pool),
        *(study_contenders.requests_sequential, study_contenders.dlt_source, study_contenders.singer_stream),
    )
}


def main() -> None:
    """Run the job from the command line."""
    job = json.loads(sys.argv[1])
    try:
        print(json.dumps(CONTENDERS[job["contender"]](job)))
    except (ModuleNotFoundError, Skipped) as why:
        print(f"{why.name} is not installed" if isinstance(why, ModuleNotFoundError) else why)
        sys.exit(SKIPPED)


if __name__ == "__main__":
    main()
