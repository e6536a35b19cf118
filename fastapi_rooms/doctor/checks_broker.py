"""What can be wrong with Redis. Each check says one thing, or nothing."""

from fastapi_rooms.doctor.findings import Finding, error, note, warning
from fastapi_rooms.doctor.situation import Broker, Situation, Unreachable
from fastapi_rooms.doctor.versions import numbers

MIB = 1024 * 1024
OLDEST_REDIS = "6.2"
OLDEST_CLUSTER = "7.0"
"""Sharded pub/sub is there since Redis 7.0."""


def redis_unreachable(situation: Situation) -> Finding | None:
    """Redis does not answer."""
    broker = situation.broker
    if not isinstance(broker, Unreachable):
        return None
    return error(
        f"Redis does not answer: {broker.reason}. The app would start degraded, and no node hear another.",
        "Start it, or mend its URL, its credentials, or the network in between. If it cannot be reached from here but "
        "from the server, pass --ignore redis-unreachable.",
    )


def redis_silent(situation: Situation) -> Finding | None:
    """Redis does not tell about itself."""
    broker = _answered(situation)
    if broker is None or (broker.is_told and broker.output_limit is not None):
        return None
    hidden = "its limits for listeners" if broker.is_told else "anything about itself"
    return note(
        f"Redis does not tell {hidden}: this user may not ask, or whoever hosts it does not allow it. The app needs "
        "neither.",
        "To have it checked, run this once with a user that may call INFO and CONFIG GET.",
    )


def redis_too_old(situation: Situation) -> Finding | None:
    """Redis lacks what is needed."""
    broker = _told(situation)
    if broker is None or not broker.compatible:
        return None
    oldest = OLDEST_CLUSTER if broker.is_cluster else OLDEST_REDIS
    if numbers(broker.compatible) >= numbers(oldest):
        return None
    return error(
        f"{broker.product} {broker.version} is too old: {'a cluster needs ' if broker.is_cluster else ''}Redis "
        f"{oldest} or newer{'' if broker.is_cluster else ' is needed'}.",
        "Update it, or use Valkey.",
    )


def redis_replica(situation: Situation) -> Finding | None:
    """It is not the master."""
    broker = _told(situation)
    if broker is None or broker.role == "master" or broker.is_cluster:
        return None
    return error(
        f"Redis ({broker.place}) is a replica: what is published there does not reach the master, nor its other "
        "replicas.",
        "Name the master, or let Sentinel name it: redis+sentinel://host:26379/master-name.",
    )


def redis_output_limit(situation: Situation) -> Finding | None:
    """One message may cut a node off."""
    broker = _told(situation)
    if broker is None or broker.output_limit is None or situation.rooms is None:
        return None
    limit, largest = broker.output_limit, situation.rooms.settings.max_envelope_bytes
    if not limit.hard and not limit.soft:
        return note(
            "client-output-buffer-limit pubsub has no limit: what piles up for one node that stands still can fill all "
            "memory of Redis.",
            'CONFIG SET client-output-buffer-limit "pubsub 32mb 8mb 60" is the default.',
        )
    hard = limit.hard or float("inf")
    soft = limit.soft if limit.soft and not limit.seconds else float("inf")
    if min(hard, soft) >= largest:
        return None
    lacking = max(32, -(-2 * largest // MIB))
    return warning(
        f"Redis cuts a node off when {_mib(min(hard, soft))} wait for it (client-output-buffer-limit pubsub), but one "
        f"message may have {_mib(largest)} (max_envelope_bytes): a single one that large cuts off every node that "
        "listens, with a gap.",
        f'CONFIG SET client-output-buffer-limit "pubsub {lacking}mb {lacking // 4}mb 60", or lower max_envelope_bytes.',
    )


def redis_eviction(situation: Situation) -> Finding | None:
    """Keys vanish when memory is short."""
    broker = _told(situation)
    if broker is None or broker.eviction == "noeviction" or not broker.max_memory:
        return None
    return warning(
        f"maxmemory-policy {broker.eviction}: at {_mib(broker.max_memory)} Redis throws keys away. Messages are no "
        "keys and are safe; one-time tickets and revoked logins are keys, and may be forgotten before their time.",
        "Use a Redis with maxmemory-policy noeviction, apart from the one that is a cache.",
    )


def redis_shared(situation: Situation) -> Finding | None:
    """Somebody else may use the same channels."""
    broker = _told(situation)
    if broker is None or situation.rooms is None or not broker.foreign_keys:
        return None
    default = type(situation.rooms.settings).model_fields["key_prefix"].default
    if situation.rooms.settings.key_prefix != default:
        return None
    return note(
        f"This Redis holds {broker.foreign_keys} keys that are not ours, so others seem to use it, and key_prefix is "
        f"the default {default!r}. Another app with rooms on it would share rooms and users with this one, "
        "whatever its database number.",
        'If there is one, give each a prefix of its own: RoomsSettings(key_prefix="shop").',
    )


def redis_open(situation: Situation) -> Finding | None:
    """Anybody may publish."""
    broker = _answered(situation)
    if broker is None or broker.has_password or broker.is_local:
        return None
    return note(
        f"Redis ({broker.place}) takes us without a password. Who can publish there can send anything to your clients, "
        "and read what is said.",
        "Make sure that nobody else reaches it, or give the app a user of its own with a password, and TLS where the "
        "network is not yours.",
    )


def _answered(situation: Situation) -> Broker | None:
    return situation.broker if isinstance(situation.broker, Broker) else None


def _told(situation: Situation) -> Broker | None:
    broker = _answered(situation)
    return broker if broker is not None and broker.is_told else None


def _mib(count: float) -> str:
    return f"{count / MIB:.3g} MiB"


CHECKS = (
    redis_unreachable,
    redis_silent,
    redis_too_old,
    redis_replica,
    redis_output_limit,
    redis_eviction,
    redis_shared,
    redis_open,
)
