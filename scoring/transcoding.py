"""JSON as the library writes it, only faster."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import orjson
from eventsourcing.persistence import DatetimeAsISO, JSONTranscoder

# The types that orjson writes exactly as the library does, or hands to our default function.
_FAST_TYPES = frozenset({str, int, bool, type(None), datetime})

# orjson reads an integer from here on as a float, which would lose digits.
_FIRST_ROUNDED = 2.0**63
_TAGGED: Final = 2  # keys of a dict that stands for another object: _type_ and _data_
_NEEDS_A_LOOK = frozenset({dict, list, float})


class _HugeNumber(Exception):  # noqa: N818 - internal, caught where it is raised
    """A number was read that may have been an integer."""


class OrjsonTranscoder(JSONTranscoder):
    """Reads and writes the library's own JSON format, using orjson where that is the same.

    Both transcoders read what the other wrote, so an existing store needs no migration and the
    library's ``TRANSCODER_TOPIC`` may switch between them. Events with nested values (and
    snapshots) are written by the library's encoder, since orjson would write a UUID as a string.
    """

    def encode(self, obj: Any) -> bytes:
        """Encode an object as JSON bytes."""
        if type(obj) is dict and _FAST_TYPES.issuperset(map(type, obj.values())):
            try:
                return orjson.dumps(
                    obj, default=self._encode_obj, option=orjson.OPT_PASSTHROUGH_DATETIME
                )
            except TypeError:
                # An integer beyond 64 bits or a key that is not a string: the library's encoder
                # has the last word on what can be stored.
                return super().encode(obj)
        return super().encode(obj)

    def _encode_obj(self, o: Any) -> dict[str, Any]:
        # A subclass of datetime is a moment like any other: pandas has one, and freezegun.
        if type(o) not in self.types and isinstance(o, DatetimeAsISO.type):
            return {"_type_": DatetimeAsISO.name, "_data_": o.isoformat()}
        return super()._encode_obj(o)

    def decode(self, data: bytes) -> Any:
        """Decode JSON bytes to the object that was encoded."""
        try:
            return self._restored(orjson.loads(data))
        except (orjson.JSONDecodeError, _HugeNumber):
            # NaN, lone surrogates and integers beyond 64 bits are read by the library's decoder.
            return super().decode(data)

    def _restored(self, value: Any) -> Any:
        kind = type(value)
        if kind is dict:
            for key, item in value.items():
                kind = type(item)
                if kind is dict and len(item) == _TAGGED and "_type_" in item:
                    # What _decode_obj() does, for the one kind of dict that every event has.
                    transcoding = self.names.get(item["_type_"])
                    if transcoding is not None and type(item.get("_data_")) is str:
                        value[key] = transcoding.decode(item["_data_"])
                        continue
                if kind in _NEEDS_A_LOOK:
                    value[key] = self._restored(item)
            return self._decode_obj(value)
        if kind is list:
            return [self._restored(item) for item in value]
        if kind is float and abs(value) >= _FIRST_ROUNDED:
            raise _HugeNumber
        return value
