"""What the page's messages do: the part of the chat that talks to the manager."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

from example_app.here import Here, HereDep, user_of
from example_app.identity import User
from example_app.messages import (
    MAX_ROOMS,
    Direct,
    Directory,
    DirectSaid,
    IsTyping,
    Join,
    Leave,
    Members,
    Refused,
    Said,
    Say,
    Typing,
)
from fastapi_rooms import BackendUnavailable, Connection, ConnectionDep


async def act(message: Join | Leave | Say | Typing | Direct, connection: Connection, here: Here) -> Refused | None:
    """Do what a message asks for; return why not, if it was refused."""
    manager = here.manager
    match message:
        case Join():
            return await _join(message, connection, here)
        case Direct():
            return await _send_direct(message, user_of(connection), here)
        case Leave():
            if await manager.leave_room(connection, message.room):
                await tell_members(here, [message.room])
        case _ if message.room not in connection.rooms:
            return Refused(reason=f"You are not in {message.room}: open the room first.", key=_key_of(message))
        case Say():
            said = Said(room=message.room, sender=user_of(connection), text=message.text, key=message.key)
            await manager.broadcast_to_room(message.room, said)
        case Typing():
            # Left out with all tabs: who writes need not be told so in another window. Tabs on other nodes are not
            # known here; the page leaves out what its own user writes.
            own_tabs = manager.get_user_connections(user_of(connection).id)
            typing = IsTyping(room=message.room, user=user_of(connection))
            with suppress(BackendUnavailable):  # not worth a complaint
                await manager.broadcast_to_room(message.room, typing, exclude=own_tabs)
    return None


async def tell_members(here: Here, rooms: Iterable[str]) -> None:
    """Tell some rooms who of this node is in them now, and all tabs of this node which rooms there are."""
    for room in rooms:
        members = Members(room=room, members=here.users_in(room))
        await here.tell(members, here.manager.get_room_members(room))
    await here.tell(Directory(rooms=here.rooms))


async def attend(connection: ConnectionDep, here: HereDep) -> AsyncIterator[None]:
    """Count a tab among those of this node, and tell its rooms when it is gone.

    A dependency, since these clean up after the close.
    """
    here.tabs.add(connection)
    yield
    here.tabs.discard(connection)
    await tell_members(here, connection.rooms)


async def _join(message: Join, connection: Connection, here: Here) -> Refused | None:
    if len(connection.rooms | set(message.rooms)) > MAX_ROOMS:
        return Refused(reason=f"{MAX_ROOMS} open rooms are the limit: close one first.")
    if here.node is not None:
        await connection.send(here.node)
    for room in message.rooms:
        await here.manager.join_room(connection, room)
    await tell_members(here, message.rooms)
    return None


async def _send_direct(message: Direct, sender: User, here: Here) -> Refused | None:
    tabs = here.manager.get_user_connections(message.to.id)
    if not tabs and here.node is None:
        return Refused(reason="They have left: your message was not sent.", key=message.key)
    # Whoever is on another node is known by what the page says; only the sender's own tabs will show that name.
    recipient = user_of(tabs[0]) if tabs else message.to
    said = DirectSaid(sender=sender, recipient=recipient, text=message.text, key=message.key, is_elsewhere=not tabs)
    # Together: if other nodes cannot be told about the one, the tabs that the other has here are served all the same.
    await asyncio.gather(*(here.manager.send_to_user(user_id, said) for user_id in {sender.id, recipient.id}))
    return None


def _key_of(message: Say | Typing) -> str | None:
    return message.key if isinstance(message, Say) else None
