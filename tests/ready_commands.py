"""Serves ``score-ledger`` to ``ready_command.py``: every command is a process that is forked here.

Python, and all that a command imports but is not of the command line, are loaded once. A command is
a process of its own all the same, with the arguments, folder, environment and open files of the one
who asks, and ends like any other.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys

import projections.cli

for module in pkgutil.iter_modules(projections.cli.__path__, "projections.cli."):
    importlib.import_module(module.name)
for name in [name for name in sys.modules if name.startswith("projections.cli")]:
    del sys.modules[name]  # it looks at its terminal when it is imported
gc.freeze()


def is_command(connection: socket.socket) -> bool:
    """Fork a command; True in that process, False in the one that serves."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if os.fork():
        for file in files:
            os.close(file)
        return False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if command := os.fork():
        for file in files:
            os.close(file)
        _, status = os.waitpid(command, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # What was made for other files keeps in mind whether those could be sought in.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as Python does itself
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    arguments, folder, environment = json.loads(message)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["score-ledger", *arguments]
    return True


def serve(address: str) -> bool:
    """Return True in each command, and False when nobody is there any more to ask for one."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        os.write(1, b"ready\n")
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            with listener.accept()[0] as connection:
                if is_command(connection):
                    return True
    return False


if serve(sys.argv[1]):
    from projections.cli import main

    main()
