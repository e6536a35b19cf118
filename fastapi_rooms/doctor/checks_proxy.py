"""What can be wrong between a server and the proxy before it. Each check says one thing, or nothing."""

from fastapi_rooms.doctor.findings import Finding, error, note, warning
from fastapi_rooms.doctor.situation import Server, Situation, Uvicorn

USUAL_PROXY_TIMEOUT = 60.0
"""`proxy_read_timeout` of nginx and the idle time-out of AWS' load balancers, when nobody has changed them."""

_LOCAL = {"127.0.0.1", "::1", "unix"}
_OVERWRITE = "have the proxy overwrite the header (nginx: `proxy_set_header X-Forwarded-For $remote_addr;`)"

_ADDRESSES_BY = {
    "gunicorn": "Use -k uvicorn_worker.UvicornWorker, which reads them.",
    "granian": "Serve `granian.utils.proxies.wrap_asgi_with_proxy_headers(app, trusted_hosts)`, if you do not yet.",
    "hypercorn": "Serve `hypercorn.middleware.ProxyFixMiddleware(app)`, if you do not yet.",
    "h2corn": "Start it with --proxy-headers.",
}
"""How servers that read no headers of proxies by themselves can be brought to it."""

_READ_BY = {"wrap_asgi_with_proxy_headers", "ProxyFixMiddleware", "ProxyHeadersMiddleware"}
"""What is wrapped around apps to that end."""


def proxy_closes_idle(situation: Situation) -> Finding | None:
    """A proxy closes what is only quiet."""
    quiet = quiet_seconds(situation)
    if quiet is None:
        return None
    if situation.proxy_timeout is None and quiet >= USUAL_PROXY_TIMEOUT:
        return warning(
            f"A quiet connection is pinged every {quiet:g} s only, and most proxies close after "
            f"{USUAL_PROXY_TIMEOUT:g} s of silence unless they were told otherwise (nginx, AWS load balancers).",
            f"Lower {_pinged_by(situation)}, or say what your proxy does: --proxy-timeout SECONDS.",
        )
    if situation.proxy_timeout is not None and quiet >= situation.proxy_timeout:
        return error(
            f"The proxy closes connections after {situation.proxy_timeout:g} s of silence, and a quiet one is pinged "
            f"every {quiet:g} s only: clients lose their connection although nothing is wrong with it.",
            f"Raise the proxy's time-out (nginx: proxy_read_timeout), or "
            f"{_ping_every(situation, max(1, int(situation.proxy_timeout / 3)))}.",
        )
    return None


def proxy_not_trusted(situation: Situation) -> Finding | None:
    """Behind a proxy, all clients look alike."""
    server = situation.server
    if server is None or server.kind == "other":
        return None
    if situation.proxy_timeout is None and not server.unix_socket:
        return None  # there is none, as far as we were told; behind a unix socket there always is one
    if not server.proxy_headers:
        return None if _READ_BY & set(situation.app.outer_layers) else _no_headers(situation, server)
    if server.unix_socket:
        return None if server.trusts_unix_socket else _nobody_on_a_unix_socket(situation, server)
    if not set(server.trusted_proxies) <= _LOCAL:
        return None
    return note(
        f"Only a proxy on this machine is believed what it says about clients. {_consequence(situation, server)}",
        "If the proxy runs elsewhere, name its address or network: --forwarded-allow-ips 10.0.0.0/8.",
    )


def _no_headers(situation: Situation, server: Server) -> Finding:
    if server.kind == "uvicorn":
        return warning(
            f"--no-proxy-headers: what the proxy says about clients is not read. {_consequence(situation, server)}",
            "Leave the option out, and name the proxy with --forwarded-allow-ips.",
        )
    return note(
        f"{server.name} does not take the addresses of clients from what a proxy says. "
        f"{_consequence(situation, server)}",
        _ADDRESSES_BY[server.kind],
    )


def _nobody_on_a_unix_socket(situation: Situation, server: Server) -> Finding:
    if server.kind != "uvicorn":
        return warning(
            f"{server.name} does not believe who comes over its unix socket. {_consequence(situation, server)}",
            "Leave out --forwarded-allow-ips, or name `unix` there, too.",
        )
    return warning(
        "uvicorn does not believe what a proxy says that comes over a unix socket: there is no address that could be "
        f"given to --forwarded-allow-ips. {_consequence(situation, server)}",
        f"Start {server.name} with --forwarded-allow-ips '*', let nobody but the proxy reach the socket, and "
        f"{_OVERWRITE}: with '*' the first address in it counts.",
    )


def _consequence(situation: Situation, server: Server) -> str:
    limit = None if situation.rooms is None else situation.rooms.settings.max_connections_per_address
    named = "limits per address" if limit is None else f"max_connections_per_address={limit}"
    if server.unix_socket:
        told = f"No client has an address then, so that {named} {'count' if limit is None else 'counts'} nothing"
    else:
        counts = "count" if limit is None else "counts"
        told = f"The address of every client is then the proxy's, so that {named} {counts} all of them as one"
    if server.kind == "gunicorn":  # it takes the scheme
        return f"{told}."
    return (
        f"{told}; and behind TLS the scheme is `http`, so that pages of your own host count as foreign and are refused "
        "with 403."
    )


def forwarded_from_anyone(situation: Situation) -> Finding | None:
    """Clients choose their address."""
    server = situation.server
    if server is None or not server.proxy_headers or "*" not in server.trusted_proxies:
        return None
    limit = None if situation.rooms is None else situation.rooms.settings.max_connections_per_address
    gets_around = "limits per address" if limit is None else f"max_connections_per_address={limit}"
    if not server.unix_socket:
        return warning(
            "--forwarded-allow-ips '*': whoever reaches this server directly chooses the address and scheme that it "
            f"sees, and so gets around {gets_around}. So does whoever comes through a proxy that appends to the "
            "X-Forwarded-For that it gets: the first address in it counts.",
            "Name the proxy's address or network; or make sure that nobody but the proxy can reach the server, and "
            f"{_OVERWRITE}.",
        )
    return (note if limit is None else warning)(
        "--forwarded-allow-ips '*': the first address in X-Forwarded-For counts, which a client writes itself if the "
        f"proxy appends to what it gets. Then it chooses its address, and so gets around {gets_around}.",
        f"{_OVERWRITE[0].upper()}{_OVERWRITE[1:]}, and let nobody else reach the socket.",
    )


def quiet_seconds(situation: Situation) -> float | None:
    """Return after how many seconds at most something is said on a connection; None: nobody says anything."""
    server, rooms = situation.server, situation.rooms
    pings = (
        None if server is None else server.ping_interval,
        None if rooms is None else rooms.settings.heartbeat_interval,
    )
    return min((seconds for seconds in pings if seconds is not None), default=None)


def _pinged_by(situation: Situation) -> str:
    option = None if situation.server is None else situation.server.ping_option
    return option or "heartbeat_interval"


def _ping_every(situation: Situation, seconds: int) -> str:
    """Say how a connection is pinged more often."""
    server = situation.server
    if server is None or server.ping_option is None:
        return f"set heartbeat_interval to {seconds}"
    start = start_with(server, f"{server.ping_option} {seconds}")
    return f"{start[0].lower()}{start[1:]}"


def start_with(server: Server, option: str) -> str:
    """Say how a server gets an option that is uvicorn's: gunicorn passes none on."""
    if not isinstance(server, Uvicorn) or server.worker_class is None:
        return f"Start {server.name} with {option}"
    name, value = option.removeprefix("--").replace("-", "_").split()
    class_name = server.worker_class.rpartition(".")[2]
    return (
        f"Derive a worker class from {class_name} with `CONFIG_KWARGS = {class_name}.CONFIG_KWARGS | "
        f'{{"{name}": {"False" if value == "false" else value}}}`'
    )


CHECKS = (proxy_closes_idle, proxy_not_trusted, forwarded_from_anyone)
