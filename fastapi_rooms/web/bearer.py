"""A bearer token in `Sec-WebSocket-Protocol`, the one header of a handshake that the JavaScript of a page can choose.

The token travels as an item of its own among the subprotocols that the client offers, beside one that is no secret. A
browser takes a connection only if the server selects something that it offered, so that is what is selected. Kubernetes
does it in this way (its PR 47740), under names of its own.

Not `["bearer", token]`, which some do: there the order decides what is the secret, and whoever takes a subprotocol for
one picks the wrong one.
"""

from base64 import urlsafe_b64decode
from collections.abc import Collection, Iterable

from starlette.requests import HTTPConnection

from fastapi_rooms.domain.connection import SUBPROTOCOL_KEY
from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.web.credentials import refuse_credentials
from fastapi_rooms.web.subprotocols import LETTERS

MARKER = "bearer"
"""What is selected if nothing else can be."""
PLAIN = "bearer."
"""What a token follows that is made of letters which a subprotocol may have, as each JWT is."""
ENCODED = "base64url.bearer."
"""What any other token follows, in base64url without padding."""


class BearerSubprotocol:
    """A dependency that returns the bearer token which a browser sends with its handshake.

    ```js
    new WebSocket(url, ["bearer", "bearer." + token])       // or "base64url.bearer." + base64url(token)
    ```

    The client offers `bearer`, or subprotocols of the app that are `supported`, and beside that the token. One that is
    no token is selected. The token is not in `scope["subprotocols"]` afterwards, so that nobody selects it by mistake.

    Checking the token is yours: a dependency on this one, as with FastAPI's `HTTPBearer`.

    Args:
        supported: The subprotocols that the app speaks, the best first. The first that is offered is selected.
        auto_error: Refuse who has no token with 401, before accept. Otherwise the dependency returns None then.

    Raises:
        ConfigurationError: One of `supported` can be no subprotocol, or means a token here.
    """

    def __init__(self, supported: Iterable[str] = (), *, auto_error: bool = True) -> None:
        if isinstance(supported, str):
            raise ConfigurationError(f"supported takes a list: write [{supported!r}]")
        self._supported = tuple(supported)
        self._auto_error = auto_error
        for subprotocol in self._supported:
            if not subprotocol or not LETTERS.issuperset(subprotocol) or _is_secret(subprotocol):
                raise ConfigurationError(
                    f"{subprotocol!r} can be no subprotocol beside a token: use letters, digits and dots, as in "
                    f"'chat.v1', and nothing that begins with {PLAIN!r} or {ENCODED!r}"
                )

    def __repr__(self) -> str:
        return f"<BearerSubprotocol supported={list(self._supported)}>"

    async def __call__(self, connection: HTTPConnection) -> str | None:
        """Return the token, and have something else selected when the WebSocket is accepted.

        Raises:
            HTTPException: 401, there is no token, or there are several.
        """
        lines = connection.headers.getlist("sec-websocket-protocol")
        offered = [item.strip() for line in lines for item in line.split(",")]
        told = [item for item in offered if not _is_secret(item)]
        connection.scope["subprotocols"] = told
        connection.scope[SUBPROTOCOL_KEY] = self._selected(told)
        secrets = [item for item in offered if _is_secret(item)]
        token = _token_in(secrets[0]) if len(secrets) == 1 else None
        if token is None and self._auto_error:
            refuse_credentials(connection, "Bearer", "not authenticated")
        return token

    def _selected(self, offered: Collection[str]) -> str | None:
        return next((one for one in (*self._supported, MARKER) if one in offered), None)


def _is_secret(item: str) -> bool:
    return item.startswith((PLAIN, ENCODED))


def _token_in(item: str) -> str | None:
    """Return the token that an item holds; None if it is none, or nothing that could stand in a header."""
    token = item.removeprefix(PLAIN)
    if item.startswith(ENCODED):
        encoded = item.removeprefix(ENCODED)
        try:
            token = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("ascii")
        except ValueError:
            return None
    return token if token and token.isascii() and token.isprintable() else None
