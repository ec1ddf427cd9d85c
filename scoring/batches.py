"""Recording any number of commands, chunk by chunk."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from scoring.command_handler import RefusedAt
from scoring.errors import BatchFailed, StreamHasGap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scoring.command_handler import CommandHandler, CommandT
    from scoring.receipts import ReceiptT

COMMANDS_PER_COMMIT: Final = 1000
"""So many grants or contributions are committed in one transaction."""


def record_in_chunks(
    commands: Iterable[CommandT],
    *,
    of: type[CommandT],
    make_handler: Callable[[Sequence[CommandT]], CommandHandler[CommandT, ReceiptT, Any]],
) -> list[ReceiptT]:
    """Record commands in as few transactions as there are chunks, and return all receipts.

    Args:
        commands: Taken from as each chunk is recorded.
        of: Their class.
        make_handler: Makes the handler of one chunk.

    Raises:
        BatchFailed: as ``Scoring.grant_many`` describes it.
    """
    iterator = iter(commands)
    receipts: list[ReceiptT] = []
    ids_are_taken: bool | None = None
    name = of.__name__.lower()
    while True:
        chunk: list[CommandT] = []
        try:
            for command in islice(iterator, COMMANDS_PER_COMMIT):
                if not isinstance(command, of):
                    raise TypeError(f"a batch takes {of.__name__} objects, not {type(command)!r}")
                chunk.append(command)
        except Exception as error:
            index = len(receipts) + len(chunk)
            raise BatchFailed(receipts, index, str(error), command=name) from error
        if not chunk:
            return receipts
        try:
            handler = make_handler(chunk)
            receipts += handler.receipts(ask_first=ids_are_taken)
            ids_are_taken = handler.found_taken_ids
        except RefusedAt as refused:
            index = len(receipts) + refused.index
            if isinstance(refused.error, StreamHasGap) and refused.index > 0:
                # So that whoever goes on behind it has the commands of all others recorded.
                before = chunk[: refused.index]
                try:
                    receipts += record_in_chunks(before, of=of, make_handler=make_handler)
                except BatchFailed as failed:  # there was another one to fail
                    raise BatchFailed(
                        receipts + failed.receipts_so_far,
                        len(receipts) + failed.index,
                        failed.reason,
                        command=name,
                    ) from failed.__cause__
            raise BatchFailed(receipts, index, str(refused.error), command=name) from refused.error
        except Exception as error:  # whatever it is, the receipts so far must not be lost
            raise BatchFailed(receipts, len(receipts), str(error), command=name) from error
