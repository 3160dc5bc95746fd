"""The study in tests/benchmark: the inclusions of every centre; record, questionnaires and tube of every patient.

Each contender makes the calls as its author would write them, and keeps the responses (singer-sdk writes them out, as
it is designed to do). `job["centres"]` limits slow contenders to some centres.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from measure import Cost, Job, in_run, measured, per_thread, template_of

TOKEN = "a" * 200
ORGANIZATIONS = "/rc/api/inclusions/getAllOrganizations"
INCLUSIONS = "/rc/api/inclusions/search"
RECORD = "/rc/api/records/byPatient"
SURVEYS = "/rc/api/surveys/filter/with-answers"
REQUEST = "/gdd/api/requests/by-tube"
LISTS = ("visits", "answers")


def template(job: Job) -> Cost:
    """Records on the main pool; inclusions, questionnaires and tubes on the subtasks pool at the same time."""
    module = template_of(job)
    later = module.subtasks_thread_pool.submit

    def patient(inclusion: dict[str, Any]) -> tuple[Any, ...]:
        surveys = later(module.get_surveys, inclusion["patientId"])
        record = module.get_record_by_patient(inclusion["patientId"])
        return record, surveys, later(module.get_request_by_tube, record["tubeId"])

    def study(_: int) -> list[Any]:
        organizations = module.get_all_organizations()[: job["centres"]]
        centres = [later(module.get_all_inclusions, organization["id"]) for organization in organizations]
        inclusions = (inclusion for centre in centres for inclusion in centre.result())
        patients = [answers for _, answers in module.run_parallel(patient, inclusions)]
        return [(record, surveys.result(), request.result()) for record, surveys, request in patients]

    return in_run(module, lambda: measured(job, study))


def aiohttp_connections(job: Job) -> Cost:
    """The study with aiohttp: a task per centre and patient, and as many connections as the others have threads."""
    import aiohttp

    async def study() -> list[Any]:
        options = {
            "connector": aiohttp.TCPConnector(limit=job["threads"]),
            "timeout": aiohttp.ClientTimeout(
                total=None, sock_connect=60, sock_read=60
            ),  # a total would include the time in the queue
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "raise_for_status": True,
        }
        async with aiohttp.ClientSession(**options) as session:
            return await aiohttp_study(job, session)

    return measured(job, lambda _: asyncio.run(study()))


async def aiohttp_study(job: Job, session: Any) -> list[Any]:
    """Fetch the study in one session."""

    async def call(method: str, path: str, **options: Any) -> Any:
        async with session.request(method, job["url"] + path, **options) as response:
            return await response.json()

    async def patient(inclusion: dict[str, Any]) -> tuple[Any, ...]:
        surveys = asyncio.ensure_future(call("POST", SURVEYS, json={"subject": inclusion["patientId"]}))
        record = await call("GET", RECORD, params={"patient": inclusion["patientId"]})
        request = await call("GET", f"{REQUEST}/{record['tubeId']}")
        return record, await surveys, request

    async def centre(organization: dict[str, Any]) -> list[Any]:
        params, body = {"limit": 1000, "page": 1}, {"organization": organization["id"]}
        inclusions = await call("POST", INCLUSIONS, params=params, json=body)
        return await asyncio.gather(*map(patient, inclusions["data"]))

    organizations = await call("GET", ORGANIZATIONS)
    centres = await asyncio.gather(*map(centre, organizations[: job["centres"]]))
    return [patient for patients in centres for patient in patients]


def requests_study(job: Job, session: Callable[[], Any], map_: Callable[..., Iterable[Any]]) -> list[Any]:
    """Fetch the study with requests; `map_` decides how many calls are made at a time."""

    def call(method: str, path: str, **options: Any) -> Any:
        response = session().request(method, job["url"] + path, timeout=60, **options)
        response.raise_for_status()
        return response.json()

    def inclusions(organization: dict[str, Any]) -> Any:
        params, body = {"limit": 1000, "page": 1}, {"organization": organization["id"]}
        return call("POST", INCLUSIONS, params=params, json=body)["data"]

    def patient(inclusion: dict[str, Any]) -> tuple[Any, ...]:
        record = call("GET", RECORD, params={"patient": inclusion["patientId"]})
        surveys = call("POST", SURVEYS, json={"subject": inclusion["patientId"]})
        return record, surveys, call("GET", f"{REQUEST}/{record['tubeId']}")

    organizations = call("GET", ORGANIZATIONS)[: job["centres"]]
    patients = [inclusion for of_centre in map_(inclusions, organizations) for inclusion in of_centre]
    return list(map_(patient, patients))


def requests_session() -> Any:
    """Return a session that carries the token."""
    import requests

    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {TOKEN}"
    return session


def requests_sequential(job: Job) -> Cost:
    """One call after the other, in one session, as an analyst would write it."""
    session = requests_session()
    return measured(job, lambda _: requests_study(job, lambda: session, map))


def requests_pool(job: Job) -> Cost:
    """The same in a ThreadPoolExecutor, with a session per thread."""
    requests_session()
    with ThreadPoolExecutor(job["threads"]) as pool:
        return measured(job, lambda _: requests_study(job, per_thread(requests_session), pool.map))


def dlt_source(job: Job) -> Cost:
    """dlt's rest_api source, with dependent resources in parallel; only extracted, neither normalised nor loaded."""
    os.environ.update(RUNTIME__DLTHUB_TELEMETRY="false", DLT_DATA_DIR=os.getcwd(), RUNTIME__LOG_LEVEL="ERROR")
    if "workers" in job:
        os.environ.update(EXTRACT__WORKERS=str(job["workers"]), EXTRACT__MAX_PARALLEL_ITEMS=str(2 * job["workers"]))
    from dlt.sources.rest_api import rest_api_source

    def resource(name: str, path: str, **endpoint: Any) -> dict[str, Any]:
        return {"name": name, "endpoint": {"path": path, "paginator": "single_page", **endpoint}}

    def dependent(name: str, path: str, **endpoint: Any) -> dict[str, Any]:
        return {**resource(name, path, **endpoint), "parallelized": True}

    search = {"method": "POST", "params": {"limit": 1000, "page": 1}, "data_selector": "data"}
    config: Any = {
        "client": {"base_url": job["url"], "auth": {"type": "bearer", "token": TOKEN}},
        "resources": [
            resource("organizations", ORGANIZATIONS),
            dependent("inclusions", INCLUSIONS, **search, json={"organization": "{resources.organizations.id}"}),
            dependent("records", RECORD, params={"patient": "{resources.inclusions.patientId}"}, data_selector="$"),
            dependent("surveys", SURVEYS, method="POST", json={"subject": "{resources.inclusions.patientId}"}),
            dependent("requests", REQUEST + "/{resources.records.tubeId}", data_selector="$"),
        ],
    }
    return measured(job, lambda _: list(rest_api_source(config)))


def singer_stream(job: Job) -> Cost:
    """The streams of a tap made with singer-sdk, whose messages go to the null device."""
    from singer_sdk import RESTStream, Tap
    from singer_sdk.typing import ArrayType, ObjectType, PropertiesList, Property, StringType

    class Stream(RESTStream[Any]):
        """What all streams of the tap share: each response is one record or several."""

        url_base = job["url"]
        state_partitioning_keys = ()
        http_headers = property(lambda _: {"Authorization": f"Bearer {TOKEN}"})
        children: dict[str, str] = {}  # noqa: RUF012 - key of a child's context -> field of the record

        def __init__(self, tap: Tap) -> None:
            rows = ArrayType(ObjectType(additional_properties=True))
            texts = (Property(name, rows if name in LISTS else StringType) for name in self.fields)
            super().__init__(tap, schema=PropertiesList(*texts).to_dict())

        def get_child_context(self, record: Any, context: Any) -> Any:
            return {key: record[field] for key, field in self.children.items()}

        def prepare_request_payload(self, context: Any, next_page_token: Any) -> Any:
            return dict(context) if self.http_method == "POST" else None

    def stream(name: str, path: str, fields: str, parent: object = None, **more: object) -> Any:
        own = {"name": name, "path": path, "fields": fields.split(), "parent_stream_type": parent}
        return type(name, (Stream,), {**own, **more})

    first, one = {"records_jsonpath": f"$[:{job['centres']}]"}, {"records_jsonpath": "$"}
    listed = {"http_method": "POST", "records_jsonpath": "$.data[*]"}
    organizations = stream("organizations", ORGANIZATIONS, "id name", children={"organization": "id"}, **first)
    inclusions = stream(
        "inclusions", INCLUSIONS, "patientId status", organizations, children={"subject": "patientId"}, **listed
    )
    surveys = stream("surveys", SURVEYS, "id name answers", inclusions, http_method="POST")
    by_patient = f"{RECORD}?patient={{subject}}"
    records = stream("records", by_patient, "patientId visits tubeId", inclusions, children={"tube": "tubeId"}, **one)
    requests = stream("requests", f"{REQUEST}/{{tube}}", "tubeId patientId status", records, **one)

    class Study(Tap):
        name, config_jsonschema = "tap-study", PropertiesList().to_dict()

        def discover_streams(self) -> list[Any]:
            return [stream(self) for stream in (organizations, inclusions, surveys, records, requests)]

    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return measured(job, lambda _: Study(config={}).sync_all())
