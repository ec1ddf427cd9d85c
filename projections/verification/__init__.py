"""Whether the read model says what the events say, summed up on its own.

It may import ``projections.events``, ``projections.mongo`` and what is below them, but not
``projections.worker``: what projects and what verifies must not make the same mistake.
"""
