"""Importing an app, and what is said when that fails."""

import sys

import pytest

from fastapi_rooms.doctor.loading import CannotLoad, load
from fastapi_rooms.doctor.redaction import without_credentials


def reason(target, **options):
    with pytest.raises(CannotLoad) as refused:
        load(target, **options)
    return str(refused.value)


def test_it_finds_the_app_in_the_working_directory(workshop):
    workshop.write("from fastapi import FastAPI\nclass site: app = FastAPI()", "web/main.py")
    assert load("web.main:site.app").target == "web.main:site.app"


def test_it_finds_the_app_in_a_named_folder(workshop):
    workshop.write("from fastapi import FastAPI\napp = FastAPI()", "src/shop.py")
    assert reason("shop:app").startswith("there is no module 'shop'")
    assert load("shop:app", "src").managers == ()
    assert sys.path.count("src") == 1
    load("shop:app", "src")
    assert sys.path.count("src") == 1


@pytest.mark.parametrize("target", ["shop", "shop:", ":app"])
def test_what_names_no_app(workshop, target):
    assert reason(target).startswith(f"{target!r} names no app: write MODULE:APP")


@pytest.mark.parametrize("target", ["nowhere:app", "nowhere.web:app"])
def test_a_module_that_is_not_there(workshop, target):
    told = reason(target)
    assert f"there is no module 'nowhere' in {workshop.folder}" in told
    assert "--app-dir" in told


def test_a_name_that_is_not_in_the_module(workshop):
    workshop.write("api = 1")
    assert reason("shop:app").startswith("shop has no 'app'")


def test_what_is_no_app(workshop):
    workshop.write("app = 1")
    assert reason("shop:app") == "shop:app is no FastAPI app but int: name the app object"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
        ("raise ModuleNotFoundError('by hand')", "ModuleNotFoundError: by hand"),
        ("import sys\nsys.exit('no configuration')", "SystemExit: no configuration"),
        ("\nimport os\nos.environ['NOT_SET_ANYWHERE']", "KeyError: 'NOT_SET_ANYWHERE'"),
        ("def app(): raise ValueError('no such database')", "ValueError: no such database"),
    ],
)
def test_an_import_that_fails(workshop, text, told):
    path = workshop.write(text)
    said = reason("shop:app")
    assert said.startswith("importing shop:app failed:")
    assert told in said
    assert f"(at {path}, line {text.count(chr(10)) + 1})" in said
    assert "the same environment variables" in said


def test_a_syntax_error_shows_its_line(workshop):
    workshop.write("app = (")
    said = reason("shop:app")
    assert 'shop.py", line 1' in said
    assert "SyntaxError" in said


def test_no_error_shows_credentials(workshop):
    workshop.write("raise ValueError('cannot reach redis://app:p@ss/word@redis:6379/0')")
    said = reason("shop:app")
    assert "redis://***@redis:6379/0" in said
    assert "word" not in said


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://redis:6379/0?username=u&password=geheim", "redis://redis:6379/0?username=***&password=***"),
        (
            "redis://u:geheim@redis/0?db=1&sentinel_password=geheim&x=y",
            "redis://***@redis/0?db=1&sentinel_password=***&x=y",
        ),
        ("redis://redis?PASSWORD=geh#eim", "redis://redis?PASSWORD=***"),
        ("redis://redis?password=geh@geheim", "redis://***"),
        ("redis://u:geheim?token=x@redis", "redis://***"),
        ("https://redis/0?db=1&timeout=2", "https://redis/0?db=1&timeout=2"),
    ],
)
def test_no_url_shows_credentials_wherever_they_are(url, shown):
    assert without_credentials(f"cannot reach {url} today") == f"cannot reach {shown} today"


def test_urls_without_credentials_stay():
    assert without_credentials("see https://example.com/a, or ask me@example.com") == (
        "see https://example.com/a, or ask me@example.com"
    )


def test_layers_around_an_app_are_taken_off(workshop):
    loaded = workshop.load("""
from fastapi import FastAPI

class Tracing:
    def __init__(self, app): self.app = app

class Metrics(Tracing): ...

app = Tracing(Metrics(FastAPI()))
""")
    assert loaded.outer_layers == ("Tracing", "Metrics")


@pytest.mark.parametrize("is_factory", [True, False])
def test_a_factory_is_called(workshop, is_factory):
    options = "title='shop'" if is_factory else ""
    loaded = workshop.load(
        f"from fastapi import FastAPI\ndef app({options}): return FastAPI(version='7')", is_factory=is_factory
    )
    assert loaded.app.version == "7"
