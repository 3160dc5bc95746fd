"""The forms in which existing scripts are written run unchanged, in the template and in a copy of it."""

import functools
import logging
import re
import sys
import threading
from textwrap import dedent
from typing import Any

import pytest
from helpers import TEMPLATE, Run, Script, a_tube, environment_for, finished_in, log_of, run_script
from readme_and_spec import README
from server import Simulator
from study import Study

DECORATED_GET = """
    @api_call_with_retry("RC")
    def my_organizations():
        client = get_httpx_client()
        client.base_url = MICROSERVICES["RC"]["base_url"]
        response = client.get(
            MICROSERVICES["RC"]["endpoints"]["organizations"],
            headers={"Authorization": f"Bearer {tokens['RC']['access_token']}"},
            timeout=API_TIMEOUT,
        )
        response.raise_for_status()
        return response.json()
"""

DECORATED_POST = """
    @api_call_with_retry("RC")
    def my_inclusions(organization_id, limit, page):
        client = get_httpx_client()
        client.base_url = MICROSERVICES["RC"]["base_url"]
        response = client.post(
            f"{MICROSERVICES['RC']['endpoints']['search_inclusions']}?limit={limit}&page={page}",
            headers={"Authorization": f"Bearer {tokens['RC']['access_token']}"},
            json={"organization": organization_id},
            timeout=API_TIMEOUT,
        )
        response.raise_for_status()
        return response.json()["data"]
"""

POOL_WITH_BAR = """
    def process_all(task, items):
        results = []
        with tqdm(total=len(items), desc="Processing", bar_format=custom_bar_format) as pbar:
            with main_thread_pool as executor:
                futures = [executor.submit(task, item) for item in items]
                for future in as_completed(futures):
                    try:
                        results.append(future.result())
                        pbar.update(1)
                    except Exception as exc:
                        logging.critical(f"Stopped: {exc}", exc_info=True)
                        executor.shutdown(wait=False, cancel_futures=True)
                        raise
        return results
"""

SUBTASKS = """
    def first_page_of(organization):
        org_id = organization["id"]
        return subtasks_thread_pool.submit(search_inclusions, org_id, 1000, 1).result()
"""


def written_by_the_author(template: Any, code: str) -> None:
    """Run code as if it were in the script itself."""
    exec(dedent(code), vars(template))


def in_order(values: Any) -> list[str]:
    return sorted(map(repr, values))


def test_a_decorated_post_with_its_query_string_in_the_path(template: Any, study: Study) -> None:
    written_by_the_author(template, DECORATED_POST)
    centre = study.organizations[0]["id"]
    assert template.my_inclusions(centre, 2, 2) == study.inclusions(centre, 2, 2)["data"]  # type: ignore[index]


def test_a_base_url_set_for_one_service_does_not_lead_calls_of_another_astray(template: Any, study: Study) -> None:
    written_by_the_author(template, DECORATED_GET)
    template.my_organizations()
    tube = a_tube(study)
    assert template.get_request_by_tube(tube) == study.request(tube)
    assert template.my_organizations() == study.organizations
    assert template.my_organizations.__name__ == "my_organizations"


def test_the_pool_with_a_bar_and_as_completed_gives_every_result(template: Any, study: Study) -> None:
    written_by_the_author(template, POOL_WITH_BAR)
    centres = [organization["id"] for organization in study.organizations]
    for _ in range(2):
        counts = template.process_all(template.get_statistics, centres)
        assert in_order(counts) == in_order(map(study.statistics, centres))


def test_an_error_is_raised_at_once_and_leaves_the_pool_usable(template: Any, caplog: pytest.LogCaptureFixture) -> None:
    written_by_the_author(template, POOL_WITH_BAR)
    threads = template.main_thread_pool.size
    started, ended, released = [], [], threading.Event()

    def task(number: int) -> None:
        started.append(number)
        if number == 0:
            raise ValueError("the first one fails")
        released.wait(20)
        ended.append(number)

    with pytest.raises(ValueError, match="the first one fails"):
        template.process_all(task, range(10 * threads))
    assert ended == [], "wait=False waited"
    released.set()
    assert in_order(template.process_all(abs, range(100))) == in_order(range(100))
    assert len(started) <= threads + 1, "queued work went on"
    record = next(record for record in caplog.records if record.levelno == logging.CRITICAL)
    assert record.message == "Stopped: the first one fails"
    assert record.exc_info


def test_a_task_submits_to_the_subtasks_pool_and_waits_for_the_result(template: Any, study: Study) -> None:
    written_by_the_author(template, POOL_WITH_BAR + SUBTASKS)
    pages = template.process_all(template.first_page_of, template.get_all_organizations() * 20)
    expected = [study.inclusions(organization["id"], 1000, 1) for organization in study.organizations]
    assert in_order(pages) == in_order([page["data"] for page in expected if page] * 20)


def test_tokens_hold_the_current_ones_after_a_renewal(template: Any, platform: Simulator) -> None:
    before = {service: template.tokens[service]["access_token"] for service in template.tokens}
    platform.control(expire="RC")
    template.get_all_organizations()
    after = {service: template.tokens[service]["access_token"] for service in template.tokens}
    assert [service for service in before if before[service] != after[service]] == ["RC"]
    assert {after["RC"], template.tokens["RC"]["refresh_token"]} <= set(platform.tokens())


@functools.cache
def entry_of(service: str) -> str:
    """The entry of a service in MICROSERVICES, as in the template."""
    entry = re.search(
        rf'^    "{service}": {{\n.*?^    }},\n', TEMPLATE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert entry, f"the template has no entry for {service}"
    return entry[0]


def commented_out(service: str) -> dict[str, str]:
    """The edit with which a user disables a service."""
    return {entry_of(service): re.sub(r"(?m)^(?=.)", "# ", entry_of(service))}


def test_a_service_that_is_commented_out_is_neither_asked_for_nor_configured(run: Run, platform: Simulator) -> None:
    done = run("print(len(get_all_organizations()), list(tokens))", edits=commented_out("GDD"), EB_GDD_URL="")
    assert done.stdout == f"{platform.options.centres} ['IAM', 'RC']\n", done.stderr
    assert platform.seen()["services"] == {"IAM": 1, "RC": 2, "GDD": 0}


def test_a_call_of_a_disabled_service_says_that_it_is_not_enabled(run: Run, platform: Simulator) -> None:
    done = run('get_request_by_tube("EB000001-11")', edits=commented_out("GDD"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(
        r"my_script: get_request_by_tube: GDD is not enabled; MICROSERVICES has IAM, RC; [^\n]*\n", done.stderr
    )
    assert platform.seen()["services"]["GDD"] == 0


def test_a_service_of_the_authors_own_needs_an_entry_and_a_function(run: Run, platform: Simulator) -> None:
    assert 'copy the `"GDD"` entry' in README
    added = re.sub('"request_by_tube": ".*"', '"centres": "/api/inclusions/getAllOrganizations"', entry_of("GDD"))
    done = run(
        """
        @api_call_with_retry("LAB")
        def get_centres():
            return call_endpoint("LAB", "GET", "centres", list)

        print(len(get_centres()), list(tokens))
        """,
        edits={entry_of("GDD"): entry_of("GDD") + added.replace("GDD", "LAB")},
        EB_LAB_URL=f"{platform.url}/rc",
    )
    assert done.stdout == f"{platform.options.centres} ['IAM', 'RC', 'GDD', 'LAB']\n", done.stderr
    assert platform.seen()["configurations"] == {"accepted": 3, "refused": 0}


def test_run_works_again_in_a_process_after_success_failure_and_exit(script: Script, platform: Simulator) -> None:
    code = """
        import sys
        import my_script

        def works():
            centres = my_script.get_all_organizations()
            print(len(list(my_script.run_parallel(lambda centre: my_script.get_statistics(centre["id"]), centres))))

        def fails():
            my_script.main_thread_pool.submit(my_script.get_all_organizations).result()
            raise KeyError("missing")

        print([my_script.run(main) for main in (works, fails, works, lambda: sys.exit(3), works)])
    """
    path = script("pass").with_name("other.py")
    path.write_text(dedent(code), encoding="utf-8")
    done = run_script(path, platform)
    centres = platform.options.centres
    assert done.stdout == 3 * f"{centres}\n" + "[0, 1, 0, 3, 0]\n", done.stderr
    log = log_of(path)
    assert log.count(" started, template ") == 5
    counts = re.findall(r" get_statistics +(\d+)", log)
    assert counts == 3 * [str(centres)], "each run counts its own calls"


def test_a_notebook_logs_in_and_calls_without_a_log_or_output(script: Script, platform: Simulator) -> None:
    code = "from my_script import *\nlogin()\nprint(len(get_all_organizations()))"
    folder = script("pass").parent
    done = finished_in(folder, [sys.executable, "-"], environment_for(platform), code)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{platform.options.centres}\n", "")
    assert list(folder.glob("*.log*")) == []
