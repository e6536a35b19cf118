"""Whether a browser may open a WebSocket from the page that it shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.http_origin import HttpOrigin, check_allowed, is_allowed, likely_cause, parse_origin
from fastapi_rooms.domain.settings import RoomsSettings

HOST = "chat.example.com"


def allowed(origin, host=HOST, *, is_secure=True, origins=(), required=False):
    """Ask about a handshake; an origin or a host that is None was not told, one that is a list in as many lines."""
    told = [[] if one is None else [one] if isinstance(one, str) else one for one in (origin, host)]
    return is_allowed(*told, is_secure=is_secure, allowed=check_allowed(origins), required=required)


@pytest.mark.parametrize(
    ("origin", "host", "is_secure"),
    [
        ("https://chat.example.com", "chat.example.com", True),
        ("https://chat.example.com", "chat.example.com:443", True),
        ("https://chat.example.com:443", "chat.example.com", True),
        ("https://chat.example.com", "CHAT.Example.com", True),
        ("http://localhost:8000", "localhost:8000", False),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", False),
        ("http://[::1]:8000", "[::1]:8000", False),
        ("http://xn--mnchen-3ya.de", "xn--mnchen-3ya.de", False),
    ],
)
def test_a_page_of_this_host_may(origin, host, is_secure):
    assert allowed(origin, host, is_secure=is_secure)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.com",
        "http://chat.example.com",  # the same host without TLS: whoever owns the network owns that page
        "https://chat.example.com:8443",
        "https://chat.example.com.evil.com",
        "https://evil-chat.example.com",
        "https://evil.com/chat.example.com",
        "https://evil.com#chat.example.com",
        "https://evil.com?chat.example.com",
        "https://chat.example.com@evil.com",
        "https://chat.example.com:443@evil.com",
        "https://chat.example.com/",
        "https://chat.example.com https://evil.com",
        "https://evil.com, https://chat.example.com",
        "https://chat.example.com\t",
        "https://chat.example.com\n.evil.com",
        "https://chat.example.com\\.evil.com",
        "https://chat.example.com.",
        "https://сhat.example.com",  # a Cyrillic letter  # noqa: RUF001
        "https://example.com",
        "https://",
        "//chat.example.com",
        "chat.example.com",
        "file://",
        "ftp://chat.example.com",
        "chrome-extension://chat.example.com",
        "https://chat.example.com:99999",
        "https://chat.example.com:x",
        "https://[chat.example.com",
    ],
)
def test_a_page_of_another_host_may_not(origin):
    assert not allowed(origin)


def test_no_browser_tells_no_origin():
    assert allowed(None)
    assert not allowed(None, required=True)
    assert not allowed(None, required=True, origins=["*"])
    assert allowed("https://evil.com", origins=["*"], required=True)


def test_further_origins_are_named_exactly():
    origins = ["https://app.example.com", "http://localhost:5173"]
    assert allowed("https://app.example.com", origins=origins)
    assert allowed("https://app.example.com:443", origins=origins)
    assert allowed("http://localhost:5173", origins=origins)
    assert allowed("https://chat.example.com", origins=origins), "its own host still may"
    for foreign in ("http://app.example.com", "https://app.example.com:8443", "http://localhost", "null"):
        assert not allowed(foreign, origins=origins)
    assert allowed("null", origins=["*"]), "everybody, when that is spelt out"


@pytest.mark.parametrize("origin", ["capacitor://localhost", "chrome-extension://abcdefgh", "tauri://localhost:1"])
def test_apps_in_a_shell_and_extensions_have_schemes_of_their_own(origin):
    assert allowed(origin, origins=[origin])
    assert not allowed(origin, HOST)
    assert not allowed(origin, "localhost", is_secure=False)
    assert not allowed(origin + "x", origins=[origin])


def test_without_a_host_nobody_has_the_same():
    assert not allowed("https://chat.example.com", None)


def test_of_several_lines_none_is_believed():
    own = f"https://{HOST}"
    for hosts in ([HOST, "evil.com"], ["evil.com", HOST], [HOST, HOST], ["", HOST]):
        for origin in (own, "https://evil.com", None):
            assert not allowed(origin, hosts)
            assert not allowed(origin, hosts, origins=["*"]), "a client that is honest has one host"
    for several in ([own, "https://evil.com"], ["https://evil.com", own], [own, own]):
        assert not allowed(several)
        assert not allowed(several, origins=[own, "https://evil.com"])
    assert allowed(None, ""), "it has a host, which has no name"


@pytest.mark.parametrize(
    "origin", ["example.com", "https://example.com/", "https://*.example.com", "null", "", "https://example.com/a"]
)
def test_what_is_no_origin_cannot_be_allowed(origin):
    with pytest.raises(ConfigurationError, match="is no HTTP origin: write scheme and host"):
        check_allowed([origin])


def test_a_text_in_place_of_a_list_is_a_mistake():
    with pytest.raises(ValidationError, match=r"write \['https://example.com'\]"):
        RoomsSettings(allowed_origins="https://example.com")


@given(st.text())
def test_whatever_comes_is_parsed_or_not_and_never_raises(text):
    parsed = parse_origin(text)
    assert parsed is None or isinstance(parsed, HttpOrigin)
    assert not allowed(text) or parsed == HttpOrigin("https", HOST, 443)


@pytest.mark.parametrize(
    ("origin", "host", "is_secure", "cause"),
    [
        ("http://app.test:8080", "app.test", False, "the port is not"),
        ("https://app.test:8443", "app.test:8000", True, "the port is not"),
        ("https://app.test", "app.test", False, "the scheme is not"),
        ("https://app.test", "backend:8000", False, "a private name: a proxy has put 'backend'"),
        ("https://app.test", "10.0.0.7:8000", False, "a private name: a proxy has put '10.0.0.7'"),
        ("https://app.test", "chat.prod.svc", False, "a private name"),
        ("https://evil.test", "app.test", True, "name it in RoomsSettings(allowed_origins"),
        ("https://evil.test", "93.184.216.34", True, "name it in RoomsSettings(allowed_origins"),
        ("null", "app.test", True, "name it in RoomsSettings(allowed_origins"),
        ("https://app.test", "nonsense/", True, "name it in RoomsSettings(allowed_origins"),
    ],
)
def test_the_likely_cause_is_named(origin, host, is_secure, cause):
    assert not is_allowed([origin], [host], is_secure=is_secure, allowed=(), required=False)
    assert cause in likely_cause([origin], [host], is_secure=is_secure)


@pytest.mark.parametrize(
    ("origin", "host", "at_a_proxy"),
    [
        ("http://localhost:5173", "localhost:8000", "the port is not"),
        ("http://localhost:8314", "127.0.0.1:8314", "a proxy has put '127.0.0.1'"),
        ("http://127.0.0.2:8314", "127.0.0.2:8000", "the port is not"),
        ("https://localhost:8314", "localhost:8314", "the scheme is not"),
        ("http://[::1]:5173", "[::1]:8000", "the port is not"),
        ("http://evil.org", "localhost:8000", "a proxy has put 'localhost'"),
    ],
)
def test_on_the_machine_of_who_develops_a_page_comes_first_and_a_proxy_second(origin, host, at_a_proxy):
    said = likely_cause([origin], [host], is_secure=False)
    assert said.startswith("if it is a page of yours, as of a development server, name it in RoomsSettings(allowed_o")
    assert "If a proxy is in front: the host is" in said
    assert at_a_proxy in said


@pytest.mark.parametrize("host", ["app.test:8000", "backend:8000", "10.0.0.7"])
def test_elsewhere_the_proxy_comes_first_and_the_page_is_the_other_way_out(host):
    said = likely_cause(["http://app.test"], [host], is_secure=False)
    assert said.startswith("the host is")
    assert said.endswith(". Or, if it is another page of yours, name it in RoomsSettings(allowed_origins=[...])")


def test_without_a_host_there_is_no_likely_cause():
    assert "allowed_origins" in likely_cause(["https://app.test"], [], is_secure=True)


def test_several_hosts_or_no_origin_are_no_matter_of_a_page():
    for origins in ([], ["https://app.test"]):
        assert "several Host headers" in likely_cause(origins, ["app.test", "evil.test"], is_secure=True)
    assert "require_origin=True" in likely_cause([], ["app.test"], is_secure=True)
