"""The check by what a browser recorded: the same table as by calls, from calls that somebody else made."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from platform_check import judgements, shape
from platform_check.assumed import KNOWN, UNKNOWN
from platform_check.changes import Edit
from platform_check.har import Call, text_of
from platform_check.judgements import NOT_SEEN, About, Finding, PageFacts, about, differs
from platform_check.recognised import (
    TOKEN_KEYS,
    Recognised,
    bearer,
    client_id_name,
    ids_of,
    is_token_call,
    items_of,
    mine_of,
    paging_of,
    path_of,
    plain,
    recognise,
    refused_for_token,
    texts_in,
    token_of,
)
from platform_check.script import Script
from platform_check.shape import Path

# What to do while the browser records, so that a call is in the file.
CLICKS = {
    "login": "log out, open the developer tools, then log in",
    "config_token": "log out, open the developer tools, then log in and open this part of the platform",
    "refresh_token": "leave the page open until the session has to be renewed, then click on",
    "organizations": "open the list of centres",
    "statistics": "open a page that counts the inclusions of a centre",
    "search_inclusions": "open the list of a centre's patients",
    "record_by_patient": "open a patient",
    "surveys": "open a patient's questionnaires",
    "request_by_tube": "look up a sample tube that stands in a patient's record you opened",
}
SENT = {
    "login": ("username", "password"),
    "config_token": ("userId", "clientId"),
    "refresh_token": ("refresh_token",),
}


def not_seen(about: About, what_to_do: str) -> Finding:
    """A line of the table for what the file does not show."""
    return Finding(about, f"not in the file: {what_to_do}", NOT_SEEN)


class Observation:
    """What the calls of a browser say of the assumptions of a script."""

    def __init__(self, script: Script, calls: Sequence[Call]) -> None:
        self.script, self.calls = script, calls
        self.found: Recognised = recognise(calls, script.services)
        self.apps = sorted(script.services, key=lambda app: app != "IAM")
        self.dead = {app: refused_for_token(self.found, app, calls) for app in self.apps}
        refused = {id(pair[0]) for pair in self.dead.values() if pair}
        for pair, mine in self.found.calls.items():
            self.found.calls[pair] = [call for call in mine if id(call) not in refused] or mine
        self.hidden = self.values()
        self.fields = self.token_fields()

    @property
    def used(self) -> int:
        """How many of the calls are the template's."""
        return len({id(call) for calls in self.found.calls.values() for call in calls})

    def values(self) -> set[str]:
        """What is never told, even where it looks like a part of a path: what was sent, and the data of the answers."""
        data = [call for app in self.apps for call in mine_of(self.found, app) if not is_token_call(call)]
        told = {text for call in data for text in texts_in(call.seen.body)}
        for call in self.calls:
            told |= {*call.query.values(), *(map(text_of, call.sent.values()) if isinstance(call.sent, dict) else ())}
        return told - {""}

    def shown(self, url: str) -> str:
        """An address as it may be told."""
        host, _, path = url.partition("://")[2].partition("/")
        known = shape.shown_address(f"{url.partition('://')[0]}://{host}")
        return f"{known}/{shape.shown_path(path, self.hidden)}" if path else known

    def token_fields(self) -> dict[str, Path]:
        """Where token answers hold what; login first."""
        fields: dict[str, Path] = {}
        for key in TOKEN_KEYS:
            for app in self.apps:
                for call in self.found.good(app, key)[:1]:
                    wanted = shape.OTHER_NAMES if key == "login" else ("access_token", "refresh_token")
                    fields = {**shape.find_fields(call.seen.body, wanted), **fields}
        return fields

    def findings(self) -> Iterator[Finding]:
        """The table, in the order in which a difference would be met."""
        yield from (self.address(app) for app in self.apps)
        for app in self.apps:
            yield from self.session(app)
        others = [app for app in self.apps if app != "IAM"]
        for app in others:
            yield from self.data(app)
        yield self.bearer()
        yield from (self.dead_token(app) for app in others)
        for app in others:
            yield from self.refresh(app)
        yield from self.paging()
        yield from self.behaviour()
        yield Finding(About("second session"), "not in any such file: the check by calls finds out", NOT_SEEN)

    def address(self, app: str) -> Finding:
        """The address of a service."""
        this, base = about(app, "address", f"EB_{app}_URL, or the base_url"), self.found.bases.get(app)
        if base is None:
            return not_seen(this, f"open a page of {app}")
        line, old = self.script.address(app)
        if self.shown(base) != base:
            words = f"{self.shown(base)}: a part of it looks like an id"
            return differs(this, words, f"set EB_{app}_URL to what the browser shows", line)
        if str(self.script.services[app]["base_url"]).rstrip("/") == base:
            return Finding(this, base)
        change = judgements.write(f'"{base}"', old) if old else f"export EB_{app}_URL={base}"
        return differs(this, base, change, line)

    def exports(self) -> dict[str, str]:
        """The variables that set the addresses."""
        found = self.found.bases.items()
        return {f"EB_{app}_URL": base for app, base in found if self.shown(base) == base}

    def session(self, app: str) -> Iterator[Finding]:
        """Login or token configuration of a service, and its client id."""
        key = "login" if app == "IAM" else "config_token"
        wanted = ("access_token", "userId") if app == "IAM" else ("access_token",)
        yield from self.token_call(app, key, wanted)
        if app != "IAM" and (good := self.found.good(app, key)):
            yield self.client_id(app, good[0])

    def token_call(self, app: str, key: str, wanted: tuple[str, ...]) -> Iterator[Finding]:
        """Where a token call goes, what it sends, and what its answer holds."""
        call = self.best(app, key)
        if key not in self.script.services[app]["endpoints"]:
            return
        if call is None:
            yield self.lacking(app, key)
            return
        if not call.seen.good:
            again = f"it was refused there ({judgements.described(call.seen)}); {CLICKS[key]}"
            yield not_seen(About(f"{app} {key}"), again)
            return
        yield self.place(app, key, call)
        yield from self.sent(app, key, call)
        yield judgements.token_answer(app, key, wanted, call.seen, self.fields, self.script)

    def sent(self, app: str, key: str, call: Call) -> Iterator[Finding]:
        """Fields of a token call that the template calls otherwise."""
        names = {plain(name): name for name in call.sent} if isinstance(call.sent, dict) else {}
        lacking = [name for name in SENT[key] if plain(name) not in names and call.sent is not shape.NO_JSON]
        other = [name for name in SENT[key] if plain(name) in names and names[plain(name)] != name]
        if not lacking and not other:
            return
        this = about(app, key, f"sends {' and '.join(SENT[key])}")
        words = f"the browser sends {shape.names(call.sent) if isinstance(call.sent, dict) else shape.kind(call.sent)}"
        yield differs(this, words, "send the fields that the browser sends", self.script.first(SENT[key][-1])[0])

    def client_id(self, app: str, call: Call) -> Finding:
        """The client id of a service."""
        this, assumed = about(app, "config_token", "the app_id of the script"), self.script.services[app].get("app_id")
        name = client_id_name(call)
        seen = text_of(call.sent.get(name)) if name else ""
        if not shape.is_client_id(seen) or seen in self.secrets():
            return not_seen(this, "the call does not say which client it is for")
        if seen == assumed:
            return Finding(this, seen)
        line, old = self.script.value(app, "app_id")
        return differs(this, seen, judgements.write(f'"{seen}"', old), line)

    def secrets(self) -> set[str]:
        """What is no client id even where one should be: a token, a user, what else is sent."""
        told = set[str]()
        for call in self.logins():
            answered = shape.find_fields(call.seen.body, shape.OTHER_NAMES).values()
            told |= {text_of(shape.at(call.seen.body, path)) for path in answered}
        for call in self.calls:
            name, fields = client_id_name(call), call.sent if isinstance(call.sent, dict) else {}
            told |= {text_of(value) for each, value in fields.items() if each != name} | {*call.query.values()}
        return told

    def best(self, app: str, key: str) -> Call | None:
        """The call of an endpoint that tells most: a good one, with something in its list."""
        good = self.found.good(app, key)
        full = [call for call in good if items_of(call)]
        every = [*full, *good, *self.found.calls.get((app, key), [])]
        return every[0] if every else None

    def place(self, app: str, key: str, call: Call) -> Finding:
        """Method and path of an endpoint."""
        known, service = KNOWN.get(key, UNKNOWN), self.script.services[app]
        method = "POST" if key in TOKEN_KEYS else known.method
        method = self.script.method(key) or method
        assumed = "/" + str(service["endpoints"][key]).split("?")[0].strip("/")
        tail = "/ID" if known.suffix else ""
        this = about(app, "data" if key not in TOKEN_KEYS else key, "method and path", key)
        path = path_of(call, key, self.found.bases[app])
        seen = f"{call.method} {shape.shown_path(path or call.path, self.hidden)}{tail if path else ''}"
        line = self.script.setting(app, key)
        if (app, key) in self.found.doubts:
            return self.doubtful(this, app, key)
        if path is None:
            where = f"{seen} at {self.shown(call.origin)}"
            return differs(this, where, f"make a service of its own for {key}: it has another address", line)
        finding = self.moved(this, seen, path, assumed, app, key)
        if call.method != method:
            to_do = (f"call {key} by {call.method}", self.script.call(key)[0])
            return replace(finding, verdict=judgements.DIFFERS, change=to_do[0], line=to_do[1], also=finding.changes)
        return finding

    def doubtful(self, this: About, app: str, key: str) -> Finding:
        """An endpoint that more than one call could be, or one that little speaks for."""
        places = {f"{each.method} {self.shown(each.origin + each.path)}" for each in self.found.doubts[app, key]}
        words = "could be " + " or ".join(sorted(places))
        return differs(this, words, f"write the right path of {key}", self.script.setting(app, key))

    def moved(self, this: About, seen: str, path: str, assumed: str, app: str, key: str) -> Finding:
        """Whether an endpoint has the path that the script has."""
        line, old = self.script.value(app, "endpoints", key)
        if path.rstrip("/") == assumed:
            return Finding(this, seen)
        if shape.shown_path(path, self.hidden) != path:
            words = f"an id stands in the path of {key}: write a function that puts it there, see path_segment"
            return differs(this, seen, words, line)
        return differs(this, seen, judgements.write(f'"{path}"', old), line)

    def data(self, app: str) -> Iterator[Finding]:
        """Each data endpoint of a service."""
        keys = [key for key in self.script.services[app]["endpoints"] if key not in TOKEN_KEYS]
        for key in sorted(keys, key=lambda key: [*KNOWN, key].index(key)):
            call = self.best(app, key)
            if call is None:
                doubtful = (app, key) in self.found.doubts
                yield self.doubtful(about(app, "data", "", key), app, key) if doubtful else self.lacking(app, key)
                continue
            yield self.place(app, key, call)
            yield from self.parameter(app, key, call)
            yield judgements.data_answer(app, key, KNOWN.get(key, UNKNOWN).kind, call.seen, self.script)
            yield from judgements.names_what_was_asked(app, key, call.seen, self.asked(key, call), self.script)

    def lacking(self, app: str, key: str) -> Finding:
        """An endpoint that the file does not show."""
        finding = not_seen(About(f"{app} {key}"), CLICKS.get(key, f"use what the page has for {shape.names([key])}"))
        prefix = self.found.prefixes.get(app, "")
        if not prefix or shape.shown_path(prefix, self.hidden) != prefix:
            return finding
        line, old = self.script.value(app, "endpoints", key)
        path = "/" + str(self.script.services[app]["endpoints"][key]).strip("/")
        if path.startswith(f"{prefix}/"):
            return finding
        change = judgements.write(f'"{prefix}{path}"', old)
        words = f"{finding.seen}; others of {app} begin with {prefix}"
        return differs(about(app, "data", "method and path", key), words, change, line)

    def asked(self, key: str, call: Call) -> str:
        """The id that a call asks for."""
        known = KNOWN.get(key, UNKNOWN)
        if known.suffix:
            return call.parts[-1]
        return next((value for _, name, value in ids_of(call) if name in (*known.params, *known.body)), "")

    def parameter(self, app: str, key: str, call: Call) -> Iterator[Finding]:
        """Whether the id that a call is about goes where the template puts it; said if it does not."""
        known = KNOWN.get(key, UNKNOWN)
        places = {"query": known.params, "body": known.body}
        wanted = [(place, name) for place, names in places.items() for name, value in names.items() if value == "{}"]
        if not wanted or wanted[0] in [(place, name) for place, name, _ in ids_of(call)]:
            return
        [(place, name)] = wanted
        this = about(app, "data", f"the id is {name} in the {place}", key)
        ids = self.found.ids[known.needs]
        seen = next(((where, other) for where, other, value in ids_of(call) if value in ids), None)
        if seen is None or not shape.is_name(seen[1]):
            words = "the id is in the path" if set(call.parts) & ids else "the browser sends no such id"
            yield differs(
                this, words, f"send the id as the browser does, see path_segment: {key}", self.script.call(key)[0]
            )
            return
        where, other = seen
        line, old = self.script.parameter(key, name)
        change: str | Edit = judgements.write(f'"{other}"', old)
        if where != place:
            change = f"send the id as {other} in the {where}"
        yield differs(this, f"{other} in the {where}", change, line)

    def bearer(self) -> Finding:
        """The header that carries the access token."""
        this = About("bearer header", "Authorization: Bearer …", "the platform does not see who calls")
        header = bearer(
            [call for app in self.apps if app != "IAM" for call in mine_of(self.found, app)] + self.logins()
        )
        if header is None:
            return not_seen(this, "the browser left such headers out, nothing else is missing for it")
        name, before = header
        if (name, before) == ("authorization", "Bearer "):
            return Finding(this, "Authorization: Bearer …")
        shown = name if shape.is_name(name.replace("-", "_")) else "another header"
        words = f"{shown}: {before if before in ('Bearer ', 'Token ', 'JWT ') else ''}…"
        return differs(this, words, "send the token in this header", self.script.first("Authorization")[0])

    def logins(self) -> list[Call]:
        """All token calls."""
        return [call for (_, key), calls in self.found.calls.items() if key in TOKEN_KEYS for call in calls]

    def dead_token(self, app: str) -> Finding:
        """How a token that had run out was refused."""
        if not mine_of(self.found, app) or not (pair := self.dead[app]):
            return not_seen(about(app, "wrong token", "401"), CLICKS["refresh_token"])
        refused, good = pair
        return judgements.wrong_token(app, refused.seen, good.seen, self.script)

    def refresh(self, app: str) -> Iterator[Finding]:
        """One refresh, and what the access token is worth that it gave."""
        yield from self.token_call(app, "refresh_token", ("access_token",))
        call = self.best(app, "refresh_token")
        if call is None or not call.seen.good or not isinstance(call.sent, dict):
            return
        later = itertools.dropwhile(lambda each: each is not call, self.calls)
        mine = {id(each) for each in mine_of(self.found, app) if not is_token_call(each)}
        new = next((each.seen for each in later if id(each) in mine), None)
        before = next((text_of(value) for name, value in call.sent.items() if "refresh" in plain(name)), "")
        yield judgements.after_refresh(app, before, token_of(call, "refresh_token"), new, None)

    def paging(self) -> Iterator[Finding]:
        """The pages of the centre of which most pages were looked at."""
        app = self.found.owner("search_inclusions")
        good = self.found.good(app, "search_inclusions") if app else []
        centres: dict[str, list[Call]] = {}
        for call in good:
            centres.setdefault(without_paging(call), []).append(call)
        if not centres:
            yield not_seen(About("paging"), f"{CLICKS['search_inclusions']}, then its next page")
            return
        pages = max(centres.values(), key=lambda calls: (len({number_of(call) for call in calls}), rows_in(calls)))
        every = [facts_of(calls) for calls in centres.values()]
        capped = [facts for facts in every if facts.capped is not None]
        facts = facts_of(pages)
        if capped and facts.capped is None:
            facts = replace(facts, capped=capped[0].capped, asked=capped[0].asked)
        yield from self.paging_names(pages[0])
        yield from judgements.paging(facts, self.script)

    def paging_names(self, call: Call) -> Iterator[Finding]:
        """Under which names a page is asked for."""
        this, asked = about("RC", "first page", "asked for by limit and page in the query"), paging_of(call)
        if {kind: (place, name) for kind, (place, name, _) in asked.items()} == {
            "limit": ("query", "limit"),
            "page": ("query", "page"),
        }:
            return
        words = ", ".join(f"{kind} is {name} in the {place}" for kind, (place, name, _) in asked.items())
        change = "ask for pages as the browser does"
        yield differs(this, words or "no page is asked for", change, self.script.page()[0])

    def behaviour(self) -> Iterator[Finding]:
        """What all calls together tell: how fast, with which limits and clock."""
        calls = [call for app in self.apps for call in mine_of(self.found, app)]
        data = Counter((call.method, call.origin, call.path) for call in calls if call.seen.good)
        most = [pair for pair, _ in data.most_common(1)]
        same = [call.seen for call in calls if call.seen.good and [(call.method, call.origin, call.path)] == most]
        every = [call.seen for call in calls]
        yield judgements.latency(same)
        yield judgements.rate_limit(every, sum(seen.status == 429 for seen in every), self.script)
        yield judgements.clock(every)


def without_paging(call: Call) -> str:
    """What a search asks for, whichever page of it."""
    names = {name for _, name, _ in paging_of(call).values()}
    sent = call.sent if isinstance(call.sent, dict) else {}
    kept = [{name: value for name, value in fields.items() if name not in names} for fields in (call.query, sent)]
    return repr((call.path, kept))


def number_of(call: Call) -> int | None:
    """The number of the page that a call asks for."""
    page = paging_of(call).get("page")
    return page[2] if page else None


def limit_of(call: Call) -> int | None:
    """The number of rows that a call asks for."""
    limit = paging_of(call).get("limit")
    return limit[2] if limit else None


def rows_in(calls: Sequence[Call]) -> int:
    """How many rows all calls have together."""
    return sum(len(items_of(call)) for call in calls)


def facts_of(calls: Sequence[Call]) -> PageFacts:
    """What the pages of one centre tell."""
    by_number = {number_of(call): call for call in reversed(calls)}
    numbers = sorted(number for number in by_number if number is not None)
    known = {id_of(item) for call in calls for item in items_of(call)}
    page = by_number[numbers[0]] if numbers else calls[0]
    asked, rows = limit_of(page) or 0, items_of(page)
    whole = judgements.total_of(page.seen)
    others = [items_of(by_number[number]) for number in numbers[1:]]
    same = any(rows and each == rows for each in others)
    short = 0 < len(rows) < asked and len(rows) < max(len(known), whole or 0)
    return PageFacts(
        page=page.seen,
        first=numbers[0] if numbers and numbers[0] in (0, 1) and rows and not same else None,
        same=same,
        asked=asked,
        large=page.seen,
        capped=len(rows) if short and not same else None,
        limit_ignored=len(rows) if 0 < asked < len(rows) else 0,
        limit=asked,
        whole=whole,
        known=len(known),
    )


def id_of(item: Any) -> str:
    """What tells a row from another."""
    name = shape.id_name(item, "patientId")
    return text_of(item.get(name)) if name else repr(item)
