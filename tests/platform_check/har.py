"""Reads a browser's recording (HAR 1.2), as Chrome, Edge and Firefox write it, into a list of calls.

Nothing in such a file is taken for granted: entries that are not as expected are skipped and counted.
"""

import base64
import json
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from platform_check import shape
from platform_check.shape import NO_JSON, Seen, at
from script_file import Refused

MOST_BYTES = 100_000_000  # of a file; it is read at once, and takes about five times as much memory
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
SAVE = (
    "in the Network tab of the browser's developer tools, choose the arrow “Export HAR” (Chrome, Edge), "
    "or right-click a line and choose “Save All As HAR” (Firefox)"
)

# Kinds of skipped entries that are named more than once.
PAGES = "pages, scripts, pictures, fonts and the like"
REPORTS = "responses without JSON"
CUT = "responses whose body is cut off"
PAGE_KINDS = ("document", "stylesheet", "script", "font", "image", "media", "manifest", "texttrack")
PAGE_TYPES = ("html", "javascript", "css", "font", "image/", "audio/", "video/", "wasm", "manifest")


@dataclass(frozen=True, eq=False)
class Call:
    """A call that may go to the platform; it equals no other call, even one with the same content."""

    method: str
    origin: str  # https://host or https://host:port
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # of the request, names in small letters
    sent: Any  # the body: JSON, or the fields of a form
    seen: Seen

    @property
    def parts(self) -> list[str]:
        """The parts of the path, decoded."""
        return [urllib.parse.unquote(part) for part in self.path.split("/")]

    @property
    def url(self) -> str:
        """The address without its query."""
        return self.origin + self.path

    @property
    def fields(self) -> dict[str, Any]:
        return self.sent if isinstance(self.sent, dict) else {}


def read(path: Path) -> tuple[list[Call], Counter[str]]:
    """The calls in a file, in their order, and how many entries of each kind were passed over. Raises Refused."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise Refused(
            f"has {size / 1e6:,.0f} MB, but at most {MOST_BYTES / 1e6:.0f} MB are read: "
            "choose Fetch/XHR (Firefox: XHR) in the Network tab, clear its list, and record again"
        )
    calls, passed = list[tuple[float, Call]](), Counter[str]()
    for entry in entries_of(path):
        call = call_of(entry)
        if isinstance(call, str):
            passed[call] += 1
        else:
            calls.append((started(entry), call))
    if all(time for time, _ in calls):  # Chrome and Firefox write them in order, other programs may not
        calls.sort(key=lambda pair: pair[0])
    return [call for _, call in calls], passed


def entries_of(path: Path) -> list[Any]:
    """The entries of a file. Raises Refused."""
    try:
        log = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise Refused(f"is not a HAR file, or only part of one: {SAVE}") from None
    entries = at(log, "log", "entries")
    if not isinstance(entries, list):
        raise Refused(f"is not a HAR file: {SAVE}")
    if not entries:
        raise Refused("contains no calls: open the developer tools first, then log in and look around")
    return entries


def call_of(entry: Any) -> Call | str:
    """An entry as a call, or the kind of entry that is skipped."""
    request, method = at(entry, "request"), at(entry, "request", "method")
    status, url = at(entry, "response", "status"), address_of(at(entry, "request", "url"))
    if url is None or not isinstance(method, str):
        return "entries that cannot be read"
    kind = at(entry, "_resourceType")
    if kind == "websocket" or url.scheme in ("ws", "wss") or status == 101:
        return "websockets"
    if url.scheme not in ("http", "https"):
        return PAGES
    if method == "OPTIONS":
        return "preflights"
    if type(status) is not int or not 100 <= status < 600:
        return "aborted calls"
    if status == 304 or at(entry, "_fromCache"):
        return "responses from the cache"
    sent = sent_by(request)
    if is_graphql(url.path, sent):
        return "GraphQL"
    body, problem = body_of(at(entry, "response", "content"))
    headers = headers_of(at(entry, "response"))
    told = f"{at(entry, 'response', 'content', 'mimeType') or headers.get('content-type')}".lower()
    if status < 300 and body is NO_JSON:
        return PAGES if kind in PAGE_KINDS or any(each in told for each in PAGE_TYPES) else problem
    if method not in METHODS:
        return REPORTS
    seen = Seen(status, body, headers, seconds=seconds_of(entry), skew=skew_of(entry, headers), html="html" in told)
    origin = f"{url.scheme}://{url.netloc.rpartition('@')[2].lower()}"
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    return Call(method, origin, url.path or "/", query, headers_of(request), sent, seen)


def address_of(url: Any) -> urllib.parse.SplitResult | None:
    """An address in parts, None if it is invalid."""
    try:
        parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError:
        return None
    return parts if parts.scheme and (parts.hostname or parts.scheme not in ("http", "https")) else None


def headers_of(message: Any) -> dict[str, str]:
    """The headers of a request or a response, without the pseudo-headers of HTTP/2."""
    pairs = named_values(at(message, "headers"))
    return {name.lower(): value for name, value in pairs.items() if not name.startswith(":")}


def named_values(listed: Any) -> dict[str, str]:
    """The contents of a list of {"name": …, "value": …}."""
    items = [(at(each, "name"), at(each, "value")) for each in (listed if isinstance(listed, list) else ())]
    return {name: value for name, value in items if isinstance(name, str) and isinstance(value, str)}


def sent_by(request: Any) -> Any:
    """The body of a request: JSON, or the fields of a form."""
    text, told = at(request, "postData", "text"), at(request, "postData", "mimeType")
    if isinstance(text, str) and "form-urlencoded" in str(told):
        return dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
    body = shape.parsed(text) if isinstance(text, str) else NO_JSON
    return named_values(at(request, "postData", "params")) or NO_JSON if body is NO_JSON else body


def body_of(content: Any) -> tuple[Any, str]:
    """The JSON of a response, and the kind of response if it is not JSON."""
    text, told = at(content, "text"), str(at(content, "mimeType")).lower()
    if not isinstance(text, str) or not text:
        size = at(content, "size")
        return NO_JSON, "responses whose body is not in the file" if "json" in told and size != 0 else REPORTS
    if at(content, "encoding") == "base64":
        try:
            text = base64.b64decode(text).decode("utf-8-sig")
        except ValueError:
            return NO_JSON, CUT if "json" in told else REPORTS
    return shape.parsed(text), CUT if "json" in told else REPORTS


def is_graphql(path: str, sent: Any) -> bool:
    """Whether a call uses GraphQL, where every call has the same address."""
    asked = sent.get("query") if isinstance(sent, dict) else None
    words = ("query", "mutation", "subscription", "{", "fragment")
    written = isinstance(asked, str) and "{" in asked and asked.lstrip().startswith(words)
    return written or path.rstrip("/").endswith("graphql")


def started(entry: Any) -> float:
    """When a call was made; 0 if that cannot be read."""
    try:
        return datetime.fromisoformat(at(entry, "startedDateTime").replace("Z", "+00:00")).timestamp()
    except (AttributeError, ValueError, OverflowError, OSError):
        return 0.0


def seconds_of(entry: Any) -> float:
    time = at(entry, "time")
    return time / 1000 if isinstance(time, (int, float)) and 0 <= time < 1e9 else 0.0


def skew_of(entry: Any, headers: Mapping[str, str]) -> float | None:
    """Seconds by which the platform's clock is ahead of the browser's."""
    then = started(entry)
    return shape.clock_skew(headers.get("date", ""), then + seconds_of(entry)) if then else None
