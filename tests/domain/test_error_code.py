"""The codes of error frames: whatever the package sends is one of them, and each is sent."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastapi_rooms
from fastapi_rooms.domain.error_code import ErrorCode
from fastapi_rooms.domain.errors import JoinRefused, RefusedError, details_of
from fastapi_rooms.domain.incoming import error_message

PACKAGE = Path(fastapi_rooms.__file__).parent


def sent_in(source: str) -> Iterator[str]:
    """Yield what a module says in its error frames: `ErrorCode.X` as its value, all else as it is written."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(ast.Name("error_message") | ast.Attribute(attr="error_message"), arguments):
                yield _value(arguments[0])
            case ast.Dict(keys, values) if '"type"="error"' in [
                f'"{key.value}"="{value.value}"'
                for key, value in zip(keys, values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
            ]:
                yield "a frame made by hand"


def _value(argument: ast.expr) -> str:
    match argument:
        case ast.Attribute(ast.Name("ErrorCode"), name):
            return ErrorCode[name]
    return ast.unparse(argument)


def of_errors(error: type[RefusedError] = RefusedError) -> Iterator[type[RefusedError]]:
    """Yield the errors of the package that become error frames; those of tests are apps' own."""
    if error.__module__.startswith("fastapi_rooms."):
        yield error
    for narrower in error.__subclasses__():
        yield from of_errors(narrower)


def test_whatever_is_sent_is_a_code_and_every_code_is_sent():
    sent = {
        (str(file.relative_to(PACKAGE)), code) for file in PACKAGE.rglob("*.py") for code in sent_in(file.read_text())
    }
    assert ("domain/incoming.py", "a frame made by hand") in sent, "by error_message() itself"
    sent.remove(("domain/incoming.py", "a frame made by hand"))
    assert ("web/handlers.py", "error.code") in sent, "of a RefusedError, whose codes are below"
    sent.remove(("web/handlers.py", "error.code"))
    of_classes = {error.code for error in of_errors()}
    assert all(isinstance(code, ErrorCode) for code in of_classes)
    assert {code for _, code in sent} | of_classes == set(ErrorCode)
    assert not {code for _, code in sent} & of_classes


@pytest.mark.parametrize(
    ("source", "sent"),
    [
        ("error_message(ErrorCode.UNAVAILABLE)", "unavailable"),
        ("incoming.error_message(ErrorCode.INVALID_MESSAGE, errors=[])", "invalid_message"),
        ("error_message('gone')", "'gone'"),
        ("send({'code': 'gone', 'type': 'error'})", "a frame made by hand"),
    ],
)
def test_what_a_module_sends_is_found(source, sent):
    assert list(sent_in(source)) == [sent]


def test_an_error_of_an_app_has_a_code_of_its_own_or_that_of_its_kind():
    class NotYourTurnError(RefusedError):
        code = "not_your_turn"

    class VagueError(RefusedError):
        pass

    assert [json.loads(error_message(error.code).payload)["code"] for error in (NotYourTurnError, VagueError)] == [
        "not_your_turn",
        "refused",
    ]


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_is_its_text_on_the_wire_and_says_what_it_means(code):
    assert error_message(code).payload == b'{"type":"error","code":"%b"}' % code.value.encode()
    assert f"{code}" == code == code.value
    assert ErrorCode(code.value) is code
    assert code.meaning.endswith(".")


def test_a_refusal_of_the_apps_own_need_not_call_ours_when_it_is_made():
    class OwnError(RefusedError):
        def __init__(self, details: str) -> None:
            self.details = details

    class OwnJoinError(JoinRefused):
        def __init__(self) -> None:
            """Leave everything as the class has it."""

    assert details_of(OwnError("of the app")) == details_of(OwnJoinError()) == {}
    assert details_of(JoinRefused("no", room="a", data=0)) == {"room": "a", "data": 0}
    assert JoinRefused("no", code="full").code == "full"
