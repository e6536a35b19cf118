"""Limits and policies: one frozen value, validated once."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.http_origin import check_allowed

Count = Annotated[int, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def are_seconds(value: object) -> bool:
    """Return whether something is a number of seconds, above 0 and not without end."""
    return isinstance(value, int | float) and 0 < value < math.inf


def _listed(origins: Any) -> Any:
    """Let one text stand for itself only: its characters are no origins."""
    if isinstance(origins, str):
        raise ConfigurationError(f"allowed_origins takes a list: write [{origins!r}]")
    return origins


def _are_origins(origins: Sequence[str]) -> tuple[str, ...]:
    check_allowed(origins)
    return tuple(origins)


ENV_PREFIX = "ROOMS_"
ENV_NONE = "none"
"""What stands for None in a variable."""


class Overflow(StrEnum):
    """What is lost when a message is offered to the full outbox of a slow consumer. Everything lost is counted."""

    CLOSE = "close"
    """The connection: it is closed with 1013 after what it was already promised."""
    DROP_OLDEST = "drop_oldest"
    """The messages that wait longest."""
    DROP_NEWEST = "drop_newest"
    """The message that was offered."""


class RoomsSettings(BaseModel):
    """Limits and policies of one node. Frozen; sizes are in bytes, times in seconds but for `flush_interval`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    outbox_messages: Count = 1_000
    """How many messages may wait for a connection that does not take them. Messages of the loop tick in which it was
    found blocked come on top: a burst is written first and judged afterwards."""
    outbox_bytes: Bytes = 1024 * 1024
    """How many bytes may wait for a connection that does not take them, beside the server's own write buffer (64 KiB
    under uvicorn) and the kernel's."""
    overflow: Overflow = Overflow.CLOSE
    """What is lost when an outbox is full: the connection (`close`), or messages (`drop_oldest`, `drop_newest`)."""
    send_timeout: Seconds = 10.0
    """How long a connection may take no byte although some are waiting for it, before it is aborted."""
    inbox_messages: Count = 256
    """How many messages of one client may wait for its handler. A full inbox stops reading from the client."""
    inbox_bytes: Bytes = 1024 * 1024
    """How many bytes of one client may wait for its handler, as they are kept: a text that is not ASCII takes up to
    four times its UTF-8. One message is always let in."""
    inbox_timeout: Seconds = 10.0
    """How long an inbox may stay full before the client is closed with 1013. Stay below the server's ping timeout
    (uvicorn: 20 s): while nothing is read, no pong is seen."""
    max_message_bytes: Bytes | None = 64 * 1024
    """The largest message a client may send, in bytes of UTF-8. A larger one closes it with 1009."""
    max_invalid_messages: Count = 10
    """How many invalid messages in a row a client may send before it is closed with 1007."""
    messages_per_second: PerSecond | None = 100.0
    """How many messages a second a client may send in the long run. What is over is dropped; the client is told once,
    and closed with 1008 when it does not slow down."""
    messages_burst: Count = 1_000
    """How many messages a client may send at once, before `messages_per_second` counts."""
    max_rooms_per_connection: Count | None = 128
    """How many rooms a connection may be in. Another join is refused with `TooManyRooms`."""
    max_connections: Count | None = None
    """How many connections this node takes. Another one is refused with 503. Who was closed counts until the socket has
    left."""
    max_connections_per_user: Count | None = None
    """How many connections a user may have on this node. For another one see `user_limit_policy`."""
    user_limit_policy: Literal["refuse", "replace"] = "refuse"
    """Who gives way when a user has `max_connections_per_user` on this node: the newest (`refuse`, with 429), or the
    oldest (`replace`, which closes it with 4509), for users whose network changes before the old one is missed."""
    max_connections_per_address: Count | None = None
    """How many connections may come from one address on this node; of IPv6, from one /64. Another one is refused with
    429. The address is the one in the ASGI scope: behind a proxy, configure the server to trust it. Who was closed
    counts until the socket has left."""
    allowed_origins: Annotated[Sequence[str], BeforeValidator(_listed), AfterValidator(_are_origins)] = ()
    """Pages of which other HTTP origins may connect, such as `https://example.com`; `*` means every page in the world.
    Pages of the host that is connected to always may."""
    require_origin: bool = False
    """Refuse clients that send no `Origin` header, which browsers always do."""
    refuse_by_close: Literal["never", "auto", "always"] = "never"
    """Whether who is refused with another HTTP status than 403 is accepted, and closed at once with a code that says
    the same (4401, 1012, 1013, 1008, 1011): `auto`, where the server can answer a handshake with 403 alone; `always`,
    since pages are told no status. `never` is the default: it costs a stranger's handshake no open socket, and a client
    that takes `open` for success would come back at once, again and again."""
    first_message_timeout: Seconds | None = None
    """How long a client may take for its first message before it is closed with 4408. Not for endpoints that receive
    from the WebSocket themselves, since nobody else knows what came; nor is the heartbeat."""
    max_connection_seconds: Seconds | None = None
    """How long a connection may last before it is closed with 1000."""
    heartbeat_interval: Seconds | None = None
    """How often is looked whether a client has sent anything since the last time. Who has not is sent a ping message,
    which it has to answer with any message. For servers that do not ping by themselves, or do not notice silence
    (granian, hypercorn)."""
    heartbeat_timeout: Seconds = 10.0
    """How long a client may take to answer a ping message before it is closed with 4408."""
    drain_timeout: Seconds | None = 10.0
    """Within how many seconds connections are closed when the server is told to stop: about 100 a second, or more if
    they are many. None: the server closes them all at once."""
    revocation_seconds: Seconds | None = 3_600.0
    """How long `close_user` is kept for nodes that are cut off and come back. None: it is not kept."""
    disconnect_grace: Seconds = 5.0
    """How long a handler that is busy when its client goes may go on before it is cancelled; hooks, when the manager
    stops."""
    key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")] = "rooms"
    """What the names of our Redis channels begin with. Apps that share one Redis need different ones."""
    publish_timeout: Seconds = 2.0
    """How long telling other nodes may take before it fails with `BackendUnavailable`. It is never repeated by itself,
    since nobody knows whether it arrived."""
    publish_failure: Literal["raise", "log"] = "raise"
    """What happens when other nodes could not be told: `raise` has the sender wait for the backend's answer and raises
    `BackendUnavailable`; `log` has nobody wait, counts it in `status.undelivered` and logs it."""
    probe_interval: Seconds = 2.0
    """How often a node checks that it hears what it publishes. A backend that went silent is noticed within
    `probe_interval` and `publish_timeout` together."""
    max_envelope_bytes: Bytes = 16 * 1024 * 1024
    """The largest message that goes to other nodes, with its header. Redis cuts a subscriber off at 32 MB."""
    flush_interval: Milliseconds = 0
    """For how many milliseconds messages may be gathered, so that they leave each connection in one write. 0: until the
    end of the loop tick. In busy rooms this saves CPU, and each message is up to this much later."""
    compress_min_bytes: Count | None = None
    """From which size on a message is compressed for each client that negotiated it. Saves bandwidth, and costs CPU for
    each member. None: never, so that one ready-made frame serves all. With the `asgi` wire the server decides."""
    wire: Literal["auto", "asgi"] = "auto"
    """`auto` writes ready-made frames to uvicorn's transport where it is found and known; `asgi` never does."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_field(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    raise ConfigurationError(_unknown_field(str(name), list(cls.model_fields)))
        return data

    @classmethod
    def from_env(cls) -> Self:
        """Read the settings from `ROOMS_…` environment variables, for example `ROOMS_OUTBOX_BYTES`.

        `none` stands for None, and a list is written with commas in between, or as JSON.

        Needs the extra `fastapi-rooms[settings]` (pydantic-settings). Variables that start with `ROOMS_` and resemble
        no field belong to somebody else and are left alone.

        Raises:
            ConfigurationError: The extra is missing, or a variable looks like a misspelt field.
            pydantic.ValidationError: A value is out of range.
        """
        try:
            from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError(
                "RoomsSettings.from_env() needs pydantic-settings: pip install 'fastapi-rooms[settings]'"
            ) from error
        import os  # noqa: PLC0415 - the only place that looks at the environment

        for variable in os.environ:
            name = variable.removeprefix(ENV_PREFIX).lower()
            if variable.startswith(ENV_PREFIX) and name not in cls.model_fields and _nearest(name, cls.model_fields):
                raise ConfigurationError(f"{variable}: {_unknown_field(name, list(cls.model_fields))}")

        class Source(EnvSettingsSource):
            def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
                if value.lstrip().startswith("["):
                    return super().decode_complex_value(field_name, field, value)
                return [part.strip() for part in value.split(",") if part.strip()]

        class Environment(cls, BaseSettings):  # type: ignore[misc,valid-type] # a model made for this one reading
            model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_parse_none_str=ENV_NONE)

            @classmethod
            def settings_customise_sources(cls, settings_cls: Any, **_others: Any) -> tuple[Source]:  # type: ignore[override]
                return (Source(settings_cls),)

        return cls(**Environment().model_dump())


def _nearest(name: str, known: Any) -> list[str]:
    return get_close_matches(name, list(known), n=1, cutoff=0.7)


def _unknown_field(name: str, known: list[str]) -> str:
    nearest = _nearest(name, known) or get_close_matches(name, known, n=1, cutoff=0.0)
    return f"RoomsSettings has no field {name!r}: did you mean {nearest[0]!r}?"
