"""Mistakes that are found where they are made, with the fix in the text."""

from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends
from pydantic import BaseModel

from fastapi_rooms import (
    ConfigurationError,
    Connection,
    ConnectionManager,
    Incoming,
    RoomsExtension,
    RoomsSettings,
    current_connection,
    ws_route,
)


class Say(BaseModel):
    text: str


async def either(message: Incoming[Say] | Incoming[int]) -> None: ...


async def optional(message: Incoming[str] | None) -> None: ...


async def many(messages: list[Incoming[str]]) -> None: ...


async def forgotten(message: Say) -> None: ...


async def untyped(message: Incoming) -> None: ...


async def positional(message: str, /) -> None: ...


async def open_ended(**values: Any) -> None: ...


async def plain_connection(connection: Connection) -> None: ...


async def plain_manager(manager: ConnectionManager) -> None: ...


User = Annotated[str, Depends(lambda: "ann")]


async def alias_by_default(user: str = Depends(User)) -> None: ...


async def alias_in_annotation(user: Annotated[str, Depends(User)]) -> None: ...


def sync_generator(message: Incoming[str]):
    yield message


class CallableObject:
    async def __call__(self, message: Incoming[str]) -> None: ...


@pytest.mark.parametrize(
    ("handler", "fix"),
    [
        (either, "around the whole type"),
        (optional, "around the whole type"),
        (many, "around the whole type"),
        (forgotten, r"Incoming\[Say\]"),
        (untyped, r"Incoming\[str\]"),
        (positional, "by name"),
        (open_ended, "by name"),
        (plain_connection, "ConnectionDep"),
        (plain_manager, "ManagerDep"),
        (alias_by_default, r"without Depends\(\) around it"),
        (alias_in_annotation, r"without Depends\(\) around it"),
        (sync_generator, "async def"),
        (CallableObject(), "write a function"),
    ],
)
def test_a_handler_that_cannot_work_is_refused_at_decoration(handler, fix):
    with pytest.raises(ConfigurationError, match=fix):
        ws_route(APIRouter(), "/ws")(handler)


async def test_what_only_looks_like_a_mistake_is_left_to_fastapi():
    @ws_route(APIRouter(), "/ws")
    async def handler(
        message: Incoming[Say],
        query: Annotated[Say, Depends()],
        connection: Connection = Depends(current_connection),  # noqa: B008
        user: User = "",
        limit: int = 3,
    ) -> None: ...


def test_a_decorator_without_its_path_is_refused():
    with pytest.raises(ConfigurationError, match=r'@rooms\.ws_route\("/ws"\)'):
        RoomsExtension().ws_route(either)


def test_an_extension_in_place_of_its_router_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"not RoomsExtension: write ws_route\(app, .*rooms\.router.* = RoomsExtension\(\)"
    ):
        ws_route(RoomsExtension(), "/ws")


@pytest.mark.parametrize("source", [{"room": 5}, {"metadata": {"a": 1}}, {"user_id": "ann"}, {"dependencies": [5]}])
def test_a_value_in_place_of_a_dependency_is_refused(source):
    with pytest.raises(ConfigurationError, match="pass a function that FastAPI can call"):
        ws_route(APIRouter(), "/ws", **source)


def test_a_plain_function_will_do_for_a_dependency():
    ws_route(APIRouter(), "/ws", dependencies=[lambda: None])


@pytest.mark.parametrize("make", [ConnectionManager, lambda settings: RoomsExtension(settings=settings)])
def test_settings_of_another_kind_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"RoomsSettings\(\.\.\.\)"):
        make({"send_timeout": 3})


def test_settings_in_place_of_a_url_are_refused():
    with pytest.raises(ConfigurationError, match="settings=RoomsSettings"):
        RoomsExtension(RoomsSettings())
