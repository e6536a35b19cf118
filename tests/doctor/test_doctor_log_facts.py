"""Whether INFO lines of the package go anywhere."""

import json
import logging

import pytest

from fastapi_rooms.doctor.log_facts import is_info_heard

HANDLER = logging.NullHandler()


@pytest.fixture
def root():
    """Loggers as they are in a new process: those of this one have handlers of pytest's."""
    return logging.RootLogger(logging.WARNING)


@pytest.fixture
def ours(root):
    return logging.Manager(root).getLogger("fastapi_rooms")


@pytest.fixture
def is_heard(ours):
    return lambda config_file=None: is_info_heard(config_file, ours)


def test_nothing_was_configured(is_heard):
    assert not is_heard()


def test_the_root_logger_hears_it(root, is_heard):
    root.addHandler(HANDLER)
    assert not is_heard(), "its level is WARNING"
    root.setLevel(logging.INFO)
    assert is_heard()


def test_a_handler_that_wants_less(root, is_heard):
    handler = logging.NullHandler(logging.WARNING)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    assert not is_heard()


def test_a_level_without_a_handler(ours, is_heard):
    ours.setLevel(logging.DEBUG)
    assert not is_heard(), "what has no handler is printed from WARNING on"
    ours.addHandler(HANDLER)
    assert is_heard()


def test_a_logger_that_keeps_to_itself(root, ours, is_heard):
    ours.setLevel(logging.INFO)
    root.addHandler(HANDLER)
    assert is_heard()
    ours.propagate = False
    assert not is_heard()


HANDLERS = {"console": {"class": "logging.StreamHandler"}, "mail": {"class": "logging.StreamHandler", "level": "ERROR"}}
ROOT = {"level": "INFO", "handlers": ["console"]}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"root": ROOT}, True),
        ({"root": {"level": 20, "handlers": ["mail", "console"]}}, True),
        ({"root": {"level": "info", "handlers": ["mail"]}}, False),
        ({"root": {"level": "INFO"}}, False),
        ({"root": {"handlers": ["console"]}}, False),
        ({"loggers": {"": ROOT}}, True),
        ({"loggers": {"uvicorn": ROOT}}, False),
        ({"loggers": {"fastapi_rooms": ROOT}}, True),
        ({"loggers": {"fastapi_rooms": {**ROOT, "propagate": False}}}, True),
        ({"loggers": {"fastapi_rooms": {"level": "INFO"}}, "root": {"level": "ERROR", "handlers": ["console"]}}, True),
        ({"loggers": {"fastapi_rooms": {"level": "ERROR"}}, "root": ROOT}, False),
        ({"loggers": {"fastapi_rooms": {"level": "NOTSET"}}, "root": ROOT}, True),
        ({"loggers": {"fastapi_rooms": {"propagate": False}}, "root": ROOT}, False),
        ({}, False),
    ],
)
def test_what_a_file_configures(workshop, config, expected, is_heard):
    workshop.write(json.dumps({"version": 1, "handlers": HANDLERS, **config}), "log.json")
    assert is_heard("log.json") is expected


SECTIONS = """\
[loggers]
keys = root, rooms

[handlers]
keys = console

[formatters]
keys = plain

[logger_root]
level = {root}
handlers = console

[logger_rooms]
qualname = fastapi_rooms
level = {ours}
handlers =
propagate = {propagate}

[handler_console]
class = StreamHandler
args = (sys.stdout,)

[formatter_plain]
format = %(asctime)s %(message)s
"""


@pytest.mark.parametrize(
    ("of_root", "of_ours", "propagate", "expected"),
    [
        ("INFO", "NOTSET", 1, True),
        ("WARNING", "NOTSET", 1, False),
        ("WARNING", "INFO", 1, True),
        ("INFO", "INFO", 0, False),
    ],
)
def test_a_file_in_sections(workshop, of_root, of_ours, propagate, expected, is_heard):
    workshop.write(SECTIONS.format(root=of_root, ours=of_ours, propagate=propagate), "log.ini")
    assert is_heard("log.ini") is expected


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("log.yaml", "log.yaml", "handlers: {a: {}}\nroot: {level: INFO, handlers: [a]}"),
        ("log.yml", "log.yml", "handlers: {a: {}}\nroot: {level: INFO, handlers: [a]}"),
        ("log:prod.json", "log:prod.json", json.dumps({"handlers": HANDLERS, "root": ROOT})),
        ("json:log.conf", "log.conf", json.dumps({"handlers": HANDLERS, "root": ROOT})),
        ("toml:log.conf", "log.conf", "[handlers.a]\n[root]\nlevel = 'INFO'\nhandlers = ['a']"),
        ("log.toml", "log.toml", "[handlers.a]\n[root]\nlevel = 'INFO'\nhandlers = ['a']"),
    ],
)
def test_other_forms(workshop, name, file, text, is_heard):
    workshop.write(text, file)
    assert is_heard(name)
    workshop.write(text.replace("INFO", "WARNING"), file)
    assert not is_heard(name)


@pytest.mark.parametrize("text", ["{", '{"root": {"level": "LOUD"}}', '{"root": {"handlers": ["nowhere"]}}', "[]"])
def test_a_file_that_says_nothing(workshop, text, is_heard):
    workshop.write(text, "log.json")
    assert is_heard("log.json"), "it is the server's to complain"


def test_a_file_that_is_not_there(workshop, is_heard):
    assert is_heard("log.json")


def test_level_from_here_and_handler_from_there(workshop, ours, is_heard):
    workshop.write(json.dumps({"handlers": HANDLERS, "root": {"handlers": ["console"]}}), "log.json")
    assert not is_heard("log.json")
    ours.setLevel(logging.INFO)
    assert is_heard("log.json")


def test_the_loggers_of_this_process():
    logger = logging.getLogger("fastapi_rooms")
    assert is_info_heard() is is_info_heard(None, logger)
