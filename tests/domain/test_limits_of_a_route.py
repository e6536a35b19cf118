"""The limits of a route, over those of its node."""

import pytest

from fastapi_rooms.domain.errors import ConfigurationError
from fastapi_rooms.domain.limits import Limits, RouteLimits
from fastapi_rooms.domain.settings import Overflow, RoomsSettings


def test_what_is_there_counts_and_the_rest_is_the_nodes():
    node = RoomsSettings(outbox_bytes=2048, messages_per_second=7, send_timeout=3)
    limits = RouteLimits(Limits(overflow=Overflow.DROP_OLDEST, outbox_messages=1, messages_per_second=None))
    found = limits.over(node)
    assert (found.overflow, found.outbox_messages, found.messages_per_second) == (Overflow.DROP_OLDEST, 1, None)
    assert (found.outbox_bytes, found.send_timeout) == (2048, 3)
    assert node.overflow is Overflow.CLOSE


def test_what_is_written_as_text_is_read_as_in_settings():
    assert RouteLimits({"overflow": "drop_oldest"}).over(RoomsSettings()).overflow is Overflow.DROP_OLDEST


def test_what_becomes_of_the_dict_later_is_no_matter():
    written = Limits(outbox_messages=5)
    limits = RouteLimits(written)
    written["outbox_messages"] = 7
    assert limits.over(RoomsSettings()).outbox_messages == 5


def test_every_limit_is_one_of_a_node():
    assert set(Limits.__annotations__) <= set(RoomsSettings.model_fields)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_connections": 7}, r"no limit 'max_connections' of its own, but .*outbox_messages.*RoomsSettings"),
        ({"outbox_mesages": 7}, r"no limit 'outbox_mesages' of its own, but .*outbox_messages"),
        ({"outbox_messages": 0}, r"outbox_messages=0: Input should be greater than 0"),
        ({"overflow": "drop"}, r"overflow='drop': Input should be 'close'"),
        (7, r"limits takes a dict, not int: write limits=Limits\(overflow=Overflow\.DROP_OLDEST\)"),
        (RoomsSettings(), r"limits takes a dict, not RoomsSettings"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(limits, words):
    with pytest.raises(ConfigurationError, match=words):
        RouteLimits(limits)
