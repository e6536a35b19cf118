"""`python -m fastapi_rooms doctor`, as users run it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from brokers.ports import free_port
from brokers.server import Broker, running

from fastapi_rooms.doctor.command import leave

GOOD = """\
from fastapi import FastAPI

from fastapi_rooms import Incoming, RoomsExtension

rooms = RoomsExtension()


@rooms.ws_route("/ws/{room}", room="{room}")
async def chat(message: Incoming[str]):
    return message


app = FastAPI()
app.include_router(rooms.router)
print("the app is imported")
"""

FLAGS = ["--timeout-graceful-shutdown", "30", "--ws-per-message-deflate", "false", "--ws-max-size", "65536"]


def with_redis(url):
    return GOOD.replace("RoomsExtension()", f"RoomsExtension({url!r})")


@pytest.fixture
def checks(doctor):
    """Return exit code and severity of each finding, as a machine reads it."""

    def call(*words):
        code, out, _ = doctor("--json", *words)
        told = json.loads(out)
        assert told["exit_code"] == code
        return code, {one["check"]: one["severity"] for one in told["findings"]}

    return call


def test_a_good_app(workshop, doctor):
    workshop.write(GOOD)
    code, out, err = doctor("shop:app", *FLAGS)
    assert code == 0, out
    assert out.startswith("app      shop:app\nrooms    of one process\nserver   uvicorn, 1 worker")
    assert out.endswith("Nothing wrong was found.\n")
    assert err == "the app is imported\n", "what the app prints is not part of the report"


def test_as_a_process_of_its_own(workshop):
    workshop.write(GOOD)
    command = [sys.executable, "-m", "fastapi_rooms", "doctor", "shop:app", "--workers", "2"]
    ended = subprocess.run(command, cwd=workshop.folder, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "\nerror    workers-without-redis\n" in ended.stdout
    assert "\x1b" not in ended.stdout


LOGGED = {
    "not at all": ("", [], True),
    "by the app": ("import logging\nlogging.basicConfig(level=logging.INFO)\n", [], False),
    "by a file": ("", ["--log-config", "log.json"], False),
}


@pytest.mark.parametrize(("head", "words", "is_lost"), LOGGED.values(), ids=LOGGED)
def test_a_process_whose_logs_nobody_reads(workshop, head, words, is_lost):
    workshop.write(head + GOOD)
    workshop.write('{"version": 1, "handlers": {"a": {}}, "root": {"level": "INFO", "handlers": ["a"]}}', "log.json")
    command = [sys.executable, "-m", "fastapi_rooms", "doctor", "shop:app", *words, *FLAGS]
    ended = subprocess.run(command, cwd=workshop.folder, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ("\nnote     info-unheard\n" in ended.stdout) is is_lost


def test_a_process_where_there_is_no_app(workshop):
    command = [sys.executable, "-m", "fastapi_rooms", "doctor", "shop:app"]
    ended = subprocess.run(command, cwd=workshop.folder, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"doctor: there is no module 'shop' in {workshop.folder}: run this in the directory")


WAITS = """\
import asyncio
import threading

from fastapi.concurrency import run_in_threadpool

from fastapi_rooms.doctor import handshake

handshake.PATIENCE_SECONDS = handshake.GIVE_UP_SECONDS = 0.1


class Waits:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await {in_a_thread}(threading.Event().wait)


app.add_middleware(Waits)
"""


@pytest.mark.parametrize("in_a_thread", ["asyncio.to_thread", "run_in_threadpool"])
def test_a_process_that_need_not_wait_for_what_was_left_alone(workshop, in_a_thread):
    workshop.write(GOOD + WAITS.format(in_a_thread=in_a_thread))
    command = [sys.executable, "-m", "fastapi_rooms", "doctor", "shop:app", "--workers", "2", *FLAGS]
    ended = subprocess.run(command, cwd=workshop.folder, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (1, "the app is imported\n")
    assert "1 error, " in ended.stdout.splitlines()[-1]


def test_the_end_of_the_process(monkeypatch):
    def end(code):
        raise InterruptedError(code)

    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit) as left:
        leave(1)
    assert left.value.code == 1
    monkeypatch.setattr("fastapi_rooms.doctor.command.goes_on", lambda: True)
    with pytest.raises(InterruptedError, match="2"):
        leave(2)


def test_nobody_reads_it_to_its_end(workshop):
    workshop.write(GOOD)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fastapi_rooms", "doctor", "shop:app", "--workers", "2"]
    ended = subprocess.run(
        command, cwd=workshop.folder, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "the app is imported\n"), "the exit code says what was found"


def test_warnings_count_if_it_is_strict(workshop, checks):
    workshop.write(GOOD)
    found = {"stop-unlimited": "warning", "deflate-memory": "note", "max-size": "note"}
    assert checks("shop:app") == (0, found)
    assert checks("shop:app", "--strict") == (1, found)
    found.pop("stop-unlimited")
    assert checks("shop:app", "--strict", "--ignore", "stop-unlimited") == (0, found)


def test_checks_have_names(doctor, capsys):
    with pytest.raises(SystemExit) as end:
        doctor("--ignore", "no-such-check", "shop:app")
    assert end.value.code == 2
    assert "no-rooms" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["shop:app", "--workers", "4", *FLAGS],
        ["--workers", "4", "shop:app", *FLAGS],
        ["shop:app", "--", "--workers", "4", *FLAGS],
        ["--", *FLAGS, "shop:app", "--workers", "4"],
    ],
)
def test_the_command_line_of_the_server_in_any_order(workshop, checks, words):
    workshop.write(GOOD)
    assert checks(*words) == (1, {"workers-without-redis": "error"})


def test_variables_of_the_environment(workshop, checks, monkeypatch):
    workshop.write(GOOD)
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert checks("shop:app", *FLAGS) == (1, {"workers-without-redis": "error"})


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("gunicorn -w 4 shop:app", {"workers-without-redis": "error", "no-asgi": "error"}),
        (
            "gunicorn -w 4 -k uvicorn_worker.UvicornWorker -b unix:/run/x shop:app",
            {
                "workers-without-redis": "error",
                "proxy-not-trusted": "warning",
                "deflate-memory": "note",
                "max-size": "note",
            },
        ),
        (
            "granian --interface asgi --workers 2 shop:app",
            {"workers-without-redis": "error", "server-lacks": "warning"},
        ),
        ("hypercorn --no-such-option shop:app", {"server-lacks": "warning", "not-understood": "note"}),
        ("h2corn shop:app", {"proxy-closes-idle": "warning", "server-lacks": "note"}),
        ("other --workers 2 shop:app", {"workers-without-redis": "error", "server-lacks": "note"}),
    ],
)
def test_another_server(workshop, checks, words, found):
    workshop.write(GOOD)
    code = int("error" in found.values())
    assert checks("--server", *words.split()) == (code, found)
    server, *others, app = words.split()
    assert checks(app, *others, "--server", server) == (code, found)


def test_the_words_of_another_server(workshop, doctor):
    workshop.write(GOOD)
    _, out, _ = doctor("--server", "gunicorn", "-k", "asgi", "shop:app")
    assert "\nserver   gunicorn -k asgi, 1 worker\n" in out
    code, out, err = doctor("--server", "gunicorn", "-w", "many", "shop:app")
    assert (code, out, err) == (2, "", "doctor: workers: 'many' is not a number\n")
    code, out, err = doctor("-w", "4", "shop:app")
    assert (code, out) == (2, "")
    assert err.startswith("doctor: uvicorn: No such option '-w'")
    assert "--server gunicorn, granian" in err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bad_app(workshop, checks):
    workshop.write("""
from fastapi import FastAPI

from fastapi_rooms import RoomsExtension, RoomsSettings

rooms = RoomsExtension(settings=RoomsSettings(allowed_origins=("*",), inbox_timeout=30, drain_timeout=40))

class Loud:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def shout(event):
            await send({**event, "text": event.get("text", "").upper()})

        await self.app(scope, receive, shout)


sub = FastAPI(lifespan=rooms.lifespan)
app = FastAPI(lifespan=rooms.lifespan)
app.add_middleware(Loud)
app.mount("/sub", sub)


@rooms.ws_route("/ws")
async def chat(): ...


@app.on_event("startup")
async def warm_up(): ...
""")
    assert checks("--proxy-timeout", "15", "shop:app", *FLAGS) == (
        1,
        {
            "routes-lost": "error",
            "on-event-ignored": "error",
            "proxy-closes-idle": "error",
            "mounted-lifespan": "warning",
            "http-origins-open": "warning",
            "send-wrapped": "warning",
            "stop-cut-short": "warning",
            "inbox-outlives-ping": "warning",
            "proxy-not-trusted": "note",
        },
    )


def test_an_app_whose_import_fails(workshop, doctor):
    workshop.write("import os\nurl = os.environ['NOT_SET_ANYWHERE']")
    code, out, err = doctor("shop:app")
    assert (code, out) == (2, "")
    assert "KeyError: 'NOT_SET_ANYWHERE'" in err


def test_options_that_uvicorn_does_not_take(doctor):
    code, out, err = doctor("shop:app", "--workers", "many")
    assert (code, out) == (2, "")
    assert err == "doctor: Invalid value for '--workers': 'many' is not a valid integer.\n"


@pytest.mark.parametrize("seconds", ["-3", "0", "nan", "inf", "a minute"])
def test_a_time_that_is_none(capsys, seconds):
    from fastapi_rooms.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["doctor", f"--proxy-timeout={seconds}", "shop:app"])
    assert ended.value.code == 2
    assert "argument --proxy-timeout" in capsys.readouterr().err


def test_the_version_of_uvicorn(doctor):
    code, out, _ = doctor("--version")
    assert code == 0
    assert out.startswith("Running uvicorn")


def test_without_a_command(capsys):
    from fastapi_rooms.__main__ import main

    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help(doctor, capsys):
    with pytest.raises(SystemExit) as end:
        doctor("--help")
    assert end.value.code == 0
    assert "exit codes:" in capsys.readouterr().out


# Redis


@pytest.mark.parametrize("workers", ["1", "4"])
def test_a_redis_as_it_should_be(workshop, checks, shared_broker, workers):
    workshop.write(with_redis(shared_broker.url))
    code, found = checks("shop:app", *FLAGS, "--workers", workers)
    assert (code, found) in [(0, {}), (0, {"redis-shared": "note"})], "other tests may have left keys"


def test_a_redis_that_is_a_cache(workshop, doctor, broker_kind, tmp_path_factory):
    limit = "client-output-buffer-limit pubsub 64kb 32kb 10"
    cache = Broker(
        broker_kind, tmp_path_factory.mktemp("cache"), "maxmemory 64mb", "maxmemory-policy allkeys-lru", limit
    )
    with running(cache):
        cache.call("SET", "somebody", "else's")
        workshop.write(with_redis(cache.url))
        code, out, _ = doctor("shop:app", *FLAGS, "--strict")
    assert code == 1
    assert f"redis    127.0.0.1:{cache.port}: {broker_kind.title()} " in out
    assert "warning  redis-output-limit\n    Redis cuts a node off when 0.0625 MiB wait for it" in out
    assert "warning  redis-eviction\n    maxmemory-policy allkeys-lru: at 64 MiB" in out
    assert "note     redis-shared\n    This Redis holds 1 keys" in out
    assert out.endswith("2 warnings, 1 note.\n")


def test_a_redis_that_is_not_there(workshop, doctor):
    port = free_port()
    workshop.write(with_redis(f"redis://app:s3cret@127.0.0.1:{port}"))
    code, out, err = doctor("shop:app", *FLAGS)
    assert code == 1
    assert f"redis    127.0.0.1:{port}: no answer\n" in out
    assert "error    redis-unreachable\n" in out
    assert "s3cret" not in out + err
    code, out, _ = doctor("shop:app", *FLAGS, "--json", "--ignore", "redis-unreachable")
    assert code == 0
    assert "s3cret" not in out


def test_a_redis_that_stands_still_costs_seconds_only(workshop, broker):
    workshop.write(with_redis(broker.url))
    broker.freeze()
    begin = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "fastapi_rooms", "doctor", "shop:app"],
        cwd=workshop.folder,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert "redis-unreachable" in ended.stdout
    assert time.monotonic() - begin < 15


# The page


def test_the_page_shows_what_is_printed(workshop):
    page = (Path(__file__).parents[2] / "docs" / "guides" / "doctor.md").read_text()
    (app,) = re.findall(r'^```python title="main.py"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    command, *_ = re.findall(r"^\$ python (.*)$", page, re.MULTILINE)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    workshop.write(app, "main.py")
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", *command.split()],
        cwd=workshop.folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stdout
    installed = re.compile(r"^versions .*?\n\n", re.MULTILINE | re.DOTALL)
    assert installed.sub("", printed) == installed.sub("", shown), printed
