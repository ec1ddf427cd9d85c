"""What drives batches from the event store into the read model: following, rebuilding, unparking.

It may import ``projections.events``, ``projections.mongo`` and what is below them.
"""
