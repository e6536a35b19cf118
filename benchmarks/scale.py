"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Sizes and times. The defaults are those that are quoted."""

    name: str = "full"
    rounds: int = 3
    """How often each server has its turn. Medians are over these."""
    large_rounds: int = 2
    """The same for what takes long: the large room, compression."""
    seconds: float = 0.8
    """Of each phase."""
    warm_up: float = 0.3
    members: int = 1_000
    rooms: int = 1_000
    room_size: int = 5
    large: int = 10_000
    settle: float = 0.5
    """Before idle memory is read."""
    rates: tuple[int, ...] = (100, 1_000)
    rate_seconds: float = 3.0
    capacity_rates: tuple[int, ...] = (25, 50, 100, 200, 400, 800, 1_600, 3_200, 6_400)
    capacity_seconds: float = 1.5
    """At each of them."""
    patience: float = 2.0
    """How long a server that cannot keep up may go on after the last message."""
    slow_members: int = 300
    slow_seconds: float = 10.0
    slow_bytes: int = 64 * 1024
    slow_rate: float = 10.0
    node_members: int = 200
    node_rate: float = 50.0
    sizes: tuple[int, ...] = (128, 1024, 4096, 16 * 1024)
    """Of the messages that are compressed or not."""

    @property
    def connections(self) -> int:
        """The most that are open at once."""
        return max(self.members, self.rooms * self.room_size, self.large, self.slow_members, self.node_members)


FULL = Scale()
QUICK = Scale(
    name="quick",
    rounds=1,
    large_rounds=1,
    seconds=0.3,
    warm_up=0.1,
    members=300,
    rooms=200,
    large=1_000,
    settle=0.2,
    rate_seconds=0.8,
    capacity_rates=(100, 400, 1_600),
    capacity_seconds=0.5,
    patience=0.5,
    slow_members=50,
    slow_seconds=3.5,
    slow_rate=20.0,
    node_members=50,
)
TINY = Scale(
    name="tiny",
    rounds=1,
    large_rounds=1,
    seconds=0.02,
    warm_up=0.01,
    members=6,
    rooms=3,
    room_size=2,
    large=10,
    settle=0.0,
    rates=(100,),
    rate_seconds=0.1,
    capacity_rates=(50, 100),
    capacity_seconds=0.1,
    patience=1.0,
    slow_members=4,
    slow_seconds=0.2,
    slow_rate=50.0,
    slow_bytes=4096,
    node_members=4,
    sizes=(128, 1024),
)
"""For the tests: everything once, nothing to believe."""
SCALES = {scale.name: scale for scale in (FULL, QUICK, TINY)}
