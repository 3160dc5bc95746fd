"""Thousands of calls through faults of every kind, expiring tokens and an outage: the same result, byte for byte."""

from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

from faults import KINDS
from helpers import OWN_CALLS, Script, Start, run_script, wait_until

ITEMS, THREADS = 4_000, 60
OUTAGE = 6  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.1, 2

# Each item is a call: seven of eight are the cheapest one, the others are those of the study, on both services.
TODO = """
def fetch(number):
    if number % 8:
        return echo(number)
    if number % 16:
        return get_request_by_tube(tubes[number % len(tubes)])
    return get_record_by_patient(patients[number % len(patients)])

patients = [each["patientId"] for each in get_all_inclusions(get_all_organizations()[0]["id"])]
samples = ["visits", "*", "samples", "*", "tubeId"]
tubes = [tube for patient in patients for tube in get_nested_value(get_record_by_patient(patient), samples)]
with open("result.jsonl", "w", encoding="utf-8") as file:
    for number, result in run_parallel(fetch, range(ITEMS)):
        print(json.dumps([number, result]), file=file)
"""


def test_4000_calls_by_60_threads_give_the_result_of_a_run_without_faults(simulator: Start, script: Script) -> None:
    waits = {"ERROR_MAX_RETRY": 100, "WAIT_BEFORE_RETRY": FIRST_WAIT, "MAX_WAIT_BEFORE_RETRY": LONGEST_WAIT}
    path = script(OWN_CALLS + TODO.replace("ITEMS", str(ITEMS)), MAX_THREADS=THREADS, **waits)
    quiet = path.parent / "quiet" / path.name
    quiet.parent.mkdir()
    quiet.write_bytes(path.read_bytes())

    with ThreadPoolExecutor(2) as outside:
        hostile = simulator("--faults", "0.2", "--slow", "0.5", "--token-lifetime", "3", "--iam-token-lifetime", "15")
        chaos = outside.submit(run_script, path, hostile, EB_THREADS=str(THREADS))
        wait_until(lambda: chaos.done() or hostile.seen()["requests"]["echo"] > ITEMS // 5)
        hostile.control(outage=OUTAGE)
        calm = outside.submit(run_script, quiet, simulator(), EB_THREADS=str(THREADS))  # while the others wait
        assert calm.result().returncode == 0, calm.result().stderr
        assert chaos.result().returncode == 0, chaos.result().stderr

    lines, expected = (sorted(Path(each.parent, "result.jsonl").read_bytes().splitlines()) for each in (path, quiet))
    assert len(expected) == ITEMS
    assert lines == expected

    seen = hostile.seen()
    assert min(seen["faults"][kind] for kind in KINDS) > 50
    assert seen["expiries"] >= 2
    assert seen["refresh_tokens_reused"] == 0
    assert seen["logins"]["refused"] == seen["configurations"]["refused"] == 0
    assert THREADS < seen["faults"]["outage"] < THREADS * most_attempts(OUTAGE), "the outage was made worse"


def most_attempts(seconds: float) -> int:
    """How often a thread can call within a time if every wait is as short as the jitter allows."""
    waits = (min(LONGEST_WAIT, FIRST_WAIT * 2.0**failures) / 2 for failures in range(1000))
    return 1 + sum(end < seconds for end in accumulate(waits))
