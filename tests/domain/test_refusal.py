"""What a client is told that is not let in."""

import pytest

from fastapi_rooms.domain.close_codes import check_close
from fastapi_rooms.domain.refusal import HANDSHAKE_ANSWERS, Refusal

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
