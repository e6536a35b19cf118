"""Which subprotocol a WebSocket is accepted with (RFC 6455 section 1.9 and 4.2.2): one that both sides speak."""

from collections.abc import Iterable, Sequence

from starlette.websockets import WebSocket

from fastapi_rooms.domain.connection import SUBPROTOCOL_KEY
from fastapi_rooms.domain.errors import ConfigurationError

# RFC 9110, section 5.6.2: of these a `token` is made, and so a subprotocol (RFC 6455, section 4.1).
LETTERS = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def check_subprotocols(subprotocols: Iterable[str]) -> tuple[str, ...]:
    """Return the subprotocols that a route speaks, the best first.

    Raises:
        ConfigurationError: One of them can be none.
    """
    if isinstance(subprotocols, str):
        raise ConfigurationError(f"subprotocols takes a list: write [{subprotocols!r}]")
    checked = tuple(subprotocols)
    for one in checked:
        is_text: bool = isinstance(one, str)  # asked at run time, too
        if not is_text or not one or not LETTERS.issuperset(one):
            raise ConfigurationError(
                f"{one!r} can be no subprotocol: use letters, digits, dots and hyphens, as in 'chat.v1'"
            )
    return checked


def choose_subprotocol(websocket: WebSocket, spoken: Sequence[str]) -> None:
    """Have the best of those accepted that the client offers. None of them: what a dependency has chosen, or none.

    A client that offers none is let in. One that offers others is, too, and hangs up by itself: it is its turn to say
    that it cannot go on.
    """
    offered = websocket.scope.get("subprotocols", ())
    chosen = next((one for one in spoken if one in offered), None)
    if chosen is not None:
        websocket.scope[SUBPROTOCOL_KEY] = chosen
