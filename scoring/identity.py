"""Ids: of grants, and of the streams of users and claims, in two fixed UUID namespaces.

Both namespaces are part of the stored data: changing one would lose every user or every claim
recorded so far. They are published so that other tools can find a stream by its name.
"""

from __future__ import annotations

import re
import unicodedata
from hashlib import sha1, sha256
from typing import Final
from urllib.parse import quote
from uuid import UUID

from scoring.rules import MAX_GRANT_ID_LENGTH

USERS_NAMESPACE: Final = UUID("6c1d7c0e-6f1b-5b0e-9a53-2f6f2b9d8a01")
"""``uuid5(USERS_NAMESPACE, user_id)`` is the stream of a user."""

CLAIMS_NAMESPACE: Final = UUID("b7a4b5a2-0c57-5f0d-8e0a-7d1f4f5e9c02")
"""``uuid5(CLAIMS_NAMESPACE, grant_id)`` is the one-event stream of a claim."""

_USERS: Final = USERS_NAMESPACE.bytes
_CLAIMS: Final = CLAIMS_NAMESPACE.bytes
_UUID_MASK: Final = UUID("ffffffff-ffff-0fff-3fff-ffffffffffff").int
_UUID_VERSION_5: Final = UUID("00000000-0000-5000-8000-000000000000").int

_GRANT_SHAPED: Final = re.compile(r"(?:content:feed-post|award:badge):[A-Za-z0-9._~@-]+\Z")


def user_stream_id(user_id: str) -> UUID:
    """Return the stream of a user whose id is already normalised."""
    return _uuid5(_USERS, user_id)


def claim_stream_id(grant_id: str) -> UUID:
    """Return the stream of the claim on a grant id that is already normalised."""
    return _uuid5(_CLAIMS, grant_id)


def _uuid5(namespace: bytes, name: str) -> UUID:
    # What uuid5() does, in two thirds of the time: there is one for each grant.
    digest = sha1(namespace + name.encode(), usedforsecurity=False).digest()
    return UUID(int=int.from_bytes(digest[:16], "big") & _UUID_MASK | _UUID_VERSION_5)


def is_grant_shaped(key: str) -> bool:
    """Tell whether a key is written once by its nature, so a grant in disguise.

    These are ``content:feed-post:<id>`` and ``award:badge:<id>``, where ``<id>`` has neither
    ``:`` nor ``/``.
    """
    return _GRANT_SHAPED.match(key) is not None


def derived_grant_id(user_id: str, key: str) -> str:
    """Return the grant id of a grant-shaped key: the same badge for two users is two grants."""
    return f"{user_id}/{key}"


def make_grant_id(*parts: str | int) -> str:
    """Return a valid grant id made of parts: other parts make another id.

    The parts are joined by slashes, and whatever is not a letter or digit of ASCII or one of
    ``. _ ~ -`` is escaped as in a URL, so none can run into the next, and the id never ends like
    one that is derived from a grant-shaped key::

        >>> make_grant_id("quiz", 7, "ada")
        'quiz/7/ada'
        >>> make_grant_id("liked", "a/b", "zoë")
        'liked/a%2Fb/zo%C3%AB'

    What would be longer than a grant id may be ends in ``#`` and a SHA-256 hash of all of it
    instead. The same parts make the same id in every release and on every version of Python.

    Args:
        *parts: What makes the grant the one it is: what kind of award, for what, to whom. Spellings
            of one text that NFC makes equal are the same part; a number is its decimal text.

    Raises:
        TypeError: if a part is neither a string nor an integer.
        ValueError: if there is no part, or an empty one, which names nothing.
    """
    joined = "/".join(map(_escaped, parts))
    if not joined:
        raise ValueError("a grant id is made of at least one part")
    if len(joined) <= MAX_GRANT_ID_LENGTH:
        return joined
    digest = "#" + sha256(joined.encode()).hexdigest()
    return joined[: MAX_GRANT_ID_LENGTH - len(digest)] + digest


def _escaped(part: str | int) -> str:
    if isinstance(part, bool) or not isinstance(part, str | int):
        raise TypeError(f"a part of a grant id is a string or an integer, not {part!r}")
    if part == "":
        raise ValueError("a part of a grant id must not be empty")
    # All of it in ASCII: which characters are in order depends on the version of Unicode.
    text = unicodedata.normalize("NFC", str(part))
    return quote(text, safe="", errors="surrogatepass")
