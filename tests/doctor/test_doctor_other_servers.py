"""The command lines of servers that need not be installed."""

import logging
import os
import sys
from pathlib import Path

import pytest
from uvicorn import __version__

from fastapi_rooms.doctor.log_facts import is_info_heard
from fastapi_rooms.doctor.other_servers import SERVERS
from fastapi_rooms.doctor.server_facts import CannotRead
from fastapi_rooms.doctor.situation import Interface, Server, Uvicorn


@pytest.fixture(autouse=True)
def _variables_of_ones_own(workshop, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


def read(kind, line):
    return SERVERS[kind](line.split())


def server(kind, line):
    return read(kind, f"{line} shop:app").server


@pytest.mark.parametrize("kind", ["gunicorn", "granian", "hypercorn", "h2corn", "other"])
class TestAll:
    def test_no_app_is_named(self, kind):
        with pytest.raises(CannotRead, match="name the app"):
            read(kind, "")

    @pytest.mark.parametrize("line", ["shop:app --workers 3", "--workers 3 shop:app", "--workers=3 shop:app"])
    def test_app_and_workers(self, kind, line):
        started = read(kind, line)
        assert (started.target, started.folder, started.is_factory) == ("shop:app", "", False)
        assert (started.server.kind, started.server.workers) == (kind, 3)
        assert started.server.not_understood == ()

    def test_what_is_no_number(self, kind):
        with pytest.raises(CannotRead, match="workers: 'many' is not a number"):
            server(kind, "--workers many")

    def test_an_option_without_its_value(self, kind):
        with pytest.raises(CannotRead, match="expected one argument"):
            read(kind, "shop:app --workers")

    @pytest.mark.parametrize("line", ["--foo s3cret", "--foo=s3cret", "--foo"])
    def test_what_is_not_understood_is_told_by_its_name(self, kind, line):
        started = read(kind, f"{line} shop:app")
        assert (started.target, started.server.not_understood) == ("shop:app", ("--foo",))

    def test_the_last_word_counts(self, kind):
        assert server(kind, "--workers 2 --workers 3").workers == 3

    def test_more_than_one_app(self, kind):
        assert read(kind, "shop:app other:app").server.not_understood == ("other:app",)


class TestGunicorn:
    def test_its_own_workers(self):
        assert server("gunicorn", "-w 4") == Server(
            kind="gunicorn", name="gunicorn -k sync", workers=4, interface=Interface.WSGI
        )

    @pytest.mark.parametrize("worker", ["gthread", "gevent", "gunicorn.workers.ggevent.GeventWorker"])
    def test_workers_that_speak_wsgi(self, worker):
        assert server("gunicorn", f"-k {worker}").interface is Interface.WSGI

    @pytest.mark.parametrize("worker", ["asgi", "gunicorn.workers.gasgi.ASGIWorker"])
    def test_workers_that_speak_asgi(self, worker):
        found = server("gunicorn", f"-k {worker} --asgi-lifespan off")
        assert (found.kind, found.interface, found.lifespan) == ("gunicorn", Interface.ASGI, "off")
        assert not found.proxy_headers

    @pytest.mark.parametrize("worker", ["uvicorn_worker.UvicornWorker", "uvicorn.workers.UvicornH11Worker"])
    def test_uvicorns_workers(self, worker):
        assert server("gunicorn", f"-k {worker} -w 2 -b 0.0.0.0:80 -b unix:/run/x --forwarded-allow-ips *") == Uvicorn(
            name=f"gunicorn -k {worker}",
            version=__version__,
            workers=2,
            unix_socket=True,
            trusted_proxies=("*",),
            trusts_unix_socket=True,
            worker_class=worker,
            killed_after=30.0,
        )

    def test_without_uvicorn(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        found = server("gunicorn", "-k uvicorn_worker.UvicornWorker -w 2")
        assert (found.kind, found.workers) == ("other", 2)

    def test_workers_of_ones_own(self, workshop):
        workshop.write(
            "class Worker(UvicornWorker):\n    CONFIG_KWARGS = {'ws_max_size': 9, 'ws_ping_interval': 5}", "web/own.py"
        )
        found = server("gunicorn", "-k web.own.Worker --graceful-timeout 45")
        assert (found.max_size, found.ping_interval, found.killed_after) == (9, 5, 45)
        assert server("gunicorn", "-k web.own.Other").kind == "other"

    def test_variables(self):
        os.environ |= {"WEB_CONCURRENCY": "3", "FORWARDED_ALLOW_IPS": "10.0.0.1,10.0.0.2"}
        os.environ["GUNICORN_CMD_ARGS"] = "-k asgi --bar 'a value'"
        found = server("gunicorn", "")
        assert (found.workers, found.trusted_proxies) == (3, ("10.0.0.1", "10.0.0.2"))
        assert (found.name, found.not_understood) == ("gunicorn -k asgi", ("--bar",))
        os.environ["GUNICORN_CMD_ARGS"] = "-w 5"
        assert server("gunicorn", "").workers == 5
        assert server("gunicorn", "-w 6").workers == 6

    def test_its_file(self, workshop):
        workshop.write(
            """
import multiprocessing
from os import environ

wsgi_app = "shop:make()"
bind = ["0.0.0.0:80", "unix:/run/shop.sock"]
worker_class = "asgi"
workers = 3
logconfig = "log.ini"
raw_env = ["SHOP=x", "BARE"]
timeout: int = 30


def post_fork(server, worker):
    workers = 9
""",
            "gunicorn.conf.py",
        )
        started = read("gunicorn", "")
        assert (started.target, started.is_factory) == ("shop:make", True)
        assert started.server == Server(
            kind="gunicorn",
            name="gunicorn -k asgi",
            workers=3,
            unix_socket=True,
            proxy_headers=False,
            log_config="log.ini",
        )
        assert (os.environ["SHOP"], "BARE" in os.environ) == ("x", False)
        assert server("gunicorn", "-w 5").workers == 5

    @pytest.mark.parametrize(
        "text",
        [
            "import os\nworkers = os.cpu_count() * 2 + 1",
            "workers = 2\nworkers += 1",
            "workers, threads = 2, 3",
            "if True:\n    workers = 2",
            "workers = 1\ntry:\n    pass\nexcept ImportError:\n    workers = 2",
            "match 1:\n    case _:\n        workers: int = 2",
        ],
    )
    def test_what_its_file_computes(self, workshop, text):
        workshop.write(text, "conf/prod.py")
        found = server("gunicorn", "-c conf/prod.py -k asgi")
        assert found.not_understood == ("workers in conf/prod.py, which is computed there",)
        assert server("gunicorn", "-c file:conf/prod.py -k asgi -w 4").not_understood == ()

    def test_constants_that_do_not_matter(self, workshop):
        workshop.write("x.workers = 7\nworkers: int\ntimeout = max(1, 2)\nworkers = 2", "gunicorn.conf.py")
        found = server("gunicorn", "-k asgi")
        assert (found.workers, found.not_understood) == (2, ())

    def test_workers_that_its_file_computes(self, workshop):
        workshop.write("from uvicorn_worker import UvicornWorker\nworker_class = UvicornWorker", "gunicorn.conf.py")
        found = server("gunicorn", "")
        assert (found.kind, found.name) == ("other", "gunicorn -k …")
        assert found.not_understood == ("worker_class in gunicorn.conf.py, which is computed there",)

    def test_a_module_for_a_file(self):
        found = server("gunicorn", "-c python:conf")
        assert (found.kind, found.not_understood) == ("other", ("--config python:conf",))
        assert found.log_config == "logconfig_dict", "of which nothing is known"
        assert server("gunicorn", "-c python:conf -k sync").kind == "gunicorn"

    def test_logging_that_its_file_configures(self, workshop):
        workshop.write("logconfig_dict = {'version': 1}\nraw_env = 'A=b,c'", "gunicorn.conf.py")
        assert server("gunicorn", "").log_config == "logconfig_dict"
        assert not is_info_heard(None, logging.Manager(logging.RootLogger(30)).getLogger("x"))
        assert is_info_heard("logconfig_dict", logging.Manager(logging.RootLogger(30)).getLogger("x"))
        assert os.environ["A"] == "b,c"

    def test_variables_that_cannot_be_read(self):
        os.environ["GUNICORN_CMD_ARGS"] = "-w '4"
        with pytest.raises(CannotRead, match="GUNICORN_CMD_ARGS: No closing quotation"):
            server("gunicorn", "")

    @pytest.mark.parametrize("text", [None, "workers = ("])
    def test_a_file_that_cannot_be_read(self, workshop, text):
        if text:
            workshop.write(text, "prod.py")
        with pytest.raises(CannotRead, match=r"prod\.py cannot be read"):
            server("gunicorn", "-c prod.py")

    def test_where_the_app_is(self, workshop, monkeypatch):
        monkeypatch.setattr(sys, "path", sys.path[:])
        workshop.write("", "web/shop.py")
        started = read("gunicorn", "--chdir web --pythonpath one,two shop")
        assert started.target == "shop:application"
        assert Path.cwd() == workshop.folder / "web"
        assert sys.path[:2] == ["one", "two"]
        with pytest.raises(CannotRead, match="--chdir nowhere: No such file"):
            read("gunicorn", "--chdir nowhere shop")

    def test_a_short_name_that_is_too_short(self):
        with pytest.raises(CannotRead, match="gunicorn: ambiguous option: --work could match --workers"):
            server("gunicorn", "--work 2")

    def test_options_of_all_kinds(self):
        line = "--proxy-protocol --reload -D --no-sendfile --log-level debug --forwarded * --log-config-json log.json"
        found = server("gunicorn", line)
        assert (found.trusted_proxies, found.log_config, found.not_understood) == (("*",), "log.json", ())


class TestGranian:
    def test_its_defaults(self):
        assert server("granian", "") == Server(
            kind="granian", name="granian", proxy_headers=False, interface=Interface.RSGI
        )

    def test_options(self):
        found = server("granian", "--interface asgi --uds /run/x --no-ws --log-config log.json")
        assert (found.interface, found.unix_socket, found.serves_websockets) == (Interface.ASGI, True, False)
        assert found.log_config == "log.json"
        assert server("granian", "--interface asginl").lifespan == "off"
        assert server("granian", "--interface WSGI --ws").interface is Interface.WSGI

    def test_an_interface_that_is_none(self):
        with pytest.raises(CannotRead, match="--interface cgi: granian knows"):
            server("granian", "--interface cgi")

    def test_what_concerns_the_app(self):
        started = read("granian", "--working-dir src --factory shop:make")
        assert (started.target, started.folder, started.is_factory) == ("shop:make", "src", True)
        assert read("granian", "shop").target == "shop:app"

    def test_variables(self):
        os.environ |= {"GRANIAN_WORKERS": "3", "GRANIAN_INTERFACE": "asgi", "GRANIAN_WEBSOCKETS": "false"}
        os.environ |= {"GRANIAN_FACTORY": "true"}
        started = read("granian", "shop:make")
        assert (started.server.workers, started.server.serves_websockets, started.is_factory) == (3, False, True)
        assert server("granian", "--workers 2 --ws").serves_websockets
        assert not read("granian", "--no-factory shop:make").is_factory

    def test_a_file_of_variables(self, workshop, monkeypatch):
        workshop.write("SHOP_NAME=x\n", "prod.env")
        assert server("granian", "--env-files prod.env").not_understood == ()
        assert os.environ["SHOP_NAME"] == "x"
        monkeypatch.setitem(sys.modules, "dotenv", None)
        told = ("prod.env, since python-dotenv is not installed here",)
        assert server("granian", "--env-files prod.env").not_understood == told

    def test_options_are_not_shortened(self):
        assert server("granian", "--work 2").not_understood == ("--work",)


class TestHypercorn:
    def test_its_defaults(self):
        assert server("hypercorn", "") == Server(
            kind="hypercorn", name="hypercorn", proxy_headers=False, ping_option="--websocket-ping-interval"
        )

    def test_options(self):
        found = server("hypercorn", "-b 0.0.0.0:80 --insecure-bind unix:/run/x --websocket-ping-interval 20 -k trio")
        assert (found.unix_socket, found.ping_interval, found.ping_timeout) == (True, 20.0, None)
        assert found.interface is Interface.TRIO

    @pytest.mark.parametrize(
        ("app", "target", "is_factory"),
        [
            ("shop", "shop:app", False),
            ("asgi:shop:app", "shop:app", False),
            ("shop:make()", "shop:make", True),
        ],
    )
    def test_names_of_apps(self, app, target, is_factory):
        started = read("hypercorn", app)
        assert (started.target, started.is_factory) == (target, is_factory)

    @pytest.mark.parametrize("app", ["src/shop:app", "src/shop.py:app"])
    def test_paths_of_apps(self, workshop, app):
        started = read("hypercorn", app)
        assert (started.target, started.folder) == ("shop:app", str(workshop.folder / "src"))

    def test_its_file(self, workshop):
        workshop.write("workers = 3\nbind = 'unix:/run/x'\nlogconfig = 'json:log.json'", "prod.conf")
        found = server("hypercorn", "-c prod.conf")
        assert (found.workers, found.unix_socket, found.log_config) == (3, True, "json:log.json")
        workshop.write("import os\nworkers = os.cpu_count()\nbind = []", "prod.py")
        found = server("hypercorn", "-c file:prod.py")
        assert (found.workers, found.unix_socket) == (1, False)
        assert found.not_understood == ("workers in prod.py, which is computed there",)
        assert server("hypercorn", "-c python:prod").not_understood == ("--config python:prod",)
        with pytest.raises(CannotRead, match=r"prod\.py cannot be read"):
            server("hypercorn", "-c prod.py")

    def test_an_empty_list(self, workshop):
        workshop.write("bind = []", "prod.toml")
        assert not server("hypercorn", "-c prod.toml").unix_socket


class TestH2corn:
    def test_its_defaults(self):
        assert server("h2corn", "") == Server(
            kind="h2corn",
            name="h2corn",
            proxy_headers=False,
            trusted_proxies=("127.0.0.1", "::1", "unix"),
            trusts_unix_socket=True,
            ping_interval=60.0,
            ping_timeout=30.0,
            ping_option="--websocket-ping-interval",
        )

    def test_options(self):
        found = server("h2corn", "-b unix:/run/x --proxy-headers --forwarded-allow-ips 10.0.0.1 --lifespan off")
        assert (found.unix_socket, found.proxy_headers, found.trusts_unix_socket) == (True, True, False)
        assert (found.trusted_proxies, found.lifespan) == (("10.0.0.1",), "off")
        assert server("h2corn", "--forwarded-allow-ips * --forwarded-allow-ips a,b").trusted_proxies == ("a", "b")
        found = server("h2corn", "--websocket-ping-interval 0 --websocket-ping-timeout 0")
        assert (found.ping_interval, found.ping_timeout) == (None, None)

    def test_variables_and_a_file(self, workshop):
        workshop.write("workers = 3\nforwarded_allow_ips = ['*']\nproxy_headers = true", "prod.conf")
        os.environ |= {"H2CORN_CONFIG": "prod.conf", "H2CORN_WORKERS": "4"}
        found = server("h2corn", "")
        assert (found.workers, found.trusted_proxies, found.proxy_headers) == (4, ("*",), True)
        assert not server("h2corn", "--no-proxy-headers").proxy_headers

    def test_what_concerns_the_app(self, workshop):
        workshop.write("SHOP_NAME=y\n", "prod.env")
        started = read("h2corn", "--app-dir src --factory --env-file prod.env shop:make")
        assert (started.target, started.folder, started.is_factory) == ("shop:make", "src", True)
        assert os.environ["SHOP_NAME"] == "y"
        assert read("h2corn", "shop").target == "shop", "which is told to be no app"


class TestOther:
    @pytest.mark.parametrize(("line", "is_unix"), [("--uds /run/x", True), ("-b unix:/x", True), ("-b :80", False)])
    def test_where_it_listens(self, line, is_unix):
        found = server("other", line)
        assert found == Server(kind="other", name="another server", unix_socket=is_unix)

    def test_what_concerns_the_app(self):
        started = read("other", "--app-dir src --factory shop:make")
        assert (started.target, started.folder, started.is_factory) == ("shop:make", "src", True)
