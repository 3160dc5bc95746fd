"""The server that tests/benchmark measures against: the simulated study, with responses prepared in advance.

`python tests/benchmark/lean_server.py [--centres N] [--patients N]` prints {"url": "http://127.0.0.1:PORT"} when it
listens, and ends when its standard input is closed. A base_url is `{url}/{latency in seconds}/{service}`. GET /count
returns how many calls were answered with data since the last GET /count. The server does much less than the simulated
platform (no routing, no tokens, no faults), so that only the client is measured.
"""

import argparse
import asyncio
import json
import selectors
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "simulation"))

from simulator import BACKLOG, end_with_standard_input
from study import Study

SESSION = {"userId": "bench", "access_token": "a" * 200, "refresh_token": "r" * 200}
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"


def answer(value: object) -> bytes:
    """Prepare a whole response."""
    body = json.dumps(value, ensure_ascii=False).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def answers_of(study: Study) -> dict[str, bytes]:
    """Prepare every response: GET by path and query, POST by path and the first value of its body."""
    rendered: dict[str, Any] = {
        "/iam/api/auth/ziwig-pro/login": SESSION,
        "/rc/api/auth/config-token": SESSION,
        "/gdd/api/auth/config-token": SESSION,
        "/rc/api/records/byPatient?patient=any": {
            "patientId": "any",
            "pseudonym": "001-00001-AB",
            "status": "included",
        },
        "/rc/api/inclusions/getAllOrganizations": study.organizations,
    }
    for organization in study.organizations:
        page = study.inclusions(organization["id"], 10**6, 1)
        rendered[f"/rc/api/inclusions/search {organization['id']}"] = page
        for inclusion in page["data"] if page else []:
            rendered.update(patient_answers(study, inclusion["patientId"], inclusion["pseudonym"]))
    return {call: answer(value) for call, value in rendered.items()}


def patient_answers(study: Study, patient: str, pseudonym: str) -> dict[str, Any]:
    """Return a patient's record, questionnaires and request; every record names a tube, which makes three calls."""
    tube = f"EB{pseudonym.split('-')[1]}-11"
    return {
        f"/rc/api/records/byPatient?patient={patient}": {**(study.record(patient) or {}), "tubeId": tube},
        f"/rc/api/surveys/filter/with-answers {patient}": study.surveys(patient),
        f"/gdd/api/requests/by-tube/{tube}": {"tubeId": tube, "patientId": patient, "status": "Validée"},
    }


class Server:
    """Reads requests, and responds to each after the latency that begins its path."""

    def __init__(self, study: Study) -> None:
        self.answers = answers_of(study)
        self.counted = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, found, length = head.lower().partition(b"\r\ncontent-length:")
                body = await reader.readexactly(int(length.split(b"\r\n", 1)[0])) if found else b""
                method, target, _ = head.decode().split(" ", 2)
                writer.write(await self.answer(method, target, body))
        writer.close()

    async def answer(self, method: str, target: str, body: bytes) -> bytes:
        """Return the response to a call when it is due."""
        if target == "/count":
            counted, self.counted = self.counted, 0
            return answer(counted)
        _, latency, path = target.split("/", 2)
        call = f"/{path}"
        if method == "POST":
            call, _, _ = call.partition("?")
            call += "" if "/auth/" in call else f" {next(iter(json.loads(body).values()))}"
        response = self.answers.get(call, NOT_FOUND)
        self.counted += "/auth/" not in call and response is not NOT_FOUND
        await asyncio.sleep(float(latency))
        return response


async def serve(study: Study) -> None:
    """Listen forever."""
    server = await asyncio.start_server(Server(study).connected, "127.0.0.1", 0, backlog=BACKLOG)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print(json.dumps({"url": url}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until standard input is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--centres", type=int, default=100)
    parser.add_argument("--patients", type=int, default=2500)
    options = parser.parse_args()
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    # select() is exact to the microsecond; epoll rounds each wait up to a millisecond, 1 % of a latency.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(serve(Study(options.centres, options.patients)))


if __name__ == "__main__":
    main()
