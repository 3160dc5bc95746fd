"""The tokens of one simulated service: short-lived access tokens, and refresh tokens that rotate."""

from __future__ import annotations

import base64
import json
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from state import Platform

Pair = dict[str, str]


@dataclass
class Session:
    """A session opened by a login or token configuration; every renewal replaces its refresh token."""

    access_token: str = ""
    refresh_token: str = ""
    refused: bool = False


@dataclass
class Access:
    """One access token."""

    session: Session
    issued_at: float
    expires_at: float


class Sessions:
    """Issues the tokens of a service, and knows which of them are still valid."""

    def __init__(self, platform: Platform, service: str, lifetime: float) -> None:
        self.platform, self.service, self.lifetime = platform, service, lifetime
        self.issued: list[str] = []
        self._access: dict[str, Access] = {}
        self._refresh: dict[str, Session] = {}  # including used ones, to notice when one is used again

    def open(self) -> Pair:
        return self._issue(Session())

    def renew(self, refresh_token: str) -> Pair | None:
        """Renew a session; None if the token is unknown, or was used before: it may be stolen, so that ends it."""
        session = self._refresh.get(refresh_token)
        if session is None:
            return None
        if refresh_token != session.refresh_token:
            self.platform.seen.refresh_tokens_reused += 1
            session.refresh_token, session.refused = "", True
            return None
        return self._issue(session)

    def accepts(self, access_token: str) -> bool:
        """Tell whether a call with this token is accepted."""
        access, now = self._access.get(access_token), time.monotonic()
        if access is None:
            return False
        if access.expires_at <= now:
            self.platform.seen.expired.add(access_token)
            return False
        settled = access.issued_at + self.platform.conditions.settling.get(self.service, 0.0)
        return not access.session.refused and settled <= now

    def expire(self) -> None:
        for access in self._access.values():
            access.expires_at = time.monotonic()

    def refuse(self) -> None:
        """Reject the access tokens of the open sessions, including those from later renewals."""
        for access in self._access.values():
            access.session.refused = True

    def forget(self) -> None:
        """Forget all sessions, like a restarted platform."""
        self._access.clear()
        self._refresh.clear()

    def forget_refresh_tokens(self) -> None:
        """Forget how to renew the open sessions, and make their access tokens expire now."""
        self.expire()
        self._refresh.clear()

    def _issue(self, session: Session) -> Pair:
        conditions = self.platform.conditions
        pair = {kind: f"eb-{kind}-{secrets.token_urlsafe(24)}" for kind in ("access", "refresh")}
        if conditions.jwt:
            pair["access"] = jwt(self.lifetime, pair["access"])
        if session.refresh_token and not conditions.renewals.get("rotates", True):
            pair["refresh"] = session.refresh_token
        if session.access_token and conditions.renewals.get("same_access"):
            pair["access"] = session.access_token
        session.access_token, session.refresh_token = pair["access"], pair["refresh"]
        now = time.monotonic()
        self._access[pair["access"]] = Access(session, now, now + self.lifetime)
        self._refresh[pair["refresh"]] = session
        self.issued += pair.values()
        return {f"{kind}_token": token for kind, token in pair.items()}


def jwt(lifetime: float, identifier: str) -> str:
    """Return a token that contains its lifetime (RFC 7519); its signature is not a real one."""
    now = int(time.time())
    parts = ({"alg": "HS256", "typ": "JWT"}, {"jti": identifier, "iat": now, "exp": now + int(lifetime)})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, secrets.token_urlsafe(24)])
