"""``score-ledger`` for those who run it hundreds of times; see ``ready_commands.py``."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect(sys.argv[1])
    asked = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)])  # noqa: PTH109 - imports
    socket.send_fds(connection, [asked.encode()], [0, 1, 2])
    code = int(connection.recv(16))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
