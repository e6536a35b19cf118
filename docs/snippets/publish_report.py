import asyncio
import os
import sys

from fastapi_rooms import BackendUnavailable, Publisher


async def main() -> int:
    async with Publisher(os.environ["REDIS_URL"]) as publisher:
        for step in range(3):
            progress = {"report": "sales", "done": step + 1, "of": 3}
            await publisher.broadcast_to_room("reports", progress)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except BackendUnavailable as error:
        sys.exit(f"the report is ready, but nobody was told: {error}")
