"""One-time tickets: under which key one is kept, what is kept of it, and where it may be used."""

from datetime import datetime
from hashlib import sha256

from pydantic import AwareDatetime, BaseModel, ConfigDict

from fastapi_rooms.domain.http_origin import HttpOrigin, parse_origin
from fastapi_rooms.domain.revocation import Revocation

TICKET_BYTES = 32
"""Of chance in a ticket: 256 bits, which nobody guesses."""
_TICKET_LETTERS = 43  # what 32 bytes are in base64url without padding


def key_of(purpose: str, ticket: str) -> str | None:
    """Return the key under which a ticket is kept; None if it cannot be one.

    It is a hash, so that who reads the store has no tickets. A fast one without salt will do: what is hashed is chance.
    """
    if len(ticket) != _TICKET_LETTERS or not ticket.isascii():
        return None
    return f"ticket:{sha256(f'{purpose}:{ticket}'.encode()).hexdigest()}"


class Claim(BaseModel):
    """Whom a ticket lets in, from where, and until when."""

    model_config = ConfigDict(frozen=True)

    user_id: str
    http_origin: HttpOrigin | None
    """The page that asked; or, if nobody said, the app's own; None if that is unknown, too."""
    is_told: bool
    """Whether the page was told. If it was, a browser asked, and a browser has to come."""
    issued_at: AwareDatetime
    """When it was asked for."""
    expires_at: AwareDatetime | None
    """When the login of its user expires; None: never."""

    def fits(self, origin: str | None) -> bool:
        """Return whether a handshake comes from where the ticket was asked for.

        Args:
            origin: Its `Origin` header; None: there is none.
        """
        if origin is None:
            return not self.is_told
        return self.http_origin is not None and parse_origin(origin) == self.http_origin

    def has_expired(self, now: datetime) -> bool:
        """Return whether the login of its user has expired."""
        return self.expires_at is not None and self.expires_at <= now

    def is_revoked(self, revocation: Revocation) -> bool:
        """Return whether its user was closed since it was issued."""
        return self.issued_at <= revocation.at


def claim(
    user_id: str,
    origin: str | None,
    host: str | None,
    *,
    is_secure: bool,
    issued_at: datetime,
    expires_at: datetime | None = None,
) -> Claim | None:
    """Return what is kept of a ticket; None if it was asked for from an origin that is none, as `null` is.

    Args:
        user_id: Whom it lets in.
        origin: The `Origin` header of the request; None: there is none, as when a browser asks for a page.
        host: The `Host` header of the request.
        is_secure: Whether it came by TLS, as far as the server knows.
        issued_at: When it is asked for.
        expires_at: When the user's login expires; None: never.
    """
    if origin is not None:
        page = parse_origin(origin)
        if page is None:
            return None
    else:
        page = None if host is None else parse_origin(f"{'https' if is_secure else 'http'}://{host}")
    return Claim(
        user_id=user_id, http_origin=page, is_told=origin is not None, issued_at=issued_at, expires_at=expires_at
    )


def claim_in(data: bytes) -> Claim | None:
    """Return what was kept of a ticket; None if it is nothing of the kind."""
    try:
        return Claim.model_validate_json(data)
    except ValueError:
        return None
