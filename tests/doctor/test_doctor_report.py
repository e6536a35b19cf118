"""How it is told."""

import io
import json
from dataclasses import replace

import pytest
from situations import WELL, but

from fastapi_rooms.doctor.judging import judge
from fastapi_rooms.doctor.report import as_json, as_text, printable, wants_colours
from fastapi_rooms.doctor.situation import Unreachable


def text(situation, **options):
    return as_text(situation, judge(situation), **options)


def test_all_is_well():
    assert text(WELL) == (
        "app      main:app\n"
        "rooms    joined by RedisBackend\n"
        "server   uvicorn, 4 workers, WebSocketsSansIOProtocol\n"
        "redis    127.0.0.1:6379: Redis 7.0.15\n"
        "versions python 3.11.7, fastapi 0.165.0\n"
        "\n"
        "Nothing wrong was found."
    )


def test_notes_are_nothing_wrong():
    assert text(but(server={"per_message_deflate": True})).endswith("\n\nNothing wrong was found (1 note).")


def test_what_was_found_is_counted():
    situation = but(server={"lifespan": "off", "websockets": None, "graceful_timeout": None})
    assert text(situation).endswith("\n\n2 errors, 1 warning.")


def test_a_finding():
    assert (
        "\n\nerror    lifespan-off\n"
        "    --lifespan off: nothing that the app does at its start is run, so no manager is started.\n"
        "    → Leave the option out.\n\n"
    ) in text(but(server={"lifespan": "off"}))


def test_colours():
    situation = but(server={"lifespan": "off"})
    assert "\x1b" not in text(situation)
    assert "\x1b[31merror   \x1b[0m lifespan-off" in text(situation, colours=True)


def test_what_is_not_there():
    assert text(but(without=["rooms", "server", "broker"])).startswith("app      main:app\nrooms    none\nversions ")
    assert "rooms    of one process\n" in text(but(rooms={"backend": None}))
    one = text(but(server={"workers": 1, "websockets": None}))
    assert "server   uvicorn, 1 worker, no WebSockets\n" in one
    away = text(replace(WELL, broker=Unreachable(place="redis:6379", reason="refused")))
    assert "redis    redis:6379: no answer\n" in away
    assert "redis    127.0.0.1:6379\n" in text(but(broker={"is_told": False}))


def test_for_machines():
    situation = but(server={"lifespan": "off"})
    told = json.loads(as_json(situation, judge(situation), 1))
    assert told["exit_code"] == 1
    assert told["app"] == "main:app"
    assert [one["check"] for one in told["findings"]] == ["lifespan-off"]
    assert set(told["findings"][0]) == {"check", "severity", "problem", "advice"}
    assert told["server"]["workers"] == 4
    assert told["redis"]["output_limit"]["seconds"] == 60
    assert told["versions"] == {"python": "3.11.7", "fastapi": "0.165.0"}
    bare = json.loads(as_json(but(without=["server", "broker"]), {}, 0))
    assert (bare["server"], bare["redis"]) == (None, None)


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "→ Leave …"), ("ascii", "? Leave ?"), (None, "→ Leave …")])
def test_a_stream_that_does_not_take_every_character(encoding, shown):
    stream = io.StringIO() if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert printable("→ Leave …", stream) == shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "variables", "wanted"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_who_wants_colours(monkeypatch, stream, variables, wanted):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wants_colours(stream) is wanted
