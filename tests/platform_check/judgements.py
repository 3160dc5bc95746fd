"""What an answer means for the script: pure functions from what was seen to a line of the table, in its order."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from platform_check import shape
from platform_check.changes import Edit
from platform_check.script import Script, literals
from platform_check.shape import Path, Seen

OK, DIFFERS, NOT_TRIED, NOT_SEEN = "ok", "DIFFERS", "not tried", "not seen"
ASK = "ask the platform's operator, or look in your browser while you use the platform (F12, Network)"
FEW_DAYS, MUCH_SKEW = 14, 30  # days of a certificate, seconds of a clock
USUAL_LATENCY = 0.1  # seconds; nearer ones are no measure of how fast a script calls
DICT = dict[str, Any]
FIREWALL = "a firewall or a portal answers in place of the platform: open its address in a browser on this machine"
PROXY = (
    "correct HTTPS_PROXY: its address, user and password (with %23, %2F, %40 for #, / and @ in them); "
    "NO_PROXY names hosts to reach without it"
)


@dataclass(frozen=True)
class Kind:
    """A kind of check: how it is tried, and what it means for a script if it is otherwise than assumed."""

    tried: str
    means: str


KINDS = {
    "address": Kind("a call without a token", "nothing of this service can be reached, or not for long"),
    "login": Kind("one login", "no script can log in"),
    "config_token": Kind("one token configuration", "no call of this service is possible"),
    "data": Kind("one call, with the ids that earlier answers gave", "the functions that call it fail"),
    "wrong token": Kind(
        "a data call with a wrong token", "the script does not see that its token has run out, and fails"
    ),
    "refresh_token": Kind("one refresh", "the script logs in again each time its token has run out"),
    "after refresh": Kind("a data call with the new access token, one with the old", "a renewed token may be no good"),
    "second session": Kind("a second login, then a call with the first token", "two scripts at a time end each other"),
    "page": Kind("pages of the largest of ten centres", "no inclusion can be read"),
    "first page": Kind("pages 0, 1, 2 of one inclusion each", "inclusions are missing, or a page comes twice"),
    "page size": Kind("one page as large as the script asks for", "pages may not add up"),
    "total": Kind("`total` of a page of one inclusion", "the script cannot know when it has all inclusions"),
    "latency, keep-alive": Kind("ten equal calls", "each call pays for a new connection"),
    "rate limit": Kind("headers and 429 of all calls", "a script is held up by 429 much of its time"),
    "clock": Kind("`Date` of all answers", "times in logs do not agree, certificates and tokens may seem out of date"),
}


@dataclass(frozen=True)
class About:
    """What a line of the table is about: its name, what the script assumes, what it means if it is otherwise."""

    check: str
    assumed: str = ""
    means: str = ""


def about(app: str, kind: str, assumed: str, endpoint: str = "") -> About:
    """A check of a service, or of one of its endpoints."""
    return About(f"{app} {endpoint or kind}".strip(), assumed, KINDS[kind].means)


@dataclass(frozen=True)
class Finding:
    """A line of the table; `change` says what to do where it differs, `line` where in the script (0: nowhere).

    `also` has what is to be changed on other lines.
    """

    about: About
    seen: str
    verdict: str = OK
    change: str | Edit = ""
    line: int = 0
    also: tuple[tuple[str | Edit, int], ...] = ()

    @property
    def changes(self) -> tuple[tuple[str | Edit, int], ...]:
        """All that is to be done, with the line of each."""
        return ((self.change, self.line), *self.also) if self.change else ()


def differs(about: About, seen: str, change: str | Edit, line: int = 0) -> Finding:
    """A line of the table that needs somebody's attention."""
    return Finding(about, seen, DIFFERS, change, line)


def not_tried(about: About, why: str) -> Finding:
    """A line of the table for what could not be seen."""
    return Finding(about, why, NOT_TRIED)


def write(new: str, old: str) -> str | Edit:
    """What to write on a line; `old` is what stands there."""
    return Edit(new, old) if old else f"write `{new}`"


def unless_made(finding: Finding, made: bool) -> Finding:
    """The same as a good line if the script reads it so already."""
    if not made or finding.verdict != DIFFERS:
        return finding
    return replace(
        finding, verdict=OK, seen=f"{finding.seen}; the script knows (line {finding.line})", change="", also=()
    )


def address(app: str, seen: Seen, script: Script) -> Finding:
    """Whether a service's address leads to a server that we can trust."""
    this, line = about(app, "address", "answers, certificate trusted"), script.setting(app, "base_url")
    if seen.proxy:
        return differs(this, seen.failure, f"{PROXY} ({seen.proxy})")
    if seen.failure:
        return differs(this, seen.failure, f"correct EB_{app}_URL, or the base_url", line)
    issuer, days = seen.certificate or ("", math.inf)
    leads = f", leads to {seen.leads_to}" if seen.leads_to else ""
    words = f"{seen} without a token{leads}"
    words += f", certificate of {issuer}, {days:.0f} days left" if issuer else ""
    if days < FEW_DAYS:
        return differs(this, words, "tell the platform's operator that its certificate runs out")
    if seen.status in (407, 511):
        return differs(this, words, f"something between you and the platform asks for a login: {PROXY}")
    return Finding(this, words)


def token_answer(
    app: str, endpoint: str, wanted: Sequence[str], seen: Seen, known: Mapping[str, Path], script: Script
) -> Finding:
    """Whether a token answer has what the script reads from it, under its names; `known` are those of earlier ones."""
    this = about(app, endpoint, f"2xx with {' and '.join(wanted)}")
    if not seen.good:
        return differs(this, described(seen), *refusal_remedy(app, endpoint, seen, script))
    paths = shape.find_fields(seen.body, (*wanted, "refresh_token"))
    line, reader, reads = script.token_answers()
    missing = [name for name in wanted if name not in paths]
    if missing:
        cookie = "; a cookie is set, the session may be in it" if "set-cookie" in seen.headers else ""
        words = f"{seen}, {shape.kind(seen.body)}; no {' and no '.join(missing)}{cookie}"
        return differs(this, words, f"give back a dict with {', '.join(wanted)}", line)
    other = {name: path for name, path in paths.items() if path != (name,)}
    words = f"{seen}, {shape.names(seen.body)}{lifetime(seen, paths['access_token'])}"
    if not other:
        return Finding(this, words)
    words += "; " + ", ".join(f"{name} is {'.'.join(path)}" for name, path in other.items())
    made = all(key in literals(reader) for name, path in other.items() for key in path if key != name)
    return unless_made(differs(this, words, reading({**known, **paths}, reads), line), made)


def described(seen: Seen) -> str:
    """Status and kind of an answer that should have been another."""
    if seen.status // 100 == 3:
        return f"{seen}, sent to {seen.leads_to}"
    if seen.html:
        return f"{seen}, a web page"
    if seen.failure or (seen.body is shape.NO_JSON and seen.status // 100 != 2):
        return str(seen)
    return f"{seen}, {shape.kind(seen.body)}"


def refusal_remedy(app: str, endpoint: str, seen: Seen, script: Script) -> tuple[str, int]:
    """What to do about a token call that did not give JSON, and the line."""
    line = script.setting(app, endpoint)
    if seen.failure or seen.status == 407:
        return f"see {app} address", 0 if seen.proxy else script.setting(app, "base_url")
    if seen.status // 100 == 3:
        return f"correct EB_{app}_URL or the path: this call is sent to {seen.leads_to}", line
    if seen.status in (429, 500, 502, 503, 504):
        return "the platform is busy or down: run the check again later", 0
    if seen.html:
        return f"{FIREWALL}; else correct EB_{app}_URL or the path", line
    if endpoint == "login" and seen.status == 401:
        return "check EB_USER_NAME and EB_PASSWORD (tried once, so that no account is locked)", 0
    if endpoint == "login" and seen.status == 403:
        return (
            "the platform lets this user not in: ask its operator for the rights, or whether the account is locked",
            0,
        )
    if endpoint == "config_token" and seen.status in (400, 401, 403, 422):
        return f"correct the app_id of {app}: {ASK}", script.setting(app, "app_id")
    if endpoint == "refresh_token" and seen.status in (400, 401, 403, 422):
        return "nothing to change: the script logs in again instead; the password has nothing to do with it", 0
    if seen.status in (400, 422):
        return f"send other fields: {ASK}", script.call(endpoint)[0]
    return f"correct the path: {ASK}", line


def reading(paths: Mapping[str, Path], reads: str) -> str | Edit:
    """What to write where an answer is read, so that the script finds the fields under its own names."""
    parents = {path[:-1] for path in paths.values()}
    if len(parents) != 1:
        return "give back a dict with " + ", ".join(f"{name} from {'.'.join(path)}" for name, path in paths.items())
    whole = reads + "".join(f'["{key}"]' for key in next(iter(parents)))
    renamed = ", ".join(f'"{path[-1]}": "{name}"' for name, path in sorted(paths.items()) if path[-1] != name)
    if renamed:
        whole = f"{{{{{renamed}}}.get(key, key): value for key, value in {whole}.items()}}"
    return write(whole, reads)


def lifetime(seen: Seen, path: Path) -> str:
    """How long an access token lives, if it or the answer says so."""
    seconds = shape.jwt_lifetime(str(shape.at(seen.body, path)), time.time())
    if seconds is not None:
        return "; a JWT that lives " + ("without end" if math.isnan(seconds) else shape.duration(seconds))
    told = shape.at(seen.body, (*path[:-1], "expires_in"))
    return f"; lives {shape.duration(told)}" if type(told) is int and 0 < told < 1e9 else ""


def data_answer(app: str, endpoint: str, wanted: type | None, seen: Seen, script: Script) -> Finding:
    """Whether a data endpoint is where it should be, and gives a list or an object as the script expects."""
    label: dict[type | None, str] = {list: "2xx with a list", dict: "2xx with an object", None: "2xx with JSON"}
    this = about(app, "data", label[wanted], endpoint)
    if seen.failure or seen.status in (429, 500, 502, 503, 504):
        return differs(this, described(seen), "the platform is busy or down: run the check again later")
    if seen.status in (401, 403):
        rights = "the call is not allowed to this user: ask the operator for the rights, or comment the entry out"
        return differs(this, described(seen), rights, script.setting(app, endpoint))
    if not seen.good:
        return differs(this, described(seen), f"correct the path: {ASK}", script.setting(app, endpoint))
    words = f"{seen} in {shape.duration(seen.seconds)}, {shape.kind(seen.body)}"
    if wanted is None or isinstance(seen.body, wanted):
        return Finding(this, words)
    return wrapped(differs(this, words, ""), endpoint, wanted, seen, script)


def wrapped(finding: Finding, endpoint: str, wanted: type, seen: Seen, script: Script) -> Finding:
    """A list that is wrapped in an object, or another answer of an unforeseen kind."""
    line, function, reads = script.list_of(endpoint)
    path = shape.list_in(seen.body)
    if wanted is not list or not path:
        return replace(finding, change="deal with this kind of answer", line=script.call(endpoint)[0])
    keys = "".join(f'["{key}"]' for key in path)
    words = f"{finding.seen}; the list is in {'.'.join(path)}"
    new = re.sub(r"\blist\b", "dict", reads) + keys
    return unless_made(
        replace(finding, seen=words, change=write(new, reads), line=line), set(path) <= literals(function)
    )


def names_what_was_asked(app: str, endpoint: str, seen: Seen, asked: str, script: Script) -> list[Finding]:
    """Whether an answer names the one that was asked for, under the name that the script looks for, if it does."""
    required = script.required_id(endpoint)
    if required is None or not asked or not isinstance(seen.body, dict) or not seen.good:
        return []
    line, key, written = required
    this = about(app, "data", f"the answer has what was asked for as {key}", endpoint)
    if str(seen.body.get(key)) == asked:
        return [Finding(this, "it has")]
    other = next((name for name, value in seen.body.items() if str(value) == asked and shape.is_name(name)), None)
    if other:
        return [differs(this, f"it is {other}", write(f'"{other}"', written), line)]
    return [
        differs(this, "nothing at its top says it", "the answer does not say whose it is: take require_id away", line)
    ]


def wrong_token(app: str, seen: Seen, good: Seen, script: Script) -> Finding:
    """How a data call with a wrong token is answered: the script renews its token on what it knows as a dead one."""
    this = about(app, "wrong token", "401")
    line, known, compared = script.dead_token()
    if seen.failure:
        return differs(this, seen.failure, "run the check again later")
    if seen.status == 401:
        return Finding(this, described(seen))
    if seen.status // 100 != 2:
        finding = differs(this, described(seen), write(*renewed_on(known | {seen.status}, compared)), line)
        return unless_made(finding, seen.status in known)
    hints = [key for key in seen.body if shape.is_name(key)] if isinstance(seen.body, dict) else []
    hints = [key for key in hints if not isinstance(good.body, dict) or key not in good.body]
    if not hints:
        words = f"{described(seen)}: as with a good token"
        return differs(this, words, "tell the platform's operator that data are given without a good token")
    return unless_made(*error_inside(this, seen, hints[0], script))


def renewed_on(statuses: set[int], compared: str) -> tuple[str, str]:
    """A comparison with statuses that mean a dead token, in place of one as `compared`."""
    left, operator = re.match(r"(.*?)\s*(==|!=|not in|in)\s", f"{compared} ", re.DOTALL).groups()  # type: ignore[union-attr]
    word = "in" if operator in ("==", "in") else "not in"
    return f"{left} {word} ({', '.join(map(str, sorted(statuses)))})".strip(), compared


def error_inside(this: About, seen: Seen, hint: str, script: Script) -> tuple[Finding, bool]:
    """An error that calls itself a success, and whether the script looks for it."""
    line, function, raising = script.error_raising()
    condition = f'isinstance(response.json(), dict) and "{hint}" in response.json()'
    new = f"response.status_code = 401 if {condition} else response.status_code"
    change = Edit(new, raising, above=True) if raising else f"take this answer for a 401: `{new}`"
    finding = differs(this, f"{described(seen)}: an error that looks like data", change, line)
    return finding, {hint, 401} <= literals(function)


def after_refresh(app: str, before: str, after: str | None, new: Seen | None, old: Seen | None) -> Finding:
    """What one refresh did: refresh tokens before and after it, data calls with the new and the old access token."""
    this = about(app, "after refresh", "other tokens, good ones")
    words = "no refresh token in the answer" if after is None else "the same refresh token"
    rotates = after not in (None, before)
    words = "another refresh token" if rotates else words
    words += f"; new access token {new}" if new else ""
    words += f", old one {old}" if old else ""
    if new and not new.good:
        return differs(this, words, "tell the platform's operator; the script logs in again instead")
    if not rotates:
        return differs(this, words, "nothing to change: the script goes on with the old refresh token")
    return Finding(this, words)


def second_login(app: str, seen: Seen) -> Finding:
    """A second login that was refused although the first one was not."""
    change = "run one script at a time, and let nobody be logged in as that user"
    return differs(about(app, "second session", "leaves the first one alone"), f"refused: {described(seen)}", change)


def second_session(app: str, seen: Seen, script: Script) -> Finding:
    """Whether a session lives on after the same user has logged in a second time."""
    this = about(app, "second session", "leaves the first one alone")
    if seen.good:
        return Finding(this, f"first one: {seen}")
    words = f"first one ended: {seen}"
    change = (
        "one script at a time, and nobody logged in as that user; or a user of its own for each, EB_USER_NAME or here"
    )
    return differs(this, words, change, script.constant("DEFAULT_USER_NAME"))


NO_ANSWER = Seen()


@dataclass(frozen=True)
class PageFacts:
    """What the pages of one centre tell, whoever asked for them; 0 or None is what could not be seen."""

    page: Seen  # one of them
    first: int | None = None  # number of the first page
    same: bool = False  # whether pages of different numbers are the same
    asked: int = 0  # for the largest page
    large: Seen = NO_ANSWER  # the answer to that
    capped: int | None = None  # rows on a page that should have more
    limit_ignored: int = 0  # rows on a page that should have fewer
    limit: int = 1  # of the page that `whole` stands on
    whole: int | None = None  # its `total`
    known: int = 0  # how many inclusions there are at least


@dataclass(frozen=True)
class Pages:
    """The pages of one centre: three of one inclusion each, numbers 0 to 2, and one as large as the script asks."""

    small: tuple[Seen, Seen, Seen]
    large: Seen

    @property
    def items(self) -> list[list[Any]]:
        """What is on each page, the large one last."""
        bodies = [seen.body if seen.good else None for seen in (*self.small, self.large)]
        return [inclusions_in(body) for body in bodies]

    @property
    def first(self) -> int | None:
        """The number of the first page, None if that cannot be seen."""
        zero, one, two, _ = self.items
        if not one or one == two:
            return None
        return 0 if zero and zero != one else 1

    def facts(self, asked: int) -> PageFacts:
        """What they tell, if so many rows were asked for on the large one."""
        _, one, two, large = self.items
        whole, got = total_of(self.small[1]), len(large)
        return PageFacts(
            page=self.small[1],
            first=self.first,
            same=bool(one) and one == two,
            asked=asked,
            large=self.large,
            capped=got if whole is not None and got < min(whole, asked) else None,
            limit_ignored=len(one) if len(one) > 1 else 0,
            whole=whole,
            known=max(*map(len, self.items), 2 if two else 0),
        )


def inclusions_in(body: Any) -> list[Any]:
    """The list of a page, wherever it is."""
    path = shape.list_in(body)
    found = body if path == () else shape.at(body, path)
    return found if isinstance(found, list) else []


def paging(facts: PageFacts, script: Script) -> Sequence[Finding]:
    """All that the pages of a centre tell."""
    if not facts.page.good:
        return [not_tried(About("RC paging"), described(facts.page))]
    size, whole = page_size(facts, script), total(facts, script)
    if isinstance(whole.change, Edit) and size.change:  # it has the size in it
        size = replace(size, change=whole.change, line=whole.line)
    return [*page_fields(facts.page, script), first_page(facts, script), size, whole]


def page_fields(seen: Seen, script: Script) -> list[Finding]:
    """Whether a page holds its list, and an inclusion its id, under the names that the script reads."""
    line, key, written = script.key_of_rows()
    this = about("RC", "page", "list in data, of objects with patientId")
    path, items = shape.list_in(seen.body), inclusions_in(seen.body)
    if not items:
        return [not_tried(this, "the pages looked at are empty")]
    words = f"list in {'.'.join(path or ()) or 'no object'}, {shape.kind(items[0])}"
    findings = [] if path == ("data",) else [page_list(this, words, path or (), script)]
    if not isinstance(items[0], dict) or "patientId" not in items[0]:
        other = shape.id_name(items[0], "patientId")
        change = write(f'key="{other}"', written) if other else "say what tells one inclusion from another"
        finding = differs(this, words, change, line)
        in_main = f"read {other or 'the name of the id'} for patientId in your main()"
        findings.append(unless_made(replace(finding, also=((in_main, 0),)), key == other))
    return findings or [Finding(this, words)]


def page_list(this: About, words: str, path: Path, script: Script) -> Finding:
    """A page whose list is elsewhere than in `data`."""
    line, function, answer = script.answer_of("search_inclusions")
    new = f'{{**(answer := {answer}), "data": answer{"".join(f"""["{key}"]""" for key in path)}}}'
    if not path:
        new = f'{{"data": {re.sub(r"dict(?=[,)])", "list", answer)}}}'
    change = write(new, answer) if answer else f"read {'.'.join(path) or 'the answer itself'} where it says data"
    return unless_made(differs(this, words, change, line), {*path, "data"} <= literals(function))


def first_page(facts: PageFacts, script: Script) -> Finding:
    """Whether pages are counted as the script counts them."""
    line, assumed_first, sent = script.page()
    this = about("RC", "first page", f"number {assumed_first}")
    if facts.same:
        words = "page 1 and page 2 are the same: the number is not looked at"
        return differs(this, words, f"send the number under the name that the platform knows: {ASK}", line)
    if facts.first is None:
        return not_tried(this, "no centre with several inclusions among those looked at")
    if facts.first == assumed_first:
        return Finding(this, f"number {facts.first}")
    new = '"page": page' + (f" - {1 - facts.first}" if facts.first < 1 else "")
    return differs(this, f"number {facts.first}", write(new, sent), line)


def page_size(facts: PageFacts, script: Script) -> Finding:
    """Whether a page is as large as asked for."""
    size, asked = script.page_size(), facts.asked
    this, line = about("RC", "page size", f"as asked for, {size.number}"), size.line
    if not facts.large.good:
        words = f"{described(facts.large)} when {asked} are asked for"
        return differs(this, words, write(*size.to(100)), line)
    if facts.capped is not None:
        words = f"{facts.capped} of {facts.whole or 'more'} when {asked} are asked for"
        return unless_made(differs(this, words, write(*size.to(facts.capped)), line), size.number == facts.capped)
    if facts.limit_ignored:
        words = f"{facts.limit_ignored} when {facts.limit} is asked for"
        return differs(this, words, f"send the limit under the name that the platform knows: {ASK}", line)
    return Finding(
        this, f"{len(inclusions_in(facts.large.body))} inclusions, none left out, when {asked} are asked for"
    )


def total(facts: PageFacts, script: Script) -> Finding:
    """Whether `total` counts all pages."""
    this, (line, trusted) = about("RC", "total", "counts all pages"), script.total()
    whole, known, anew = facts.whole, facts.known, script.until_empty(facts.capped or 0)
    if whole is None:
        return unless_made(differs(this, "no total that is a number", anew, line), not trusted)
    if whole < known:
        words = f"{whole} on a page of {facts.limit}, where {known} or more inclusions exist"
        return unless_made(differs(this, words, anew, line), not trusted)
    if known <= 1:
        return not_tried(this, "no centre with several inclusions among those looked at")
    return Finding(this, f"{whole} on a page of {facts.limit}, {known} inclusions seen")


def total_of(seen: Seen) -> int | None:
    """The `total` of a page."""
    number = shape.at(seen.body, ("total",))
    return number if type(number) is int and 0 <= number < 1e9 else None


def largest_count(body: Any) -> int:
    """The largest number in an answer's top level, 0 if there is none."""
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
    """Whether the platform counts calls, and how many threads that allows; those of both pools may call at once."""
    this = about("", "rate limit", "none, or more than both pools call")
    limited = [seen for seen in calls if shape.header_number(seen.headers, shape.LIMIT_HEADERS)]
    words = f"{refused} calls answered 429" if refused else "no 429, no header that tells of one"
    if not limited:
        change = "set fewer threads, here and in SUBTASKS_POOL_SIZE"
        return differs(this, words, change, script.constant("MAX_THREADS")) if refused else Finding(this, words)
    allowed, most, window = rate_of(limited)
    words = f"{most} calls each {shape.duration(window)} by its headers" + (f", {words}" if refused else "")
    threads = {"MAX_THREADS": script.max_threads, "SUBTASKS_POOL_SIZE": script.subtasks}
    words += f"; {' + '.join(map(str, threads.values()))} threads"
    if sum(threads.values()) <= allowed:
        return Finding(this, words)
    main = max(1, allowed * script.max_threads // sum(threads.values()))
    fewer = {"MAX_THREADS": main, "SUBTASKS_POOL_SIZE": max(1, allowed - main)}
    first, *others = (
        (write(f"{name} = {fewer[name]}", f"{name} = {number}"), script.constant(name))
        for name, number in threads.items()
        if number != fewer[name]
    )
    return replace(differs(this, words, *first), also=tuple(others))


def rate_of(limited: Sequence[Seen]) -> tuple[int, int, float]:
    """How many threads keep to the limit, how many calls it allows, and in how many seconds."""
    most = min(shape.header_number(seen.headers, shape.LIMIT_HEADERS) or 1 for seen in limited)
    resets = [shape.header_number(seen.headers, shape.RESET_HEADERS) for seen in limited]
    window = float(max([reset for reset in resets if reset and reset < 1e6], default=60))  # more is a point in time
    each = max(USUAL_LATENCY, median(seen.seconds for seen in limited))
    return max(2, int(most / window * each)), most, window  # one thread in each pool is the least


def clock(calls: Sequence[Seen]) -> Finding:
    """Whether the platform's clock and ours agree."""
    this = about("", "clock", f"within {MUCH_SKEW} s of this machine's")
    skews = [seen.skew for seen in calls if seen.skew is not None and abs(seen.skew) < 1e9]
    if not skews:
        return not_tried(this, "no Date in the answers")
    skew = median(skews)
    if abs(skew) <= MUCH_SKEW:
        return Finding(this, "agrees")
    words = f"platform {shape.duration(abs(skew))} {'ahead' if skew > 0 else 'behind'}"
    return differs(this, words, "nothing to change in the script: set the clock of this machine by the network")
