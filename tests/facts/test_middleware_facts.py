"""What `engine/outbound/wire_choice.py` relies on in packages that stand between a server and an app."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
import wrapped_apps
from support import DEADLINE

from fastapi_rooms.engine.outbound.wire_choice import _RECEIVES, _SENDS

TESTS = Path(wrapped_apps.__file__).parents[1]


@pytest.mark.parametrize(
    ("package", "wire"),
    [
        ("starlette_sessions", "UvicornWire"),
        ("starsessions", "UvicornWire"),
        ("asgi_correlation_id", "UvicornWire"),
        ("sentry", "UvicornWire"),
        ("sentry_with_spans", "AsgiWire"),  # it wants to see each message
        ("opentelemetry", "AsgiWire"),  # the same
        ("starlette_context", "AsgiWire"),  # its plugins may change what is sent
        ("starlette_context_with_plugins", "AsgiWire"),  # and want to be in the context of the connection
    ],
)
def test_a_message_arrives_and_a_socket_can_be_aborted_under(package, wire):
    found = subprocess.run(
        [sys.executable, wrapped_apps.__file__, package],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        timeout=3 * DEADLINE,
        check=False,
    )
    assert found.returncode == 0, found.stderr.decode()
    assert json.loads(found.stdout) == {"heard": "hi", "wire": wire, "is_ended": True, "closed": [1006, ""]}


def codes(code: CodeType) -> Iterator[CodeType]:
    """All functions that are written in one, with itself."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def written(module: str, qualname: str) -> CodeType:
    """Find the code of a function that only exists while a socket is served."""
    source = Path(importlib.import_module(module).__file__).read_text()
    [code] = [one for one in codes(compile(source, module, "exec")) if one.co_qualname == qualname]
    return code


@pytest.mark.parametrize(("module", "qualname"), sorted(_SENDS))
def test_a_send_that_is_looked_through_acts_on_responses_alone(module, qualname):
    code = written(module, qualname)
    assert "send" in code.co_freevars
    constants = [constant for constant in code.co_consts if isinstance(constant, str)]
    assert "http.response.start" in constants
    assert not [constant for constant in constants if "websocket" in constant]


@pytest.mark.parametrize(("module", "qualname"), sorted(_RECEIVES))
def test_a_receive_that_is_looked_through_has_another_below_it(module, qualname):
    assert "receive" in written(module, qualname).co_freevars
