"""Clients of an app's own that lead to a cluster."""

from uuid import uuid4

import redis

from fastapi_rooms import Publisher, RoomsSettings, SyncPublisher
from fastapi_rooms.backends.redis.places import ClusterSeeds, locate


async def test_a_client_without_an_event_loop_leads_to_its_cluster(cluster):
    client = redis.RedisCluster(host="127.0.0.1", port=cluster.masters[0].port)
    place = locate(client, 2.0)
    assert isinstance(place, ClusterSeeds)
    assert {server.address[1] for server in place.servers} >= {master.port for master in cluster.masters}
    settings = RoomsSettings(key_prefix=uuid4().hex)
    with SyncPublisher(client, settings=settings) as publisher:
        publisher.broadcast("hello")
    async with Publisher(client, settings=settings) as publisher:
        await publisher.broadcast("hello")
    client.close()
