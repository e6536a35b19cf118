# --8<-- [start:setup]
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

provider = MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter(), export_interval_millis=15_000)])
metrics.set_meter_provider(provider)
# --8<-- [end:setup]
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fastapi_rooms import Incoming, ManagerDep, RoomsExtension

rooms = RoomsExtension()


@rooms.ws_route("/ws/{room}", room="{room}")
async def talk(message: Incoming[str], room: str, manager: ManagerDep) -> None:
    await manager.broadcast_to_room(room, message)


# --8<-- [start:flush]
@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(provider.force_flush)  # the manager has stopped: these are its last numbers


app = FastAPI(lifespan=lifespan)
app.include_router(rooms.router)
# --8<-- [end:flush]
