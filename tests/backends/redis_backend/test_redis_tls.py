"""TLS: certificates are checked, and what is checked works. The bundled Valkey is built without it."""

import asyncio
import contextlib
from pathlib import Path

import pytest
import trustme
from brokers.ports import free_port
from brokers.server import Broker, running
from redis.asyncio import Redis
from redis_nodes import ROOM, Node, running_nodes, some_settings

from fastapi_rooms import BackendUnavailable
from fastapi_rooms.backends.redis.publisher import Publisher
from fastapi_rooms.backends.redis.sync_publisher import SyncPublisher

pytestmark = pytest.mark.parametrize("broker_kind", ["redis"], indirect=True)


class Authority:
    """Somebody who certifies, and the files that say so."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir()
        self._ca = trustme.CA()
        self.file = self.folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def certify(self, *names):
        """Return the files of a certificate and of its key."""
        certificate = self._ca.issue_cert(*names)
        files = self.folder / f"{names[0]}.pem", self.folder / f"{names[0]}.key"
        certificate.cert_chain_pems[0].write_to_path(files[0])
        certificate.private_key_pem.write_to_path(files[1])
        return files


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def tls_broker(broker_kind, authority, tmp_path):
    """Start a server that has TLS on one port, and on another what the test asks it by."""
    ends = contextlib.ExitStack()

    def start(*names, clients="no"):
        certificate, key = authority.certify(*names)
        port = free_port()
        broker = Broker(
            broker_kind, tmp_path, f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}",
            f"tls-ca-cert-file {authority.file}", f"tls-auth-clients {clients}",
        )  # fmt: skip
        broker.tls_port = port
        ends.enter_context(running(broker))
        return broker

    with ends:
        yield start


async def crosses(source, broker):
    """Check that all ways to publish reach a node on the port without TLS."""
    async with running_nodes(broker.url, 1, ROOM) as (listener,):
        node = Node(source, ROOM, settings=listener.settings)
        await node.start(required=True)
        await node.settled()
        await node.say("node")
        await listener.say("answer")
        await node.received(1)
        await node.backend.stop()
        async with Publisher(source, settings=listener.settings) as publisher:
            await publisher.broadcast_to_room("kitchen", "async")
        with SyncPublisher(source, settings=listener.settings) as publisher:
            await asyncio.to_thread(publisher.broadcast_to_room, "kitchen", "sync")
        await listener.received(3)
        assert listener.heard == ["node", "async", "sync"]


async def _tell(publisher):
    told = publisher.broadcast("hello")
    if told is not None:
        await told


async def is_refused(source, match="", **options):
    """Check that nobody connects."""
    settings = some_settings(**options)
    node = Node(source, settings=settings)
    with pytest.raises(BackendUnavailable) as refused:
        await node.start(required=True)
    reason = str(refused.value.__cause__)
    assert match in reason, reason
    for kind in (Publisher, SyncPublisher):
        with pytest.raises(BackendUnavailable) as refused:
            await _tell(kind(source, settings=settings))
        reason = f"{refused.value} {refused.value.__cause__}"
        assert match in reason, reason


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_certificate_of_somebody_trusted_is_taken(tls_broker, authority, host):
    broker = tls_broker(host)
    await crosses(f"rediss://{host}:{broker.tls_port}?ssl_ca_certs={authority.file}", broker)
    await crosses(Redis(host=host, port=broker.tls_port, ssl=True, ssl_ca_certs=str(authority.file)), broker)


async def test_a_certificate_of_a_stranger_is_refused(tls_broker, tmp_path):
    broker = tls_broker("127.0.0.1")
    stranger = Authority(tmp_path / "stranger")
    address = f"127.0.0.1:{broker.tls_port}"
    await is_refused(f"rediss://{address}", "certificate verify failed")
    await is_refused(f"rediss://{address}?ssl_ca_certs={stranger.file}", "certificate verify failed")
    await is_refused(Redis.from_url(f"rediss://{address}"), "certificate verify failed")


async def test_a_certificate_for_another_name_is_refused(tls_broker, authority):
    broker = tls_broker("elsewhere.test")
    source = f"rediss://127.0.0.1:{broker.tls_port}?ssl_ca_certs={authority.file}"
    await is_refused(source, "IP address mismatch")
    await crosses(f"{source}&ssl_check_hostname=false", broker)


async def test_checking_can_be_given_up_in_so_many_words(tls_broker):
    broker = tls_broker("elsewhere.test")
    await crosses(f"rediss://127.0.0.1:{broker.tls_port}?ssl_cert_reqs=none", broker)


async def test_a_server_that_wants_a_certificate_is_shown_one(tls_broker, authority):
    broker = tls_broker("127.0.0.1", clients="yes")
    source = f"rediss://127.0.0.1:{broker.tls_port}?ssl_ca_certs={authority.file}"
    certificate, key = authority.certify("client.test")
    await crosses(f"{source}&ssl_certfile={certificate}&ssl_keyfile={key}", broker)
    await is_refused(source)


async def test_files_that_are_not_there_are_no_reason_to_go_without(tls_broker, authority):
    broker = tls_broker("127.0.0.1")
    await is_refused(f"rediss://127.0.0.1:{broker.tls_port}?ssl_ca_certs={authority.folder}/none.pem", "No such file")


async def test_a_server_without_tls_is_refused_where_tls_was_asked_for(tls_broker, authority):
    broker = tls_broker("127.0.0.1")
    await is_refused(f"rediss://127.0.0.1:{broker.port}?ssl_ca_certs={authority.file}", publish_timeout=0.5)


async def test_a_server_with_tls_is_refused_where_none_was_asked_for(tls_broker):
    broker = tls_broker("127.0.0.1")
    await is_refused(f"redis://127.0.0.1:{broker.tls_port}", publish_timeout=0.5)


async def test_connections_over_tls_are_made_again_when_they_are_lost(tls_broker, authority):
    broker = tls_broker("127.0.0.1")
    source = f"rediss://127.0.0.1:{broker.tls_port}?ssl_ca_certs={authority.file}"
    async with running_nodes(source, 2, ROOM) as (one, two):
        broker.kill_listeners()
        await one.reported(1)
        await two.reported(1)
        await one.say("hello")
        await two.received(1)
