"""Who somebody is: a signed cookie, made at log-in and checked wherever it counts.

There are no passwords here, so a user is a random id with a chosen name. The id is the identity: whoever takes the same
name later is somebody else, and reads nobody's direct messages.
"""

import os
import secrets
import unicodedata
from functools import cache
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError
from starlette.requests import HTTPConnection

COOKIE = "example_user"
COOKIE_SECONDS = 7 * 24 * 60 * 60


def _tidy(name: Any) -> Any:
    """Make names that look the same be the same: one form of each character, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).split()) if isinstance(name, str) else name


Name = Annotated[
    str,
    BeforeValidator(_tidy),
    StringConstraints(min_length=1, max_length=24, pattern=r"^[\p{L}\p{N}][\p{L}\p{M}\p{N} .'_-]*$"),
]
"""A name as people have them, in any script: letters, digits, spaces and . ' _ -"""


class User(BaseModel):
    """One identity, with any number of connections."""

    model_config = ConfigDict(frozen=True)

    id: Annotated[str, StringConstraints(max_length=40)]
    name: Name


def new_user(name: str) -> User:
    return User(id=secrets.token_hex(8), name=name)


def remember(response: Response, user: User, *, secure: bool) -> None:
    """Set the cookie. Scripts cannot read it, and other sites' forms and sockets do not send it."""
    response.set_cookie(
        COOKIE,
        _serializer().dumps(user.model_dump()),
        max_age=COOKIE_SECONDS,
        httponly=True,
        samesite="lax",
        secure=secure,
    )


def forget(response: Response) -> None:
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")


def find_user(connection: HTTPConnection) -> User | None:
    """Return the user of the cookie; None if there is none, or it is not ours, or too old."""
    try:
        return User.model_validate(_serializer().loads(connection.cookies.get(COOKIE, ""), max_age=COOKIE_SECONDS))
    except (BadSignature, ValidationError):
        return None


async def current_user(connection: HTTPConnection) -> User:
    """Return the user of an HTTP request or a WebSocket; refuse those who have not logged in."""
    user = find_user(connection)
    if user is None:
        raise HTTPException(401, "Choose a name first.")
    return user


UserDep = Annotated[User, Depends(current_user)]


async def get_user_id(user: UserDep) -> str:
    return user.id


async def get_metadata(user: UserDep) -> dict[str, User]:
    return {"user": user}


async def refuse_foreign_pages(connection: HTTPConnection) -> None:
    """Refuse what another site's page posts. The same for WebSockets is built in.

    SameSite=Lax stops other sites; this also stops other ports of the same host. Programs send no HTTP origin and pass.
    """
    http_origin = connection.headers.get("origin")
    if http_origin is not None and urlsplit(http_origin).netloc != connection.headers.get("host"):
        raise HTTPException(403, "This page belongs to another site.")


@cache
def _serializer() -> URLSafeTimedSerializer:
    # A random secret lasts as long as the process: after a restart everybody chooses a name again. Nodes that are to
    # know each other's users share one.
    return URLSafeTimedSerializer(os.environ.get("EXAMPLE_SECRET") or secrets.token_hex(32), salt="example-user")
