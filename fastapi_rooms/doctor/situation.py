"""What the doctor found when it looked: facts only. None of them is a secret, and none is a judgement."""

from dataclasses import dataclass, field
from enum import StrEnum

from fastapi_rooms.domain.settings import RoomsSettings


class Start(StrEnum):
    """Who starts the manager when the app starts, as far as can be seen without starting it."""

    EXTENSION = "extension"
    """The lifespan of an extension runs with the app."""
    OWN_LIFESPAN = "own lifespan"
    """A lifespan of the app's own enters one that somebody else has."""
    UNSEEN = "unseen"
    """The app runs code at its start, which does not look as if it did."""
    NOBODY = "nobody"
    """The app runs no code at its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """An app that is mounted in the app, and has code to be run at its start."""

    path: str
    has_rooms: bool = False
    """That code is an extension's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """A route of `ws_route` that no path leads to."""

    path: str
    behind: str
    """What takes its place, in words."""
    at: str
    """The path of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """The app object."""

    target: str
    """`MODULE:APP`."""
    start: Start = Start.EXTENSION
    extensions: int = 1
    """How many extensions have their lifespan run with the app."""
    managers: int = 1
    """How many managers were made when it was imported."""
    ignored_hooks: tuple[str, ...] = ()
    """What was registered with `on_event` and will not be called."""
    lost_routes: tuple[str, ...] = ()
    """Paths of routes that were put on an extension's router and are not in the app."""
    hidden_routes: tuple[Hidden, ...] = ()
    mounted: tuple[Mounted, ...] = ()
    came_through: bool = True
    """A made-up handshake came through all that is between the server and the routes; if not, the next two say
    nothing."""
    arriving_send: str | None = None
    """Who wrote the `send` that routes are given; None: the server."""
    arriving_receive_is_lost: bool = False
    """The server's socket cannot be found behind the `receive` that routes are given."""
    send_wrappers: tuple[str, ...] = ()
    """Middleware that passes a `send` of its own to WebSockets."""
    outer_layers: tuple[str, ...] = ()
    """What the app is wrapped in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """The manager of the app."""

    settings: RoomsSettings = field(default_factory=RoomsSettings)
    message_bytes_of_routes: tuple[tuple[str, int | None], ...] = ()
    """Paths of routes with limits of their own, and the largest message each takes; None: any."""
    backend: str | None = None
    """The class of what joins nodes; None: this process is all."""
    joins_processes: bool = False
    """Whether that reaches beyond this process."""
    needs_start: bool = True
    """It is of no use before somebody has started it."""


class Interface(StrEnum):
    """What a server speaks with an app."""

    ASGI = "asgi"
    WSGI = "wsgi"
    RSGI = "rsgi"
    TRIO = "trio"
    """ASGI, on another event loop than asyncio's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How a server would be started."""

    kind: str
    """The word by which it was named to us; "other": nothing is known of it."""
    name: str
    """What people call it."""
    workers: int = 1
    unix_socket: bool = False
    """It listens on one."""
    proxy_headers: bool = True
    """It takes the address of a client from what a proxy says, if it trusts it."""
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    trusts_unix_socket: bool = False
    """It trusts who comes over a unix socket, and so has no address."""
    ping_interval: float | None = None
    """In seconds; None: no pings."""
    ping_timeout: float | None = None
    """After how many seconds it gives up who does not answer; None: never."""
    ping_option: str | None = None
    """What sets `ping_interval`; None: nothing does."""
    interface: Interface = Interface.ASGI
    lifespan: str = "auto"
    serves_websockets: bool = True
    """It was not told to refuse them."""
    log_config: str | None = None
    """The file that logging is configured with, or the name of what else."""
    not_understood: tuple[str, ...] = ()
    """Words that it is told with, and that we do not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uvicorn(Server):
    """How uvicorn would be started, by itself or as a worker of gunicorn."""

    kind: str = "uvicorn"
    name: str = "uvicorn"
    version: str = "0.54.0"
    worker_class: str | None = None
    """What gunicorn has for a worker; None: there is no gunicorn."""
    websockets: str | None = "uvicorn.protocols.websockets.websockets_sansio_impl.WebSocketsSansIOProtocol"
    """The class that serves WebSockets; None: there is none."""
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    ping_option: str | None = "--ws-ping-interval"
    per_message_deflate: bool = True
    max_size: int = 16 * 1024 * 1024
    graceful_timeout: float | None = None
    """What uvicorn gives a stop, counted from the end of the drain."""
    killed_after: float | None = None
    """What gunicorn gives a stop, counted from the signal; None: there is no gunicorn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLimit:
    """What Redis lets pile up for one listener, in bytes; 0: no limit."""

    hard: int
    soft: int
    seconds: int
    """For how long it may be above `soft`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A Redis that answered."""

    place: str
    """Where it is, without credentials."""
    is_local: bool = True
    has_password: bool = False
    is_cluster: bool = False
    is_told: bool = True
    """It told about itself; if not, the fields below say nothing."""
    product: str = "Redis"
    version: str = ""
    """The version of the product."""
    compatible: str = ""
    """The version of Redis that it says it is."""
    role: str = "master"
    foreign_keys: int = 0
    """Keys that are not ours, in all of its databases."""
    max_memory: int = 0
    """In bytes; 0: no limit."""
    eviction: str = "noeviction"
    output_limit: OutputLimit | None = None
    """None: it does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """A Redis that did not answer."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All of it."""

    app: App
    rooms: Rooms | None = None
    """None: the import of the app made no manager."""
    server: Server | None = None
    """None: it would be uvicorn, which is not installed."""
    broker: Broker | Unreachable | None = None
    """None: the app uses no Redis."""
    proxy_timeout: float | None = None
    """After how many idle seconds a proxy closes a connection; None: nobody told."""
    info_is_heard: bool = True
    """INFO lines of this package go somewhere, as far as can be seen without starting the app."""
    versions: dict[str, str] = field(default_factory=dict)
    """What is installed, by name."""
    required: dict[str, str] = field(default_factory=dict)
    """The oldest versions that this package works with, by name."""

    @property
    def uvicorn(self) -> Uvicorn | None:
        """The server, if it is uvicorn."""
        return self.server if isinstance(self.server, Uvicorn) else None
