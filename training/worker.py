"""A worker of `training.workers`: attempts the runs that it reads from standard input, says what came of them."""

from __future__ import annotations

from commandline import exit_code

# isort: split

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from training.attempt import perform


class Messages:
    """The channel to the process that gives out the runs: one line of JSON for each message."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what anything else prints there is no message

    def send(self, **message: Any) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()


class Printed:
    """A stream each of whose lines is a message."""

    def __init__(self, messages: Messages) -> None:
        self._messages, self._begun = messages, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._messages.send(line=line)
        return len(text)

    def flush(self) -> None:
        """Nothing: half a line is no message."""

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return 2


class Tasks:
    """The runs to attempt. Where the other side has gone while one is at work, this process ends as by SIGTERM."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._at_work = self._left_alone = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        self._left_alone = True
        self._lines.put(None)
        if self._at_work:
            os.kill(os.getpid(), signal.SIGTERM)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (line := self._lines.get()) is not None:
            self._at_work = True
            if self._left_alone:  # before it began
                return
            yield json.loads(line)
            self._at_work = False


def main() -> int:
    """Attempt runs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one decides
    messages = Messages()
    sys.stdout = sys.stderr = Printed(messages)
    for task in Tasks():
        messages.send(outcome=perform(task))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
