"""Which server has which slot, as servers tell it."""

from itertools import count

import pytest
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from fastapi_rooms.backends.redis.slots import SLOTS, SlotTable, channel_in, moved_to, slot_of

ONE, TWO = ("127.0.0.1", 7001), ("10.0.0.2", 7002)
ANSWER = [
    [0, 8191, [b"127.0.0.1", 7001, b"id1", []], [b"127.0.0.1", 7003, b"id3", []]],
    [8192, 16383, [b"10.0.0.2", 7002, b"id2", []]],
]


@pytest.fixture
def table():
    made = SlotTable()
    made.replace(ANSWER, ONE)
    return made


def test_slots_are_those_that_redis_counts():
    assert slot_of(b"123456789") == 0x31C3  # from the Redis Cluster specification


def test_a_new_table_knows_nobody():
    table = SlotTable()
    assert (table.owner(0), table.owners(), table.is_complete()) == (None, frozenset(), False)


def test_an_answer_becomes_owners_without_replicas(table):
    assert table.owners() == {ONE, TWO}
    assert [table.owner(slot) for slot in (0, 8191, 8192, SLOTS - 1)] == [ONE, ONE, TWO, TWO]
    assert table.slots_of(ONE) == frozenset(range(8192))
    assert table.slots_of(("127.0.0.1", 7003)) == frozenset()
    assert table.is_complete()


def test_slots_that_nobody_has_stay_without_owner(table):
    table.replace([[5, 5, [b"10.0.0.2", 7002]]], ONE)
    assert [table.owner(slot) for slot in (4, 5, 6)] == [None, TWO, None]
    assert not table.is_complete()
    table.replace([], ONE)
    assert table.owners() == frozenset()


@pytest.mark.parametrize("host", [b"", None])
def test_a_server_that_does_not_know_its_name_is_the_one_that_was_asked(table, host):
    table.replace([[0, SLOTS - 1, [host, 7009]]], ONE)
    assert table.owners() == {("127.0.0.1", 7009)}


def test_a_slot_moves(table):
    table.move(7, TWO)
    assert (table.owner(6), table.owner(7), table.owner(8)) == (ONE, TWO, ONE)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"OK",
        7,
        ResponseError("unknown command"),
        [b"slots"],
        [[0]],
        [[0, 1]],
        [[0, 1, []]],
        [[0, 1, [b"host"]]],
        [[0, 1, [b"host", b"port"]]],
        [[0, 1, [b"\xff", 7000]]],
        [[0, 1, [7000, b"host"]]],
        [[b"a", b"b", [b"host", 7000]]],
        [[0, SLOTS, [b"host", 7000]]],
        [[SLOTS, SLOTS + 9, [b"host", 7000]]],
        [[-5, 5, [b"host", 7000]]],
        [[9, 3, [b"host", 7000]]],
    ],
    ids=repr,
)
def test_what_is_no_such_answer_changes_nothing(table, answer):
    with pytest.raises(ValueError):  # noqa: PT011 - one of many kinds of wrong
        table.replace(answer, ONE)
    assert table.owners() == {ONE, TWO}
    assert table.is_complete()


def test_an_error_tells_where_a_slot_has_moved():
    assert moved_to(MovedError("3999 10.0.0.2:7002"), ONE) == TWO
    assert moved_to(MovedError("3999 :7002"), ONE) == ("127.0.0.1", 7002)


def test_a_slot_that_is_moving_or_has_no_server_has_not_moved():
    for error in (ClusterDownError("down"), ResponseError("ERR no"), AskError("3999 10.0.0.2:7002")):
        assert moved_to(error, ONE) is None


def test_a_channel_is_found_in_the_slots_of_a_server(table):
    slots = table.slots_of(TWO)
    found = channel_in(slots, (b"probe:%d" % number for number in count()))
    assert slot_of(found) in slots
    earlier = range(int(found.removeprefix(b"probe:")))
    assert not any(slot_of(b"probe:%d" % number) in slots for number in earlier), "it is the first"


def test_the_first_channel_is_taken_for_a_server_without_slots():
    assert channel_in(frozenset(), (b"probe:%d" % number for number in count())) == b"probe:0"
