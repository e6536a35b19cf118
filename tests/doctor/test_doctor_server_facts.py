"""The command line of uvicorn, read by uvicorn."""

import builtins
import os
import sys

import pytest
from uvicorn import __version__

from fastapi_rooms.doctor.server_facts import CannotRead, NothingToDo, Started, read_command_line, uvicorn_in_gunicorn
from fastapi_rooms.doctor.situation import Server, Uvicorn


def server(*words):
    return read_command_line(["shop:app", *words]).server


@pytest.fixture
def without(monkeypatch):
    """Have some modules not be installed."""

    def hide(*names):
        really = builtins.__import__

        def refuse(name, *rest, **more):
            if name.partition(".")[0] in names:
                raise ImportError(f"No module named {name!r}")
            return really(name, *rest, **more)

        for name in list(sys.modules):
            if name.startswith("uvicorn.protocols.websockets"):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(builtins, "__import__", refuse)

    return hide


def test_the_defaults_are_uvicorns(workshop):
    assert server() == Uvicorn(version=__version__)


def test_options(workshop):
    line = "--workers 4 --timeout-graceful-shutdown 20 --ws-ping-interval 25 --ws-ping-timeout 30 --ws-max-size 65536"
    more = "--ws-per-message-deflate false --no-proxy-headers --lifespan off --forwarded-allow-ips 10.0.0.1,10.0.0.2"
    assert server(*line.split(), *more.split()) == Uvicorn(
        version=__version__,
        workers=4,
        graceful_timeout=20,
        ping_interval=25,
        ping_timeout=30,
        max_size=65536,
        per_message_deflate=False,
        proxy_headers=False,
        lifespan="off",
        trusted_proxies=("10.0.0.1", "10.0.0.2"),
    )


def test_where_it_listens(workshop):
    assert not server("--host", "0.0.0.0", "--port", "80").unix_socket
    found = server("--uds", "/run/shop.sock", "--forwarded-allow-ips", "127.0.0.1,unix,/run/shop.sock")
    assert (found.unix_socket, found.trusts_unix_socket) == (True, False)
    assert server("--uds", "/run/shop.sock", "--forwarded-allow-ips", "*").trusts_unix_socket
    assert not server("--uds", "/run/shop.sock", "--forwarded-allow-ips", "*,10.0.0.1").trusts_unix_socket


def test_the_file_of_the_logging(workshop):
    workshop.write("{}", "log.json")
    assert server("--log-config", "log.json").log_config == "log.json"


GUNICORN = Server(kind="gunicorn", name="gunicorn -k x", workers=3, trusted_proxies=("*",), unix_socket=True)


def test_as_a_worker_of_gunicorn(workshop, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "7")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.1")
    assert uvicorn_in_gunicorn(
        GUNICORN, "x", 30.0, {"ws_max_size": 9, "workers": 5, "ssl_keyfile": "secret"}
    ) == Uvicorn(
        name="gunicorn -k x",
        version=__version__,
        workers=3,
        trusted_proxies=("*",),
        unix_socket=True,
        trusts_unix_socket=True,
        worker_class="x",
        killed_after=30.0,
        max_size=9,
    )


def test_what_concerns_the_app(workshop):
    started = read_command_line(["--app-dir", "src", "--factory", "shop:make"])
    assert (started.target, started.folder, started.is_factory) == ("shop:make", "src", True)


def test_variables(workshop, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN", "40")
    found = server()
    assert (found.workers, found.trusted_proxies, found.graceful_timeout) == (3, ("*",), 40)
    assert server("--workers", "2").workers == 2


def test_a_file_of_variables_is_there_for_the_app(workshop, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    workshop.write("WEB_CONCURRENCY=5\nSHOP_NAME=x\n", "prod.env")
    assert server("--env-file", "prod.env").workers == 5
    assert os.environ["SHOP_NAME"] == "x"


def test_reload_has_one_worker(workshop):
    assert server("--reload", "--workers", "4").workers == 1


def test_no_pings(workshop):
    assert server("--ws-ping-interval", "0").ping_interval is None


@pytest.mark.parametrize(
    ("words", "last"),
    [(["--ws", "wsproto"], "WSProtocol"), (["--ws", "websockets-sansio"], "WebSocketsSansIOProtocol")],
)
def test_what_serves_websockets(workshop, words, last):
    assert server(*words).websockets.rpartition(".")[2] == last


@pytest.mark.parametrize("ws", ["none", "no_such_module:Protocol", "shop"])
def test_nothing_serves_websockets(workshop, ws):
    assert server("--ws", ws).websockets is None


def test_no_library_for_websockets(workshop, without):
    without("websockets", "wsproto")
    assert server().websockets is None
    assert server("--ws", "wsproto").websockets is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument 'APP'"),
        (["shop:app", "--workers", "many"], "'many' is not a valid integer"),
        (["shop:app", "--wrokers", "4"], "uvicorn: No such option '--wrokers'.* another server, name that: --server"),
        (["shop:app", "--env-file", "nowhere"], "does not exist"),
    ],
)
def test_what_uvicorn_would_not_take(workshop, words, said):
    with pytest.raises(CannotRead, match=said):
        read_command_line(words)


def test_a_number_of_workers_that_is_none(workshop, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    with pytest.raises(CannotRead, match="auto"):
        server()


def test_an_order_that_uvicorn_has_carried_out(workshop, capsys):
    with pytest.raises(NothingToDo):
        server("--version")
    assert __version__ in capsys.readouterr().out


class TestWithoutUvicorn:
    @pytest.fixture(autouse=True)
    def _hidden(self, workshop, without):
        without("uvicorn")

    def test_the_name_of_an_app_is_enough(self):
        assert read_command_line(["shop:app"]) == Started("shop:app", "", is_factory=False, server=None)

    def test_it_may_be_in_a_variable(self, monkeypatch):
        monkeypatch.setenv("UVICORN_APP", "shop:app")
        assert read_command_line([]).target == "shop:app"

    def test_it_is_no_worker_of_gunicorn(self):
        assert uvicorn_in_gunicorn(GUNICORN, "x", 30.0, {}) is None

    def test_options_cannot_be_checked(self):
        with pytest.raises(CannotRead, match="uvicorn is not installed here, so --workers 4 cannot be checked"):
            read_command_line(["shop:app", "--workers", "4"])

    def test_some_app_has_to_be_named(self):
        with pytest.raises(CannotRead, match="name the app"):
            read_command_line([])
