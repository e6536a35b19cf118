"""A Redis Cluster in which everybody is there: who is reached over which connection, and slots that move."""

import asyncio
import contextlib
import random
from urllib.parse import quote
from uuid import uuid4

import redis
from fastapi import FastAPI
from support import fair_time, live, until

from fastapi_rooms import ConnectionDep, Incoming, RoomsExtension, RoomsSettings
from fastapi_rooms.domain.envelope import EVERYBODY, room_target, user_target
from faults_groups.nodes import LATE, nodes, rooms_of, slot_in, speaking

FOLLOWS = 1.0


def connections(cluster, name):
    """Per server: how many connections with this name listen, and how many do not."""
    return [
        tuple(sum(row["name"] == name for row in master.clients(kind)) for kind in ("pubsub", "normal"))
        for master in cluster.masters
    ]


# Who is reached


def chat(url, prefix):
    """An app with rooms whose clients say where they are and what their id is."""
    rooms = RoomsExtension(url, settings=RoomsSettings(key_prefix=prefix))
    app = FastAPI(lifespan=rooms.lifespan)

    def user_of(user: str) -> str:
        return user

    @rooms.ws_route("/rooms/{room}/{user}", room="{room}", user_id=user_of)
    async def talk(message: Incoming[str], connection: ConnectionDep, room: str, user: str) -> None:
        await connection.send(connection.connection_id)

    app.include_router(rooms.router)
    return app


async def test_rooms_users_everybody_and_single_connections_are_reached_on_other_nodes(cluster):
    prefix = uuid4().hex
    rooms = [rooms_of(cluster, prefix, master)[0].name for master in cluster.masters]
    apps = [chat(cluster.url, prefix) for _ in range(2)]
    with live(apps[0]) as here, live(apps[1]) as there:
        manager = apps[0].state.rooms
        async with contextlib.AsyncExitStack() as stack:
            clients = {
                (server, room): await stack.enter_async_context(
                    server.client(f"/rooms/{quote(room)}/{quote(f'user of {room}')}")
                )
                for server in (here, there)
                for room in rooms
            }
            for room in rooms:
                await here.call(manager.broadcast_to_room, room, f"to {room}")
                await here.call(manager.send_to_user, f"user of {room}", f"to the user of {room}")
            await here.call(manager.broadcast, "to everybody")
            for (_, room), client in clients.items():
                heard = [await client.receive() for _ in range(3)]
                assert sorted(heard) == sorted([f"to {room}", f"to the user of {room}", "to everybody"])
            far = clients[there, rooms[0]]
            await far.send("who am I?")
            await here.call(manager.send_personal, await far.receive(), "you alone")
            assert await far.receive() == "you alone"
            await here.call(manager.close_room, rooms[1], 4000, "over")
            assert await clients[there, rooms[1]].closed() == (4000, "over")


async def test_one_listens_and_one_publishes_per_shard_and_node(each_cluster):
    cluster, name = each_cluster, uuid4().hex
    async with nodes(2, f"{cluster.url}?client_name={name}", uuid4().hex) as (one, two):
        await one.joins(*(room_target(str(number)) for number in range(200)))
        for number in range(200):
            await two.says(room_target(str(number)), str(number))
        await one.received(200)
        await until(lambda: connections(cluster, name) == [(2, 2)] * 3, "no more is open than that")
    await until(lambda: connections(cluster, name) == [(0, 0)] * 3, "all is hung up")


async def test_a_broadcast_is_one_spublish_however_many_rooms_and_members_there_are(cluster):
    def published():
        return sum(master.calls("spublish") + master.calls("publish") for master in cluster.masters)

    rooms = [room_target(f"room {number}") for number in range(300)]
    async with nodes(3, cluster.url, uuid4().hex, probe_interval=60) as (speaker, *listeners):
        for node in listeners:
            await node.joins(*rooms)
        before = published()
        await asyncio.gather(*(speaker.says(room, room.name) for room in rooms))
        for target in (EVERYBODY, user_target("ann"), room_target("nobody is here")):
            await speaker.says(target, "hello")
        assert published() - before == 303
        for node in listeners:
            assert sorted(envelope.target.name for envelope in await node.received(301)) == sorted(
                ["", *(room.name for room in rooms)]
            )


async def test_names_pick_no_slot_and_a_room_is_one_channel_of_one_slot(each_cluster):
    cluster, prefix = each_cluster, uuid4().hex
    rooms = [room_target(name) for name in ("{tag}one", "{tag}two", "{tag}", "a{tag}", "{}", "{tag")]
    slots = {room: slot_in(prefix, room) for room in rooms}
    assert len(set(slots.values())) == len(rooms), "the tag counts no more than the rest"
    async with nodes(2, cluster.url, prefix) as (speaker, listener):
        await listener.joins(*rooms)
        for room in rooms:
            await speaker.says(room, room.name)
        await listener.received(len(rooms))
        assert all(listener.heard(room) == [room.name] for room in rooms)
        owners = cluster.owners()
        channels = {
            channel: master
            for master in cluster.masters
            for channel in cluster.shard_channels(master)
            if channel.startswith(f"{prefix}:room:")
        }
        assert len(channels) == len(rooms)
        for channel, master in channels.items():
            assert owners[master.call("CLUSTER", "KEYSLOT", channel)] is master


# Slots that move


async def test_a_room_is_followed_to_where_its_slot_moves(each_cluster):
    cluster, prefix = each_cluster, uuid4().hex
    here, there, _ = cluster.masters
    moved, stays = rooms_of(cluster, prefix, here, 2)
    (other,) = rooms_of(cluster, prefix, there)
    async with nodes(3, cluster.url, prefix) as (speaker, listener, both):
        for node in (listener, both):
            await node.joins(moved, stays, other)
        async with speaking(speaker, moved, stays, other) as said, speaking(both, moved) as echo:
            await asyncio.gather(*(one.is_heard_by(listener) for one in (*said, *echo)))
            cluster.move(slot_in(prefix, moved), there)
            at = fair_time()
            assert await said[0].is_heard_by(listener) - at < FOLLOWS
            assert await said[0].is_heard_by(both) - at < FOLLOWS
            assert await echo[0].is_heard_by(listener) - at < FOLLOWS
            for node in (listener, both):
                await until(lambda node=node: node.gaps, "the gap is reported")
        await asyncio.gather(*(one.check(listener) for one in (*said, *echo)), *(one.check(both) for one in said))
        assert not any(one.failed for one in (*said, *echo)), "what was sent on has arrived"
        for node in (listener, both):
            assert {target for gap in node.gaps for target in gap.targets} == {moved}, "nobody else missed anything"
            assert node.connected
            assert node.backend.status.reconnects == 0
            assert node.backend.status.probe_seconds
        assert speaker.gaps == []


async def test_slots_that_move_again_and_again_take_their_rooms_along(cluster):
    prefix, dice = uuid4().hex, random.Random(1)
    rooms = [room for master in cluster.masters for room in rooms_of(cluster, prefix, master, 2)]
    async with nodes(2, cluster.url, prefix) as (one, two):
        for node in (one, two):
            await node.joins(*rooms)
        async with speaking(one, *rooms) as said, speaking(two, *rooms[:2]) as echo:
            for _ in range(30):
                cluster.move(slot_in(prefix, dice.choice(rooms)), dice.choice(cluster.masters))
                await asyncio.sleep(dice.choice((0, 0, 0.01, 0.1, 0.2)))
            at = fair_time()
            for speaker in said:
                assert await speaker.is_heard_by(two) - at < FOLLOWS + LATE
        await asyncio.gather(*(speaker.check(two) for speaker in said), *(speaker.check(one) for speaker in echo))
        for node in (one, two):
            await node.settles()


async def test_who_joins_where_the_slot_is_no_more_waits_until_it_is_heard(cluster):
    prefix = uuid4().hex
    here, there, _ = cluster.masters
    rooms = rooms_of(cluster, prefix, here, 5)
    async with nodes(2, cluster.url, prefix) as (speaker, listener):
        cluster.move_all((slot_in(prefix, room) for room in rooms), there)
        for room in rooms:
            assert listener.connected, "it does not know yet"
            await listener.joins(room)
            await speaker.says(room, room.name)
            await listener.hears(room.name)


async def test_a_link_to_a_server_without_slots_ends_and_begins_anew_when_it_has_some(each_cluster):
    cluster, prefix, name = each_cluster, uuid4().hex, uuid4().hex
    left, there, _ = cluster.masters
    slots = [slot for slot, owner in cluster.owners().items() if owner is left]
    (room,) = rooms_of(cluster, prefix, left)
    async with nodes(2, f"{cluster.url}?client_name={name}", prefix) as (speaker, listener):
        await listener.joins(room)
        async with speaking(speaker, room) as (said,):
            await said.is_heard_by(listener)
            cluster.move_all(slots, there)
            at = fair_time()
            assert await said.is_heard_by(listener) - at < FOLLOWS
            await until(lambda: connections(cluster, name) == [(0, 0), (2, 2), (2, 2)], "they have left")
            await until(
                lambda: not any(f":{left.port}" in task.get_name() for task in asyncio.all_tasks()), "no task is left"
            )
            assert said.failed == {}, "what was under way to the server that was left has arrived"
            cluster.move_all(slots, left)
            at = fair_time()
            assert await said.is_heard_by(listener) - at < FOLLOWS
            await until(lambda: connections(cluster, name) == [(2, 2)] * 3, "they are back")
            await until(lambda: listener.connected and speaker.connected, "all is well")
        await said.check(listener)


async def test_a_slot_without_a_server_is_reported_and_heard_again_when_it_has_one(cluster):
    prefix = uuid4().hex
    owner = cluster.masters[0]
    known, fresh, other = rooms_of(cluster, prefix, owner, 3)
    slots = [slot_in(prefix, room) for room in (known, fresh)]
    async with nodes(2, cluster.url, prefix) as (speaker, listener):
        await listener.joins(known, other)
        cluster.everywhere("CLUSTER", "DELSLOTS", *slots)
        try:
            async with speaking(speaker, known, fresh, other) as said:
                await until(lambda: not listener.connected and not speaker.connected, "it is noticed")
                await listener.joins(fresh)
                for one in said[:2]:
                    await until(lambda one=one: one.failed, "nobody takes it")
                await said[2].is_heard_by(listener)
                owner.call("CLUSTER", "ADDSLOTS", *slots)
                at = fair_time()
                for one in said[:2]:
                    assert await one.is_heard_by(listener) - at < FOLLOWS + LATE
                await until(lambda: listener.connected, "all is well")
            for one in said:
                await one.check(listener)
            assert said[2].failed == {}
            await until(lambda: listener.gaps_of(known) and listener.gaps_of(fresh), "the gap is reported")
            assert listener.gaps_of(other) == []
        finally:
            with contextlib.suppress(redis.ResponseError):  # it has them
                owner.call("CLUSTER", "ADDSLOTS", *slots)
