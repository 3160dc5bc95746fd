"""The check with a browser's recording: the same table, from calls that somebody else made."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from platform_check import judgements, shape
from platform_check.assumed import CLICKS, TOKEN_CALLS, known, session_of
from platform_check.har import Call
from platform_check.judgements import NOT_SEEN, About, Finding, PageFacts, about, differs, write
from platform_check.recognised import Recognised, client_id_name, ids_of, is_token_call, paging_of
from platform_check.script import Script
from platform_check.shape import Path, plain, text_of


def not_seen(about: About, what_to_do: str) -> Finding:
    """A line of the table for something that is not in the file."""
    return Finding(about, f"not in the file: {what_to_do}", NOT_SEEN)


class Observation:
    """What the calls of a browser say about the assumptions of a script."""

    def __init__(self, script: Script, calls: Sequence[Call]) -> None:
        self.script, self.calls = script, calls
        self.found = Recognised(calls, script.services)
        self.others = [app for app in script.apps if app != "IAM"]
        self.dead = {app: self.found.refused_for_token(app) for app in script.apps}
        refused = {pair[0] for pair in self.dead.values() if pair}
        for pair, mine in self.found.calls.items():
            self.found.calls[pair] = [call for call in mine if call not in refused] or mine
        self.used = len(self.found.used())
        self.hidden = self.values()
        self.fields: dict[str, Path] = {}  # where token responses have which field
        for key in TOKEN_CALLS:
            for app in script.apps:
                for call in self.found.good(app, key)[:1]:
                    self.fields = judgements.token_fields(key, call.seen) | self.fields

    def values(self) -> set[str]:
        """What is never shown, even if it looks like a part of a path: what was sent, and the data in responses."""
        data = [call for call in self.found.used() if not is_token_call(call)]
        told = {text for call in data for _, text in shape.texts_in(call.seen.body)}
        for call in self.calls:
            told |= {*call.query.values(), *map(text_of, call.fields.values())}
        return told - {""}

    def shown(self, url: str) -> str:
        """An address in a form that may be shown."""
        host, _, path = url.partition("://")[2].partition("/")
        known = shape.shown_address(f"{url.partition('://')[0]}://{host}")
        return f"{known}/{shape.shown_path(path, self.hidden)}" if path else known

    def findings(self) -> Iterator[Finding]:
        """The table, in the order in which a script would encounter differences."""
        yield from (self.address(app) for app in self.script.apps)
        for app in self.script.apps:
            yield from self.session(app)
        for app in self.others:
            yield from self.data(app)
        yield self.bearer()
        yield from (self.dead_token(app) for app in self.others)
        for app in self.others:
            yield from self.refresh(app)
        yield from self.paging()
        yield from self.behaviour()
        yield Finding(About("second session"), "never in a recording: the check without --har finds out", NOT_SEEN)

    def address(self, app: str) -> Finding:
        this, base = about(app, "address", f"EB_{app}_URL, or the base_url"), self.found.bases.get(app)
        if base is None:
            return not_seen(this, f"open a page of {app}")
        place = self.script.entry(app, "base_url")
        if self.shown(base) != base:
            words = f"{self.shown(base)}: a part of it looks like an id"
            return differs(this, words, f"set EB_{app}_URL to the address that the browser shows", place.line)
        if str(self.script.services[app]["base_url"]).rstrip("/") == base:
            return Finding(this, base)
        if not place.text:
            return differs(this, base, f"export EB_{app}_URL={base}", place.line)
        return differs(this, base, *write(f'"{base}"', place))

    def exports(self) -> dict[str, str]:
        found = self.found.bases.items()
        return {f"EB_{app}_URL": base for app, base in found if self.shown(base) == base}

    def session(self, app: str) -> Iterator[Finding]:
        """Login or token configuration of a service, and its client id."""
        key = session_of(app)
        yield from self.token_call(app, key)
        if app != "IAM" and (good := self.found.good(app, key)):
            yield self.client_id(app, good[0])

    def token_call(self, app: str, key: str) -> Iterator[Finding]:
        """Where a token call goes, what it sends, and what its response contains."""
        call = self.best(app, key)
        if key not in self.script.services[app]["endpoints"]:
            return
        if call is None:
            yield self.lacking(app, key)
        elif not call.seen.good:
            again = f"it was refused ({judgements.described(call.seen)}); {CLICKS[key]}"
            yield not_seen(About(f"{app} {key}"), again)
        else:
            yield self.place(app, key, call)
            yield from self.sent(app, key, call)
            yield judgements.token_answer(app, key, call.seen, self.fields, self.script)

    def sent(self, app: str, key: str, call: Call) -> Iterator[Finding]:
        """Fields of a token call that have other names in the template."""
        assumed, names = known(key).body, {plain(name): name for name in call.fields}
        same = [name for name in assumed if names.get(plain(name)) == name]
        other = [name for name in assumed if plain(name) in names and name not in same]
        if other or (len(same) < len(assumed) and call.sent is not shape.NO_JSON):
            this = about(app, key, f"sends {' and '.join(assumed)}")
            sent = shape.names(call.sent) if isinstance(call.sent, dict) else shape.kind(call.sent)
            line = self.script.mention([*assumed][-1]).line
            yield differs(this, f"the browser sends {sent}", "send the fields that the browser sends", line)

    def client_id(self, app: str, call: Call) -> Finding:
        this = about(app, "config_token", "the app_id of the script")
        seen = text_of(call.fields.get(client_id_name(call)))
        if not shape.is_client_id(seen) or seen in self.secrets():
            return not_seen(this, "the call does not name its client")
        if seen == self.script.services[app].get("app_id"):
            return Finding(this, seen)
        return differs(this, seen, *write(f'"{seen}"', self.script.entry(app, "app_id")))

    def secrets(self) -> set[str]:
        """Values that are not client ids, even where one should be: tokens, users, whatever else is sent."""
        told = set[str]()
        for call in self.found.token_calls():
            answered = shape.find_fields(call.seen.body, shape.OTHER_NAMES).values()
            told |= {text_of(shape.at(call.seen.body, *path)) for path in answered}
        for call in self.calls:
            name = client_id_name(call)
            told |= {text_of(value) for each, value in call.fields.items() if each != name} | {*call.query.values()}
        return told

    def best(self, app: str, key: str) -> Call | None:
        """The most informative call of an endpoint: a good one with something in its list."""
        good = self.found.good(app, key)
        full = [call for call in good if call.seen.rows]
        return next(iter([*full, *good, *self.found.calls.get((app, key), [])]), None)

    def place(self, app: str, key: str, call: Call) -> Finding:
        this = about(app, key if key in TOKEN_CALLS else "data", "method and path", key)
        if (app, key) in self.found.doubts:
            return self.doubtful(this, app, key)
        path = self.found.below_base(call, (app, key))
        tail = "/ID" if path and known(key).suffix else ""
        seen = f"{call.method} {shape.shown_path(path or call.path, self.hidden)}{tail}"
        if path is None:
            words = f"add a separate service for {key}: it has a different address"
            return differs(this, f"{seen} at {self.shown(call.origin)}", words, self.script.entry(app, key).line)
        finding = self.moved(this, seen, path, (app, key))
        if call.method == (self.script.method(key) or known(key).method):
            return finding
        by_method = differs(this, seen, f"call {key} with {call.method}", self.script.mention(key).line)
        return replace(by_method, steps=(*by_method.steps, *finding.steps))

    def doubtful(self, this: About, app: str, key: str) -> Finding:
        """An endpoint that matches several calls, or one call only weakly."""
        places = {f"{each.method} {self.shown(each.url)}" for each in self.found.doubts[app, key]}
        words = "could be " + " or ".join(sorted(places))
        return differs(this, words, f"write the correct path of {key}", self.script.entry(app, key).line)

    def moved(self, this: About, seen: str, path: str, pair: tuple[str, str]) -> Finding:
        """Whether an endpoint has the path that the script has."""
        if path.rstrip("/") == self.found.path_of(pair):
            return Finding(this, seen)
        place = self.script.entry(*pair)
        if shape.shown_path(path, self.hidden) != path:
            words = f"the path of {pair[1]} contains an id: write a function that puts it there (see path_segment)"
            return differs(this, seen, words, place.line)
        return differs(this, seen, *write(f'"{path}"', place))

    def data(self, app: str) -> Iterator[Finding]:
        for key in self.script.data_endpoints(app):
            call = self.best(app, key)
            if call is None:
                doubtful = (app, key) in self.found.doubts
                yield self.doubtful(about(app, "data", "", key), app, key) if doubtful else self.lacking(app, key)
                continue
            yield self.place(app, key, call)
            yield from self.parameter(app, key, call)
            yield judgements.data_answer(app, key, call.seen, self.script)
            yield from judgements.names_what_was_asked(app, key, call.seen, self.asked(key, call), self.script)

    def lacking(self, app: str, key: str) -> Finding:
        """An endpoint that the file does not show."""
        clicks = CLICKS.get(key) or f"use the part of the page that shows {shape.names([key])}"
        finding, prefix = not_seen(About(f"{app} {key}"), clicks), self.found.prefixes.get(app, "")
        path = self.found.path_of((app, key))
        if not prefix or shape.shown_path(prefix, self.hidden) != prefix or path.startswith(f"{prefix}/"):
            return finding
        words = f"{finding.seen}; others in {app} begin with {prefix}"
        this = about(app, "data", "method and path", key)
        return differs(this, words, *write(f'"{prefix}{path}"', self.script.entry(app, key)))

    def asked(self, key: str, call: Call) -> str:
        assumed = known(key)
        if assumed.suffix:
            return call.parts[-1]
        return next((value for _, name, value in ids_of(call) if name in (*assumed.params, *assumed.body)), "")

    def parameter(self, app: str, key: str, call: Call) -> Iterator[Finding]:
        """The difference, if the id that a call is about does not go where the template puts it."""
        places = {"query": known(key).params, "body": known(key).body}
        wanted = [(place, name) for place, names in places.items() for name, value in names.items() if value == "{}"]
        if not wanted or wanted[0] in [(place, name) for place, name, _ in ids_of(call)]:
            return
        [(place, name)] = wanted
        this = about(app, "data", f"the id is {name} in the {place}", key)
        ids = self.found.ids[known(key).needs]
        where, other = next(((where, other) for where, other, value in ids_of(call) if value in ids), ("", ""))
        if not shape.is_name(other):
            words = "the id is in the path" if set(call.parts) & ids else "the browser sends no such id"
            change = f"send the id for {key} as the browser does (see path_segment)"
            yield differs(this, words, change, self.script.mention(key).line)
            return
        there = self.script.parameter(key, name)
        step = write(f'"{other}"', there) if where == place else (f"send the id as {other} in the {where}", there.line)
        yield differs(this, f"{other} in the {where}", *step)

    def bearer(self) -> Finding:
        this = About("bearer header", "Authorization: Bearer …", "the platform does not know who is calling")
        header = self.found.bearer()
        if header is None:
            return not_seen(this, "the browser left such headers out, and nothing else is missing because of that")
        if header == ("authorization", "Bearer "):
            return Finding(this, "Authorization: Bearer …")
        name, before = header
        shown = name if shape.is_name(name.replace("-", "_")) else "another header"
        words = f"{shown}: {before if before in ('Bearer ', 'Token ', 'JWT ') else ''}…"
        return differs(this, words, "send the token in this header", self.script.mention("Authorization").line)

    def dead_token(self, app: str) -> Finding:
        """How an expired token was rejected."""
        if not self.found.of(app) or not (pair := self.dead[app]):
            return not_seen(about(app, "wrong token", "401"), CLICKS["refresh_token"])
        refused, good = pair
        return judgements.wrong_token(app, refused.seen, good.seen, self.script)

    def refresh(self, app: str) -> Iterator[Finding]:
        """One refresh, and whether the access token from it works."""
        yield from self.token_call(app, "refresh_token")
        call = self.best(app, "refresh_token")
        if call is None or not call.seen.good or not isinstance(call.sent, dict):
            return
        later = itertools.dropwhile(lambda each: each is not call, self.calls)
        mine = {each for each in self.found.of(app) if not is_token_call(each)}
        new = next((each.seen for each in later if each in mine), None)
        before = next((text_of(value) for name, value in call.sent.items() if "refresh" in plain(name)), "")
        yield judgements.after_refresh(app, before, call.seen.token("refresh_token"), new, None)

    def paging(self) -> Iterator[Finding]:
        """The pages of the centre of which the most pages were viewed."""
        centres: dict[str, list[Call]] = {}
        first = [pair for pair in self.found.calls if pair[1] == "search_inclusions"][:1]
        for call in (call for pair in first for call in self.found.good(*pair)):
            centres.setdefault(without_paging(call), []).append(call)
        if not centres:
            yield not_seen(About("paging"), f"{CLICKS['search_inclusions']}, then its next page")
            return

        def told(calls: list[Call]) -> tuple[int, int]:
            return len({asked_for(call, "page") for call in calls}), sum(len(call.seen.rows) for call in calls)

        pages = max(centres.values(), key=told)
        facts, every = facts_of(pages), map(facts_of, centres.values())
        capped = next((each for each in every if each.capped is not None), None)
        if capped and facts.capped is None:
            facts = replace(facts, capped=capped.capped, asked=capped.asked)
        yield from self.paging_names(pages[0])
        yield from judgements.paging(facts, self.script)

    def paging_names(self, call: Call) -> Iterator[Finding]:
        """The names under which a page is requested."""
        asked = {kind: (name, place) for kind, (place, name, _) in paging_of(call).items()}
        if asked != {"limit": ("limit", "query"), "page": ("page", "query")}:
            this = about("RC", "first page", "requested with limit and page in the query")
            words = ", ".join(f"{kind} is {name} in the {place}" for kind, (name, place) in asked.items())
            change = "request pages as the browser does"
            yield differs(this, words or "no page is requested", change, self.script.page().line)

    def behaviour(self) -> Iterator[Finding]:
        """What all calls together show: latency, rate limits and clock."""
        calls = [call for app in self.script.apps for call in self.found.of(app)]
        good = [call for call in calls if call.seen.good]
        most = [place for place, _ in Counter((call.method, call.url) for call in good).most_common(1)]
        every = [call.seen for call in calls]
        yield judgements.latency([call.seen for call in good if [(call.method, call.url)] == most])
        yield judgements.rate_limit(every, sum(seen.status == 429 for seen in every), self.script)
        yield judgements.clock(every)


def without_paging(call: Call) -> str:
    """What a search asks for, whatever the page."""
    names = {name for _, name, _ in paging_of(call).values()}
    kept = [
        {name: value for name, value in fields.items() if name not in names} for fields in (call.query, call.fields)
    ]
    return repr((call.path, kept))


def asked_for(call: Call, kind: str) -> int | None:
    asked = paging_of(call).get(kind)
    return asked[2] if asked else None


def facts_of(calls: Sequence[Call]) -> PageFacts:
    by_number = {asked_for(call, "page"): call for call in reversed(calls)}
    numbers = sorted(number for number in by_number if number is not None)
    known = {id_of(row) for call in calls for row in call.seen.rows}
    page = by_number[numbers[0]] if numbers else calls[0]
    asked, rows = asked_for(page, "limit") or 0, page.seen.rows
    whole = judgements.total_of(page.seen)
    same = any(rows and by_number[number].seen.rows == rows for number in numbers[1:])
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


def id_of(row: Any) -> str:
    """What distinguishes a row from others."""
    name = shape.id_name(row, "patientId")
    return text_of(row.get(name)) if name else repr(row)
