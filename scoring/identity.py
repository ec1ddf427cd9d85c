"""Where users and claims live in the event store: two fixed UUID namespaces.

Both namespaces are part of the stored data: changing one would lose every user or every claim
recorded so far. They are published so that other tools can find a stream by its name.
"""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID, uuid5

USERS_NAMESPACE: Final = UUID("6c1d7c0e-6f1b-5b0e-9a53-2f6f2b9d8a01")
"""``uuid5(USERS_NAMESPACE, user_id)`` is the stream of a user."""

CLAIMS_NAMESPACE: Final = UUID("b7a4b5a2-0c57-5f0d-8e0a-7d1f4f5e9c02")
"""``uuid5(CLAIMS_NAMESPACE, grant_id)`` is the one-event stream of a claim."""

_GRANT_SHAPED: Final = re.compile(r"(?:content:feed-post|award:badge):[A-Za-z0-9._~@-]+\Z")


def user_stream_id(user_id: str) -> UUID:
    """Return the stream of a user whose id is already normalised."""
    return uuid5(USERS_NAMESPACE, user_id)


def claim_stream_id(grant_id: str) -> UUID:
    """Return the stream of the claim on a grant id that is already normalised."""
    return uuid5(CLAIMS_NAMESPACE, grant_id)


def is_grant_shaped(key: str) -> bool:
    """Tell whether a key is written once by its nature, so a grant in disguise.

    These are ``content:feed-post:<id>`` and ``award:badge:<id>``, where ``<id>`` has neither
    ``:`` nor ``/``.
    """
    return _GRANT_SHAPED.match(key) is not None


def derived_grant_id(user_id: str, key: str) -> str:
    """Return the grant id of a grant-shaped key: the same badge for two users is two grants."""
    return f"{user_id}/{key}"
