"""One-time tickets on a real server: who is let in with one, and everybody who is not."""

import asyncio
import json
import logging
import secrets
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import quote
from uuid import uuid4

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from stage import refused
from support import live
from websockets.exceptions import InvalidStatus

from fastapi_rooms import (
    CloseCode,
    ConfigurationError,
    ConnectionDep,
    ConnectionManager,
    Identity,
    Incoming,
    RoomsExtension,
    RoomsSettings,
)
from fastapi_rooms.backends.memory import LocalStore
from fastapi_rooms.domain.refusal import Refusal
from fastapi_rooms.domain.tickets import key_of
from fastapi_rooms.testing import LocalCluster
from fastapi_rooms.web.tickets import Tickets

PAGE = "http://chat.example"


class Site:
    """An app that issues tickets to whoever says a name, and lets in who has one."""

    def __init__(self, rooms, **options):
        self.rooms = rooms
        self.now = 1000.0
        self.tickets = Tickets(clock=lambda: self.now, **options)
        self.app = FastAPI()

        async def logged_in(x_user: Annotated[str, Header()] = "") -> str:
            if not x_user:
                raise HTTPException(401)
            return x_user

        @rooms.router.api_route("/ticket", methods=["GET", "POST"])
        async def ticket(
            request: Request, user_id: Annotated[str, Depends(logged_in)], seconds: float | None = None
        ) -> str:
            expires_at = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
            return await self.tickets.issue(request, user_id, expires_at)

        @rooms.router.post("/logout")
        async def logout(user_id: Annotated[str, Depends(logged_in)]) -> None:
            await rooms.manager.close_user(user_id, CloseCode.REVOKED)

        @rooms.ws_route("/ws", user_id=self.tickets.redeem)
        async def ws(message: Incoming[str], connection: ConnectionDep) -> str:
            return f"{connection.user_id} said {message}"

        self.app.include_router(rooms.router)


async def ask(server, user="ann", origin=PAGE, method="POST", path="/ticket"):
    headers = {"x-user": user, **({} if origin is None else {"origin": origin})}
    async with server.http() as http:
        return await http.request(method, path, headers=headers)


async def log_out(server, user="ann"):
    assert (await ask(server, user, path="/logout")).status_code == 200


async def ticket_for(server, *args, **options):
    response = await ask(server, *args, **options)
    assert response.status_code == 200, response.text
    return response.json()


def door(ticket):
    return f"/ws?ticket={ticket}"


async def comes_in(server, ticket, origin=PAGE):
    async with server.client(door(ticket), origin=origin) as client:
        await client.send("hello")
        return await client.receive()


async def is_refused(server, ticket="", origin=PAGE, path=None):
    response = await refused(server, path or door(ticket), origin=origin)
    return response.status_code, bytes(response.body), sorted(response.headers.raw_items())


def without_dates(answer):
    status, body, headers = answer
    return status, body, tuple((name, value) for name, value in headers if name.lower() != "date")


@pytest.fixture
def site(request):
    """A site whose own check of HTTP origins is off, so that what is seen is that of the tickets."""
    wire = request.getfixturevalue("wire") if "wire" in request.fixturenames else "auto"
    return Site(RoomsExtension(settings=RoomsSettings(wire=wire, allowed_origins=["*"])))


async def test_who_has_a_ticket_is_let_in_as_its_user(stage, wire, loop, site):
    async with stage.plays(site.app) as server:
        ann, bob = await ticket_for(server, "ann"), await ticket_for(server, "bob")
        assert await comes_in(server, bob) == "bob said hello"
        assert await comes_in(server, ann) == "ann said hello"


async def test_who_is_not_logged_in_is_given_no_ticket(stage, site):
    async with stage.plays(site.app) as server:
        assert (await ask(server, user="")).status_code == 401


async def test_a_ticket_is_good_once(stage, site):
    async with stage.plays(site.app) as server:
        ticket = await ticket_for(server)
        await comes_in(server, ticket)
        assert (await is_refused(server, ticket))[0] == 401


async def test_of_two_who_show_a_ticket_at_once_one_is_let_in(stage, site):
    async with stage.plays(site.app) as server:
        for _ in range(10):
            ticket = await ticket_for(server)
            assert await how_many_come_in([server] * 5, ticket) == 1


async def how_many_come_in(servers, ticket):
    outcomes = await asyncio.gather(*(comes_in(server, ticket) for server in servers), return_exceptions=True)
    refusals = [one for one in outcomes if isinstance(one, InvalidStatus) and one.response.status_code == 401]
    come_in = outcomes.count("ann said hello")
    assert come_in + len(refusals) == len(servers), outcomes
    return come_in


async def test_a_ticket_is_void_when_its_time_is_over(stage, site):
    async with stage.plays(site.app) as server:
        early, late = await ticket_for(server), await ticket_for(server)
        site.now += 29.9
        await comes_in(server, early)
        site.now += 0.1
        assert (await is_refused(server, late))[0] == 401


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://chat.example", "http://chat.example:81", "null", None, "nonsense"]
)
async def test_a_ticket_is_good_only_for_the_page_that_asked_and_lost_at_any_other(stage, site, origin):
    async with stage.plays(site.app) as server:
        ticket = await ticket_for(server)
        assert (await is_refused(server, ticket, origin))[0] == 401
        assert (await is_refused(server, ticket))[0] == 401, "it is used up"


async def test_a_page_that_may_not_connect_is_refused_before_a_ticket_is_looked_at(stage):
    site = Site(RoomsExtension(settings=RoomsSettings(allowed_origins=[PAGE])))
    async with stage.plays(site.app) as server:
        ticket = await ticket_for(server)
        assert (await is_refused(server, ticket, "http://evil.example"))[0] == 403
        assert await comes_in(server, ticket) == "ann said hello", "it was not used up"


async def test_who_asks_without_a_page_may_come_without_one_or_from_a_page_of_the_app(stage, site):
    async with stage.plays(site.app) as server:
        for origin in (None, server.url("", "http")):
            for method in ("GET", "POST"):
                ticket = await ticket_for(server, origin=None, method=method)
                assert await comes_in(server, ticket, origin) == "ann said hello"
        assert (await is_refused(server, await ticket_for(server, origin=None)))[0] == 401


async def test_who_asks_with_two_hosts_gets_a_ticket_for_no_page(site):
    with live(site.app) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        own = f"127.0.0.1:{server.port}"
        lines = [
            "GET /ticket HTTP/1.1",
            f"Host: {own}",
            "Host: evil.example",
            "x-user: ann",
            "Connection: close",
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b" 200 " in head.splitlines()[0]
        assert (await is_refused(server, json.loads(body), f"http://{own}"))[0] == 401, "the first was not believed"


async def test_who_comes_from_two_pages_comes_from_none(site):
    """uvicorn's default protocol refuses two origins itself."""
    with live(site.app, ws="wsproto") as server:
        ticket = await ticket_for(server)
        answer = await refused(server, door(ticket), origin=PAGE, additional_headers={"Origin": "http://evil.example"})
        assert answer.status_code == 401


@pytest.mark.parametrize("origin", ["null", "file://", "https://chat.example/page"])
async def test_a_page_without_an_origin_is_given_no_ticket(stage, site, origin):
    async with stage.plays(site.app) as server:
        assert (await ask(server, origin=origin)).status_code == 403


async def test_whatever_is_wrong_the_answer_is_the_same(stage, site):
    async with stage.plays(site.app) as server:
        used, foreign, old = [await ticket_for(server) for _ in range(3)]
        await comes_in(server, used)
        answers = {
            "used": await is_refused(server, used),
            "foreign": await is_refused(server, foreign, "http://evil.example"),
            "guessed": await is_refused(server, secrets.token_urlsafe(32)),
            "too short": await is_refused(server, "x"),
            "too long": await is_refused(server, "x" * 5_000),
            "no letters": await is_refused(server, "%00%ff%C3%A9"),
            "empty": await is_refused(server, ""),
            "twice": await is_refused(server, f"{old}&ticket={used}"),
            "none": await is_refused(server, path="/ws"),
        }
        site.now += 30
        answers["old"] = await is_refused(server, old)
    assert len({without_dates(answer) for answer in answers.values()}) == 1, answers
    status, body, headers = answers["used"]
    assert (status, body) == (401, b'{"detail":"Valid credentials are needed."}')
    assert ("www-authenticate", "Ticket") in [(name.lower(), value) for name, value in headers]


async def test_tickets_are_long_random_and_need_no_quoting(stage, site):
    async with stage.plays(site.app) as server:
        tickets = [await ticket_for(server) for _ in range(50)]
    assert len(set(tickets)) == 50
    assert all(len(ticket) == 43 and quote(ticket, safe="") == ticket for ticket in tickets)


async def test_tickets_for_something_else_are_no_good(stage, site):
    other = Tickets(purpose="admin")
    other._here = site.tickets._here  # as two objects share the store of a backend

    @site.rooms.ws_route("/admin", user_id=other.redeem)
    async def admin(message: Incoming[str]) -> None:
        raise AssertionError("nobody comes here")

    site.app = FastAPI()
    site.app.include_router(site.rooms.router)
    async with stage.plays(site.app) as server:
        response = await refused(server, f"/admin?ticket={await ticket_for(server)}", origin=PAGE)
        assert response.status_code == 401


async def test_what_is_no_claim_lets_nobody_in(stage, site):
    ticket = secrets.token_urlsafe(32)
    await site.tickets._here.put(key_of("ws", ticket), b'{"user_id": 1}', 30)
    async with stage.plays(site.app) as server:
        assert (await is_refused(server, ticket))[0] == 401


async def test_a_name_that_no_user_can_have_is_given_no_ticket(site):
    request = Request({"type": "http", "headers": [], "scheme": "http", "path": "/", "server": ("a", 80)})
    with pytest.raises(ValueError, match="user_id is empty"):
        await site.tickets.issue(request, "")


async def test_neither_our_log_nor_a_repr_shows_a_ticket_and_that_of_uvicorn_shows_a_spent_one(stage, site, caplog):
    caplog.set_level(logging.DEBUG, "fastapi_rooms")
    caplog.set_level(logging.INFO, "uvicorn")
    async with stage.plays(site.app) as server:
        ticket = await ticket_for(server)
        await comes_in(server, ticket)
        logged = [record for record in caplog.records if ticket in record.getMessage()]
        assert {record.name for record in logged} == {"uvicorn.error"}, "it writes the URL, as every proxy does"
        assert (await is_refused(server, ticket))[0] == 401, "by then it is no good any more"
    assert repr(site.tickets) == "<Tickets seconds=30 purpose='ws'>"


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("inf"), float("nan"), "30"])
def test_a_time_that_makes_no_sense_is_refused(seconds):
    with pytest.raises(ConfigurationError, match="half a minute"):
        Tickets(seconds=seconds)


async def test_the_oldest_is_void_when_there_are_more_than_a_process_keeps(stage, site, monkeypatch):
    site.tickets._here = LocalStore(max_values=2)
    async with stage.plays(site.app) as server:
        first, *others = [await ticket_for(server) for _ in range(3)]
        assert (await is_refused(server, first))[0] == 401
        for ticket in others:
            await comes_in(server, ticket)


async def test_who_has_no_extension_names_a_manager(stage):
    manager = ConnectionManager()
    tickets = Tickets(manager=manager)
    app = FastAPI()

    @app.get("/ticket")
    async def ticket(request: Request) -> list[str]:
        issued = await tickets.issue(request, "ann")
        return [issued, (await tickets.redeem(request_with(request, issued))).user_id]

    def request_with(request, issued):
        return Request({**request.scope, "query_string": f"ticket={issued}".encode()})

    async with stage.plays(app) as server, server.http() as http:
        assert (await http.get("/ticket")).json()[1] == "ann"


async def test_the_manager_that_is_named_counts_who_has_no_ticket(stage):
    manager = ConnectionManager()
    tickets = Tickets(manager=manager)
    app = FastAPI()

    @app.websocket("/ws")
    async def ws(who: Annotated[Identity, Depends(tickets.redeem)]):
        raise AssertionError("nobody comes here")

    async with stage.plays(app) as server:
        assert (await refused(server, door("x" * 43))).status_code == 401
    assert manager.stats().refused[Refusal.CREDENTIALS] == 1


async def test_without_an_app_who_has_no_ticket_is_told_so():
    scope = {"type": "http", "headers": [], "query_string": b""}
    with pytest.raises(HTTPException) as raised:
        await Tickets().redeem(Request(scope))
    assert raised.value.status_code == 401


# Tickets and logins that end


async def test_a_connection_ends_with_the_login_by_which_its_ticket_was_asked_for(stage, site):
    async with stage.plays(site.app) as server:
        ticket = await ticket_for(server, path="/ticket?seconds=0.3")
        async with server.client(door(ticket), origin=PAGE) as client:
            assert (await client.closed())[0] == CloseCode.LOGIN_EXPIRED


async def test_a_ticket_is_void_when_the_login_has_expired(stage, site):
    async with stage.plays(site.app) as server:
        ticket = await ticket_for(server, path="/ticket?seconds=-1")
        assert (await is_refused(server, ticket))[0] == 401


async def test_an_expiry_without_a_zone_is_refused(site):
    request = Request({"type": "http", "headers": [], "scheme": "http", "path": "/", "server": ("a", 80)})
    with pytest.raises(ConfigurationError, match="has no zone"):
        await site.tickets.issue(request, "ann", datetime(2026, 1, 1))  # noqa: DTZ001 - that is what is refused


async def test_a_ticket_of_who_was_closed_is_void_and_one_that_is_asked_for_afterwards_good(stage, site):
    async with stage.plays(site.app) as server:
        before, of_bob = await ticket_for(server), await ticket_for(server, "bob")
        await log_out(server)
        assert (await is_refused(server, before))[0] == 401
        assert await comes_in(server, await ticket_for(server)) == "ann said hello"
        assert await comes_in(server, of_bob) == "bob said hello"


# Many nodes


@asynccontextmanager
async def two_servers(*sources, **settings):
    settings = RoomsSettings(key_prefix=uuid4().hex, allowed_origins=[PAGE], **settings)
    sites = [Site(RoomsExtension(source, settings=settings)) for source in sources]
    for one in sites:
        one.app = FastAPI(lifespan=one.rooms.lifespan)
        one.app.include_router(one.rooms.router)
    with live(sites[0].app) as here, live(sites[1].app) as there:
        yield here, there, settings.key_prefix


async def test_a_ticket_of_who_was_closed_on_another_node_is_void(shared_broker):
    async with two_servers(shared_broker.url, shared_broker.url) as (here, there, _):
        before, of_bob = await ticket_for(there), await ticket_for(here, "bob")
        await log_out(here)
        assert (await is_refused(there, before))[0] == 401
        assert await comes_in(there, await ticket_for(here)) == "ann said hello"
        assert await comes_in(there, of_bob) == "bob said hello"


async def test_where_no_revocations_are_kept_a_ticket_is_good_whoever_was_closed(shared_broker):
    async with two_servers(*[shared_broker.url] * 2, revocation_seconds=None) as (here, there, _):
        ticket = await ticket_for(here)
        await log_out(here)
        assert await comes_in(there, ticket) == "ann said hello"


async def test_who_was_closed_at_a_time_that_nobody_can_read_is_refused(shared_broker, caplog):
    async with two_servers(*[shared_broker.url] * 2) as (here, there, prefix):
        ticket = await ticket_for(here)
        await log_out(here)
        later = await ticket_for(here)
        (key,) = [key for key in shared_broker.call("KEYS", f"{prefix}*") if "closed" in key]
        shared_broker.call("SET", key, "x")
        for one in (ticket, later):
            assert (await is_refused(there, one))[0] == 401
    assert caplog.text.count("a ticket was refused, since what is kept") == 1, "once a minute"


async def test_why_tickets_are_out_of_reach_is_logged_once_a_minute(broker, caplog):
    broker.call("ACL", "SETUSER", "rooms", "on", ">secret", "+@all", "-getdel", "~*", "&*")
    url = broker.url.replace("://", "://rooms:secret@")
    async with two_servers(url, url) as (here, _, _):
        for _ in range(2):
            response = await refused(here, door(await ticket_for(here)), origin=PAGE)
            assert response.status_code == 503
    said = [record.getMessage() for record in caplog.records if "tickets are out of reach" in record.getMessage()]
    assert len(said) == 1
    assert "getdel" in said[0].lower()


async def test_a_ticket_of_one_node_is_good_once_on_all(shared_broker):
    async with two_servers(shared_broker.url, shared_broker.url) as (here, there, _):
        assert await comes_in(there, await ticket_for(here)) == "ann said hello"
        for _ in range(10):
            assert await how_many_come_in([here, there, there, here], await ticket_for(here)) == 1


async def test_redis_holds_no_ticket_and_forgets_what_is_left_of_it(shared_broker):
    async with two_servers(shared_broker.url, shared_broker.url) as (here, there, prefix):
        used, left = await ticket_for(here), await ticket_for(here)
        keys = shared_broker.call("KEYS", f"{prefix}*")
        assert len(keys) == 2
        for key in keys:
            assert 20_000 < shared_broker.call("PTTL", key) <= 30_000
            kept = key + shared_broker.call("GET", key)
            assert used not in kept
            assert left not in kept
        await comes_in(there, used)
        assert len(shared_broker.call("KEYS", f"{prefix}*")) == 1
        (key,) = shared_broker.call("KEYS", f"{prefix}*")
        shared_broker.call("PEXPIRE", key, 0)
        assert (await is_refused(there, left))[0] == 401


async def test_the_answer_is_503_while_redis_is_away(broker):
    async with two_servers(broker.url, broker.url, publish_timeout=0.5) as (here, _, _):
        ticket = await ticket_for(here)
        broker.kill()
        asked = await ask(here)
        shown = await refused(here, door(ticket), origin=PAGE)
    for status, headers in ((asked.status_code, asked.headers), (shown.status_code, shown.headers)):
        assert (status, headers["retry-after"]) == (503, "1")


async def test_nodes_of_one_process_share_tickets():
    async with two_servers(*LocalCluster(2)) as (here, there, _):
        assert await comes_in(there, await ticket_for(here)) == "ann said hello"


class Storeless:
    """A backend without a store."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def status(self):
        return self.inner.status

    async def start(self, *args, **options):
        await self.inner.start(*args, **options)

    async def stop(self):
        await self.inner.stop()

    def publish(self, envelope):
        return self.inner.publish(envelope)

    def subscribe(self, targets):
        return self.inner.subscribe(targets)

    def unsubscribe(self, targets):
        self.inner.unsubscribe(targets)


async def test_without_a_store_a_ticket_is_good_on_the_node_that_issued_it_which_is_said_once(caplog):
    async with two_servers(*map(Storeless, LocalCluster(2))) as (here, there, _):
        assert await comes_in(here, await ticket_for(here)) == "ann said hello"
        assert (await is_refused(there, await ticket_for(here)))[0] == 401
    said = [record.getMessage() for record in caplog.records if "tickets" in record.getMessage()]
    assert [line.partition(": <Dist")[0] for line in said] == ["tickets are good only on the node that issued them"] * 2
