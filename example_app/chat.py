"""What the page's messages do: the part of the chat that talks to the manager."""

from collections.abc import AsyncIterator, Iterable

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
from fastapi_rooms import Connection, ConnectionDep, ConnectionManager, ManagerDep


def users_in(manager: ConnectionManager, room: str) -> list[User]:
    """Return who is in a room: each user once, however many tabs they have open."""
    users = {member.user_id: user_of(member) for member in manager.get_room_members(room)}
    return list(users.values())


def user_of(connection: Connection) -> User:
    user: User = connection.metadata["user"]
    return user


def is_taken(manager: ConnectionManager, name: str) -> bool:
    """Return whether somebody who is in a room has that name."""
    return any(
        user.name.casefold() == name.casefold() for room in manager.active_rooms for user in users_in(manager, room)
    )


async def act(
    message: Join | Leave | Say | Typing | Direct, connection: Connection, manager: ConnectionManager
) -> Refused | None:
    """Do what a message asks for; return why not, if it was refused."""
    match message:
        case Join():
            return await _join(message, connection, manager)
        case Direct():
            return await _send_direct(message, user_of(connection), manager)
        case Leave():
            if await manager.leave_room(connection, message.room):
                await tell_members(manager, [message.room])
        case _ if message.room not in connection.rooms:
            return Refused(reason=f"You are not in {message.room}: open the room first.", key=_key_of(message))
        case Say():
            said = Said(room=message.room, sender=user_of(connection), text=message.text, key=message.key)
            await manager.broadcast_to_room(message.room, said)
        case Typing():
            # Left out with all tabs: who writes need not be told so in another window.
            own_tabs = manager.get_user_connections(user_of(connection).id)
            typing = IsTyping(room=message.room, user=user_of(connection))
            await manager.broadcast_to_room(message.room, typing, exclude=own_tabs)
    return None


async def tell_members(manager: ConnectionManager, rooms: Iterable[str]) -> None:
    """Tell some rooms who is in them now, and everybody which rooms there are."""
    for room in rooms:
        await manager.broadcast_to_room(room, Members(room=room, members=users_in(manager, room)))
    await manager.broadcast(Directory(rooms={room: len(users_in(manager, room)) for room in manager.active_rooms}))


async def tell_rooms_at_the_end(connection: ConnectionDep, manager: ManagerDep) -> AsyncIterator[None]:
    """Tell the rooms of a connection that it is gone; a dependency, since these clean up after the close."""
    yield
    await tell_members(manager, connection.rooms)


async def _join(message: Join, connection: Connection, manager: ConnectionManager) -> Refused | None:
    if len(connection.rooms | set(message.rooms)) > MAX_ROOMS:
        return Refused(reason=f"{MAX_ROOMS} open rooms are the limit: close one first.")
    for room in message.rooms:
        await manager.join_room(connection, room)
    await tell_members(manager, message.rooms)
    return None


async def _send_direct(message: Direct, sender: User, manager: ConnectionManager) -> Refused | None:
    recipients = manager.get_user_connections(message.to)
    if not recipients:
        return Refused(reason="They have left: your message was not sent.", key=message.key)
    recipient = user_of(recipients[0])
    said = DirectSaid(sender=sender, recipient=recipient, text=message.text, key=message.key)
    for user_id in {sender.id, recipient.id}:
        await manager.send_to_user(user_id, said)
    return None


def _key_of(message: Say | Typing) -> str | None:
    return message.key if isinstance(message, Say) else None
