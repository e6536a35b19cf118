"""Clients that do not behave well. Each pays a visit, does one thing, and checks that it is treated as it deserves."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

from wire.strict_client import NO_TAKEOVER, PLAIN, TAKEOVER, Violation

from soak.inputs import (
    BINARY,
    CONTINUATION,
    ENDINGS,
    FIN,
    FRAMES,
    HANDSHAKES,
    MESSAGES,
    NAMES,
    PING,
    RSV1,
    SIZES,
    TEXT,
    TOO_MUCH,
    Wrong,
    command,
)
from soak.nodes import MAX_SIZE
from soak.visits import Stranger, Treated, Visit, be_closed, read_for, vanish

NOISE = "noise"
SMALL = 4 * 1024
"""A receive buffer that is full soon."""
PONG = '{"type":"pong"}'
"""What costs a server least; counts nevertheless."""

Kind = Callable[[Visit], Awaitable[str]]
"""Does one thing, and returns what came of it, in a word for the statistics."""


# Coming and going


async def look_in(visit: Visit) -> str:
    offer = visit.chance.choice([PLAIN, TAKEOVER, NO_TAKEOVER])
    async with visit.client(f"/ws?room={visit.room()}", offer=offer) as client:
        await client.send_text(command("join", visit.room()))
        await client.send_text(command("noise", NOISE, pad="hello"))
        await read_for(client, visit.chance.uniform(0, 1))
        return await vanish(client, visit.chance)


async def say_goodbye(visit: Visit) -> str:
    ending = visit.draw(ENDINGS)
    async with visit.client(f"/ws?room={visit.room()}") as client:
        await visit.pause(0.5)
        await send_all(client, ending)
        return f"{ending.name}, {await be_closed(client, *ending.codes)}"


async def half_close(visit: Visit) -> str:
    async with visit.client(f"/ws?room={visit.room()}") as client:
        client._socket.shutdown(socket.SHUT_WR)
        await client.read_to_end()
        return "ended"


async def come_and_go(visit: Visit) -> str:
    async with visit.client() as client:
        for number in range(20):
            room = f"corner-{visit.chance.randrange(200)}"
            await client.send_text(command("join", room, number))
            await client.send_text(command("leave", room, number))
        if visit.chance.random() < 0.5:
            await client.read_until(lambda: len(client.of("text")) >= 40)
        return await vanish(client, visit.chance)


async def want_many_rooms(visit: Visit) -> str:
    visit.may("max_rooms_per_connection", 6)
    async with visit.client() as client:
        for number in range(70):
            await client.send_text(command("join", f"corner-{number}", number))
        await client.read_until(lambda: len(client.of("text")) == 70)
        refused = sum(json.loads(one).get("code") == "too_many_rooms" for one in client.of("text"))
        if refused != 6:
            raise Treated(f"{refused} of 70 joins were refused instead of 6")
        visit.did("max_rooms_per_connection", 6)
        return await vanish(client, visit.chance)


async def be_thrown_out(visit: Visit) -> str:
    user = uuid4().hex
    async with visit.client(f"/ws?room={visit.room()}&user={user}") as client:
        await visit.other.close_user(user)
        # It may be that the nodes do not hear each other now.
        if await read_for(client, 2):
            return await vanish(client, visit.chance)
        return "no close frame" if client.close_frame is None else str(client.close_frame[0])


# Not reading


async def freeze(visit: Visit) -> str:
    async with visit.client(f"/ws?room={NOISE}", SMALL) as client:
        await client.send_text(command("join", visit.room()))
        await visit.pause(6)
        return await vanish(client, visit.chance)


async def freeze_in_a_stream(visit: Visit) -> str:
    async with visit.client("/stream", SMALL) as client:
        await client.send_text("go")
        with contextlib.suppress(Violation):  # who pauses may be cut off at any time
            await read_for(client, visit.chance.uniform(0, 0.2))
        await visit.pause(5)
        return await vanish(client, visit.chance)


async def ping_without_reading(visit: Visit) -> str:
    async with visit.client(f"/ws?room={NOISE}", SMALL) as client:
        end = time.monotonic() + 5
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                while time.monotonic() < end:
                    for _ in range(20):
                        await client.ping(bytes(125))
                    await asyncio.sleep(0.005)
        return await vanish(client, visit.chance)


async def let_the_handler_work(visit: Visit) -> str:
    async with visit.client("/busy") as client:
        await client.send_text("work")
        return await vanish(client, visit.chance)


async def fill_the_inbox(visit: Visit) -> str:
    visit.may("full_inbox")
    async with visit.client("/busy") as client:
        for _ in range(400):
            await client.send_text("more work")
        code = await be_closed(client, 1013)
        visit.did("full_inbox")
        return code


# Too much


async def flood(visit: Visit) -> str:
    visit.may("flooding")
    visit.may("rate_limited", 1 << 30)
    async with visit.client(f"/ws?room={visit.room()}") as client:

        async def send() -> None:
            with contextlib.suppress(OSError):
                while client.close_frame is None:
                    for _ in range(50):
                        await client.send_text(PONG)
                    await asyncio.sleep(0.005)

        sending = asyncio.create_task(send())
        try:
            is_there = await read_for(client, 6)
        finally:
            sending.cancel()
            await asyncio.wait([sending])
        if is_there:
            return await vanish(client, visit.chance)  # a node that has much to do is slower than the limit
        return judge_flood(visit, client)


def judge_flood(visit: Visit, client: Stranger) -> str:
    if client.close_frame is None:
        return "ended without a close frame"  # it was still sending
    if client.close_frame[0] != 1008:
        raise Treated(f"closed with {client.close_frame} instead of 1008")
    told = [one for one in client.of("text") if json.loads(one).get("code") == "rate_limited"]
    if not told:
        raise Treated("never told that it is rate limited")
    visit.did("flooding")
    visit.did("rate_limited", 100)
    return "1008"


async def make_noise(visit: Visit) -> str:
    visit.may("full_inbox")  # if each message waits for a Redis that is silent
    async with visit.client() as client:
        for _ in range(60):
            await client.send_text(command("noise", NOISE, pad="x" * visit.chance.randrange(60_000)))
        await read_for(client, visit.chance.uniform(0, 1))
        return await vanish(client, visit.chance)


async def send_too_much(visit: Visit) -> str:
    first, data = visit.draw(TOO_MUCH)
    visit.may("oversized")
    async with visit.client() as client:
        await client.send_frame(FIN | first, data)
        code = await be_closed(client, 1009)
        visit.did("oversized")
        return code


async def announce_too_much(visit: Visit) -> str:
    size = visit.draw(SIZES)
    async with visit.client() as client:
        head = bytes((FIN | TEXT, 0x80 | 127)) + size.to_bytes(8, "big") + bytes(4)
        await asyncio.get_running_loop().sock_sendall(client._socket, head)
        return await be_closed(client, 1009)


async def never_finish(visit: Visit) -> str:
    async with visit.client() as client:
        with contextlib.suppress(OSError):
            await client.send_frame(TEXT, bytes(60_000))
            for _ in range(MAX_SIZE // 60_000):
                await client.send_frame(CONTINUATION, bytes(60_000))
        return await be_closed(client, 1009)


async def ping_and_read(visit: Visit) -> str:
    async with visit.client() as client:
        pings = [str(number).encode() for number in range(300)]
        for ping in pings:
            await client.ping(ping)
        await client.read_until(lambda: len(client.of("pong")) == len(pings))
        if client.of("pong") != pings:
            raise Treated("pongs in another order than the pings")
        return await vanish(client, visit.chance)


# What cannot be read


async def send_all(client: Stranger, wrong: Wrong) -> None:
    for first, payload, is_masked in wrong.frames:
        await client.send_frame(first, payload, is_masked=is_masked)


async def break_the_protocol(visit: Visit) -> str:
    wrong = visit.draw(FRAMES)
    async with visit.client(f"/ws?room={visit.room()}") as client:
        await send_all(client, wrong)
        try:
            return f"{wrong.name}: {await be_closed(client, *wrong.codes)}"
        except Treated as treated:
            raise Treated(f"{wrong.name}: {treated}") from treated


async def talk_nonsense(visit: Visit) -> str:
    visit.may("invalid", 10)
    visit.may("invalid_data")
    async with visit.client() as client:
        messages = visit.chance.sample(MESSAGES, 10)
        for message in messages:
            is_text = isinstance(message, str)
            await client.send_frame(FIN | (TEXT if is_text else BINARY), message.encode() if is_text else message)
        ended = await be_closed(client, 1007)
        told = [json.loads(one).get("code") for one in client.of("text")]
        if told != ["invalid_message"] * 10:
            raise Treated(f"told {told} about {[message[:40] for message in messages]}")
        visit.did("invalid", 10)
        visit.did("invalid_data")
        return ended


async def talk_nonsense_now_and_then(visit: Visit) -> str:
    visit.may("invalid", 20)
    async with visit.client() as client:
        for number in range(25):
            message = visit.chance.choice([one for one in MESSAGES if isinstance(one, str)])
            await client.send_text(message if number % 5 else command("leave", NOISE, number))
        await client.read_until(lambda: len(client.of("text")) == 25)
        visit.did("invalid", 20)
        return await vanish(client, visit.chance)


async def use_odd_names(visit: Visit) -> str:
    async with visit.client() as client:
        for number, name in enumerate(NAMES):
            await client.send_text(command("join", name, number))
        await client.read_until(lambda: len(client.of("text")) == len(NAMES))
        return await vanish(client, visit.chance)


async def send_crumbs(visit: Visit) -> str:
    async with visit.client() as client:
        data = command("leave", NOISE, 7).encode()
        for place in range(len(data)):
            first = (FIN if place == len(data) - 1 else 0) | (CONTINUATION if place else TEXT)
            await client.send_frame(first, data[place : place + 1])
            if place % 10 == 0:
                await client.send_frame(FIN | PING, b"still here")
        await client.read_until(lambda: client.of("text"))
        if json.loads(client.of("text")[0])["answers"] != 7:
            raise Treated(f"answered with {client.of('text')}")
        return await vanish(client, visit.chance)


async def compress_badly(visit: Visit) -> str:
    async with visit.client(offer=TAKEOVER) as client:
        await client.send_frame(FIN | RSV1 | TEXT, b"\xff\xff\xff\xff")
        return await be_closed(client, 1002, 1007)


# Handshakes


async def shake_hands_badly(visit: Visit) -> str:
    name, request, status = visit.draw(HANDSHAKES)
    if "Origin" in request:
        visit.may("http_origin")
    reader, writer = await asyncio.open_connection("127.0.0.1", visit.node.port)
    try:
        writer.write(request.format(port=visit.node.port).encode("latin-1"))
        if status is None:
            await visit.pause(0.05)
            writer.transport.abort()
            return name
        async with asyncio.timeout(10):
            answer = (await reader.readline()).split()
        if len(answer) < 2 or int(answer[1]) != status:
            raise Treated(f"{name}: answered with {answer} instead of {status}")
        if "Origin" in request:
            visit.did("http_origin")
        return f"{name}: {status}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


LIGHT: list[Kind] = [
    look_in,
    say_goodbye,
    half_close,
    come_and_go,
    want_many_rooms,
    be_thrown_out,
    freeze,
    freeze_in_a_stream,
    let_the_handler_work,
    send_too_much,
    announce_too_much,
    ping_and_read,
    break_the_protocol,
    talk_nonsense,
    talk_nonsense_now_and_then,
    use_odd_names,
    send_crumbs,
    compress_badly,
    shake_hands_badly,
]
HEAVY: list[Kind] = [ping_without_reading, fill_the_inbox, flood, make_noise, never_finish]
"""What is work for this process, too: few at a time."""
