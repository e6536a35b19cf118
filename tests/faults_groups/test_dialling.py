"""Servers that do not behave as servers of a cluster, or of Sentinel, do."""

import asyncio
import contextlib

import pytest

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis import table
from fastapi_rooms.backends.redis.places import locate


@contextlib.asynccontextmanager
async def server(answers):
    """A server with an answer per command, None to hang up, and OK to everything else. Gives its port."""

    async def serve(reader, writer):
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    await reader.readline()
                    words.append((await reader.readline()).strip().decode())
                answer = answers.get(words[0], b"+OK\r\n")
                if answer is None:
                    break
                writer.write(answer)
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield listening.sockets[0].getsockname()[1]
    listening.close()


async def test_a_master_that_hangs_up_when_it_is_asked_for_its_role_is_not_there():
    async with server({"ROLE": None}) as port:
        answer = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)
        async with server({"SENTINEL": answer}) as sentinel:
            place = locate(f"redis+sentinel://127.0.0.1:{sentinel}/kitchen", 2.0)
            with pytest.raises(BackendUnavailable, match="did not tell its role"):
                await place.dial()
            assert not await place.is_replaced(("127.0.0.1", port)), "the Sentinel names it"
            assert not await place.is_replaced(("127.0.0.1", 1)), "it is no master that anybody could follow to"


async def test_a_master_that_does_not_tell_its_role_in_time_is_not_there():
    async with server({"ROLE": b""}) as port:
        answer = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)
        async with server({"SENTINEL": answer}) as sentinel:
            place = locate(f"redis+sentinel://127.0.0.1:{sentinel}/kitchen", 0.2)
            with pytest.raises(BackendUnavailable, match="did not tell its role"):
                await place.dial()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"*1\r\n*1\r\n:0\r\n", "no answer to CLUSTER SLOTS"),
        (b"+OK\r\n", "no answer to CLUSTER SLOTS"),
        (b"*0\r\n", "is in no cluster"),
        (b"-ERR This instance has cluster support disabled\r\n", "cluster support disabled"),
        (None, "did not answer CLUSTER"),
    ],
    ids=repr,
)
async def test_a_server_that_knows_no_cluster_says_so(answer, error):
    async with server({"CLUSTER": answer}) as port:
        (seed,) = locate(f"redis+cluster://127.0.0.1:{port}", 2.0).servers
        with pytest.raises(BackendUnavailable, match=error):
            await table.ask_for_table(seed)
