"""What a client is told that is not let in."""

import pytest

from fastapi_rooms.domain.close_codes import check_close, may_reconnect
from fastapi_rooms.domain.refusal import HANDSHAKE_ANSWERS, Refusal, close_code_of

WITHOUT_ONE = {Refusal.MAX_ROOMS, Refusal.APP, Refusal.PARAMETERS}
"""What can happen to a connection alone, and what the app and FastAPI answer themselves."""


def test_every_refused_handshake_has_an_answer():
    assert set(HANDSHAKE_ANSWERS) == set(Refusal) - WITHOUT_ONE


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (Refusal.HTTP_ORIGIN, 403, 1008),
        (Refusal.DRAINING, 503, 1012),
        (Refusal.MAX_CONNECTIONS, 503, 1013),
        (Refusal.MAX_CONNECTIONS_PER_USER, 429, 1013),
        (Refusal.MAX_CONNECTIONS_PER_ADDRESS, 429, 1013),
        (Refusal.EXPIRED, 401, 4401),
        (Refusal.LIMITER, 429, 1013),
        (Refusal.INVALID_NAME, 400, 1008),
        (Refusal.JOIN, 403, 1008),
    ],
)
def test_the_answer(reason, status, code):
    answer = HANDSHAKE_ANSWERS[reason]
    assert (answer.status, answer.close_code) == (status, code)
    assert check_close(answer.close_code, answer.detail) == (code, answer.detail), "it fits into a close frame, uncut"


BY_CLOSE = {
    Refusal.HTTP_ORIGIN: None,
    Refusal.DRAINING: 1012,
    Refusal.MAX_CONNECTIONS: 1013,
    Refusal.MAX_CONNECTIONS_PER_USER: 1013,
    Refusal.MAX_CONNECTIONS_PER_ADDRESS: 1013,
    Refusal.CREDENTIALS: 4401,
    Refusal.EXPIRED: 4401,
    Refusal.LIMITER: 1013,
    Refusal.INVALID_NAME: 1008,
    Refusal.JOIN: None,
}
"""With which code who is accepted in order to be refused is closed; None: nobody is."""


def test_every_refused_handshake_has_a_close_code_that_says_the_same_or_is_never_accepted():
    assert {reason: close_code_of(answer.status, reason) for reason, answer in HANDSHAKE_ANSWERS.items()} == BY_CLOSE


def test_the_close_code_of_every_status_can_be_sent_and_lets_come_back_who_may():
    for status in range(100, 600):
        code = close_code_of(status)
        if status < 400 or status == 403:
            assert code is None, status
        else:
            assert check_close(code, "") == (code, "")
            assert may_reconnect(code) == (status in {401, 408, 425, 429} or status >= 500), status
