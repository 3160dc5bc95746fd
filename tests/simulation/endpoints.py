"""What each endpoint of the simulated platform does, apart from faults."""

import asyncio
from json import JSONDecodeError
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from state import Platform


async def login(platform: Platform, request: Request) -> Response:
    body = await _body(request)
    conditions = platform.conditions
    accepted = body.get("username") == conditions.user and body.get("password") == conditions.password
    platform.seen.logins["accepted" if accepted else "refused"] += 1
    if not accepted:
        raise HTTPException(401, "wrong user name or password")
    if conditions.one_session:
        for sessions in platform.sessions.values():
            sessions.forget()
    return _session(platform, {"userId": conditions.user_id, **platform.sessions["IAM"].open()})


async def config_token(service: str, platform: Platform, request: Request) -> Response:
    """Open a session of a service for a user with an IAM session."""
    body = await _body(request)
    accepted = platform.sessions["IAM"].accepts(_bearer(request))
    accepted = accepted and body.get("userId") == platform.conditions.user_id and bool(body.get("clientId"))
    platform.seen.configurations["accepted" if accepted else "refused"] += 1
    if not accepted:
        raise HTTPException(401, "an IAM access token, its userId and a clientId are required")
    return _session(platform, platform.sessions[service].open())


async def refresh_token(service: str, platform: Platform, request: Request) -> Response:
    pair = platform.sessions[service].renew(str((await _body(request)).get("refresh_token")))
    platform.seen.refreshes["accepted" if pair else "refused"] += 1
    await asyncio.sleep(platform.conditions.slow_refresh)
    if pair is None:
        raise HTTPException(401, "unknown refresh token")
    return _session(platform, pair)


async def organizations(platform: Platform, request: Request) -> Response:
    return JSONResponse(platform.study.organizations)


async def statistics(platform: Platform, request: Request) -> Response:
    return _found(platform.study.statistics(request.query_params.get("organization", "")), "organization")


async def search_inclusions(platform: Platform, request: Request) -> Response:
    organization = str((await _body(request)).get("organization"))
    conditions = platform.conditions
    limit = min(_number(request, "limit", 1), conditions.page_cap)
    page = _number(request, "page", conditions.first_page) - conditions.first_page + 1
    return _found(platform.study.inclusions(organization, limit, page), "organization")


async def record_by_patient(platform: Platform, request: Request) -> Response:
    """Return a patient's record, unless it is one that always fails."""
    patient = request.query_params.get("patient", "")
    if patient in platform.failing:
        raise HTTPException(500, "the record of this patient always fails (simulated)")
    return _found(platform.study.record(patient), "patient")


async def surveys(platform: Platform, request: Request) -> Response:
    return JSONResponse(platform.study.surveys(str((await _body(request)).get("subject"))))


async def request_by_tube(platform: Platform, request: Request) -> Response:
    return _found(platform.study.request(request.path_params["tube"]), "tube")


async def create(platform: Platform, request: Request) -> Response:
    """Create something new at every call, which is why a call must not be repeated blindly."""
    creations = platform.seen.creations
    creations[str((await _body(request)).get("key"))] += 1
    return JSONResponse({"id": creations.total()}, 201)


async def echo(platform: Platform, request: Request) -> Response:
    """Return the number that was sent, with as little work as possible, and the query string, if there is one."""
    query = {"query": request.url.query} if request.url.query else {}
    return JSONResponse({"n": request.path_params["n"], **query})


async def unknown(platform: Platform, request: Request) -> Response:
    call = f"{request.method} {request.url.path}"
    platform.seen.unknown[call] += 1
    raise HTTPException(404, f"the sandbox has no endpoint {call}")


def require_token(platform: Platform, service: str, request: Request) -> None:
    """Reject a call without a valid access token of this service."""
    if not platform.sessions[service].accepts(_bearer(request)):
        raise HTTPException(401, "a valid access token is required")
    if platform.conditions.denied:
        asked = {request.query_params.get("patient"), str(request.path_params.get("n"))}
        if asked & set(platform.conditions.denied):
            raise HTTPException(401, "this is not for you")


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" else ""


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (JSONDecodeError, UnicodeDecodeError):
        body = None
    if not isinstance(body, dict):
        raise HTTPException(400, "a JSON object is required")
    return body


def _number(request: Request, name: str, least: int) -> int:
    text = request.query_params.get(name, "")
    if not text.isdecimal() or int(text) < least:
        raise HTTPException(400, f"{name} must be a number from {least}")
    return int(text)


def _session(platform: Platform, answer: dict[str, Any]) -> Response:
    return JSONResponse({key: value for key, value in answer.items() if key not in platform.conditions.omit})


def _found(answer: dict[str, Any] | None, what: str) -> Response:
    if answer is None:
        raise HTTPException(404, f"unknown {what}")
    return JSONResponse(answer)
