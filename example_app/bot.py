"""The bot behind `/ask`: a few rules over what the manager knows. It is no language model, and says so."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from example_app.here import Here
from example_app.messages import Ask, Word

PAUSE = 0.04
"""Seconds between words. Nothing needs it but the eye, which wants to see them come."""

HELP = (
    "I am a few rules in the chat's own process, no language model. Ask me who is here, which rooms there are, how "
    "long I have been up, or how many connections are open."
)


@dataclass(frozen=True)
class Facts:
    """What the bot may talk about, at one moment."""

    uptime: float
    connections: int
    rooms: dict[str, int]
    room: str
    names: list[str]
    is_one_of_many: bool


async def answer(ask: Ask, here: Here, uptime: float) -> AsyncIterator[Word]:
    """Yield the answer to a question, word by word."""
    names = sorted(user.name for user in here.users_in(ask.room))
    connections = here.manager.active_connections
    facts = Facts(uptime, connections, here.rooms, ask.room, names, is_one_of_many=here.node is not None)
    words = compose(ask.question, facts).split()
    for word in words[:-1]:
        yield Word(room=ask.room, key=ask.key, text=word + " ")
        await asyncio.sleep(PAUSE)
    yield Word(room=ask.room, key=ask.key, text=words[-1], is_last=True)


def compose(question: str, facts: Facts) -> str:
    """Choose what to say by the words in the question; all that is known if none of them is."""
    asked = set("".join(letter if letter.isalnum() else " " for letter in question.casefold()).split())
    topics = (
        ({"who", "people", "member", "members", "here"}, _people(facts)),
        ({"room", "rooms"}, _rooms(facts)),
        ({"long", "up", "uptime", "running"}, _uptime(facts)),
        ({"connection", "connections", "tab", "tabs", "node"}, _connections(facts)),
        ({"time", "clock"}, f"My clock says {time.strftime('%H:%M:%S')}."),
    )
    chosen = [text for words, text in topics if asked & words]
    if chosen:
        return " ".join(chosen)
    if asked & {"you", "help", "bot"}:
        return HELP
    return " ".join(("That is beyond me, but this I know.", *(text for _, text in topics[:4])))


def _people(facts: Facts) -> str:
    names = facts.names
    if len(names) <= 1:
        return f"You are alone in {facts.room}{_where(facts)}."
    return f"In {facts.room} there are {', '.join(names[:-1])} and {names[-1]}{_where(facts)}."


def _rooms(facts: Facts) -> str:
    if len(facts.rooms) == 1:
        return f"This is the only room that anybody has open{_where(facts)}."
    listed = [f"{room} ({count})" for room, count in sorted(facts.rooms.items())]
    return f"{len(listed)} rooms are open{_where(facts)}: {', '.join(listed)}."


def _connections(facts: Facts) -> str:
    return f"{facts.connections} {'connection is' if facts.connections == 1 else 'connections are'} open on this node."


def _where(facts: Facts) -> str:
    return ", as far as this node knows" if facts.is_one_of_many else ""


def _uptime(facts: Facts) -> str:
    hours, minutes, seconds = (int(facts.uptime) // 3600, int(facts.uptime) // 60 % 60, int(facts.uptime) % 60)
    parts = [(hours, "hour"), (minutes, "minute"), (seconds, "second")]
    spoken = [f"{number} {unit}{'' if number == 1 else 's'}" for number, unit in parts if number]
    return f"I have been up for {' '.join(spoken) or 'less than a second'}."
