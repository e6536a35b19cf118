"""Who gets into the demo and who does not: without a browser, since browsers are too polite to try."""

import json

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


def cookie_of(demo, name):
    response = httpx.post(f"{demo.url}/login", json={"name": name})
    assert "HttpOnly" in response.headers["set-cookie"]
    assert "SameSite=lax" in response.headers["set-cookie"]
    return f"example_user={response.cookies['example_user']}"


def open_line(demo, path="/ws", **headers):
    return connect(f"ws://127.0.0.1:{demo.port}{path}", additional_headers=headers, proxy=None)


@pytest.mark.parametrize("path", ["/ws", "/ws?user=Ada", "/ws?user_id=Ada&name=Ada&token=Ada"])
def test_nobody_comes_in_without_a_cookie(demo, path):
    with pytest.raises(InvalidStatus) as refused:
        open_line(demo, path)
    assert refused.value.response.status_code == 401


def test_a_forged_cookie_is_refused(demo):
    cookie = cookie_of(demo, "Ada")
    with pytest.raises(InvalidStatus) as refused:
        open_line(demo, Cookie=cookie[:-3] + "AAA")
    assert refused.value.response.status_code == 401


def test_another_sites_page_is_refused(demo):
    cookie = cookie_of(demo, "Ada")
    with pytest.raises(InvalidStatus) as refused:
        open_line(demo, Cookie=cookie, Origin="http://elsewhere.example")
    assert refused.value.response.status_code == 403
    with open_line(demo, Cookie=cookie, Origin=demo.url) as line:
        line.send('{"type":"ping"}')
        assert json.loads(line.recv(5)) == {"type": "pong"}


def test_an_announcement_takes_a_cookie(demo):
    assert httpx.post(f"{demo.url}/announce", json={"text": "Hello"}).status_code == 401


@pytest.mark.parametrize("name", ["", "  ", "<b>Ada</b>", "a" * 25, "\u200b", "Ada\n\u202eadA"])
def test_names_that_would_mislead_are_refused(demo, name):
    assert httpx.post(f"{demo.url}/login", json={"name": name}).status_code == 422


def test_one_does_not_talk_in_rooms_that_one_is_not_in(demo):
    with open_line(demo, Cookie=cookie_of(demo, "Ada")) as line:
        line.send('{"type":"say","room":"lobby","text":"Hello","key":"1"}')
        refused = json.loads(line.recv(5))
    assert (refused["type"], refused["key"]) == ("refused", "1")


def test_what_is_no_message_is_answered_and_survived(demo):
    with open_line(demo, Cookie=cookie_of(demo, "Ada")) as line:
        for nonsense in ("{", '{"type":"fly"}', '{"type":"join","rooms":["../<b>"]}', '{"type":"say","room":"a"}'):
            line.send(nonsense)
            assert json.loads(line.recv(5))["code"] == "invalid_message"
        line.send('{"type":"ping"}')
        assert json.loads(line.recv(5)) == {"type": "pong"}


def test_the_page_permits_only_itself(demo):
    response = httpx.get(demo.url)
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "//" not in response.text.replace("http://www.w3.org/2000/svg", "").split("</head>")[0]
