"""The simulated platform: IAM, RC, GDD and every --service, under /iam, /rc, /gdd, … on one loopback port.

`python tests/simulation/simulator.py [options]` prints {"url": "http://127.0.0.1:PORT"} when it listens, and ends when
its standard input is closed, so that it never outlives its parent. Tests observe and control it under /_sandbox.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import partial
from json import JSONDecodeError

import endpoints
import uvicorn
from faults import REFUSED
from responses import Twice, error, refusal, spoiled, translated, transport_of
from server import UNKNOWN, add_options, parse_options
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import Receive, Scope, Send
from state import Platform

Handler = Callable[[Platform, Request], Awaitable[Response]]

KEEP_ALIVE = 75  # seconds until an idle connection is closed, as nginx does
BACKLOG = 2048  # connections waiting to be accepted

# Endpoint key, method, path and handler; the token endpoints exist in several services.
DATA_ENDPOINTS: dict[str, list[tuple[str, str, str, Handler]]] = {
    "RC": [
        ("organizations", "GET", "/api/inclusions/getAllOrganizations", endpoints.organizations),
        ("statistics", "GET", "/api/inclusions/inclusion-statistics", endpoints.statistics),
        ("search_inclusions", "POST", "/api/inclusions/search", endpoints.search_inclusions),
        ("record_by_patient", "GET", "/api/records/byPatient", endpoints.record_by_patient),
        ("surveys", "POST", "/api/surveys/filter/with-answers", endpoints.surveys),
        ("create", "POST", "/api/requests/create", endpoints.create),
        ("echo", "GET", "/api/echo/{n:int}", endpoints.echo),
    ],
    "GDD": [("request_by_tube", "GET", "/api/requests/by-tube/{tube}", endpoints.request_by_tube)],
}
ENDPOINTS = ("login", "config_token", "refresh_token", *(row[0] for rows in DATA_ENDPOINTS.values() for row in rows))


class Call:
    """One endpoint: counts each call, delays it, and makes it fail or runs its handler."""

    def __init__(self, platform: Platform, service: str, endpoint: str, handler: Handler) -> None:
        self.platform = platform
        self.service = service
        self.endpoint = endpoint
        self.handler = handler
        self.is_data = endpoint not in ("login", "config_token", "refresh_token", UNKNOWN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.platform.counted(self.service, self.endpoint, transport_of(send)):
            try:
                response = await self._response(Request(scope, receive))
            except ClientDisconnect:  # a killed script waits for no response
                return
            response.headers["Date"] = formatdate(time.time() + self.platform.conditions.clock_ahead, usegmt=True)
            copied_after = self.platform.conditions.send_twice.get(self.endpoint)
            final = response if copied_after is None else Twice(response, copied_after)
            await final(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        conditions, seen = self.platform.conditions, self.platform.seen
        seen.cookies += "cookie" in request.headers
        await asyncio.sleep(conditions.latency + (conditions.hold if self.is_data else 0))
        if self.platform.outage:
            seen.faults["outage"] += 1
            return refusal(conditions.outage_kind)
        fault = None if self.endpoint == "login" else self.platform.fault()
        if fault is not None:
            seen.faults[fault] += 1
            return await self._faulty(fault, request)
        ration = self.platform.ration()
        response = error(429, "too many calls") if "Retry-After" in ration else await self._carried_out(request)
        response.headers.update(ration)
        if conditions.cookies:
            response.set_cookie("session", "a-session-that-has-ended")
        seen.answers[str(response.status_code)] += 1
        return response

    async def _faulty(self, fault: str, request: Request) -> Response:
        if fault in REFUSED:
            return refusal(fault)
        response = await self._carried_out(request)
        if fault == "slow":
            await asyncio.sleep(self.platform.conditions.slow)
        return spoiled(fault, response)

    async def _carried_out(self, request: Request) -> Response:
        if fixed := self.platform.fixed_answer(self.endpoint):
            return fixed
        response = await self._answer(request)
        return translated(self.platform.dialects, self.endpoint, self.is_data, response)

    async def _answer(self, request: Request) -> Response:
        if self.platform.conditions.cookies and request.cookies:
            return error(401, "this session has ended")  # even with a good token
        try:
            if self.is_data:
                endpoints.require_token(self.platform, self.service, request)
            return await self.handler(self.platform, request)
        except HTTPException as refused:
            return error(refused.status_code, refused.detail)


def application(platform: Platform, options: argparse.Namespace) -> Router:
    """Return the ASGI app: only a router, because middleware would hide uvicorn's `send` from the calls."""
    bodies = dict(options.answer)
    own = [(name, service, path, bodies[name]) for name, service, path in options.endpoint if name in bodies]
    services = [Mount(f"/{name.lower()}", routes=_service(platform, name, own)) for name in platform.sessions]
    return Router([*services, Mount("/_sandbox", routes=_controls(platform))])


def _service(platform: Platform, service: str, own: list[tuple[str, str, str, bytes]]) -> list[Route]:
    tokens: list[tuple[str, str, str, Handler]] = [
        ("config_token", "POST", "/api/auth/config-token", partial(endpoints.config_token, service)),
        ("refresh_token", "POST", "/api/auth/refreshToken", partial(endpoints.refresh_token, service)),
    ]
    if service == "IAM":
        tokens = [("login", "POST", "/api/auth/ziwig-pro/login", endpoints.login)]
    rows = [*DATA_ENDPOINTS.get(service, ()), *tokens]
    known = [
        Route(platform.moved.get(key, path), Call(platform, service, key, do), methods=[method])
        for key, method, path, do in rows
    ]
    answers = [(path, Call(platform, service, name, fixed(body))) for name, of, path, body in own if of == service]
    exact = [Route(path, call) for path, call in answers]
    longer = [Route(f"{path}/{{rest:path}}", call) for path, call in answers]
    return [*exact, *known, *longer, Route("/{path:path}", Call(platform, service, UNKNOWN, endpoints.unknown))]


def fixed(body: bytes) -> Handler:
    """Return the handler of an endpoint that always returns the same JSON."""

    async def answer(platform: Platform, request: Request) -> Response:
        return Response(body, media_type="application/json")

    return answer


def _controls(platform: Platform) -> list[Route]:
    async def seen(request: Request) -> Response:
        return JSONResponse(platform.report())

    async def tokens(request: Request) -> Response:
        return JSONResponse(platform.tokens())

    async def control(request: Request) -> Response:
        try:
            platform.control(await request.json())
        except (JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as wrong:
            return error(400, f"{type(wrong).__name__}: {wrong}")
        return JSONResponse({})

    return [Route("/seen", seen), Route("/tokens", tokens), Route("/control", control, methods=["POST"])]


def end_with_standard_input() -> None:
    """End the process when its parent closes the pipe, or dies."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(0)


def main() -> None:
    """Serve until standard input is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parse_options(parser)
    platform = Platform(options, ENDPOINTS)
    config = uvicorn.Config(
        application(platform, options),
        http="httptools",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,  # a call sets its own
        timeout_keep_alive=KEEP_ALIVE,
        ssl_certfile=options.certfile,
    )
    config.load()
    # asyncio sets TCP_NODELAY if the protocol is given; without it, some responses would wait 40 ms for an ACK.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        scheme = "https" if options.certfile else "http"
        print(json.dumps({"url": f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
        threading.Thread(target=end_with_standard_input, daemon=True).start()
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
