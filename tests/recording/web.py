"""The website of a platform: a page that calls the simulated platform, which is on another host."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from dialects import MOVED, MOVED_ALL, RENAMED
from platform_check.script import read
from server import Simulator
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from study import Study

PAGE = Path(__file__).with_name("page.html")
SERVICES = read(Path(__file__).resolve().parents[2] / "eb_script_template.py").services
PATHS = {key: path for service in SERVICES.values() for key, path in service["endpoints"].items()}
PATHS["request_by_tube"] += "/{tube}"
FILES = {
    "/style.css": ("text/css", b"p { font: 1em sans-serif }"),
    "/logo.svg": ("image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "/roles.json": ("application/json", b'[{"id": "1", "name": "investigator"}, {"id": "2", "name": "monitor"}]'),
    "/graphql": ("application/json", b'{"data": {"me": {"id": "7", "name": "investigatrice"}}}'),
    "/rc/login": ("text/html", b"<!doctype html><title>Log in</title>"),
    "/login": ("text/html", b"<!doctype html><title>Log in</title>"),
}
METHODS = ["GET", "POST"]
LIMIT = 20  # rows on a page of the list of patients


def settings(platform: Simulator, port: int, dialect: str) -> dict[str, Any]:
    """What the page has to know about the platform: everything, like a platform's own pages."""
    options = platform.options
    study = Study(options.centres, options.patients, options.seed)
    sizes = {centre["id"]: (study.statistics(centre["id"]) or {})["total"] for centre in study.organizations}
    moved = {"moved": MOVED, "moved-all": MOVED_ALL}.get(dialect, {})
    suffix = "-front" if dialect == "moved-all" else ""
    return {
        "api": f"http://localhost:{port}/",
        "paths": {**PATHS, **moved},
        "names": RENAMED if dialect == "token-names" else {},
        "nested": dialect == "token-nested",
        "first_page": 0 if dialect == "pages-from-0" else 1,
        "limit": LIMIT,
        "clients": {"rc": f"endobest-rc{suffix}", "gdd": f"endobest-gdd{suffix}"},
        "user": options.user,
        "password": options.password,
        "centre": max(sizes, key=lambda centre: sizes[centre]),
    }


def application(platform: Simulator, dialect: str) -> Starlette:
    """A page and its files; calls below a service's path go on to the simulated platform."""

    async def page(request: Request) -> Response:
        config = json.dumps(settings(platform, request.url.port or 80, dialect))
        return HTMLResponse(PAGE.read_text(encoding="utf-8").replace("CONFIG;", f"{config};"))

    async def file(request: Request) -> Response:
        kind, body = FILES[request.url.path]
        return Response(body, media_type=kind, headers={"Cache-Control": "max-age=600"})

    async def nothing(request: Request) -> Response:
        if request.url.path == "/later":
            platform.control(expire="RC")
        await asyncio.sleep(request.url.path == "/slow")
        return Response(status_code=204)

    async def passed_on(request: Request) -> Response:
        asked = {name: request.headers[name] for name in ("authorization", "content-type") if name in request.headers}
        url = httpx.URL(platform.url + request.url.path, query=request.url.query.encode())
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.request(request.method, url, content=await request.body(), headers=asked)
        headers = {
            name: value for name, value in answer.headers.items() if name not in ("content-length", "connection")
        }
        return Response(answer.content, answer.status_code, headers)

    routes = [Route("/", page), *(Route(path, file, methods=METHODS) for path in FILES)]
    routes += [Route(path, nothing, methods=METHODS) for path in ("/later", "/slow", "/telemetry")]
    routes += [Route(f"/{name}/{{path:path}}", passed_on, methods=METHODS) for name in ("iam", "rc", "gdd")]
    allowed = {"allow_origins": ["*"], "allow_methods": METHODS, "allow_headers": ["Authorization", "Content-Type"]}
    from_elsewhere = Middleware(CORSMiddleware, max_age=0, **allowed)
    return Starlette(routes=routes, middleware=[from_elsewhere])


@contextmanager
def served(platform: Simulator, dialect: str) -> Iterator[str]:
    """The address of the page, which is served until the `with` ends."""
    config = uvicorn.Config(
        application(platform, dialect),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        date_header=False,  # the platform's clock is passed on
        server_header=False,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=server.run, args=([listener],), daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = server.force_exit = True
        serving.join()
