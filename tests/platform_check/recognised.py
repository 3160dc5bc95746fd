"""Which calls of a browser are those of the template: by path where it is as assumed, else by their shape.

Pure functions from a list of calls to what was recognised.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from platform_check import shape
from platform_check.assumed import KNOWN, UNKNOWN
from platform_check.har import Call, text_of
from platform_check.shape import NO_JSON

TOKEN_KEYS = ("login", "config_token", "refresh_token")
PAGE_NAMES = ("page", "pagenumber", "pageno", "pageindex", "currentpage", "pagenum")
LIMIT_NAMES = ("limit", "size", "pagesize", "perpage", "itemsperpage", "take", "rowsperpage", "max", "count")
OFFSET_NAMES = ("offset", "skip", "start", "from")
Services = Mapping[str, Mapping[str, Any]]
Key = tuple[str, str]  # service, endpoint


@dataclass
class Recognised:
    """What was found of each endpoint: its calls, in their order. What could be two things is in `doubts`."""

    calls: dict[Key, list[Call]] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)  # service -> address
    prefixes: dict[str, str] = field(default_factory=dict)  # service -> what some of its paths have in front of them
    doubts: dict[Key, list[Call]] = field(default_factory=dict)  # one call of each path that it could be
    ids: dict[str, set[str]] = field(default_factory=dict)  # kind of thing -> ids that answers gave
    refresh_tokens: dict[str, set[str]] = field(default_factory=dict)  # service -> those that it gave

    def good(self, app: str, key: str) -> list[Call]:
        """The calls of an endpoint that were answered by JSON."""
        return [call for call in self.calls.get((app, key), ()) if call.seen.good]

    def owner(self, key: str) -> str | None:
        """The first service that has calls of an endpoint."""
        return next((app for app, each in self.calls if each == key), None)


def recognise(calls: Sequence[Call], services: Services) -> Recognised:
    """Find the calls of each endpoint of a script's services."""
    found = Recognised()
    by_path = {
        (app, key): [call for call in calls if base_of(call, path, KNOWN.get(key, UNKNOWN).suffix) is not None]
        for app, service in services.items()
        for key, path in service["endpoints"].items()
    }
    data = {pair: matching for pair, matching in by_path.items() if pair[1] not in TOKEN_KEYS and matching}
    found.calls.update(settled(data, services))
    add_data_by_shape(found, calls, services)
    add_tokens(found, calls, by_path, services)
    found.calls = {pair: found.calls[pair] for pair in by_path if pair in found.calls}
    found.bases = bases_of(found, services)
    return found


def base_of(call: Call, path: str, suffix: str = "") -> str | None:
    """The address of the service if a call ends with an assumed path, None if it does not."""
    whole = call.path.rstrip("/")
    if suffix:
        whole, _, last = whole.rpartition("/")
        if not last:
            return None
    path = "/" + path.split("?")[0].strip("/")
    return call.origin + whole.removesuffix(path) if whole.endswith(path) else None


def settled(data: Mapping[Key, list[Call]], services: Services) -> dict[Key, list[Call]]:
    """The data calls by path; a path that several services have goes to the one at whose address other calls are."""
    single = {pair: calls for pair, calls in data.items() if len(sharers(pair, services)) == 1}
    bases: dict[str, Counter[str]] = {}
    for (app, key), calls in single.items():
        bases.setdefault(app, Counter()).update(bases_in(calls, services[app]["endpoints"][key], key))
    result = dict(single)
    for (app, key), calls in data.items():
        if (app, key) not in single:
            path, suffix = services[app]["endpoints"][key], KNOWN.get(key, UNKNOWN).suffix
            own = [call for call in calls if base_of(call, path, suffix) in bases.get(app, ())]
            result[app, key] = own or calls
    return result


def sharers(pair: Key, services: Services) -> list[str]:
    """The services that have an endpoint with the same path."""
    path = services[pair[0]]["endpoints"][pair[1]]
    return [app for app, service in services.items() if path in service["endpoints"].values()]


def bases_in(calls: Iterable[Call], path: str, key: str) -> Iterator[str]:
    """The addresses at which a path was called."""
    for call in calls:
        base = base_of(call, path, KNOWN.get(key, UNKNOWN).suffix)
        if base is not None:
            yield base


# Data by shape: who has which ids tells the calls apart.


def add_data_by_shape(found: Recognised, calls: Sequence[Call], services: Services) -> None:
    """Find those of the known data endpoints that are called by another path."""
    tests: dict[str, Callable[[Call], bool]] = {
        "organizations": is_list_of_centres,
        "search_inclusions": lambda call: is_page(call) and has_id_of(call, centres),
        "statistics": lambda call: is_counts(call) and has_id_of(call, centres),
        "surveys": lambda call: is_surveys(call) and has_id_of(call, patients),
        "record_by_patient": lambda call: is_record(call) and has_id_of(call, patients),
        "request_by_tube": lambda call: is_record(call) and last_of(call) in tubes,
    }
    taken = {id(call) for each in found.calls.values() for call in each}
    centres, patients, tubes = set[str](), set[str](), set[str]()
    for key, test in tests.items():
        app = next((app for app, service in services.items() if key in service["endpoints"]), None)
        if app is not None and (app, key) not in found.calls:
            free = [call for call in calls if call.seen.good and id(call) not in taken and not is_token_call(call)]
            choose(found, (app, key), [call for call in free if test(call)], calls)
        mine = found.calls.get((app or "", key), [])
        taken |= {id(call) for call in mine}
        if key == "organizations":
            centres |= ids_in(mine, "id")
        elif key == "search_inclusions":
            patients |= ids_in(mine, "patientId")
        elif key == "record_by_patient":
            tubes |= {text for call in mine for text in texts_in(call.seen.body)} - patients - centres
    found.ids = {"organization": centres, "patient": patients, "tube": tubes}


def choose(found: Recognised, pair: Key, likely: list[Call], calls: Sequence[Call]) -> None:
    """Take the path whose ids are used by most other calls; what cannot be decided is told."""
    paths: dict[tuple[str, str, str], list[Call]] = {}
    for call in likely:
        paths.setdefault((call.method, call.origin, template_of(call, pair[1])), []).append(call)
    if not paths:
        return
    used = {path: uses_of(mine, pair[1], calls) for path, mine in paths.items()}
    best = [path for path in paths if used[path] == max(used.values())]
    unused = pair[1] == "organizations" and not any(used.values())  # any list of names: roles, countries
    if unused and any(app == pair[0] for app, _ in found.calls):
        return
    if unused or len(best) > 1:
        found.doubts[pair] = [paths[path][0] for path in best]
    if not unused:
        found.calls[pair] = paths[best[0]]


def template_of(call: Call, key: str) -> str:
    """The path, without the id at the end of those that have one there."""
    return call.path.rpartition("/")[0] if KNOWN[key].suffix else call.path


def uses_of(mine: Sequence[Call], key: str, calls: Sequence[Call]) -> int:
    """How many other calls send an id that these answers gave."""
    ids = ids_in(mine, "patientId" if key == "search_inclusions" else "id")
    if key not in ("organizations", "search_inclusions"):
        return 0
    own = {id(call) for call in mine}
    return sum(has_id_of(call, ids) for call in calls if id(call) not in own)


def ids_in(calls: Iterable[Call], wanted: str) -> set[str]:
    """The ids of the things in lists that were answered."""
    items = [item for call in calls for item in items_of(call)]
    ids = {text_of(item.get(shape.id_name(item, wanted))) for item in items if isinstance(item, dict)}
    return ids - {""}


def items_of(call: Call) -> list[Any]:
    """The list in an answer, wherever it is."""
    path = shape.list_in(call.seen.body)
    value = call.seen.body if path == () else shape.at(call.seen.body, path)
    return value if isinstance(value, list) and call.seen.good else []


def is_list_of_centres(call: Call) -> bool:
    """Whether an answer is a list whose elements have `id` and `name`."""
    items = items_of(call)
    named = [isinstance(item, dict) and shape.id_name(item, "id") is not None and "name" in item for item in items]
    return bool(items) and all(named) and not is_surveys(call) and paging_of(call) == {}


def is_page(call: Call) -> bool:
    """Whether a call asks for a page, and the answer is a list of things with ids."""
    items = items_of(call)
    return bool(paging_of(call)) and all(shape.id_name(item, "patientId") is not None for item in items)


def is_counts(call: Call) -> bool:
    """Whether an answer is an object of numbers."""
    body = call.seen.body
    return isinstance(body, dict) and bool(body) and all(type(value) in (int, float) for value in body.values())


def is_surveys(call: Call) -> bool:
    """Whether an answer is a list of things that have answers in them."""
    items = items_of(call)
    return bool(items) and all(
        isinstance(item, dict) and any("answer" in key.lower() for key in item) for item in items
    )


def is_record(call: Call) -> bool:
    """Whether an answer is an object about one thing."""
    return isinstance(call.seen.body, dict) and bool(call.seen.body) and not is_counts(call) and not is_surveys(call)


def has_id_of(call: Call, ids: set[str]) -> bool:
    """Whether a call sends one of these ids."""
    return not ids.isdisjoint(call.parts) or any(value in ids for _, _, value in ids_of(call))


def ids_of(call: Call) -> list[tuple[str, str, str]]:
    """What a call sends that may be an id: where ("query", "body"), under which name, the value."""
    sent = call.sent if isinstance(call.sent, dict) else {}
    paging = {name for _, name, _ in paging_of(call).values()}
    fields = [("query", *pair) for pair in call.query.items()] + [("body", *pair) for pair in sent.items()]
    every = [(place, name, text_of(value)) for place, name, value in fields]
    return [(place, name, value) for place, name, value in every if value and name not in paging]


def last_of(call: Call) -> str:
    """The last part of a path."""
    return call.parts[-1]


def texts_in(body: Any) -> Iterator[str]:
    """All texts in an answer, those of lists too."""
    waiting = [body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str) and node:
            yield node
        elif isinstance(node, (dict, list)):
            waiting += node.values() if isinstance(node, dict) else node


def paging_of(call: Call) -> dict[str, tuple[str, str, int]]:
    """What a call sends to ask for a page: `page`, `limit`, `offset` -> where ("query", "body"), name, number."""
    sent = call.sent if isinstance(call.sent, dict) else {}
    found: dict[str, tuple[str, str, int]] = {}
    kinds = {"page": PAGE_NAMES, "limit": LIMIT_NAMES, "offset": OFFSET_NAMES}
    for place, fields in (("query", call.query), ("body", sent)):
        for name, value in fields.items():
            plain = re.sub("[^a-z]", "", name.lower())
            for kind, names in kinds.items():
                if plain in names and re.fullmatch("[0-9]{1,9}", text_of(value)) and shape.is_name(name):
                    found.setdefault(kind, (place, name, int(text_of(value))))
    return found


# Tokens


def is_token_call(call: Call) -> bool:
    """Whether a call has to do with tokens."""
    return kind_of(call) is not None


def kind_of(call: Call) -> str | None:
    """Which of the three token calls it is, by its shape."""
    if not call.seen.good or shape.find_field(call.seen.body, "access_token") is None:
        return None
    names = {plain(name) for name in call.sent} if isinstance(call.sent, dict) else set()
    if any("password" in name or name in ("pwd", "passwd", "motdepasse") for name in names):
        return "login"
    if client_id_name(call):
        return "config_token"
    return "refresh_token" if any("refresh" in name for name in names) else None


def plain(name: str) -> str:
    """A name of a field, written small and without _ and -."""
    return re.sub("[_-]", "", name).lower()


def client_id_name(call: Call) -> str | None:
    """The name under which a call sends a client id."""
    names = call.sent if isinstance(call.sent, dict) else {}
    wanted = ("clientid", "appid", "applicationid", "client", "audience")
    return next((name for each in wanted for name in names if plain(name) == each and text_of(names[name])), None)


def add_tokens(found: Recognised, calls: Sequence[Call], by_path: Mapping[Key, list[Call]], services: Services) -> None:
    """Find login, token configurations and refreshes; the latter two are given to the services that they are for."""
    about = {app: Clues(mine_of(found, app), rough_base(found, app, services)) for app in services}
    place = {id(call): number for number, call in enumerate(calls)}
    shapes = {id(call): kind_of(call) for call in calls}
    for key in TOKEN_KEYS:
        apps = [app for app in services if key in services[app]["endpoints"] and (app == "IAM") == (key == "login")]
        at_path = {id(call): call for app in apps for call in by_path[app, key]}
        shaped = {id(call): call for call in calls if shapes[id(call)] == key}
        every = at_path if any(call.seen.good for call in at_path.values()) or not shaped else shaped
        if key != "login":  # one service's may be where it should be, another's elsewhere
            every = {**at_path, **shaped}
        weak = []  # calls of another path that nothing but their shape speaks for
        for call in sorted(every.values(), key=lambda call: place[id(call)]):
            scores = {app: points(found, call, app, services, about[app]) for app in apps}
            if id(call) in at_path or any(scores.values()):
                give(found, call, key, apps, scores)
            else:
                weak.append(call)
        lacking = [app for app in apps if (app, key) not in found.calls]
        for call in weak if lacking else ():
            give(found, call, key, lacking, dict.fromkeys(lacking, 0))


def give(found: Recognised, call: Call, key: str, apps: Sequence[str], scores: Mapping[str, int]) -> None:
    """Give a token call to the service that it fits best; to all that it fits equally well, with a doubt."""
    best = [app for app in apps if scores[app] == max(scores.values())]
    if len(best) > 1 and any(scores.values()):
        best = [app for app in best if (app, key) not in found.calls] or best
    for app in best:
        found.calls.setdefault((app, key), []).append(call)
        if token := token_of(call, "refresh_token"):
            found.refresh_tokens.setdefault(app, set()).add(token)
        if len(best) > 1:
            found.doubts.setdefault((app, key), []).append(call)


class Clues:
    """What the data calls of a service tell of its token calls."""

    def __init__(self, data: Sequence[Call], base: str | None) -> None:
        self.base = base
        self.origins = {call.origin for call in data}
        self.sent_in_headers = {value.split(" ")[-1] for call in data for value in call.headers.values()}


def mine_of(found: Recognised, app: str) -> list[Call]:
    """All data calls of a service."""
    return [call for (owner, _), calls in found.calls.items() if owner == app for call in calls]


def rough_base(found: Recognised, app: str, services: Services) -> str | None:
    """The address of a service as far as its data calls tell it."""
    every: Counter[str] = Counter()
    for (owner, key), calls in found.calls.items():
        if owner == app and key in services[app]["endpoints"]:
            every.update(bases_in(calls, services[app]["endpoints"][key], key))
    return every.most_common(1)[0][0] if every else None


def points(found: Recognised, call: Call, app: str, services: Services, clues: Clues) -> int:
    """How much speaks for a token call being a service's."""
    base, fields = clues.base, call.sent if isinstance(call.sent, dict) else {}
    client = text_of(fields.get(client_id_name(call)))
    given = found.refresh_tokens.get(app, set())
    return (
        8 * (token_of(call, "access_token") in clues.sent_in_headers)
        + 8 * any(text_of(value) in given for value in fields.values())
        + 4 * bool(client and client == services[app].get("app_id"))
        + 2 * bool(base and base.count("/") > 2 and f"{call.origin}{call.path}".startswith(f"{base}/"))
        + 2 * (app.lower() in re.split("[^a-z]+", client.lower()))
        + (call.origin in clues.origins)
    )


def token_of(call: Call, name: str) -> str | None:
    """A token that an answer brings."""
    value = shape.at(call.seen.body, shape.find_field(call.seen.body, name)) if call.seen.good else None
    return value if isinstance(value, str) else None


# Addresses


def bases_of(found: Recognised, services: Services) -> dict[str, str]:
    """The address of each service: in front of the assumed paths, if all its calls are below it, else the host."""
    bases = {}
    for app in services:
        calls = [call for (owner, _), each in found.calls.items() if owner == app for call in each]
        if not calls:
            continue
        rough = rough_base(found, app, services)
        at_rough = [call for call in calls if rough and (call.origin + call.path).startswith(f"{rough}/")]
        [(origin, _)] = Counter(call.origin for call in calls).most_common(1)
        bases[app] = rough if rough and len(at_rough) == len(calls) else origin
        if rough and rough.startswith(f"{origin}/") and bases[app] == origin:
            found.prefixes[app] = rough.removeprefix(origin)
    return bases


def path_of(call: Call, key: str, base: str) -> str | None:
    """The path of a call below its service's address, as an entry of MICROSERVICES has it; None if it is elsewhere."""
    url = call.origin + (call.path.rpartition("/")[0] if KNOWN.get(key, UNKNOWN).suffix else call.path)
    return url.removeprefix(base) if url.startswith(f"{base}/") else None


# Tokens that had run out


def refused_for_token(found: Recognised, app: str, calls: Sequence[Call]) -> tuple[Call, Call] | None:
    """A data call that was refused, and the same one that went well after a token came."""
    tokens = [number for number, call in enumerate(calls) if is_token_call(call)]
    mine = {id(call) for call in mine_of(found, app)}
    good: dict[str, list[int]] = {}  # what is asked for -> the numbers of the calls that were answered
    for number, call in enumerate(calls):
        if id(call) in mine and call.seen.good:
            good.setdefault(asked_by(call), []).append(number)
    for number, call in enumerate(calls):
        renewed = tokens[bisect_right(tokens, number) :][:1]
        same = good.get(asked_by(call), []) if renewed and (id(call) in mine or not call.seen.good) else []
        for later in same[bisect_right(same, renewed[0]) if renewed else 0 :][:1]:
            if looks_otherwise(call, calls[later]):
                return call, calls[later]
    return None


def asked_by(call: Call) -> str:
    """What a call asks for."""
    return repr((call.method, call.origin, call.path, call.query, None if call.sent is NO_JSON else call.sent))


def looks_otherwise(one: Call, other: Call) -> bool:
    """Whether an answer is of another kind than a good one."""
    if one.seen.status // 100 != 2:
        return one.seen.status in (302, 303, 307, 401, 403, 419, 440, 498)
    body, good = one.seen.body, other.seen.body
    if type(body) is not type(good):
        return True
    return isinstance(body, dict) and not body.keys() & good.keys()


def bearer(calls: Iterable[Call]) -> tuple[str, str] | None:
    """The header that carries an access token, and what stands before the token; None if no token is in any."""
    every = list(calls)
    tokens = {token_of(call, "access_token") for call in every} - {None}
    for call in every:
        for name, value in call.headers.items():
            before, space, last = value.rpartition(" ")
            if last in tokens and call.seen.body is not NO_JSON:
                return name, before + space
    for call in every:
        if call.headers.get("authorization", "").startswith("Bearer "):
            return "authorization", "Bearer "
    return None
