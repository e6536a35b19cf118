"""Small apps in a folder of their own, looked at in this process."""

import logging
import os
import sys
import textwrap

import pytest

from fastapi_rooms.__main__ import main
from fastapi_rooms.doctor.loading import load


class Workshop:
    """The working directory of a user."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, text, name="shop.py"):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def load(self, text, **options):
        self.write(text)
        return load("shop:app", **options)


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    for variable in os.environ:
        if variable.startswith(("UVICORN_", "GUNICORN_", "GRANIAN_", "H2CORN_")) or variable in {
            "WEB_CONCURRENCY",
            "FORWARDED_ALLOW_IPS",
            "NO_COLOR",
        }:
            monkeypatch.delenv(variable)
    ours = logging.getLogger("fastapi_rooms")
    level = ours.level
    ours.setLevel(logging.INFO)  # what it says is heard here: pytest listens
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield Workshop(tmp_path)
    ours.setLevel(level)
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def doctor(workshop, capsys):
    """Run the command; return its exit code, and what it said."""

    def call(*words):
        code = main(["doctor", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
