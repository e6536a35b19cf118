"""Names of channels: whatever a room is called, its channel is its own and nothing else."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_rooms.backends.redis.channels import Channels
from fastapi_rooms.backends.redis.slots import slot_of
from fastapi_rooms.domain.envelope import EVERYBODY, Target, TargetKind, connection_target

CHANNELS = Channels("app:1")
NODE = "0123456789abcdef0123456789abcdef"

examples = settings(deadline=None)
characters = st.one_of(
    st.characters(),
    st.characters(categories=["Cs"]),
    st.sampled_from("*?[]{}:%\\ \r\n\0/+~"),
    st.sampled_from("🦆é\u0301\u200d"),
)
names = st.one_of(st.text(characters), st.sampled_from(["", "all", "node", "room", f"node:{NODE}:0", "%", "%2A"]))
targets = st.builds(Target, st.sampled_from([TargetKind.ROOM, TargetKind.USER]), names)


@examples
@given(targets, targets)
def test_two_targets_share_no_channel(one, other):
    assert (CHANNELS.of(one) == CHANNELS.of(other)) is (one == other)


@examples
@given(names)
def test_a_room_and_a_user_of_the_same_name_share_no_channel(name):
    assert CHANNELS.of(Target(TargetKind.ROOM, name)) != CHANNELS.of(Target(TargetKind.USER, name))


@examples
@given(names, st.sampled_from(["%2A", "%", "2A", "*", "\ud83e\udd86", "🦆"]))
def test_what_looks_encoded_is_another_name(name, more):
    assert CHANNELS.of(Target(TargetKind.ROOM, name)) != CHANNELS.of(Target(TargetKind.ROOM, name + more))


@examples
@given(targets)
def test_a_channel_is_no_pattern_no_hash_tag_and_no_channel_of_ours(target):
    channel = CHANNELS.of(target)
    assert re.fullmatch(rb"app:1:(room|user):[A-Za-z0-9_.~%-]*", channel), channel
    assert channel != CHANNELS.of(EVERYBODY)
    assert not channel.startswith(CHANNELS.of_node("", 0)[: -len(":0")])


@examples
@given(targets, st.sampled_from(["app", "app:1:room", "app:", "app:10", "app:2"]))
def test_apps_with_other_prefixes_share_no_channel(target, prefix):
    assert Channels(prefix).of(target) != CHANNELS.of(target)


@examples
@given(targets)
def test_the_whole_name_picks_the_slot(target):
    channel = CHANNELS.of(target)
    assert slot_of(channel) == _crc16(channel) % 16_384


def test_everybody_and_a_connection_have_the_same_channel():
    assert CHANNELS.of(EVERYBODY) == b"app:1:all"
    assert CHANNELS.of(connection_target(NODE)) == b"app:1:all"


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("", b""),
        ("kitchen", b"kitchen"),
        ("a b", b"a%20b"),
        ("🦆", b"%F0%9F%A6%86"),
        ("\ud800", b"%ED%A0%80"),
        ("{a}*", b"%7Ba%7D%2A"),
    ],
)
def test_names_are_encoded_byte_by_byte(name, encoded):
    assert CHANNELS.of(Target(TargetKind.ROOM, name)) == b"app:1:room:" + encoded
    assert CHANNELS.of(Target(TargetKind.USER, name)) == b"app:1:user:" + encoded


def test_the_channels_of_nodes_differ_by_node_and_number():
    assert CHANNELS.of_node(NODE, 0) == b"app:1:node:0123456789abcdef0123456789abcdef:0"
    assert len({CHANNELS.of_node(node, number) for node in (NODE, NODE[::-1]) for number in range(3)}) == 6


def _crc16(data):
    """CRC-16/XMODEM, bit by bit, as the Redis Cluster specification defines it."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc
