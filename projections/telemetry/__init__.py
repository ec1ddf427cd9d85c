"""OpenTelemetry, if it is there: spans and metrics around the other packages, from outside.

It may import all of them but the command line and the ledger; none of them imports it.
"""
