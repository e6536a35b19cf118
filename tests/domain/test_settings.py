"""Limits and policies."""

import sys

import pytest
from pydantic import ValidationError

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.settings import Overflow, RoomsSettings

NUMBERS = [
    name
    for name, field in RoomsSettings.model_fields.items()
    if isinstance(field.default, int | float) and not isinstance(field.default, bool) and name != "flush_interval"
]  # all but the choices, and what is not there by default
SWITCHED_OFF_BY_NONE = [
    "max_message_bytes",
    "messages_per_second",
    "max_rooms_per_connection",
    "max_connections",
    "max_connections_per_user",
    "max_connections_per_address",
    "first_message_timeout",
    "max_connection_seconds",
    "heartbeat_interval",
    "drain_timeout",
    "revocation_seconds",
    "compress_min_bytes",
]
OPTIONAL_NUMBERS = ["flush_interval", *SWITCHED_OFF_BY_NONE]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    import os

    for variable in list(os.environ):
        if variable.upper().startswith("ROOMS_"):
            monkeypatch.delenv(variable)


def test_the_defaults_are_the_safe_ones():
    assert RoomsSettings().model_dump() == {
        "outbox_messages": 1_000,
        "outbox_bytes": 1024 * 1024,
        "overflow": "close",
        "send_timeout": 10.0,
        "inbox_messages": 256,
        "inbox_bytes": 1024 * 1024,
        "inbox_timeout": 10.0,
        "max_message_bytes": 64 * 1024,
        "max_invalid_messages": 10,
        "messages_per_second": 100.0,
        "messages_burst": 1_000,
        "max_rooms_per_connection": 128,
        "max_connections": None,
        "max_connections_per_user": None,
        "user_limit_policy": "refuse",
        "max_connections_per_address": None,
        "allowed_origins": (),
        "require_origin": False,
        "refuse_by_close": "never",
        "first_message_timeout": None,
        "max_connection_seconds": None,
        "heartbeat_interval": None,
        "heartbeat_timeout": 10.0,
        "drain_timeout": 10.0,
        "revocation_seconds": 3_600.0,
        "disconnect_grace": 5.0,
        "key_prefix": "rooms",
        "publish_timeout": 2.0,
        "publish_failure": "raise",
        "probe_interval": 2.0,
        "max_envelope_bytes": 16 * 1024 * 1024,
        "flush_interval": 0,
        "compress_min_bytes": None,
        "wire": "auto",
    }


def test_every_field_says_in_its_description_what_it_limits():
    assert all(field.description for field in RoomsSettings.model_fields.values())


@pytest.mark.parametrize("name", RoomsSettings.model_fields)
def test_settings_are_frozen(name):
    settings = RoomsSettings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, name, getattr(settings, name))


def test_equal_settings_are_equal_values():
    assert RoomsSettings(outbox_bytes=5) == RoomsSettings(outbox_bytes=5)
    assert hash(RoomsSettings(outbox_bytes=5)) == hash(RoomsSettings(outbox_bytes=5))


def test_settings_show_themselves():
    assert "outbox_bytes=5" in repr(RoomsSettings(outbox_bytes=5))


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, "many"])
def test_a_limit_that_limits_nothing_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        RoomsSettings(**{name: value})


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in SWITCHED_OFF_BY_NONE])
def test_what_has_to_be_limited_cannot_be_switched_off(name):
    with pytest.raises(ValidationError, match=name):
        RoomsSettings(**{name: None})


@pytest.mark.parametrize("name", SWITCHED_OFF_BY_NONE)
def test_none_switches_a_limit_off(name):
    assert getattr(RoomsSettings(**{name: None}), name) is None


@pytest.mark.parametrize(
    "name", ["flush_interval", *(n for n in NUMBERS if isinstance(RoomsSettings.model_fields[n].default, float))]
)
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_time_without_end_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        RoomsSettings(**{name: float(value)})


@pytest.mark.parametrize("name", [*NUMBERS, *OPTIONAL_NUMBERS])
def test_the_smallest_limit_is_one(name):
    assert getattr(RoomsSettings(**{name: 1}), name) == 1


def test_an_interval_may_be_none_at_all_or_part_of_a_millisecond():
    assert RoomsSettings(flush_interval=0).flush_interval == 0
    assert RoomsSettings(flush_interval=0.5).flush_interval == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flush_interval", -0.1),
        ("flush_interval", "soon"),
        ("flush_interval", None),
        ("compress_min_bytes", 0),
        ("compress_min_bytes", -1),
        ("compress_min_bytes", "small"),
        ("compress_min_bytes", 1.5),
    ],
)
def test_what_is_neither_a_number_nor_left_out_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        RoomsSettings(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("overflow", "block"), ("wire", "tcp"), ("publish_failure", "ignore")])
def test_an_unknown_choice_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        RoomsSettings(**{name: value})


@pytest.mark.parametrize("policy", Overflow)
def test_an_overflow_policy_may_be_given_by_its_value(policy):
    assert RoomsSettings(overflow=policy.value).overflow is policy


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [("outbox_byte", "outbox_bytes"), ("send_time_out", "send_timeout"), ("over_flow", "overflow"), ("zzz", "[a-z_]+")],
)
def test_an_unknown_field_is_an_error_that_names_the_nearest_known_one(unknown, nearest):
    with pytest.raises(ValueError, match=f"no field '{unknown}': did you mean '{nearest}'"):
        RoomsSettings(**{unknown: 1})


def test_something_that_is_no_mapping_is_refused_by_pydantic():
    with pytest.raises(ValidationError, match="valid dictionary"):
        RoomsSettings.model_validate(3)


@pytest.mark.parametrize("prefix", ["rooms", "a", "shop:chat", "shop.chat-2_B", "x" * 64])
def test_a_prefix_is_made_of_letters_that_mean_nothing_to_redis(prefix):
    assert RoomsSettings(key_prefix=prefix).key_prefix == prefix


@pytest.mark.parametrize(
    "prefix", ["", "x" * 65, "a b", "a*", "a?", "[a]", "{a}", "a\\", "a\n", "é", "a/b", "a%2A", 7, None]
)
def test_a_prefix_that_could_be_a_pattern_or_pick_a_slot_is_refused(prefix):
    with pytest.raises(ValidationError, match="key_prefix"):
        RoomsSettings(key_prefix=prefix)


def test_a_silent_backend_is_noticed_within_five_seconds_by_default():
    settings = RoomsSettings()
    assert settings.probe_interval + settings.publish_timeout < 5


def test_settings_are_validated_from_settings():
    settings = RoomsSettings(wire="asgi")
    assert RoomsSettings.model_validate(settings) == settings


# The environment


def test_an_empty_environment_gives_the_defaults():
    assert RoomsSettings.from_env() == RoomsSettings()


def test_variables_are_read_and_validated(monkeypatch):
    monkeypatch.setenv("ROOMS_OUTBOX_BYTES", "4096")
    monkeypatch.setenv("ROOMS_OVERFLOW", "drop_oldest")
    monkeypatch.setenv("ROOMS_SEND_TIMEOUT", "2.5")
    monkeypatch.setenv("ROOMS_KEY_PREFIX", "shop")
    monkeypatch.setenv("ROOMS_PUBLISH_FAILURE", "log")
    monkeypatch.setenv("ROOMS_FLUSH_INTERVAL", "2.5")
    monkeypatch.setenv("ROOMS_COMPRESS_MIN_BYTES", "1024")
    monkeypatch.setenv("ROOMS_WIRE", "asgi")
    settings = RoomsSettings.from_env()
    assert settings == RoomsSettings(
        outbox_bytes=4096,
        overflow=Overflow.DROP_OLDEST,
        send_timeout=2.5,
        key_prefix="shop",
        publish_failure="log",
        flush_interval=2.5,
        compress_min_bytes=1024,
        wire="asgi",
    )
    assert type(settings) is RoomsSettings


def test_what_is_none_or_a_list_can_be_written_in_the_environment(monkeypatch):
    for name in ("DRAIN_TIMEOUT", "MESSAGES_PER_SECOND", "MAX_MESSAGE_BYTES"):
        monkeypatch.setenv(f"ROOMS_{name}", "none")
    settings = RoomsSettings.from_env()
    assert (settings.drain_timeout, settings.messages_per_second, settings.max_message_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("https://a.example", ("https://a.example",)),
        ("https://a.example, http://localhost:5173 ,", ("https://a.example", "http://localhost:5173")),
        ('["https://a.example", "*"]', ("https://a.example", "*")),
        ("*", ("*",)),
        ("[]", ()),
    ],
)
def test_a_list_in_the_environment_has_commas_or_is_json(monkeypatch, value, origins):
    monkeypatch.setenv("ROOMS_ALLOWED_ORIGINS", value)
    assert RoomsSettings.from_env().allowed_origins == origins


@pytest.mark.parametrize(("variable", "value"), [("ROOMS_OUTBOX_BYTES", "lots"), ("ROOMS_SEND_TIMEOUT", "0")])
def test_a_variable_with_a_bad_value_is_refused(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError, match=variable.removeprefix("ROOMS_").lower()):
        RoomsSettings.from_env()


@pytest.mark.parametrize(
    ("variable", "nearest"), [("ROOMS_OUTBOX_BYTE", "outbox_bytes"), ("ROOMS_SENDTIMEOUT", "send_timeout")]
)
def test_a_misspelt_variable_is_an_error_that_names_the_nearest_field(monkeypatch, variable, nearest):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigurationError, match=f"^{variable}: .*did you mean '{nearest}'"):
        RoomsSettings.from_env()


def test_variables_of_somebody_else_are_left_alone(monkeypatch):
    monkeypatch.setenv("ROOMS_DATABASE_URL", "postgres://")
    monkeypatch.setenv("OUTBOX_BYTES", "7")
    monkeypatch.setenv("CHATROOMS_OUTBOX_BYTES", "7")
    assert RoomsSettings.from_env() == RoomsSettings()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'fastapi-rooms\[settings\]'"):
        RoomsSettings.from_env()


def test_a_subclass_reads_its_own_fields_too(monkeypatch):
    class AppSettings(RoomsSettings):
        history_messages: int = 1

    monkeypatch.setenv("ROOMS_HISTORY_MESSAGES", "3")
    settings = AppSettings.from_env()
    assert type(settings) is AppSettings
    assert settings.history_messages == 3
