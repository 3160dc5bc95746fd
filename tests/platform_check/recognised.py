"""Which calls of a browser are those of the template: by path if it is as assumed, or else by shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from platform_check import shape
from platform_check.assumed import TOKEN_CALLS, known
from platform_check.har import Call
from platform_check.shape import NO_JSON, plain, text_of

PAGING_NAMES = {
    "page": ("page", "pagenumber", "pageno", "pageindex", "currentpage", "pagenum"),
    "limit": ("limit", "size", "pagesize", "perpage", "itemsperpage", "take", "rowsperpage", "max", "count"),
    "offset": ("offset", "skip", "start", "from"),
}
CLIENT_ID_NAMES = ("clientid", "appid", "applicationid", "client", "audience")
Services = Mapping[str, Mapping[str, Any]]
Key = tuple[str, str]  # service, endpoint


class Recognised:
    """The calls of each endpoint of a script's services, in order.

    `doubts` has one call of each candidate for an ambiguous endpoint, `ids` the ids of each kind in responses, and
    `prefixes` what precedes some paths of a service.
    """

    def __init__(self, every: Sequence[Call], services: Services) -> None:
        self.every, self.services = every, services
        self.endpoints = [(app, key) for app, service in services.items() for key in service["endpoints"]]
        self.at_path = {
            pair: [call for call in every if self.base_of(call, pair) is not None] for pair in self.endpoints
        }
        self.calls: dict[Key, list[Call]] = {}
        self.doubts: dict[Key, list[Call]] = {}
        self.ids: dict[str, set[str]] = {"organization": set(), "patient": set(), "tube": set()}
        self.refresh_tokens: dict[str, set[str]] = {app: set() for app in services}
        self.add_data_by_path()
        self.add_data_by_shape()
        self.add_tokens()
        self.calls = {pair: self.calls[pair] for pair in self.endpoints if pair in self.calls}
        self.bases, self.prefixes = dict[str, str](), dict[str, str]()
        for app in services:
            self.find_base(app)

    def good(self, app: str, key: str) -> list[Call]:
        """The calls of an endpoint that returned JSON."""
        return [call for call in self.calls.get((app, key), ()) if call.seen.good]

    def of(self, app: str) -> list[Call]:
        return [call for (owner, _), calls in self.calls.items() if owner == app for call in calls]

    def used(self) -> set[Call]:
        return {call for calls in self.calls.values() for call in calls}

    def token_calls(self) -> list[Call]:
        return [call for (_, key), calls in self.calls.items() if key in TOKEN_CALLS for call in calls]

    def path_of(self, pair: Key) -> str:
        """The path that an endpoint is assumed to have."""
        app, key = pair
        return "/" + str(self.services[app]["endpoints"][key]).split("?")[0].strip("/")

    def base_of(self, call: Call, pair: Key) -> str | None:
        """The address of the service if a call ends with the endpoint's path, or else None."""
        whole, path = call.path.rstrip("/"), self.path_of(pair)
        if known(pair[1]).suffix:
            whole, _, last = whole.rpartition("/")
            if not last:
                return None
        return call.origin + whole.removesuffix(path) if whole.endswith(path) else None

    def bases_at(self, app: str) -> Counter[str]:
        """The addresses at which paths of a service were called, and how often."""
        bases = (self.base_of(call, pair) for pair, calls in self.calls.items() if pair[0] == app for call in calls)
        return Counter(base for base in bases if base is not None)

    # Data

    def add_data_by_path(self) -> None:
        """Add the calls at assumed paths; one of several services goes to that with other calls at the same address."""
        data = {pair: calls for pair, calls in self.at_path.items() if pair[1] not in TOKEN_CALLS and calls}
        owners = Counter(path for path, _ in {(self.path_of(pair), pair[0]) for pair in self.endpoints})
        shared = [pair for pair in data if owners[self.path_of(pair)] > 1]
        self.calls.update((pair, calls) for pair, calls in data.items() if pair not in shared)
        bases = {app: self.bases_at(app) for app in self.services}
        for pair in shared:
            own = [call for call in data[pair] if self.base_of(call, pair) in bases[pair[0]]]
            self.calls[pair] = own or data[pair]

    def add_data_by_shape(self) -> None:
        """Find known data endpoints that have another path; the ids in their calls distinguish them."""
        for key, has_shape in SHAPES.items():
            pair = next((pair for pair in self.endpoints if pair[1] == key), None)
            if pair is None:
                continue
            if pair not in self.calls:
                taken = self.used()
                free = [call for call in self.every if call.seen.good and call not in taken and not is_token_call(call)]
                self.choose(pair, [call for call in free if has_shape(call) and self.has_needed_id(call, key)])
            self.note_ids(key, self.calls.get(pair, []))

    def has_needed_id(self, call: Call, key: str) -> bool:
        needs, suffix = known(key).needs, known(key).suffix
        if suffix:
            return call.parts[-1] in self.ids[needs]
        return not needs or has_id_of(call, self.ids[needs])

    def note_ids(self, key: str, mine: Sequence[Call]) -> None:
        """Keep the ids in the responses of an endpoint; every text in a record may be the id of a tube."""
        if key == "organizations":
            self.ids["organization"] = ids_in(mine, "id")
        elif key == "search_inclusions":
            self.ids["patient"] = ids_in(mine, "patientId")
        elif key == "record_by_patient":
            texts = {text for call in mine for _, text in shape.texts_in(call.seen.body)}
            self.ids["tube"] = texts - self.ids["patient"] - self.ids["organization"]

    def choose(self, pair: Key, likely: Sequence[Call]) -> None:
        """Choose the path whose ids are used by the most other calls; what cannot be decided goes to `doubts`."""
        paths: dict[tuple[str, str], list[Call]] = {}
        for call in likely:
            paths.setdefault((call.method, without_id(call, pair[1])), []).append(call)
        if not paths:
            return
        used = {path: self.uses_of(mine, pair[1]) for path, mine in paths.items()}
        best = [path for path in paths if used[path] == max(used.values())]
        unused = pair[1] == "organizations" and not any(used.values())  # any list of names: roles, countries
        if unused and any(app == pair[0] for app, _ in self.calls):
            return
        if unused or len(best) > 1:
            self.doubts[pair] = [paths[path][0] for path in best]
        if not unused:
            self.calls[pair] = paths[best[0]]

    def uses_of(self, mine: Sequence[Call], key: str) -> int:
        """How many other calls send an id from these responses."""
        if key not in ("organizations", "search_inclusions"):
            return 0
        ids, own = ids_in(mine, "patientId" if key == "search_inclusions" else "id"), set(mine)
        return sum(has_id_of(call, ids) for call in self.every if call not in own)

    # Tokens

    def add_tokens(self) -> None:
        """Find login, token configurations and refreshes, and assign each to its service."""
        clues = {app: Clues(self.of(app), self.rough_base(app)) for app in self.services}
        kinds = {call: kind_of(call) for call in self.every}
        for key in TOKEN_CALLS:
            apps = [app for app, each in self.endpoints if each == key and (app == "IAM") == (key == "login")]
            at_path = {call for app in apps for call in self.at_path[app, key]}
            shaped = {call for call in self.every if kinds[call] == key}
            if key == "login":  # the others may have moved in one service and not in another
                candidates = at_path if any(call.seen.good for call in at_path) or not shaped else shaped
            else:
                candidates = at_path | shaped
            weak = []  # calls at another path that only their shape identifies
            for call in (call for call in self.every if call in candidates):
                scores = {app: self.points(call, app, clues[app]) for app in apps}
                if call in at_path or any(scores.values()):
                    self.give(call, key, scores)
                else:
                    weak.append(call)
            lacking = [app for app in apps if (app, key) not in self.calls]
            for call in weak if lacking else ():
                self.give(call, key, dict.fromkeys(lacking, 0))

    def give(self, call: Call, key: str, scores: Mapping[str, int]) -> None:
        """Assign a token call to the service that it fits best; if there are several, to all of them, with a doubt."""
        best = [app for app in scores if scores[app] == max(scores.values())]
        if len(best) > 1 and any(scores.values()):
            best = [app for app in best if (app, key) not in self.calls] or best
        for app in best:
            self.calls.setdefault((app, key), []).append(call)
            if token := call.seen.token("refresh_token"):
                self.refresh_tokens[app].add(token)
            if len(best) > 1:
                self.doubts.setdefault((app, key), []).append(call)

    def points(self, call: Call, app: str, clues: Clues) -> int:
        """How likely it is that a token call belongs to a service."""
        client = text_of(call.fields.get(client_id_name(call)))
        return (
            8 * (call.seen.token("access_token") in clues.sent_in_headers)
            + 8 * any(text_of(value) in self.refresh_tokens[app] for value in call.fields.values())
            + 4 * bool(client and client == self.services[app].get("app_id"))
            + 2 * bool(clues.base and clues.base.count("/") > 2 and call.url.startswith(f"{clues.base}/"))
            + 2 * (app.lower() in re.split("[^a-z]+", client.lower()))
            + (call.origin in clues.origins)
        )

    def refused_for_token(self, app: str) -> tuple[Call, Call] | None:
        """The first data call that was rejected, and the same call when it succeeded after a token call."""
        mine, found = {*self.of(app)}, None
        good: dict[str, Call] = {}  # request -> the next good call with it
        renewed: dict[str, Call] = {}  # the same, after the next token call
        for call in reversed(self.every):
            asked = repr((call.method, call.url, call.query, None if call.sent is NO_JSON else call.sent))
            same = renewed.get(asked)
            if same and (call in mine or not call.seen.good) and looks_otherwise(call, same):
                found = call, same
            if is_token_call(call):
                renewed = dict(good)
            if call in mine and call.seen.good:
                good[asked] = call
        return found

    def bearer(self) -> tuple[str, str] | None:
        """The header with an access token, and what precedes the token; None if no header has a token."""
        every = [call for app in self.services if app != "IAM" for call in self.of(app)] + self.token_calls()
        tokens = {call.seen.token("access_token") for call in every} - {None}
        for call in every:
            for name, value in call.headers.items():
                before, space, last = value.rpartition(" ")
                if last in tokens and call.seen.body is not NO_JSON:
                    return name, before + space
        usual = any(call.headers.get("authorization", "").startswith("Bearer ") for call in every)
        return ("authorization", "Bearer ") if usual else None

    # Addresses

    def rough_base(self, app: str) -> str | None:
        """The address of a service, judging by its assumed paths."""
        return next((base for base, _ in self.bases_at(app).most_common(1)), None)

    def find_base(self, app: str) -> None:
        """Find a service's address: what precedes its assumed paths, if all calls are below it, or else the host."""
        calls, rough = self.of(app), self.rough_base(app)
        if not calls:
            return
        [(origin, _)] = Counter(call.origin for call in calls).most_common(1)
        whole = rough is not None and all(call.url.startswith(f"{rough}/") for call in calls)
        self.bases[app] = rough if rough and whole else origin
        if rough and not whole and rough.startswith(f"{origin}/"):
            self.prefixes[app] = rough.removeprefix(origin)

    def below_base(self, call: Call, pair: Key) -> str | None:
        """The path of a call as in MICROSERVICES; None if it is not below the address of its service."""
        url, base = without_id(call, pair[1]), self.bases[pair[0]]
        return url.removeprefix(base) if url.startswith(f"{base}/") else None


class Clues:
    """What the data calls of a service say about its token calls."""

    def __init__(self, data: Sequence[Call], base: str | None) -> None:
        self.base = base
        self.origins = {call.origin for call in data}
        self.sent_in_headers = {value.split(" ")[-1] for call in data for value in call.headers.values()}


def without_id(call: Call, key: str) -> str:
    """The address of a call, without the id at the end, if its endpoint has one there."""
    return call.url.rpartition("/")[0] if known(key).suffix else call.url


def ids_in(calls: Iterable[Call], wanted: str) -> set[str]:
    return {each for call in calls for each in shape.ids_in(call.seen.rows, wanted)}


def has_id_of(call: Call, ids: set[str]) -> bool:
    return not ids.isdisjoint(call.parts) or any(value in ids for _, _, value in ids_of(call))


def ids_of(call: Call) -> list[tuple[str, str, str]]:
    """What a call sends that may be an id: where ("query", "body"), the name, the value."""
    paging = {name for _, name, _ in paging_of(call).values()}
    every = [(place, name, text_of(value)) for place, name, value in sent_by(call)]
    return [(place, name, value) for place, name, value in every if value and name not in paging]


def sent_by(call: Call) -> Iterator[tuple[str, str, Any]]:
    """What a call sends by name: where ("query", "body"), the name, the value."""
    yield from (("query", *pair) for pair in call.query.items())
    yield from (("body", *pair) for pair in call.fields.items())


def paging_of(call: Call) -> dict[str, tuple[str, str, int]]:
    """What a call sends to request a page: `page`, `limit`, `offset` -> where ("query", "body"), name, number."""
    found: dict[str, tuple[str, str, int]] = {}
    for place, name, value in sent_by(call):
        kind = next((kind for kind, names in PAGING_NAMES.items() if re.sub("[^a-z]", "", name.lower()) in names), None)
        if kind and re.fullmatch("[0-9]{1,9}", text_of(value)) and shape.is_name(name):
            found.setdefault(kind, (place, name, int(text_of(value))))
    return found


# The shape of a call


def is_list_of_centres(call: Call) -> bool:
    """Whether a response is a list whose elements have `id` and `name`."""
    rows = call.seen.rows
    named = [isinstance(row, dict) and shape.id_name(row, "id") is not None and "name" in row for row in rows]
    return bool(rows) and all(named) and not is_surveys(call) and not paging_of(call)


def is_page(call: Call) -> bool:
    """Whether a call requests a page, and the response is a list of things with ids."""
    return bool(paging_of(call)) and all(shape.id_name(row, "patientId") is not None for row in call.seen.rows)


def is_counts(call: Call) -> bool:
    body = call.seen.body
    return isinstance(body, dict) and bool(body) and all(type(value) in (int, float) for value in body.values())


def is_surveys(call: Call) -> bool:
    """Whether a response is a list of things that contain answers."""
    rows = call.seen.rows
    return bool(rows) and all(isinstance(row, dict) and any("answer" in key.lower() for key in row) for row in rows)


def is_record(call: Call) -> bool:
    """Whether a response is an object about one thing."""
    return isinstance(call.seen.body, dict) and bool(call.seen.body) and not is_counts(call) and not is_surveys(call)


# In an order in which each returns the ids for the next ones.
SHAPES: dict[str, Callable[[Call], bool]] = {
    "organizations": is_list_of_centres,
    "search_inclusions": is_page,
    "statistics": is_counts,
    "surveys": is_surveys,
    "record_by_patient": is_record,
    "request_by_tube": is_record,
}


def is_token_call(call: Call) -> bool:
    return kind_of(call) is not None


def kind_of(call: Call) -> str | None:
    """Which of the three token calls a call is, by its shape."""
    if not call.seen.good or shape.find_field(call.seen.body, "access_token") is None:
        return None
    names = {plain(name) for name in call.fields}
    if any("password" in name or name in ("pwd", "passwd", "motdepasse") for name in names):
        return "login"
    if client_id_name(call):
        return "config_token"
    return "refresh_token" if any("refresh" in name for name in names) else None


def client_id_name(call: Call) -> str:
    """The name under which a call sends a client id, or ""."""
    sent = call.fields
    return next((name for each in CLIENT_ID_NAMES for name in sent if plain(name) == each and text_of(sent[name])), "")


def looks_otherwise(one: Call, other: Call) -> bool:
    """Whether a response is of a different kind from a good one."""
    if one.seen.status // 100 != 2:
        return one.seen.status in (302, 303, 307, 401, 403, 419, 440, 498)
    body, good = one.seen.body, other.seen.body
    if type(body) is not type(good):
        return True
    return isinstance(body, dict) and not body.keys() & good.keys()
