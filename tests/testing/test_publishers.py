"""Publishers that need no broker: they do what the real ones do, up to the broker."""

import asyncio
import inspect

import pytest

from fastapi_rooms import InvalidName, MessageError, Publisher, RoomsSettings, SyncPublisher
from fastapi_rooms.testing import RecordingPublisher, RecordingSyncPublisher


def calls(publisher):
    """Return a function that calls a method of either kind."""

    def call(name, *args, **options):
        result = getattr(publisher, name)(*args, **options)
        return asyncio.run(result) if inspect.isawaitable(result) else result

    return call


@pytest.mark.parametrize(("kind", "real"), [(RecordingPublisher, Publisher), (RecordingSyncPublisher, SyncPublisher)])
def test_they_keep_what_the_real_ones_would_have_told(kind, real):
    publisher = kind(settings=RoomsSettings(max_envelope_bytes=200))
    assert isinstance(publisher, real)
    call, one = calls(publisher), "a" * 32
    call("broadcast_to_room", "kitchen", {"text": "hello"}, exclude=one)
    call("send_to_user", "ann", "hello")
    call("close_user", "ann", 4001, "bye")
    with pytest.raises(InvalidName):
        call("broadcast_to_room", "", "hello")
    with pytest.raises(MessageError):
        call("broadcast", "x" * 300)
    told, said, closed = publisher.envelopes
    assert (told.target.name, told.content.payload, told.excluded) == ("kitchen", b'{"text":"hello"}', {one})
    assert (said.target.name, said.content.payload) == ("ann", b"hello")
    assert (closed.target.name, closed.content.code, closed.content.reason) == ("ann", 4001, "bye")
    assert "3 envelopes" in repr(publisher)
    call("stop" if kind is RecordingPublisher else "close")


@pytest.mark.parametrize("name", ["subscribe", "unsubscribe"])
def test_a_publisher_hears_nothing(name):
    publisher = RecordingPublisher()
    with pytest.raises(NotImplementedError):
        getattr(publisher._backend, name)([])  # private: nobody calls it
