"""The command line ``score-ledger``."""

from projections.cli.app import main

__all__ = ["main"]
