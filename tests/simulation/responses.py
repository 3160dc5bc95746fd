"""The responses of the simulated platform when something is wrong."""

import asyncio
import json
import socket
import struct
import sys
from typing import cast

from dialects import Answer, Dialect
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

# SO_LINGER with 0 seconds: closing the socket drops unsent data and sends RST.
NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def transport_of(send: Send) -> asyncio.Transport:
    """Return the connection that uvicorn's `send` writes to; ASGI has no official way to reach it."""
    return cast("asyncio.Transport", send.__self__.transport)  # type: ignore[attr-defined]


async def disconnected(receive: Receive) -> None:
    """Wait until uvicorn notices that the connection is gone; it would complain about an unfinished response."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Reset(Response):
    """No response: the connection is reset, as by a crashed process or a firewall."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = transport_of(send)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        transport.abort()
        await disconnected(receive)


class Truncated(Response):
    """Half of a response: fewer bytes than Content-Length says, then the end of the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body[: len(self.body) // 2])
        await send({"type": "http.response.body", "body": half, "more_body": True})
        transport_of(send).close()
        await disconnected(receive)


class Twice:
    """A response and its copy: in one packet, or the copy some seconds later."""

    def __init__(self, answer: Response, seconds: float) -> None:
        self.answer = answer
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport, written = transport_of(send), _Written()
        send.__self__.transport = written  # type: ignore[attr-defined]
        await self.answer(scope, receive, send)
        if self.seconds == 0:
            transport.write(2 * written.data)
            return
        transport.write(written.data)
        await asyncio.sleep(self.seconds)
        if not transport.is_closing():
            transport.write(written.data)


class _Written:
    """Replaces a transport, and keeps what is written to it."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        """Do nothing: the copy still has to be written."""


class Trickling(Response):
    """A response whose body comes one byte at a time."""

    def __init__(self, answer: Response, seconds: float) -> None:
        super().__init__(answer.body, answer.status_code, answer.headers)
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone = asyncio.ensure_future(disconnected(receive))
        for byte in bytes(self.body):
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            if (await asyncio.wait([gone], timeout=self.seconds))[0]:
                return
        gone.cancel()
        await send({"type": "http.response.body"})


def error(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"statusCode": status, "message": message}, status, headers)


def translated(dialects: list[Dialect], endpoint: str, is_data: bool, response: Response) -> Response:
    """Return a response as the dialects change it."""
    if not dialects:
        return response
    answer = Answer(endpoint, is_data, response.status_code, json.loads(bytes(response.body)))
    for dialect in dialects:
        answer = dialect.spoken(answer)
    if answer.body is None:
        return Response(status_code=answer.status, headers=answer.headers)
    return JSONResponse(answer.body, answer.status, answer.headers)


def refusal(fault: str) -> Response:
    """Return the response to a call that is not carried out."""
    if fault == "reset":
        return Reset()
    if fault == "empty":
        return Response(b"", media_type="application/json")
    status = int(fault[:3])
    retry_after = {"Retry-After": "1"} if fault in ("503-retry-after", "429") else {}
    return error(status, "simulated fault", **retry_after)


def spoiled(fault: str, response: Response) -> Response:
    """Return the spoiled response to a call that was carried out."""
    if fault == "reset-after":
        return Reset()
    if fault == "truncated":
        return Truncated(bytes(response.body), response.status_code, media_type=response.media_type)
    if fault == "html":
        return HTMLResponse("<!DOCTYPE html><title>Maintenance</title><p>Opération de maintenance en cours")
    if fault == "bad-gzip":
        return Response(b"no gzip", headers={"Content-Encoding": "gzip"}, media_type="application/json")
    return response
