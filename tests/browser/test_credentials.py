"""What a page can send with a handshake, in a real browser: a ticket, and a token among the subprotocols."""

from typing import Annotated

import pytest
import pytest_asyncio
from fastapi import Cookie, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from support import live

from fastapi_rooms import ConnectionDep, Incoming, RoomsExtension
from fastapi_rooms.web.bearer import BearerSubprotocol
from fastapi_rooms.web.tickets import Tickets

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TOKENS = {"a.JWT-has_these": "ann", "others/have+these==": "bob"}

OPEN = """([path, protocols]) => new Promise((resolve) => {
    const address = new URL(path, location.href);
    address.protocol = "ws:";
    const socket = new WebSocket(address, protocols);
    socket.onopen = () => socket.send("who am I?");
    socket.onmessage = (message) => resolve([socket.protocol, JSON.parse(message.data)]);
    socket.onclose = (close) => resolve(close.code);
})"""
ENCODE = """(token) => btoa(token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")"""
ASK = """async () => (await fetch("/ticket", {method: "POST"})).json()"""


def an_app():
    rooms, tickets, bearer = RoomsExtension(), Tickets(), BearerSubprotocol(["chat.v1"])
    app = FastAPI(lifespan=rooms.lifespan)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        answer = HTMLResponse("<!doctype html><link rel=icon href=data:,>")
        answer.set_cookie("user", "ann", httponly=True, samesite="strict")
        return answer

    async def logged_in(user: Annotated[str, Cookie()]) -> str:
        return user

    @app.post("/ticket")
    async def ticket(request: Request, user_id: Annotated[str, Depends(logged_in)]) -> str:
        return await tickets.issue(request, user_id)

    async def bearer_of(token: Annotated[str, Depends(bearer)]) -> str:
        if token not in TOKENS:
            raise HTTPException(401)
        return TOKENS[token]

    @rooms.ws_route("/by-ticket", user_id=tickets.redeem)
    async def by_ticket(message: Incoming[str], connection: ConnectionDep) -> str:
        return f'"{connection.user_id}"'

    @rooms.ws_route("/by-token", user_id=bearer_of)
    async def by_token(message: Incoming[str], connection: ConnectionDep) -> str:
        return f'"{connection.user_id}"'

    app.include_router(rooms.router)
    return app


@pytest.fixture(scope="module")
def server():
    with live(an_app()) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser, server):
    context = await browser.new_context()
    opened = await context.new_page()
    await opened.goto(server.url("/", "http"))
    yield opened
    await context.close()


@pytest.mark.parametrize(
    ("beside", "selected"), [(["bearer"], "bearer"), (["chat.v1"], "chat.v1"), (["bearer", "chat.v1"], "chat.v1")]
)
async def test_a_browser_takes_the_connection_because_something_that_it_offered_is_selected(page, beside, selected):
    assert await page.evaluate(OPEN, ["/by-token", [*beside, "bearer.a.JWT-has_these"]]) == [selected, "ann"]


async def test_a_token_that_no_subprotocol_can_be_is_encoded(page):
    encoded = await page.evaluate(ENCODE, "others/have+these==")
    assert await page.evaluate(OPEN, ["/by-token", ["bearer", f"base64url.bearer.{encoded}"]]) == ["bearer", "bob"]


@pytest.mark.parametrize("protocols", [[], ["bearer"], ["bearer", "bearer.unknown"], ["bearer.a.JWT-has_these"]])
async def test_a_browser_does_not_come_in_without_a_token_or_with_a_token_alone(page, protocols):
    assert await page.evaluate(OPEN, ["/by-token", protocols]) == 1006


async def test_a_page_asks_for_a_ticket_and_comes_in_with_it_once(page):
    ticket = await page.evaluate(ASK)
    assert await page.evaluate(OPEN, [f"/by-ticket?ticket={ticket}", []]) == ["", "ann"]
    assert await page.evaluate(OPEN, [f"/by-ticket?ticket={ticket}", []]) == 1006


async def test_a_ticket_that_another_page_got_hold_of_is_no_good_there(page, server):
    ticket = await page.evaluate(ASK)
    await page.goto(server.url("/", "http").replace("127.0.0.1", "localhost"))
    address = server.url(f"/by-ticket?ticket={ticket}")
    assert await page.evaluate(OPEN, [address, []]) == 1006
