"""Tickets: what is kept of one, and where it may be used."""

import secrets
from datetime import UTC, datetime, timedelta

import pytest

from fastapi_rooms.domain.messages import Close
from fastapi_rooms.domain.revocation import Revocation, decode_revocation
from fastapi_rooms.domain.tickets import TICKET_BYTES, Claim, claim, claim_in, key_of

PAGE = "https://chat.example"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)


def made(origin=None, host="chat.example", *, is_secure=True, expires_at=None):
    return claim("ann", origin, host, is_secure=is_secure, issued_at=NOON, expires_at=expires_at)


def test_a_key_is_of_one_ticket_and_one_purpose_and_shows_neither():
    tickets = [secrets.token_urlsafe(TICKET_BYTES) for _ in range(100)]
    keys = {key_of(purpose, ticket) for ticket in tickets for purpose in ("ws", "admin")}
    assert len(keys) == 200
    assert all(key.startswith("ticket:") and len(key) == 7 + 64 for key in keys)
    assert not any(ticket in key or ticket[:8] in key for ticket in tickets for key in keys)
    assert key_of("ws", tickets[0]) == key_of("ws", tickets[0])


@pytest.mark.parametrize("text", ["", "x" * 42, "x" * 44, "x" * 100_000, "é" * 43, "x" * 42 + "\udc80"])
def test_what_can_be_no_ticket_has_no_key(text):
    assert key_of("ws", text) is None


@pytest.mark.parametrize(
    ("asked_from", "comes_from", "fits"),
    [
        (PAGE, PAGE, True),
        (PAGE, "https://chat.example:443", True),
        (PAGE, "http://chat.example", False),
        (PAGE, "https://chat.example:8443", False),
        (PAGE, "https://chat.example.evil.example", False),
        (PAGE, "https://evilchat.example", False),
        (PAGE, "null", False),
        (PAGE, "", False),
        (PAGE, None, False),
        ("http://localhost:5173", "http://localhost:5173", True),
        ("http://localhost:5173", PAGE, False),
        (None, None, True),
        (None, PAGE, True),
        (None, "https://evil.example", False),
        (None, "null", False),
    ],
)
def test_a_ticket_is_good_where_it_was_asked_for(asked_from, comes_from, fits):
    assert made(asked_from).fits(comes_from) is fits


@pytest.mark.parametrize("host", [None, "", "a b", "chat.example/x"])
def test_of_an_app_that_does_not_know_its_own_origin_only_those_who_tell_none_may_come(host):
    assert made(None, host).fits(None)
    assert not made(None, host).fits(PAGE)


def test_how_the_request_came_is_a_part_of_the_apps_own_origin():
    assert not made(None, is_secure=False).fits(PAGE)
    assert made(None, is_secure=False).fits("http://chat.example")


@pytest.mark.parametrize("origin", ["null", "", "file://", "https://user@chat.example", "https://chat.example/page"])
def test_nobody_is_given_a_ticket_who_comes_from_what_is_no_origin(origin):
    assert made(origin) is None


def test_a_ticket_expires_with_the_login_of_its_user():
    assert not made().has_expired(datetime.max.replace(tzinfo=UTC))
    assert not made(expires_at=NOON).has_expired(NOON - TICK)
    assert made(expires_at=NOON).has_expired(NOON)


@pytest.mark.parametrize(("closed_at", "is_revoked"), [(NOON - TICK, False), (NOON, True), (NOON + TICK, True)])
def test_a_ticket_is_revoked_when_its_user_is_closed_afterwards(closed_at, is_revoked):
    revocation = decode_revocation(Revocation(closed_at, Close(1000)).encode())
    assert claim_in(made().model_dump_json().encode()).is_revoked(revocation) is is_revoked


@pytest.mark.parametrize("expires_at", [None, NOON + TICK])
@pytest.mark.parametrize("asked_from", [PAGE, None])
def test_a_claim_is_read_as_it_was_written(asked_from, expires_at):
    one = made(asked_from, expires_at=expires_at)
    assert claim_in(one.model_dump_json().encode()) == one
    assert isinstance(one, Claim)


@pytest.mark.parametrize("data", [b"", b"\xff", b"{}", b"[]", b'{"user_id":1}', b'{"user_id":"ann"}', b"null"])
def test_what_is_no_claim_is_none(data):
    assert claim_in(data) is None
