import asyncio
import os

from fastapi_rooms import DistributedWebSocketManager


async def main() -> None:
    manager = DistributedWebSocketManager(os.environ["REDIS_URL"])
    await manager.start(required=True)
    try:
        await manager.broadcast_to_room("kitchen", "dinner is ready")
    finally:
        await manager.stop()


if __name__ == "__main__":
    asyncio.run(main())
