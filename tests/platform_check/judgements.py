"""What a response means for the script: pure functions from responses to lines of the table, in its order."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from platform_check import shape
from platform_check.assumed import known
from platform_check.changes import Edit
from platform_check.script import Place, Script
from platform_check.shape import Path, Seen

OK, DIFFERS, NOT_TRIED, NOT_SEEN = "ok", "DIFFERS", "not tried", "not seen"
BUSY = (429, 500, 502, 503, 504)
LATER = "the platform is busy or down: run the check again later"
ASK = "ask the platform's operator, or look in your browser while you use the platform (F12, Network)"
FEW_DAYS, MUCH_SKEW = 14, 30  # days of a certificate, seconds of a clock
UNDER_ITS_NAME = f"under the name that the platform uses: {ASK}"
NO_LARGE_CENTRE = "none of the centres checked has several inclusions"
USUAL_LATENCY = 0.1  # seconds; a shorter latency is no estimate of how often a script calls
FIREWALL = "a firewall or a portal responds instead of the platform: open its address in a browser on this machine"
PROXY = (
    "correct HTTPS_PROXY: its address, user and password (with %23, %2F, %40 for #, / and @ in them); "
    "NO_PROXY lists hosts that bypass it"
)


# What it means for a script if a kind of check differs from what is assumed.
MEANS = {
    "address": "this service cannot be reached, or not for much longer",
    "login": "no script can log in",
    "config_token": "no call to this service is possible",
    "data": "the functions that call it fail",
    "wrong token": "the script does not notice that its token has expired, and fails",
    "refresh_token": "the script logs in again every time its token has expired",
    "after refresh": "a renewed token may not work",
    "second session": "two scripts running at once end each other's sessions",
    "page": "no inclusion can be read",
    "first page": "inclusions are missing, or a page is read twice",
    "page size": "pages may not add up",
    "total": "the script cannot know when it has all inclusions",
    "latency, keep-alive": "every call has to open a new connection",
    "rate limit": "429 responses delay a script much of the time",
    "clock": "times in logs do not agree, and certificates and tokens may seem out of date",
}


@dataclass(frozen=True)
class About:
    """What a line of the table is about: its name, what the script assumes, and what a difference means."""

    check: str
    assumed: str = ""
    means: str = ""


def about(app: str, kind: str, assumed: str, endpoint: str = "") -> About:
    """A check of a service, or of one of its endpoints."""
    return About(f"{app} {endpoint or kind}".strip(), assumed, MEANS[kind])


Step = tuple[str | Edit, int]  # what to do, and on which line (0: outside the script)


@dataclass(frozen=True)
class Finding:
    """A line of the table; `steps` say what to do if it differs."""

    about: About
    seen: str
    verdict: str = OK
    steps: tuple[Step, ...] = ()


def differs(about: About, seen: str, change: str | Edit, line: int = 0, made: bool = False) -> Finding:
    """A line of the table that needs attention, or a good one if the script already handles it (`made`)."""
    if made:
        return Finding(about, f"{seen}; the script already handles it (line {line})")
    return Finding(about, seen, DIFFERS, ((change, line),))


def not_tried(about: About, why: str) -> Finding:
    """A line of the table for what could not be checked."""
    return Finding(about, why, NOT_TRIED)


def write(new: str, place: Place) -> Step:
    """A step that writes something in place of the old text."""
    return Edit(new, place.text) if place.text else f"write `{new}`", place.line


def address(app: str, seen: Seen, script: Script) -> Finding:
    """Whether a service's address leads to a server that we can trust."""
    this = about(app, "address", "answers, certificate trusted")
    if seen.proxy:
        return differs(this, seen.failure, f"{PROXY} ({seen.proxy})")
    if seen.failure:
        return differs(this, seen.failure, f"correct EB_{app}_URL, or the base_url", script.entry(app, "base_url").line)
    issuer, days = seen.certificate or ("", math.inf)
    words = f"{seen} without a token" + (f", redirects to {seen.leads_to}" if seen.leads_to else "")
    words += f", certificate from {issuer}, {days:.0f} days left" if issuer else ""
    if days < FEW_DAYS:
        return differs(this, words, "tell the platform's operator that its certificate is about to expire")
    if seen.status in (407, 511):
        return differs(this, words, f"something between you and the platform asks for a login: {PROXY}")
    return Finding(this, words)


def token_fields(endpoint: str, seen: Seen) -> dict[str, Path]:
    """Where a token response has what the script reads from it."""
    return shape.find_fields(seen.body, (*known(endpoint).wanted, "refresh_token"))


def token_answer(app: str, endpoint: str, seen: Seen, earlier: Mapping[str, Path], script: Script) -> Finding:
    """Whether a token response has what the script reads, under the expected names; `earlier` ones had others."""
    wanted = known(endpoint).wanted
    this = about(app, endpoint, f"2xx with {' and '.join(wanted)}")
    if not seen.good:
        return differs(this, described(seen), *refusal_remedy(app, endpoint, seen, script))
    paths, place = token_fields(endpoint, seen), script.token_answers()
    missing = [name for name in wanted if name not in paths]
    if missing:
        cookie = "; a cookie is set, which may hold the session" if "set-cookie" in seen.headers else ""
        words = f"{seen}, {shape.kind(seen.body)}; no {' and no '.join(missing)}{cookie}"
        return differs(this, words, f"return a dict with {', '.join(wanted)}", place.line)
    other = {name: path for name, path in paths.items() if path != (name,)}
    words = f"{seen}, {shape.names(seen.body)}{lifetime(seen, paths['access_token'])}"
    if not other:
        return Finding(this, words)
    words += "; " + ", ".join(f"{name} is {'.'.join(path)}" for name, path in other.items())
    made = place.knows(*(key for name, path in other.items() for key in path if key != name))
    return differs(this, words, *reading({**earlier, **paths}, place), made=made)


def described(seen: Seen) -> str:
    """Status and kind of an unexpected response."""
    if seen.status // 100 == 3:
        return f"{seen}, redirected to {seen.leads_to}"
    if seen.html:
        return f"{seen}, a web page"
    if seen.failure or (seen.body is shape.NO_JSON and seen.status // 100 != 2):
        return str(seen)
    return f"{seen}, {shape.kind(seen.body)}"


REFUSED = (400, 401, 403, 422)
OTHER_CLIENT = f"correct the app_id of {{}}: {ASK}"
NO_RIGHTS = "the platform does not let this user in: ask its operator for access, or whether the account is locked"
LOGS_IN_AGAIN = "nothing to change: the script logs in again instead; the password has nothing to do with it"
# What to do about a token call that was rejected, by its status.
REFUSALS = {
    ("login", 401): "check EB_USER_NAME and EB_PASSWORD (tried only once, so that the account is not locked)",
    ("login", 403): NO_RIGHTS,
    **{("config_token", status): OTHER_CLIENT for status in REFUSED},
    **{("refresh_token", status): LOGS_IN_AGAIN for status in REFUSED},
}


def refusal_remedy(app: str, endpoint: str, seen: Seen, script: Script) -> tuple[str, int]:
    """What to do about a token call that did not return JSON, and on which line."""
    line = script.entry(app, endpoint).line
    if seen.failure or seen.status == 407:
        return f"see {app} address", 0 if seen.proxy else script.entry(app, "base_url").line
    if seen.status // 100 == 3:
        return f"correct EB_{app}_URL or the path: this call is redirected to {seen.leads_to}", line
    if seen.status in BUSY:
        return LATER, 0
    if seen.html:
        return f"{FIREWALL}; else correct EB_{app}_URL or the path", line
    if remedy := REFUSALS.get((endpoint, seen.status)):
        return remedy.format(app), script.entry(app, "app_id").line if remedy == OTHER_CLIENT else 0
    if seen.status in (400, 422):
        return f"send different fields: {ASK}", script.mention(endpoint).line
    return f"correct the path: {ASK}", line


def reading(paths: Mapping[str, Path], place: Place) -> Step:
    """What to write where a response is read, so that the script finds the fields under its own names."""
    parents = {path[:-1] for path in paths.values()}
    if len(parents) != 1:
        where = ", ".join(f"{name} from {'.'.join(path)}" for name, path in sorted(paths.items()))
        return f"return a dict with {where}", place.line
    whole = place.text + subscripts(parents.pop())
    renamed = ", ".join(f'"{path[-1]}": "{name}"' for name, path in sorted(paths.items()) if path[-1] != name)
    if renamed:
        whole = f"{{{{{renamed}}}.get(key, key): value for key, value in {whole}.items()}}"
    return write(whole, place)


def subscripts(path: Path) -> str:
    """The code that follows a path."""
    return "".join(f'["{key}"]' for key in path)


def lifetime(seen: Seen, path: Path) -> str:
    """The lifetime of an access token, if it or the response states it."""
    seconds = shape.jwt_lifetime(str(shape.at(seen.body, *path)), time.time())
    if seconds is not None:
        ends = "never expires" if math.isnan(seconds) else f"expires after {shape.duration(seconds)}"
        return f"; a JWT that {ends}"
    told = shape.at(seen.body, *path[:-1], "expires_in")
    return f"; expires after {shape.duration(told)}" if type(told) is int and 0 < told < 1e9 else ""


def data_answer(app: str, endpoint: str, seen: Seen, script: Script) -> Finding:
    """Whether a data endpoint is where it should be, and returns a list or an object as the script expects."""
    wanted = known(endpoint).kind
    label: dict[type | None, str] = {list: "2xx with a list", dict: "2xx with an object", None: "2xx with JSON"}
    this = about(app, "data", label[wanted], endpoint)
    if seen.failure or seen.status in BUSY:
        return differs(this, described(seen), LATER)
    if seen.status in (401, 403):
        rights = "this user may not make the call: ask the operator for access, or comment the entry out"
        return differs(this, described(seen), rights, script.entry(app, endpoint).line)
    if not seen.good:
        return differs(this, described(seen), f"correct the path: {ASK}", script.entry(app, endpoint).line)
    words = f"{seen} in {shape.duration(seen.seconds)}, {shape.kind(seen.body)}"
    if wanted is None or isinstance(seen.body, wanted):
        return Finding(this, words)
    path, place = shape.list_in(seen.body), script.answer_of(endpoint)
    if wanted is not list or not path:
        return differs(this, words, "handle this kind of response", script.mention(endpoint).line)
    new = re.sub(r"\blist\b", "dict", place.text) + subscripts(path)
    words += f"; the list is in {'.'.join(path)}"
    return differs(this, words, *write(new, place), made=place.knows(*path))


def names_what_was_asked(app: str, endpoint: str, seen: Seen, asked: str, script: Script) -> list[Finding]:
    """Whether a response contains the id that was asked for, under the name that the script expects, if any."""
    place = script.required_id(endpoint)
    if place is None or not asked or not isinstance(seen.body, dict) or not seen.good:
        return []
    key = place.text.strip("\"'")
    this = about(app, "data", f"{key} is the id asked for", endpoint)
    if str(seen.body.get(key)) == asked:
        return [Finding(this, "it is")]
    other = next((name for name, value in seen.body.items() if str(value) == asked and shape.is_name(name)), None)
    if other:
        return [differs(this, f"the id is in {other}", *write(f'"{other}"', place))]
    change = "the response does not say whose it is: remove require_id"
    return [differs(this, "no top-level field holds it", change, place.line)]


def wrong_token(app: str, seen: Seen, good: Seen, script: Script) -> Finding:
    """The response to a data call with a wrong token: the script has to recognise it to renew its token."""
    this = about(app, "wrong token", "401")
    if seen.failure:
        return differs(this, seen.failure, "run the check again later")
    if seen.status == 401:
        return Finding(this, described(seen))
    if seen.status // 100 != 2:
        place = script.dead_token()
        new, made = renewed_on(seen.status, place.text)
        return differs(this, described(seen), *write(new, place), made=made)
    hints = [key for key in seen.body if shape.is_name(key)] if isinstance(seen.body, dict) else []
    hints = [key for key in hints if not isinstance(good.body, dict) or key not in good.body]
    if hints:
        return error_inside(this, seen, hints[0], script)
    words = f"{described(seen)}: the same as with a good token"
    return differs(this, words, "tell the platform's operator that data are returned without a good token")


def renewed_on(status: int, compared: str) -> tuple[str, bool]:
    """A comparison that takes one more status for an expired token, and whether the present one does already."""
    left, operator, _ = re.split(r"\s*(==|!=|\bnot in\b|\bin\b)\s*", compared, maxsplit=1)
    statuses = {*map(int, re.findall(r"\b[0-9]+\b", compared))}
    word = "in" if operator in ("==", "in") else "not in"
    return f"{left} {word} ({', '.join(map(str, sorted(statuses | {status})))})".strip(), status in statuses


def error_inside(this: About, seen: Seen, hint: str, script: Script) -> Finding:
    """An error with a success status; the script has to look for it."""
    place = script.error_raising()
    condition = f'isinstance(response.json(), dict) and "{hint}" in response.json()'
    new = f"response.status_code = 401 if {condition} else response.status_code"
    change = Edit(new, place.text, above=True) if place.text else f"treat this response as a 401: `{new}`"
    words = f"{described(seen)}: an error that looks like data"
    return differs(this, words, change, place.line, made=place.knows(hint, 401))


def after_refresh(app: str, before: str, after: str | None, new: Seen | None, old: Seen | None) -> Finding:
    """What one refresh did: refresh tokens before and after it, data calls with the new and the old access token."""
    this = about(app, "after refresh", "new tokens, which work")
    words = "no refresh token in the response" if after is None else "the same refresh token"
    rotates = after not in (None, before)
    words = "a new refresh token" if rotates else words
    words += f"; new access token {new}" if new else ""
    words += f", old one {old}" if old else ""
    if new and not new.good:
        return differs(this, words, "tell the platform's operator; the script logs in again instead")
    if not rotates:
        return differs(this, words, "nothing to change: the script keeps using the old refresh token")
    return Finding(this, words)


def second_login(app: str, seen: Seen) -> Finding:
    """A second login that was rejected although the first one was accepted."""
    change = "run one script at a time, and make sure that nobody is logged in as that user"
    return differs(about(app, "second session", "does not end the first one"), f"refused: {described(seen)}", change)


def second_session(app: str, seen: Seen, script: Script) -> Finding:
    """Whether a session still works after the same user has logged in a second time."""
    this = about(app, "second session", "does not end the first one")
    if seen.good:
        return Finding(this, f"first one: {seen}")
    words = f"first one ended: {seen}"
    change = (
        "run one script at a time while nobody is logged in as that user, or give every script its own user, "
        "in EB_USER_NAME or here"
    )
    return differs(this, words, change, script.constant("DEFAULT_USER_NAME").line)


NO_ANSWER = Seen()


@dataclass(frozen=True)
class PageFacts:
    """What the pages of one centre show, whoever requested them; 0 or None means that it is unknown."""

    page: Seen  # one of them
    first: int | None = None  # number of the first page
    same: bool = False  # whether pages of different numbers are the same
    asked: int = 0  # the limit of the largest page
    large: Seen = NO_ANSWER  # the response to that
    capped: int | None = None  # rows on a page that should have more
    limit_ignored: int = 0  # rows on a page that should have fewer
    limit: int = 1  # of the page that contains `whole`
    whole: int | None = None  # its `total`
    known: int = 0  # how many inclusions there are at least


def first_of(zero: Seen, one: Seen, two: Seen) -> int | None:
    """The number of the first page, from the pages 0, 1, 2 with one inclusion each; None if it is unknown."""
    if not one.rows or one.rows == two.rows:
        return None
    return 0 if zero.rows and zero.rows != one.rows else 1


def facts_of(small: tuple[Seen, Seen, Seen], large: Seen, asked: int) -> PageFacts:
    """What the pages 0, 1, 2 with one inclusion each show, and a large one with the limit `asked`."""
    _, one, two = small
    whole, got = total_of(one), len(large.rows)
    return PageFacts(
        page=one,
        first=first_of(*small),
        same=bool(one.rows) and one.rows == two.rows,
        asked=asked,
        large=large,
        capped=got if whole is not None and got < min(whole, asked) else None,
        limit_ignored=len(one.rows) if len(one.rows) > 1 else 0,
        whole=whole,
        known=max(got, *(len(page.rows) for page in small), 2 if two.rows else 0),
    )


def paging(facts: PageFacts, script: Script) -> Sequence[Finding]:
    if not facts.page.good:
        return [not_tried(About("RC paging"), described(facts.page))]
    size, whole = page_size(facts, script), total(facts, script)
    if size.steps and any(isinstance(change, Edit) for change, _ in whole.steps):  # it contains the size
        size = replace(size, steps=whole.steps)
    return [*page_fields(facts.page, script), first_page(facts, script), size, whole]


def page_fields(seen: Seen, script: Script) -> list[Finding]:
    """Whether a page has its list, and an inclusion its id, under the names that the script reads."""
    this = about("RC", "page", "list in data, of objects with patientId")
    path, rows = shape.list_in(seen.body), seen.rows
    if path is None or not rows:
        return [not_tried(this, "the pages checked are empty")]
    words = f"list in {'.'.join(path) or 'no object'}, {shape.kind(rows[0])}"
    findings = [] if path == ("data",) else [page_list(this, words, path, script)]
    if not isinstance(rows[0], dict) or "patientId" not in rows[0]:
        findings.append(page_ids(this, words, shape.id_name(rows[0], "patientId"), script))
    return findings or [Finding(this, words)]


def page_list(this: About, words: str, path: Path, script: Script) -> Finding:
    """A page whose list is not in `data`."""
    place = script.answer_of("search_inclusions")
    new = f'{{**(answer := {place.text}), "data": answer{subscripts(path)}}}'
    if not path:
        new = f'{{"data": {re.sub(r"dict(?=[,)])", "list", place.text)}}}'
    by_hand = f"read {'.'.join(path) or 'the response itself'} where the code says data", place.line
    return differs(this, words, *(write(new, place) if place.text else by_hand), made=place.knows(*path, "data"))


def page_ids(this: About, words: str, other: str | None, script: Script) -> Finding:
    """A page whose inclusions have an id under another name, or none."""
    place = script.key_of_rows()
    new = f'key="{other}"'
    step = write(new, place) if other else ("name the field that identifies an inclusion", place.line)
    finding = differs(this, words, *step, made=place.text.replace("'", '"') == new)
    in_main = f"read {other or 'the name of the id'} instead of patientId in your main()", 0
    return replace(finding, steps=(*finding.steps, in_main)) if finding.steps else finding


def first_page(facts: PageFacts, script: Script) -> Finding:
    place = script.page()
    shift = re.search(r"- ([0-9]+)$", place.text)
    assumed = 1 - int(shift[1]) if shift else 1
    this = about("RC", "first page", f"number {assumed}")
    if facts.same:
        words = "page 1 and page 2 are the same: the number is ignored"
        return differs(this, words, f"send the number {UNDER_ITS_NAME}", place.line)
    if facts.first is None:
        return not_tried(this, NO_LARGE_CENTRE)
    if facts.first == assumed:
        return Finding(this, f"number {facts.first}")
    new = '"page": page' + (f" - {1 - facts.first}" if facts.first < 1 else "")
    return differs(this, f"number {facts.first}", *write(new, place))


def page_size(facts: PageFacts, script: Script) -> Finding:
    place, asked = script.page_size(), facts.asked
    this = about("RC", "page size", f"as requested, {place.number}")
    if not facts.large.good:
        words = f"{described(facts.large)} when {asked} are requested"
        return differs(this, words, *write(place.to(100), place))
    if facts.capped is not None:
        words = f"{facts.capped} of {facts.whole or 'more'} when {asked} are requested"
        return differs(this, words, *write(place.to(facts.capped), place), made=place.number == facts.capped)
    if facts.limit_ignored:
        words = f"{facts.limit_ignored} when {facts.limit} is requested"
        return differs(this, words, f"send the limit {UNDER_ITS_NAME}", place.line)
    return Finding(this, f"{len(facts.large.rows)} inclusions, none missing, when {asked} are requested")


def total(facts: PageFacts, script: Script) -> Finding:
    this, (line, trusted) = about("RC", "total", "counts all pages"), script.total()
    whole, known, anew = facts.whole, facts.known, script.until_empty(facts.capped or 0)
    if whole is None or whole < known:
        words = f"{whole} on a page of {facts.limit}, although at least {known} inclusions exist"
        words = "no total that is a number" if whole is None else words
        return differs(this, words, anew, line, made=not trusted)
    if known <= 1:
        return not_tried(this, NO_LARGE_CENTRE)
    return Finding(this, f"{whole} on a page of {facts.limit}, {known} inclusions seen")


def total_of(seen: Seen) -> int | None:
    number = shape.at(seen.body, "total")
    return number if type(number) is int and 0 <= number < 1e9 else None


def largest_count(body: Any) -> int:
    """The largest number at the top level of a response, or 0."""
    numbers = body.values() if isinstance(body, dict) else ()
    return max((number for number in numbers if type(number) is int), default=0)


def latency(calls: Sequence[Seen]) -> Finding:
    """How fast the platform answers, and whether it keeps connections open."""
    this = about("", "latency, keep-alive", "one connection for many calls")
    if not calls:
        return not_tried(this, "no call that could be repeated")
    connections = {seen.connection for seen in calls}
    words = f"median of {len(calls)} calls {shape.duration(median(seen.seconds for seen in calls))}"
    if None in connections:
        return Finding(this, words)
    words += f", {len(connections)} connection{'s' if len(connections) > 1 else ''}"
    if len(connections) > max(1, len(calls) // 2):
        return differs(this, words, "nothing to change, but slow: ask the operator to keep connections alive")
    return Finding(this, words)


def rate_limit(calls: Sequence[Seen], refused: int, script: Script) -> Finding:
    """Whether the platform limits calls, and how many threads that allows; both pools may call at once."""
    this = about("", "rate limit", "none, or more than both pools need")
    limited = [seen for seen in calls if shape.header_number(seen.headers, shape.LIMIT_HEADERS)]
    words = f"{refused} calls got a 429" if refused else "no 429, and no header announces a limit"
    if not limited:
        change = "set fewer threads, here and in SUBTASKS_POOL_SIZE"
        return differs(this, words, change, script.constant("MAX_THREADS").line) if refused else Finding(this, words)
    allowed, most, window = rate_of(limited)
    words = f"{most} calls in {shape.duration(window)} according to its headers" + (f", {words}" if refused else "")
    threads = {"MAX_THREADS": script.max_threads, "SUBTASKS_POOL_SIZE": script.subtasks}
    words += f"; {' + '.join(map(str, threads.values()))} threads"
    if sum(threads.values()) <= allowed:
        return Finding(this, words)
    main = max(1, allowed * script.max_threads // sum(threads.values()))
    fewer = {"MAX_THREADS": main, "SUBTASKS_POOL_SIZE": max(1, allowed - main)}
    other = [name for name in threads if fewer[name] != threads[name]]
    steps = [write(f"{name} = {fewer[name]}", script.constant(name)) for name in other]
    return Finding(this, words, DIFFERS, tuple(steps))


def rate_of(limited: Sequence[Seen]) -> tuple[int, int, float]:
    """How many threads stay within the limit, how many calls it allows, and in how many seconds."""
    most = min(shape.header_number(seen.headers, shape.LIMIT_HEADERS) or 1 for seen in limited)
    resets = [shape.header_number(seen.headers, shape.RESET_HEADERS) for seen in limited]
    window = float(max([reset for reset in resets if reset and reset < 1e6], default=60))  # more is a point in time
    each = max(USUAL_LATENCY, median(seen.seconds for seen in limited))
    return max(2, int(most / window * each)), most, window  # at least one thread in each pool


def clock(calls: Sequence[Seen]) -> Finding:
    this = about("", "clock", f"within {MUCH_SKEW} s of this machine's")
    skews = [seen.skew for seen in calls if seen.skew is not None and abs(seen.skew) < 1e9]
    if not skews:
        return not_tried(this, "no Date header in the responses")
    skew = median(skews)
    if abs(skew) <= MUCH_SKEW:
        return Finding(this, "agrees")
    words = f"platform {shape.duration(abs(skew))} {'ahead' if skew > 0 else 'behind'}"
    return differs(this, words, "nothing to change in the script: set the clock of this machine from the network")
