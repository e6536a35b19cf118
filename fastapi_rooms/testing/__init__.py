"""Kits for tests of one's own: an app on many nodes without Redis, what publishes, and a backend."""

from fastapi_rooms.testing.cluster import LocalCluster
from fastapi_rooms.testing.conformance import BackendConformance
from fastapi_rooms.testing.publishers import RecordingPublisher, RecordingSyncPublisher
from fastapi_rooms.testing.recorder import Recorder

__all__ = ["BackendConformance", "LocalCluster", "Recorder", "RecordingPublisher", "RecordingSyncPublisher"]
