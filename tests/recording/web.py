"""The pages of a platform, as a browser sees them: one that visits the simulated platform, which is on another host."""

import http.client
import json
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dialects import MOVED, MOVED_ALL, RENAMED
from platform_check.script import read
from server import Simulator
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
CROSS_ORIGIN = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Allow-Methods": "GET, POST",
}
LIMIT = 20  # rows on a page of the list of patients


def settings(platform: Simulator, port: int, dialect: str) -> dict[str, Any]:
    """What the page has to know of the platform that it visits: everything, as a platform's own pages do."""
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


class Web(BaseHTTPRequestHandler):
    """A page and its files; what is below a service's path is the simulated platform's answer."""

    protocol_version = "HTTP/1.1"
    platform: Simulator
    dialect: str

    def do_OPTIONS(self) -> None:
        self.answer(204, {**CROSS_ORIGIN, "Access-Control-Max-Age": "0"})

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if path == "/":
            config = json.dumps(settings(self.platform, self.server.server_address[1], self.dialect))
            page = PAGE.read_text(encoding="utf-8").replace("CONFIG;", f"{config};")
            self.answer(200, {"Content-Type": "text/html"}, page.encode())
        elif path == "/later":
            self.platform.control(expire="RC")
            self.answer(204, {})
        elif path == "/slow":
            time.sleep(1)
            self.answer(204, {})
        elif path in FILES:
            kind, body = FILES[path]
            self.answer(200, {**CROSS_ORIGIN, "Content-Type": kind, "Cache-Control": "max-age=600"}, body)
        elif path.split("/")[1] in ("iam", "rc", "gdd"):
            self.pass_on()
        else:
            self.answer(404, {"Content-Type": "text/plain"}, b"not here")

    def do_POST(self) -> None:
        if self.path == "/telemetry":
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(204, {})
        elif self.path == "/graphql":
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind, body = FILES[self.path]
            self.answer(200, {"Content-Type": kind}, body)
        else:
            self.pass_on()

    def pass_on(self) -> None:
        """Ask the simulated platform, and give its answer to a page from elsewhere."""
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = {name: self.headers[name] for name in ("Authorization", "Content-Type") if self.headers[name]}
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.platform.url).netloc)
        try:
            connection.request(self.command, self.path, sent or None, asked)
            response = connection.getresponse()
            body, dropped = response.read(), ("content-length", "connection", "transfer-encoding")
            headers = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
            self.answer(response.status, {**headers, **CROSS_ORIGIN}, body)
        finally:
            connection.close()

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Write an answer; a browser that is gone is no matter."""
        try:
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A thread for each connection; those that a browser breaks off are no matter."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that is gone."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextmanager
def served(platform: Simulator, dialect: str) -> Iterator[str]:
    """The address of the page, for as long as a `with` lasts."""
    handler = type("Web", (Web,), {"platform": platform, "dialect": dialect})
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
