"""The errors of the read side; each message is one sentence with the cure."""

from __future__ import annotations

from scoring.errors import LedgerError


class ProjectionError(LedgerError):
    """The read side cannot do what was asked."""


class ReadModelUnavailable(ProjectionError):
    """MongoDB cannot be reached, or cannot do what the read model needs.

    Attributes:
        transient: Whether it may pass by itself, as an election or a dropped connection does.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        self.transient = transient
        super().__init__(message)


class ReadModelGone(ReadModelUnavailable):
    """The control document is not there: the database was dropped, or was never prepared."""

    def __init__(self, database: str) -> None:
        super().__init__(
            f"the read model is gone from database {database}, which was dropped or emptied: a "
            "worker makes it again from the events, run score-ledger project",
            transient=True,
        )


class ReadModelDamaged(ReadModelUnavailable):
    """A collection or an index that the read model was made with is not there any more.

    Attributes:
        faults: What is wrong, each in words.
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__(
            f"the read model is damaged ({'; '.join(faults)}): run score-ledger rebuild, which "
            "makes it again from the events"
        )


class NameTaken(ReadModelUnavailable):
    """A collection that the read model did not make has the name of one that it needs.

    Attributes:
        collection: The name.
        reason: How it can be told that it is somebody else's, in words.
    """

    def __init__(self, *, database: str, collection: str, reason: str) -> None:
        self.collection = collection
        self.reason = reason
        super().__init__(
            f"the collection {collection} of database {database} is not of Score ledger "
            f"({reason}): set MONGO_DATABASE to a database of its own, or rename the collection"
        )


class ForeignDocument(ReadModelUnavailable):
    """A document in a collection of the read model says nothing that the read model would write.

    Attributes:
        collection: The name of the collection.
        document_id: The document's ``_id``.
    """

    def __init__(self, *, collection: str, document_id: object) -> None:
        self.collection = collection
        self.document_id = document_id
        super().__init__(
            f"the document {document_id!r} in {collection} was not written by Score ledger: take "
            "it out, or set MONGO_DATABASE to a database of its own"
        )


class LedgerNotOpen(ProjectionError):
    """The ledger was closed, or belongs to the process that forked this one."""


class PositionMoved(ProjectionError):
    """Another worker moved the tracked position first, so this batch was not applied."""


class PoisonEvent(ProjectionError):
    """An event cannot be decoded or applied.

    Attributes:
        position: Its notification id.
        stream: Its originator id.
        topic: The topic it was stored under.
        reason: What went wrong, in words.
    """

    def __init__(self, *, position: int, stream: str, topic: str, reason: str) -> None:
        self.position = position
        self.stream = stream
        self.topic = topic
        self.reason = reason
        super().__init__(
            f"the event at position {position} (stream {stream}, topic {topic}) cannot be "
            f"projected: {reason}; mend the cause, or leave this stream behind and go on with "
            "SCORE_LEDGER_ON_ERROR=park"
        )


class ShapeChanged(ProjectionError):
    """The read model's documents have another shape than this release projects.

    Attributes:
        found: The shape of the live documents.
        expected: The shape of this release.
    """

    def __init__(self, *, found: int, expected: int) -> None:
        self.found = found
        self.expected = expected
        super().__init__(
            f"the read model was made by another release (its documents have shape {found}, this "
            f"release has {expected}): run score-ledger rebuild, which leaves the events alone"
        )


class EventStoreReplaced(ProjectionError):
    """The event store is not the one that the read model was projected from, or it went back.

    Attributes:
        event_store: The persistence module, and the file, or the servers and the database.
        read_model: Host, port and database of the read model.
        expected: What the read model was projected from, in words.
        found: What the event store has instead, in words.
    """

    def __init__(self, *, event_store: str, read_model: str, expected: str, found: str) -> None:
        self.event_store = event_store
        self.read_model = read_model
        self.expected = expected
        self.found = found
        super().__init__(
            f"the event store {event_store} does not have the history that the read model "
            f"{read_model} was projected from (expected {expected}, found {found}): restore or "
            "name the right one or, if this one is the truth, run score-ledger rebuild --adopt"
        )


class EventStoresDiffer(ProjectionError):
    """An event store cannot become a copy of another one, as it has something else in it.

    Attributes:
        source: What is copied from.
        target: What is copied into.
        expected: What the source has at the first place where they differ, in words.
        found: What the target has there.
    """

    def __init__(self, *, source: str, target: str, expected: str, found: str) -> None:
        self.source = source
        self.target = target
        self.expected = expected
        self.found = found
        super().__init__(
            f"the event store {target} has {found} where {source} has {expected}: copy into an "
            "empty store, or carry on with one that an interrupted copy of this source has left "
            "and nobody has written to"
        )


class SourceWritten(ProjectionError):
    """Something was recorded in an event store while it was copied.

    Attributes:
        source: The store.
        expected: Its newest position before.
        found: Its newest position afterwards.
    """

    def __init__(self, *, source: str, expected: int, found: int | None) -> None:
        self.source = source
        self.expected = expected
        self.found = found
        super().__init__(
            f"the event store {source} was written to while it was copied (its newest position was "
            f"{expected} and is {found}): stop whoever writes and copy again, which carries on"
        )


class RebuildSuperseded(ProjectionError):
    """The generation that was being built is gone: it was finished or given up elsewhere.

    Attributes:
        generation: Its number.
    """

    def __init__(self, generation: int) -> None:
        self.generation = generation
        super().__init__(
            f"generation {generation} is not being built any more: another rebuild has finished it "
            "or started over"
        )


class BatchRefused(ProjectionError):
    """MongoDB refuses something in a batch for what it is, so trying again cannot help."""


class BatchTooSlow(ReadModelUnavailable):
    """MongoDB gave up the transaction of a batch for its age or size: less should be tried."""

    def __init__(self, message: str) -> None:
        """Say what happened; it may pass, since a server is not always as slow."""
        super().__init__(message, transient=True)


class StreamParked(ProjectionError):
    """What was asked for is in a stream that is parked, so it is not visible.

    Attributes:
        stream: The originator id of the parked stream.
        position: The position of the event it was parked at.
        reason: What is wrong with that event, in words.
    """

    def __init__(self, *, stream: str, position: int, reason: str) -> None:
        self.stream = stream
        self.position = position
        self.reason = reason
        super().__init__(
            f"stream {stream} is parked at position {position} ({reason}): mend the cause and run "
            "score-ledger unpark"
        )


class TooManyParked(ProjectionError):
    """So many streams are parked already that the fault cannot lie in single events."""
