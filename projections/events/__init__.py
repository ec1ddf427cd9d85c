"""What the event store says: its pages, events and history, and when there is something new.

Nothing here knows MongoDB. It may import ``scoring`` and ``projections.errors``.
"""
