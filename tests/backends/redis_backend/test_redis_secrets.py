"""Credentials open doors, and show nowhere: not in a repr, a log, an error, or what an error is chained to."""

import asyncio
import logging
import traceback
from urllib.parse import quote
from uuid import uuid4

import pytest
from brokers.server import Broker, running
from redis.asyncio import Redis
from redis.credentials import CredentialProvider
from redis_nodes import ROOM, Node, running_nodes, some_settings
from scripted_redis import ScriptedRedis

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis.publisher import Publisher
from fastapi_rooms.backends.redis.sync_publisher import SyncPublisher

PASSWORDS = [
    "hunter2secret",
    "p@ss:w/o#r?d&k=v",
    "per%40cent%and%2525",
    " two words ",
    "[::1]:6379,redis://",
    "'\"\\`$(){}<>|;*+~^!",
    "🦆é\u0301ß",
    "x" * 300,
]
HIDDEN = "hunter2secret"


def url_of(broker, user, password):
    return f"redis://{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{broker.port}"


async def reaches(source, listener):
    """Check that all three ways to publish reach a node, and that a node by this way hears it."""
    node = Node(source, ROOM, settings=listener.settings)
    await node.start(required=True)
    await node.settled()
    await node.say("node")
    await listener.say("answer")
    await node.received(1)
    await node.backend.stop()
    async with Publisher(source, settings=listener.settings) as publisher:
        await publisher.broadcast_to_room("kitchen", "async")
    with SyncPublisher(source, settings=listener.settings) as publisher:
        await asyncio.to_thread(publisher.broadcast_to_room, "kitchen", "sync")
    await listener.received(3)
    assert listener.heard == ["node", "async", "sync"]
    listener.envelopes.clear()


async def test_a_password_opens_whatever_it_is_made_of(broker):
    async with running_nodes(broker.url, 1, ROOM) as (listener,):
        for password in PASSWORDS:
            broker.call("CONFIG", "SET", "requirepass", password)
            await reaches(url_of(broker, "", password), listener)
            await reaches(Redis(port=broker.port, password=password), listener)


async def test_a_user_is_let_in_whatever_the_name_is_made_of(broker):
    async with running_nodes(broker.url, 1, ROOM) as (listener,):
        for user, password in zip(["ann", "a@b:c/d", "ann%41", "🦆"], PASSWORDS[::-1], strict=False):
            broker.call("ACL", "SETUSER", user, "on", f">{password}", "resetchannels", "&*", "+@all")
            await reaches(url_of(broker, user, password), listener)
            if "%" not in user + password:  # old versions of redis-py decode a query twice
                query = f"username={quote(user)}&password={quote(password, safe='')}"
                await reaches(f"redis://127.0.0.1:{broker.port}?{query}", listener)
            await reaches(Redis(port=broker.port, username=user, password=password), listener)


async def test_a_user_needs_to_publish_and_to_subscribe_and_nothing_else(broker):
    settings = some_settings()
    broker.call(
        "ACL", "SETUSER", "ann", "on", ">secret", "resetkeys", "resetchannels", f"&{settings.key_prefix}:*",
        "nocommands", "+publish", "+subscribe", "+unsubscribe",
    )  # fmt: skip
    node, other = (Node(url_of(broker, "ann", "secret"), ROOM, settings=settings) for _ in range(2))
    for one in (node, other):
        await one.start(required=True)
        await one.settled()
    await node.say("hello")
    await other.received(1)
    for one in (node, other):
        await one.backend.stop()
    with SyncPublisher(url_of(broker, "ann", "secret"), settings=settings) as publisher:
        await asyncio.to_thread(publisher.broadcast, "hello")


async def test_a_credential_provider_is_asked(each_broker):
    user = uuid4().hex
    each_broker.call("ACL", "SETUSER", user, "on", ">secret", "resetchannels", "&*", "+@all")

    class Provider(CredentialProvider):
        def get_credentials(self):
            return user, "secret"

    async with running_nodes(each_broker.url, 1, ROOM) as (listener,):
        await reaches(Redis(port=each_broker.port, credential_provider=Provider()), listener)


@pytest.mark.parametrize("error", [KeyError("no token"), OSError("no token"), RuntimeError("no token")])
async def test_a_credential_provider_that_fails_for_a_while_keeps_nobody_away(each_broker, error):
    class Provider(CredentialProvider):
        fails = True

        def get_credentials(self):
            if self.fails:
                raise error
            return ("default", "whatever")

    provider = Provider()
    client = Redis(port=each_broker.port, credential_provider=provider)
    node = Node(client, ROOM)
    with pytest.raises(BackendUnavailable) as refused:
        await node.start(required=True)
    assert "no token" in str(refused.value.__cause__)
    await node.start()
    provider.fails = False
    await node.connected()
    await node.backend.stop()
    provider.fails = True
    with pytest.raises(BackendUnavailable, match="no token"):
        SyncPublisher(client).broadcast("hello")


def shown(error):
    """Everything that an error shows, with all that is chained to it."""
    seen = []
    while error is not None:
        seen += [str(error), repr(error), str(error.args), "".join(traceback.format_exception(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(seen)


async def everything_shown_by(source, caplog):
    """Have Redis refuse everybody; return all texts that come of it."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.DEBUG)
    node, publisher, sync_publisher = Node(source, ROOM), Publisher(source), SyncPublisher(source)
    texts = [repr(node.backend), repr(publisher), repr(sync_publisher)]
    texts += [repr(node.backend._place), repr(sync_publisher._place)]
    await node.start()
    texts += [repr(task) for task in asyncio.all_tasks()]
    texts += [repr(node.backend), repr(node.backend.status)]
    for call in (lambda: node.say("hello"), lambda: publisher.broadcast("hello"), publisher.start):
        with pytest.raises(BackendUnavailable) as refused:
            await call()
        texts.append(shown(refused.value))
    with pytest.raises(BackendUnavailable) as refused:
        await asyncio.to_thread(sync_publisher.broadcast, "hello")
    texts.append(shown(refused.value))
    await node.backend.stop()
    texts += [shown(record.exc_info[1]) for record in caplog.records if record.exc_info]
    return "\n".join([*texts, caplog.text])


@pytest.fixture
def closed_broker(broker):
    """A server that nobody is let into without the right password, which nobody has."""
    broker.call("CONFIG", "SET", "requirepass", "right")
    return broker


SOURCES = {
    "url": lambda port: f"redis://ann:{HIDDEN}@127.0.0.1:{port}",
    "password alone": lambda port: f"redis://:{HIDDEN}@127.0.0.1:{port}",
    "query": lambda port: f"redis://127.0.0.1:{port}?username=ann&password={HIDDEN}",
    "client": lambda port: Redis(port=port, username="ann", password=HIDDEN),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
async def test_a_wrong_password_is_refused_and_not_shown(closed_broker, caplog, source):
    texts = await everything_shown_by(source(closed_broker.port), caplog)
    assert "invalid username-password pair" in texts
    assert HIDDEN not in texts


async def test_no_password_where_one_is_needed_is_said(closed_broker, caplog):
    assert "Authentication required" in await everything_shown_by(closed_broker.url, caplog)


@pytest.mark.parametrize("password", [HIDDEN, HIDDEN * 20])
async def test_a_server_that_quotes_what_it_was_sent_is_not_quoted(broker_kind, tmp_path, caplog, password):
    broker = Broker(broker_kind, tmp_path, 'rename-command AUTH ""')
    with running(broker):
        texts = await everything_shown_by(url_of(broker, "ann", password), caplog)
    assert "unknown command 'AUTH'" in texts
    assert HIDDEN not in texts


async def test_a_password_is_not_shown_by_what_is_not_there(caplog):
    texts = await everything_shown_by(f"redis://ann:{HIDDEN}@127.0.0.1:1", caplog)
    assert "127.0.0.1:1" in texts
    assert HIDDEN not in texts


@pytest.mark.parametrize(
    "greeting", [b"-ERR \xff\xfe\r\n", b"garbage\r\n", b"+NO\r\n", b"-LOADING wait\r\n", b":1\r\n"]
)
async def test_a_password_is_not_shown_by_what_is_no_redis(caplog, greeting):
    async with ScriptedRedis() as server:
        server.greeting = greeting
        texts = await everything_shown_by(f"redis://ann:{HIDDEN}@127.0.0.1:{server.port}", caplog)
    assert "cannot be reached" in texts
    assert HIDDEN not in texts
