"""What can be wrong with an app. Each check says one thing, or nothing."""

from fastapi_rooms.doctor.findings import Finding, error, note, warning
from fastapi_rooms.doctor.situation import App, Situation, Start
from fastapi_rooms.domain.http_origin import ANY

_ATTACH = (
    "with `app = FastAPI(lifespan=rooms.lifespan)`, `app.include_router(rooms.router)`, or `async with "
    "rooms.lifespan(app): yield` inside your own lifespan"
)
_ATTACH_IT = f"Attach the RoomsExtension, called `rooms` here, {_ATTACH}"


def no_rooms(situation: Situation) -> Finding | None:
    """There is no manager."""
    if situation.rooms is not None:
        return None
    if situation.app.start is Start.NOBODY:
        return error(
            "This app has no rooms: its import made no RoomsExtension and no manager.",
            f"Make one, `rooms = RoomsExtension()`, and attach it {_ATTACH}.",
        )
    return warning(
        "The import of this app made no RoomsExtension and no manager. If its start makes one, nothing about rooms "
        "can be checked.",
        "Make the extension where the app is made, outside of the lifespan.",
    )


def not_started(situation: Situation) -> Finding | None:
    """Nobody starts the manager."""
    if situation.rooms is None or not situation.rooms.needs_start:
        return None
    if situation.app.start is Start.NOBODY:
        return error(
            "There is a manager, but nothing starts it with the app: handlers will not find it, and no other node is "
            "heard.",
            f"{_ATTACH_IT}.",
        )
    if situation.app.start is Start.UNSEEN:
        return warning(
            "The app runs code of its own at its start, in which no `rooms.lifespan` can be seen. Without it handlers "
            "do not find the manager.",
            f"{_ATTACH_IT}. If your code starts the manager in another way, pass --ignore not-started.",
        )
    return None


def several_managers(situation: Situation) -> Finding | None:
    """There is more than one set of rooms."""
    if situation.app.extensions > 1:
        return error(
            f"{situation.app.extensions} RoomsExtensions are attached to this app, which will not start: it can have "
            "one.",
            "Keep one extension and use it everywhere: it has room for any number of rooms.",
        )
    if situation.app.managers > 1:
        return warning(
            f"{situation.app.managers} managers were made. Rooms of one are not rooms of another, also if they have "
            "the same name; only the one that starts with the app was looked at.",
            "Keep one, and import it where it is needed.",
        )
    return None


def routes_lost(situation: Situation) -> Finding | None:
    """Routes are on the extension's router, and that is not in the app."""
    paths = situation.app.lost_routes
    if not paths:
        return None
    return error(
        f"{_listed(paths)} cannot be reached: what `@rooms.ws_route` registers is on `rooms.router`, and the app does "
        "not include that, or did so before it was registered. Clients get 403.",
        "`app.include_router(rooms.router)`, below the last route.",
    )


def hidden_routes(situation: Situation) -> Finding | None:
    """Something before a route takes all of its paths."""
    hidden = situation.app.hidden_routes
    if not hidden:
        return None
    behind: dict[str, list[str]] = {}
    for one in hidden:
        behind.setdefault(f"{one.behind} at {one.at}", []).append(one.path)
    told = "; ".join(f"{_listed(paths)} behind {what}" for what, paths in behind.items())
    return error(
        f"Sockets that no client can reach, since what stands before them takes their paths: {told}. Routes are "
        "asked in the order in which they were added, and the first that fits gets the handshake.",
        "Add what takes more paths below what takes fewer: `app.include_router(rooms.router)` above "
        '`app.mount("/", …)`, and a route without parameters above one that has some.',
    )


def on_event_ignored(situation: Situation) -> Finding | None:
    """`on_event` stands beside `lifespan`."""
    hooks = situation.app.ignored_hooks
    if not hooks:
        return None
    return error(
        f"{_listed(hooks)} will never be called: FastAPI ignores what is registered with `on_event`, without a word, "
        "when the app has a `lifespan`.",
        "Move what it does into the lifespan, before or after its `yield`.",
    )


def mounted_lifespan(situation: Situation) -> Finding | None:
    """A mounted app has a lifespan."""
    mounted = situation.app.mounted
    if not mounted:
        return None
    paths = _listed([one.path for one in mounted])
    why = "The lifespan and `on_event` hooks of a mounted app never run"
    if any(one.has_rooms for one in mounted) and situation.app.start is not Start.EXTENSION:
        return error(
            f"{why}, and the extension is attached to the one at {paths}: its manager is never started.",
            "Attach the extension to the outermost app. Apps that are mounted in it find the manager by themselves.",
        )
    return warning(
        f"{why}, and the one at {paths} has some.",
        "Move what they do into the lifespan of the outermost app.",
    )


def http_origins_open(situation: Situation) -> Finding | None:
    """Every page in the world may connect."""
    if situation.rooms is None or ANY not in situation.rooms.settings.allowed_origins:
        return None
    return warning(
        'allowed_origins=("*",) lets every page in the world open a WebSocket in the name of whoever looks at it, with '
        "their cookies.",
        "List the HTTP origins of your own pages. Clients that are no browsers need no entry: they send no Origin.",
    )


def send_wrapped(situation: Situation) -> Finding | None:
    """Something stands between frames and the transport."""
    app, rooms = situation.app, situation.rooms
    if not app.send_wrappers and app.arriving_send is None:
        return None
    if rooms is None or rooms.settings.wire == "asgi":
        return None
    if situation.server is not None and situation.uvicorn is None:
        return None  # where frames go through ASGI in any case
    return warning(
        f"{_who_wraps(app)} Each message then costs more CPU for each member.{_is_receive_lost(app)}",
        "If it is yours, let it pass on the `send` that it was given when scope['type'] is 'websocket'. If it is "
        "somebody else's, put it around the part of the app that needs it, or accept the price with --ignore "
        "send-wrapped.",
    )


def _who_wraps(app: App) -> str:
    if app.arriving_send is None:
        return f"{_listed(app.send_wrappers)} passes a `send` of its own to WebSockets."
    arrived = f"WebSockets are not given the server's `send` but one of {app.arriving_send}"
    if app.send_wrappers:
        return f"{arrived}. Of the middleware of the app, this passes one of its own: {_listed(app.send_wrappers)}."
    return (
        f"{arrived}. No middleware of the app passes one of its own: this is around the app, or has patched it, as "
        "instrumentation does."
    )


_CANNOT_BE_CUT_OFF = "a client that stopped reading cannot be cut off, so that it holds up a stop of the server."


def _is_receive_lost(app: App) -> str:
    if not app.came_through:
        return (
            " If it passes a `receive` of its own, too, and that does not say what it wraps (`functools.wraps`), "
            f"{_CANNOT_BE_CUT_OFF}"
        )
    if app.arriving_receive_is_lost:
        return (
            " The `receive` that comes with it does not say what it wraps (`functools.wraps`) either: "
            f"{_CANNOT_BE_CUT_OFF}"
        )
    return ""


def outer_layer(situation: Situation) -> Finding | None:
    """The app is wrapped in something."""
    app = situation.app
    if not app.outer_layers:
        return None
    wrapped = f"The app is wrapped in {_listed(app.outer_layers)}"
    if app.came_through:
        return note(
            f"{wrapped}. Whether that passes on the lifespan cannot be seen here; if it does not, the manager is never "
            "started.",
            "Use `app.add_middleware(…)` where you can, which never keeps a lifespan back.",
        )
    return note(
        f"{wrapped}, which was not looked into: a made-up handshake did not come through. If that passes a `send` of "
        "its own to WebSockets, see `send-wrapped`; if it does not pass on the lifespan, the manager is never started.",
        "Use `app.add_middleware(…)` where you can: that is looked into.",
    )


def info_unheard(situation: Situation) -> Finding | None:
    """What the package says at INFO is lost."""
    if situation.info_is_heard or situation.rooms is None:
        return None
    return note(
        "INFO lines of the logger `fastapi_rooms` go nowhere, as far as can be seen without starting the app: they say "
        "why clients were cut off, when a node drains, and what keeps frames from the fast way. Servers configure "
        "their own loggers only, and all others say no more than warnings.",
        "`logging.basicConfig(level=logging.INFO)` where the app is made, or a logging configuration that has these "
        "lines. If the app configures logging at its start, which was not run here, --ignore info-unheard.",
    )


def _listed(names: list[str] | tuple[str, ...]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


CHECKS = (
    no_rooms,
    not_started,
    several_managers,
    routes_lost,
    hidden_routes,
    on_event_ignored,
    mounted_lifespan,
    http_origins_open,
    send_wrapped,
    outer_layer,
    info_unheard,
)
