"""Whether a browser may open a WebSocket from the page that it shows (RFC 6455 section 10.2, RFC 6454).

Browsers send cookies with every handshake, whatever page asks for it, and leave the decision to the server by telling
the page's HTTP origin. Nothing here has to do with `Envelope.origin`, which is a node.
"""

from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from fastapi_rooms.domain.errors import ConfigurationError

DEFAULT_PORTS = {"http": 80, "https": 443}
ANY = "*"


class HttpOrigin(NamedTuple):
    """A scheme, a host and a port, compared as a whole."""

    scheme: str
    host: str
    port: int
    """0: none is named, and the scheme has no default."""


def parse_origin(text: str) -> HttpOrigin | None:
    """Return what an `Origin` header says; None if it is no origin, as `null` is none.

    Any scheme will do: apps in a shell and browser extensions have their own, such as `capacitor://localhost`.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    host = parts.hostname
    if not parts.scheme or not host or not _is_plain(text):
        return None
    if text != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        return None  # a path, a query, a user: no browser sends that
    return HttpOrigin(parts.scheme, host, DEFAULT_PORTS.get(parts.scheme, 0) if port is None else port)


def sole(lines: Sequence[str]) -> str | None:
    """Return what a header says that may come once; None: it did not come.

    Of several lines none is believed, since who stands in front of this app may have looked at another. They make an
    empty text, which is neither an origin nor a host.
    """
    if not lines:
        return None
    return lines[0] if len(lines) == 1 else ""


def is_allowed(
    origins: Sequence[str],
    hosts: Sequence[str],
    *,
    is_secure: bool,
    allowed: Collection[HttpOrigin | str],
    required: bool,
) -> bool:
    """Return whether a handshake may go on.

    Args:
        origins: The lines of the `Origin` header; none: this is no browser.
        hosts: The lines of the `Host` header. Several are refused whatever the origin (RFC 9112 section 3.2).
        is_secure: Whether the client speaks TLS, as far as the server knows.
        allowed: Further origins, or `"*"` for all.
        required: Refuse clients that do not tell their origin.
    """
    if len(hosts) > 1:
        return False
    origin, host = sole(origins), sole(hosts)
    if ANY in allowed:
        return origin is not None or not required
    if origin is None:
        return not required
    page = parse_origin(origin)
    if page is None:
        return False
    return page in allowed or (
        host is not None and page == parse_origin(f"{'https' if is_secure else 'http'}://{host}")
    )


_ALLOW = "name it in RoomsSettings(allowed_origins=[...])"
_REMEDY = "Have it pass the Host header as it came (nginx: proxy_set_header Host $http_host)"


def likely_cause(origins: Sequence[str], hosts: Sequence[str], *, is_secure: bool) -> str:
    """Return why a handshake was probably refused that ought not to have been, and what to do about it.

    Proxies are behind most of it: what the browser was told and what the app is told are two things.
    """
    if len(hosts) > 1:
        return "it came with several Host headers, which no client sends: what stands in front of the app adds one"
    if not origins:
        return "it came without an Origin header, which require_origin=True refuses; every browser sends one"
    origin, host = sole(origins), sole(hosts)
    page = None if origin is None else parse_origin(origin)
    here = None if host is None else parse_origin(f"{'https' if is_secure else 'http'}://{host}")
    cause = None if page is None or here is None else _cause_at_a_proxy(page, here)
    if here is None or cause is None:
        return f"if it is a page of yours, {_ALLOW}"
    if _is_loopback(here.host):  # what is developed has no proxy in front of it, and its page another port
        return f"if it is a page of yours, as of a development server, {_ALLOW}. If a proxy is in front: {cause}"
    return f"{cause}. Or, if it is another page of yours, {_ALLOW}"


def _cause_at_a_proxy(page: HttpOrigin, here: HttpOrigin) -> str | None:
    if page.host == here.host:
        if page.scheme == here.scheme:
            return "the host is the same and the port is not: a proxy has dropped or changed it. " + _REMEDY
        return (
            "the host is the same and the scheme is not: who ends TLS in front of the app has to say so, in "
            "X-Forwarded-Proto, and the server has to trust it (uvicorn: --forwarded-allow-ips)"
        )
    if _is_private(here.host):
        return (
            f"the host is a private name: a proxy has put {here.host!r} in place of what the browser asked for. "
            + _REMEDY
        )
    return None


def _is_loopback(host: str) -> bool:
    """Return whether a host is this machine, as who develops knows it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_private(host: str) -> bool:
    """Return whether a host has a name or an address that nobody outside can know it by."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".svc"))


def check_allowed(origins: Collection[str]) -> frozenset[HttpOrigin | str]:
    """Return origins as they are compared.

    Raises:
        ConfigurationError: One of them is none.
    """
    return frozenset(_checked(origin) for origin in origins)


def _checked(origin: str) -> HttpOrigin | str:
    if origin == ANY:
        return origin
    parsed = parse_origin(origin)
    if parsed is None or ANY in parsed.host:
        raise ConfigurationError(
            f"{origin!r} is no HTTP origin: write scheme and host as browsers do, in lower case and without a path, "
            "such as 'https://example.com' or 'http://localhost:5173', one for each subdomain, or '*' for every page "
            "in the world"
        )
    return parsed


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
