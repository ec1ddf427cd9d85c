"""The command line ``score-ledger``.

It may import everything; nothing imports it.
"""

from __future__ import annotations

import signal
import sys

from projections.cli.interrupts import EXIT_CODE, heed_ignored, interrupt, was_interrupted


def main() -> None:
    """Run the command line; Ctrl-C is one line and exit code 130, whatever it interrupts."""
    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = heed_ignored
    try:
        # Inside, since it takes long enough to be interrupted.
        from projections.cli.app import run  # noqa: PLC0415

        code = run()
        # All is said and done, so there is nothing left to interrupt.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Python itself turns what interrupts the making of a class into another error.
        if not was_interrupted():
            raise
        print("interrupted", file=sys.stderr)  # noqa: T201 - perhaps there is no console yet
        code = EXIT_CODE
    sys.exit(code)
