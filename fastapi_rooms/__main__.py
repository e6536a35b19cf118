"""`python -m fastapi_rooms`: what can be done with the package from a command line."""

import argparse
import sys
from collections.abc import Sequence

from fastapi_rooms.doctor import command as doctor


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastapi_rooms", description="Rooms for FastAPI over WebSockets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    doctor.add_arguments(commands.add_parser("doctor", help="check an app and its environment", allow_abbrev=False))
    # All that is no option of ours belongs to the server's command line; behind `--`, everything does.
    words = list(arguments)
    ours = words.index("--") if "--" in words else len(words)
    options, of_the_server = parser.parse_known_args(words[:ours])
    return doctor.run(options, [*of_the_server, *words[ours + 1 :]])


if __name__ == "__main__":
    doctor.leave(main(sys.argv[1:]))
