"""The query side: what readers ask of the read model.

It may import ``projections.mongo`` and what is below it, and nothing that writes.
"""
