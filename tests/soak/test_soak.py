"""Everything at once: for a minute, or for as long as one asks (`ROOMS_SOAK_SECONDS=3600 make soak`)."""

import os
import random
import time
from pathlib import Path

import pytest
from brokers.server import Broker
from brokers.server import running as running_broker

from soak.chapter import Soak
from soak.history import History
from soak.nodes import running

SECONDS = float(os.environ.get("ROOMS_SOAK_SECONDS", "60"))
"""How long things break."""
SEED = int(os.environ.get("ROOMS_SOAK_SEED", random.randrange(1 << 32)))
"""Who does what, and what breaks when. The clients and the machine have a will of their own beside that."""
CHAPTER_SECONDS = 30.0
tell = print  # shown when the test fails, and by `make soak`


@pytest.mark.long
@pytest.mark.timeout(4 * SECONDS + 300)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what a process holds is read from /proc")
async def test_what_was_promised_arrives_and_nothing_is_left_behind(tmp_path):
    tell(f"ROOMS_SOAK_SEED={SEED} ROOMS_SOAK_SECONDS={SECONDS:g}")
    broker, history = Broker("valkey", tmp_path), History(time.time())
    with running_broker(broker):
        async with running(broker.port, tmp_path, history) as nodes:
            soak = Soak(broker, nodes, history, SEED)
            await soak.begin()
            chapters = max(2, round(SECONDS / CHAPTER_SECONDS))
            for number in range(chapters):
                # One node lives through the first half, the other through the second.
                await soak.chapter(SECONDS / chapters, mortal=nodes[number < chapters / 2])
                tell(f"chapter {number + 1} of {chapters}: {len(soak.complaints)} complaints")
                if soak.complaints:
                    break
            await soak.end()
    tell(soak.summary())
    assert not soak.complaints, "\n".join(soak.complaints[:20])
    assert min(soak.counts["deliveries here"], soak.counts["deliveries there"]) > 1_000
