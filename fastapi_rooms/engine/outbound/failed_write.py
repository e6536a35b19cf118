"""What it means that a write has raised: whether its peer is there, and what it is told then."""

from enum import Enum

from fastapi_rooms.domain.close_codes import CloseCode
from fastapi_rooms.domain.messages import Close

FAILED = Close(CloseCode.INTERNAL_ERROR)
"""Sent to a peer that is there and cannot be written to."""

# What servers, and what stands between, raise when the socket has ended: uvicorn and Starlette, Autobahn in daphne,
# hypercorn, and anyio's streams, through which middleware passes messages on. By name, since most are not installed.
_SOCKET_ENDED = frozenset(
    {
        "ClientDisconnected",
        "WebSocketDisconnect",
        "WebSocketDisconnected",
        "Disconnected",
        "UnexpectedMessageError",
        "BrokenResourceError",
        "ClosedResourceError",
    }
)


class Peer(Enum):
    """Where the peer of a write that has raised is."""

    GONE = "gone"
    """The socket has ended: the server knows, and will say so."""
    MAYBE_GONE = "maybe gone"
    """So it seems. The socket is to be ended, which is harmless if it has."""
    THERE = "there"
    """It was something else that failed. Who is never told would wait for ever."""


def peer_of(error: BaseException, *, is_gone: bool) -> Peer:
    """Return where the peer is.

    Args:
        error: What the write raised.
        is_gone: The wire says that nothing can be written any more, for another reason than this write.
    """
    if is_gone or says_gone(error):
        return Peer.GONE
    return Peer.MAYBE_GONE if may_say_gone(error) else Peer.THERE


def says_gone(error: BaseException) -> bool:
    """Return whether an error of a write says that the socket has ended: the server knows, and will say so."""
    if isinstance(error, RuntimeError) and str(error).startswith("Unexpected ASGI message"):
        return True  # uvicorn's, once a close frame was sent by whomever
    return any(kind.__name__ in _SOCKET_ENDED for kind in type(error).__mro__)


def may_say_gone(error: BaseException) -> bool:
    """Return whether an error of a write may say that the peer has gone.

    By the ASGI specification a server raises an `OSError` then. A `TimeoutError` or a refused connection is nothing
    that the socket of a client comes to, but something that a middleware asks.
    """
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind in (OSError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
    return isinstance(error, OSError)


def close_instead(close: Close, promised: Close | None) -> Close:
    """Return the close frame for a peer that is not sent all it was promised: not one that says that all is well.

    Args:
        close: What it is told otherwise.
        promised: The close frame that was to follow; None: there was to be none.
    """
    return close if promised is None or promised.code == CloseCode.NORMAL else promised
