"""The real command, which waits at one command that it is about to send to MongoDB.

Usage: ``paused_command.py TEXT NTH ARGUMENT...``. Before the n-th command with that text is sent,
a line goes to standard output, and one is read from standard input.
"""

import sys

from pymongo.monitoring import CommandStartedEvent, register

from heard_commands import HeardCommands
from projections.cli import main


class Pause(HeardCommands):
    """Waits once."""

    def __init__(self, text: str, nth: int) -> None:
        super().__init__()
        self._text = text
        self._left = nth

    def started(self, event: CommandStartedEvent) -> None:
        if self._text in str(event.command):
            self._left -= 1
            if self._left == 0:
                sys.stdout.write("paused\n")
                sys.stdout.flush()
                sys.stdin.readline()


if __name__ == "__main__":
    text, nth, *arguments = sys.argv[1:]
    register(Pause(text, int(nth)))
    sys.argv = ["score-ledger", *arguments]
    main()
