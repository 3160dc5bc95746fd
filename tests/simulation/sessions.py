"""The tokens of one simulated service: short-lived access tokens, refresh tokens that rotate."""

from __future__ import annotations

import base64
import json
import secrets
import time
from dataclasses import dataclass

Pair = dict[str, str]


@dataclass
class Session:
    """What one login or token configuration opened; every renewal replaces its refresh token."""

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
    """Issues the tokens of a service, and tells which of them it still takes."""

    def __init__(self, lifetime: float) -> None:
        self.lifetime = lifetime
        self.rotates = True
        self.settling = 0.0  # seconds in which a new access token is not known yet
        self.jwt = False
        self.issued: list[str] = []
        self.same_access = False
        self.reused = 0
        self.seen_expired: set[str] = set()
        self._access: dict[str, Access] = {}
        self._refresh: dict[str, Session] = {}  # the spent ones too, to notice when one is used again

    def open(self) -> Pair:
        """Open a session."""
        return self._issue(Session())

    def renew(self, refresh_token: str) -> Pair | None:
        """Renew a session, None if the token is unknown or spent; a spent one may be stolen, so it ends the session."""
        session = self._refresh.get(refresh_token)
        if session is None:
            return None
        if refresh_token != session.refresh_token:
            self.reused += 1
            self._revoke(session)
            return None
        return self._issue(session)

    def accepts(self, access_token: str) -> bool:
        """Tell whether a call with this token is let in."""
        access = self._access.get(access_token)
        if access is None:
            return False
        if access.expires_at <= time.monotonic():
            self.seen_expired.add(access_token)
            return False
        return not access.session.refused and access.issued_at + self.settling <= time.monotonic()

    def expire(self) -> None:
        """Let every access token run out now."""
        for access in self._access.values():
            access.expires_at = time.monotonic()

    def refuse(self) -> None:
        """Refuse the access tokens of the open sessions, those from later renewals included."""
        for access in self._access.values():
            access.session.refused = True

    def forget(self) -> None:
        """Forget every session, as a restarted platform does."""
        self._access.clear()
        self._refresh.clear()

    def forget_refresh_tokens(self) -> None:
        """Forget how to renew the open sessions."""
        self._refresh.clear()

    def reset_counts(self) -> None:
        """Count anew what went wrong with tokens."""
        self.reused = 0
        self.seen_expired.clear()

    def _issue(self, session: Session) -> Pair:
        pair = {kind: f"eb-{kind}-{secrets.token_urlsafe(24)}" for kind in ("access", "refresh")}
        if self.jwt:
            pair["access"] = jwt(self.lifetime, pair["access"])
        if session.refresh_token and not self.rotates:
            pair["refresh"] = session.refresh_token
        if session.access_token and self.same_access:
            pair["access"] = session.access_token
        session.access_token, session.refresh_token = pair["access"], pair["refresh"]
        now = time.monotonic()
        self._access[pair["access"]] = Access(session, now, now + self.lifetime)
        self._refresh[pair["refresh"]] = session
        self.issued += pair.values()
        return {f"{kind}_token": token for kind, token in pair.items()}

    def _revoke(self, session: Session) -> None:
        session.refresh_token = ""
        session.refused = True


def jwt(lifetime: float, identifier: str) -> str:
    """Return a token that tells how long it lives (RFC 7519); its signature is none."""
    now = int(time.time())
    parts = ({"alg": "HS256", "typ": "JWT"}, {"jti": identifier, "iat": now, "exp": now + int(lifetime)})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, secrets.token_urlsafe(24)])
