"""What may be shown of a response: status, kinds, counts, names of fields, durations; never a value."""

import base64
import binascii
import email.utils
import json
import math
import re
import urllib.parse
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NO_JSON: Any = object()  # stands for a body that is not JSON
FIELD_NAME = re.compile(r"(?!.*[0-9]{3})[A-Za-z_][A-Za-z0-9_]{0,40}")  # any other key may be somebody's id
TOKEN = re.compile(r"[\x21-\x7e]+")  # what fits into a header (RFC 6750, section 2.1)
MOST_NAMES = 30
DEPTH = 3  # how deep to look for a token

# Other common names of the template's fields, in lower case and without _ and -.
OTHER_NAMES = {
    "access_token": ("accesstoken", "token", "jwt", "jwttoken", "authtoken", "bearertoken", "access"),
    "refresh_token": ("refreshtoken", "refresh"),
    "userId": ("userid", "useruuid", "iduser", "uid", "id", "uuid", "sub"),
}
LIMIT_HEADERS = ("ratelimit-limit", "x-ratelimit-limit", "x-rate-limit-limit")
LEFT_HEADERS = ("ratelimit-remaining", "x-ratelimit-remaining", "x-rate-limit-remaining")
RESET_HEADERS = ("ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset")

Path = tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """A response, or why there was none (`failure`, in our own words)."""

    status: int = 0
    body: Any = NO_JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0
    connection: object = None  # the same for calls over one connection
    certificate: tuple[str, float] | None = None  # issuer, days left
    skew: float | None = None  # seconds by which the platform's clock is ahead of ours
    html: bool = False  # whether it is a web page
    proxy: str = ""  # the variable of the proxy that caused a failure

    @property
    def good(self) -> bool:
        """Whether it is a 2xx with JSON."""
        return 200 <= self.status < 300 and self.body is not NO_JSON

    @property
    def rows(self) -> list[Any]:
        """The list in a good response, wherever it is."""
        path = list_in(self.body)
        return at(self.body, *path) if self.good and path is not None else []

    def token(self, name: str) -> str | None:
        """The token in a good response, whatever its name."""
        path = find_field(self.body, name) if self.good else None
        value = at(self.body, *path) if path else None
        return value if isinstance(value, str) else None

    @property
    def leads_to(self) -> str:
        """Where a redirect leads, or "" if it is not one."""
        return shown_address(self.headers.get("location", "")) if self.status // 100 == 3 else ""

    def __str__(self) -> str:
        return self.failure or f"HTTP {self.status}"


def parsed(text: str | bytes) -> Any:
    """The parsed JSON, or NO_JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NO_JSON


def text_of(value: Any) -> str:
    """A text or number as text for an address; "" for anything else."""
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def is_web_page(body: bytes, content_type: str) -> bool:
    """Whether a response is a web page."""
    return "html" in content_type.lower() or body[:200].lstrip().lower().startswith((b"<!doctype", b"<html"))


def shown_address(url: str) -> str:
    """An address without login and query; a part of its path that may be somebody's id is shown as ID."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an invalid address"
    if not host:
        return shown_path(parts.path) or "no address"
    sound = re.fullmatch(r"[a-z0-9.-]{1,253}", host) and parts.scheme in ("http", "https")
    return f"{parts.scheme}://{host}{port}{shown_path(parts.path)}" if sound else "another address"


def shown_path(path: str, hidden: Container[str] = ()) -> str:
    """A path in which each part that may be an id, or is one of the `hidden`, is shown as ID."""
    return "/".join(part if is_word(part) and part not in hidden else "ID" for part in path.split("/"))


def is_word(part: str) -> bool:
    """Whether a part of a path is empty or a word such as v2, by-tube and getAllOrganizations, not an id."""
    return re.fullmatch(r"(?!(.*[0-9]){3})([A-Za-z][A-Za-z0-9_.-]{0,40})?", part) is not None


def is_client_id(value: str) -> bool:
    """Whether a value may be a client id: one or more words, or a UUID, as client registries use."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", value) is not None


def names(keys: Iterable[object]) -> str:
    """Names of fields; those that may be ids instead are only counted."""
    every = list(keys)
    shown = [key for key in every if isinstance(key, str) and FIELD_NAME.fullmatch(key)][:MOST_NAMES]
    others = len(every) - len(shown)
    return ", ".join([*shown, *([f"({others} other keys)" if others > 1 else "(1 other key)"] if others else [])])


def kind(value: Any) -> str:
    """What a value is, in a few words."""
    if value is NO_JSON:
        return "no JSON"
    if isinstance(value, list):
        return f"a list of {len(value)}" + (f", the first {kind(value[0])}" if value else "")
    if isinstance(value, dict):
        return f"an object with {names(value)}" if value and not is_map(value) else f"an object of {len(value)} entries"
    return {str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def is_map(value: dict[str, Any]) -> bool:
    """Whether an object seems to be keyed by ids: all its values are objects."""
    first, *others = value.values() if value else [None]
    return bool(others) and isinstance(first, dict) and all(isinstance(each, dict) for each in others)


def at(value: Any, *path: str) -> Any:
    """The value at a path, None if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def find_field(answer: Any, wanted: str) -> Path | None:
    """Where a response has a token or the user's id: under its own name, another one, or further down."""
    level: list[tuple[Path, Any]] = [((), answer)]
    for _ in range(DEPTH):
        level = [(path, value) for path, value in level if isinstance(value, dict)]
        for path, value in level:
            for key in (wanted, *(key for key in value if alias_of(key) == wanted)):
                if is_usable(value.get(key), wanted):
                    return (*path, key)
        level = [((*path, key), child) for path, value in level for key, child in value.items() if is_name(key)]
    return None


def find_fields(answer: Any, wanted: Iterable[str]) -> dict[str, Path]:
    """Where a response has each of them; missing ones are left out."""
    found = {name: find_field(answer, name) for name in wanted}
    return {name: path for name, path in found.items() if path is not None}


def is_name(key: object) -> bool:
    """Whether a key may be shown."""
    return isinstance(key, str) and FIELD_NAME.fullmatch(key) is not None


def alias_of(key: str) -> str | None:
    """What a field of this name may contain."""
    return next((wanted for wanted, others in OTHER_NAMES.items() if plain(key) in others and is_name(key)), None)


def plain(name: str) -> str:
    """A field name in lower case, without _ and -."""
    return re.sub("[_-]", "", name).lower()


def is_usable(value: Any, wanted: str) -> bool:
    """Whether a value can be a token, or a user's id."""
    if wanted == "userId" and isinstance(value, int) and not isinstance(value, bool):
        return True
    return isinstance(value, str) and TOKEN.fullmatch(value) is not None


def list_in(value: Any) -> Path | None:
    """Where the longest list is: () for a list itself, None if there is none in the top two levels of objects."""
    if isinstance(value, list):
        return ()
    found: list[tuple[int, Path]] = []
    for key, child in value.items() if isinstance(value, dict) else ():
        for inner, grandchild in [(None, child), *(child.items() if isinstance(child, dict) else ())]:
            path = (key,) if inner is None else (key, inner)
            if isinstance(grandchild, list) and all(is_name(each) for each in path):
                found.append((len(grandchild), path))
    return max(found, default=(0, None), key=lambda pair: pair[0])[1]


def id_name(item: Any, wanted: str) -> str | None:
    """The key of an item's id: the wanted one, or else the first that looks like one."""
    if not isinstance(item, dict):
        return None
    likely = [key for key in item if is_name(key) and re.search(r"(^|_)(id|uuid)$|Id$|Uuid$", key)]
    return wanted if wanted in item else next(iter(likely), None)


def ids_in(rows: Iterable[Any], wanted: str) -> list[str]:
    """The ids of the items in a list, as text for calls."""
    ids = [text_of(item.get(id_name(item, wanted))) for item in rows if isinstance(item, dict)]
    return [each for each in ids if each]


def find_tube(value: Any) -> str | None:
    return next((text for key, text in texts_in(value) if "tube" in key.lower()), None)


def texts_in(value: Any) -> Iterator[tuple[str, str]]:
    """All texts in JSON, each with its key ("" in a list); not recursive, because it may be deep."""
    waiting = [("", value)]
    while waiting:
        key, node = waiting.pop()
        if isinstance(node, str) and node:
            yield key, node
        elif isinstance(node, dict):
            waiting += reversed(node.items())
        elif isinstance(node, list):
            waiting += (("", child) for child in reversed(node))


def jwt_lifetime(token: str, now: float) -> float | None:
    """The lifetime that a token states, in seconds (RFC 7519): NaN if there is none, None if it is not a JWT."""
    parts = token.split(".")
    try:
        header, claims = (json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2])
    except (ValueError, binascii.Error, RecursionError):
        return None
    if len(parts) != 3 or not isinstance(header, dict) or "alg" not in header or not isinstance(claims, dict):
        return None
    return number(claims.get("exp")) - number(claims.get("iat", now))


def number(value: Any) -> float:
    """A number of a plausible size, NaN for anything else."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e11 else math.nan


def duration(seconds: float) -> str:
    """A duration in readable form."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if abs(seconds) >= 1 else f"{seconds * 1000:.0f} ms"


def clock_skew(date: str, now: float) -> float | None:
    """Seconds by which a `Date` header is ahead of our clock; None if it is not valid."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - now
    except Exception:  # TypeError, ValueError or OverflowError, depending on the version of Python
        return None


def header_number(headers: Mapping[str, str], wanted: Iterable[str]) -> int | None:
    """The first number in the first of these headers."""
    for name in wanted:
        if found := re.match(r"\s*([0-9]{1,9})(?![0-9])", headers.get(name, "")):
            return int(found[1])
    return None
