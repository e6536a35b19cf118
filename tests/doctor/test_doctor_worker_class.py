"""Worker classes of gunicorn, by their source."""

import sys

import pytest

from fastapi_rooms.doctor.worker_class import uvicorn_settings

MERGED = "UvicornWorker.CONFIG_KWARGS | {'ws_max_size': 9, **more, name(): 1, 'ws': pick()}"


@pytest.mark.parametrize("worker", ["uvicorn_worker.UvicornWorker", "uvicorn.workers.UvicornH11Worker"])
def test_uvicorns_own(worker):
    assert uvicorn_settings(worker) == {}


def test_nothing_else_of_uvicorns():
    assert uvicorn_settings("uvicorn.workers.Other") is None
    assert uvicorn_settings("meinheld") is None


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("class Worker(UvicornWorker): ...", {}),
        ("class Worker(uvicorn_worker.UvicornH11Worker):\n    CONFIG_KWARGS = {'ws_max_size': 9}", {"ws_max_size": 9}),
        (f"class Worker(UvicornWorker):\n    CONFIG_KWARGS = {MERGED}", {"ws_max_size": 9}),
        ("class Worker(UvicornWorker):\n    CONFIG_KWARGS: dict = {'ws_max_size': 9}", {"ws_max_size": 9}),
        ("class Worker(UvicornWorker):\n    OTHER = {'ws_max_size': 9}", {}),
        ("class Worker(Other): ...", None),
        ("Worker = UvicornWorker", None),
        ("class Worker(", None),
    ],
)
def test_ones_own(workshop, text, settings):
    workshop.write(text, "web/own.py")
    assert uvicorn_settings("web.own.Worker") == settings
    assert uvicorn_settings("web.own:Worker") == settings


def test_in_a_package_elsewhere(workshop, monkeypatch):
    workshop.write("class Worker(UvicornWorker): ...", "src/web/__init__.py")
    assert uvicorn_settings("web.Worker") is None
    monkeypatch.setattr(sys, "path", ["src"])
    assert uvicorn_settings("web.Worker") == {}
