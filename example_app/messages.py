"""What travels over the WebSocket, in both directions. `type` says which is which."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from example_app.identity import User

RoomName = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, to_lower=True, max_length=30, pattern=r"^[\p{L}\p{N}][\p{L}\p{M}\p{N} _-]*$"
    ),
]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2_000)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=40)]
"""Chosen by the page and returned with the echo, so that it knows what has arrived."""

MAX_ROOMS = 12
"""How many rooms one tab may have open."""


class Join(BaseModel):
    """Open rooms; also sent after each reconnect, with all of them. An empty list asks for the directory alone."""

    type: Literal["join"]
    rooms: list[RoomName] = Field(max_length=MAX_ROOMS)


class Leave(BaseModel):
    """Close a room."""

    type: Literal["leave"]
    room: RoomName


class Say(BaseModel):
    """Say something in a room."""

    type: Literal["say"]
    room: RoomName
    text: Text
    key: Key


class Typing(BaseModel):
    """Tell a room that something is being written; repeated while it is."""

    type: Literal["typing"]
    room: RoomName


class Direct(BaseModel):
    """Say something to one user."""

    type: Literal["direct"]
    to: User
    text: Text
    key: Key


class Ask(BaseModel):
    """Ask the bot; the answer comes in words, to this tab alone."""

    type: Literal["ask"]
    room: RoomName
    question: Text
    key: Key


FromPage = Annotated[Join | Leave | Say | Typing | Direct | Ask, Field(discriminator="type")]


class Said(BaseModel):
    """Somebody said something in a room."""

    type: Literal["said"] = "said"
    room: str
    sender: User
    text: str
    key: str
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class DirectSaid(BaseModel):
    """Somebody said something to one user; goes to all tabs of both."""

    type: Literal["direct"] = "direct"
    sender: User
    recipient: User
    is_elsewhere: bool
    """The recipient has no tab on the sender's node: another node may have one, and nobody tells whether it has."""
    text: str
    key: str
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class IsTyping(BaseModel):
    """Somebody is writing in a room."""

    type: Literal["typing"] = "typing"
    room: str
    user: User


class Members(BaseModel):
    """Who is in a room now, on this node."""

    type: Literal["members"] = "members"
    room: str
    members: list[User]


class Directory(BaseModel):
    """The rooms that somebody on this node is in, and how many users there are in each."""

    type: Literal["directory"] = "directory"
    rooms: dict[str, int]


class Node(BaseModel):
    """Which of many nodes serves this tab, and whether it reaches the others."""

    type: Literal["node"] = "node"
    name: str
    reaches_others: bool


class Missed(BaseModel):
    """What other nodes said meanwhile may not have come to this tab."""

    type: Literal["missed"] = "missed"
    rooms: list[str]
    direct: bool
    since: datetime
    until: datetime


class Word(BaseModel):
    """The next piece of the bot's answer to the question with that key."""

    type: Literal["word"] = "word"
    room: str
    key: str
    text: str
    is_last: bool = False


class Announced(BaseModel):
    """Somebody announced something to everybody."""

    type: Literal["announced"] = "announced"
    sender: User
    text: str
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Refused(BaseModel):
    """What was asked for was not done; the key says which message it was, if it had one."""

    type: Literal["refused"] = "refused"
    reason: str
    key: str | None = None


ToPage = Said | DirectSaid | IsTyping | Members | Directory | Node | Missed | Word | Announced | Refused
