"""What is installed, and what is needed."""

import pytest

from fastapi_rooms.doctor import versions


def test_what_is_installed():
    found = versions.installed()
    assert {"python", "fastapi-rooms", "fastapi", "starlette", "redis", "uvicorn", "websockets"} <= set(found)


def test_what_is_not_installed_is_not_there(monkeypatch):
    monkeypatch.setattr(versions, "LOOKED_AT", ("fastapi", "no-such-package-anywhere"))
    assert set(versions.installed()) == {"python", "fastapi"}


def test_what_is_needed_is_what_the_package_says():
    assert set(versions.required()) == {"fastapi", "pydantic", "redis"}


def test_a_package_that_was_copied_needs_nothing(monkeypatch):
    monkeypatch.setattr(versions, "PACKAGE", "no-such-package-anywhere")
    assert versions.required() == {}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.165.0", (0, 165, 0)), ("8.1", (8, 1)), ("1.2.3.4", (1, 2, 3)), ("3.11.7+local5", (3, 11, 7))],
)
def test_versions_are_compared_as_numbers(text, numbers):
    assert versions.numbers(text) == numbers
