"""What a plain GET gets on the path of a WebSocket route: 426 and the likely cause, where Starlette would say 404."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match
from starlette.types import Scope

ANSWER = (
    "This is a WebSocket endpoint: open it with ws:// or wss://. If this was a WebSocket handshake, a proxy in front "
    "of the app has removed its Upgrade header, and has to be told to pass it on.\n"
)


class _UpgradeRequired(APIRoute):
    """Answers only what no other route of the app takes: a page on the same path has it, wherever it is registered.

    An `APIRoute`, since FastAPI makes plain ones of other kinds when it includes a router; but none that solves the
    dependencies of its router, which may take a WebSocket.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return at most a partial match, which Starlette takes if nothing fits better."""
        match, child = super().matches(scope)
        return (Match.PARTIAL if match is Match.FULL else Match.NONE), child

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers, without asking any dependency."""
        return _answer


async def _answer(request: Request) -> Response:
    headers = {"Cache-Control": "no-store"}
    if request.scope.get("http_version", "1.1").startswith("1."):
        # RFC 9110 section 15.5.22, and 7.8: who sends Upgrade says so in Connection. From HTTP/2 on there is neither.
        headers |= {"Upgrade": "websocket", "Connection": "Upgrade"}
    return PlainTextResponse(ANSWER, 426, headers)


async def never_called() -> None:
    """Stand where FastAPI wants an endpoint: the route above answers in its place."""


def answer_plain_http(router: APIRouter | FastAPI, path: str, name: str) -> None:
    """Have a router answer plain GET requests on the path of a WebSocket route. It is not in the OpenAPI schema.

    Args:
        router: Where the WebSocket route is registered.
        path: Its path.
        name: Its name.
    """
    routes = router.router if isinstance(router, FastAPI) else router
    routes.add_api_route(
        path,
        never_called,
        methods=["GET"],
        name=f"{name} without a handshake",
        include_in_schema=False,
        route_class_override=_UpgradeRequired,
    )
