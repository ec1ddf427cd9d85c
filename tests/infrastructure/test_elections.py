"""A read model on three nodes whose primary steps down, is killed, or is frozen."""

from __future__ import annotations

from pymongo import WriteConcern

from projections.mongo import connect
from replica_set import ReplicaSet


def test_what_only_a_primary_has_seen_is_rolled_back(replica_set: ReplicaSet) -> None:
    """The helper does what tests of a rollback need."""
    with connect(replica_set.uri) as client:
        client["rolled"]["back"].insert_one({"_id": "kept"})
        with replica_set.rollback() as primary:
            database = primary.get_database("rolled", write_concern=WriteConcern(1))
            database["back"].insert_one({"_id": "gone"})
        assert [document["_id"] for document in client["rolled"]["back"].find()] == ["kept"]
    for node in replica_set.nodes:
        with node.client() as direct:
            found = direct["rolled"]["back"].find()
            assert [document["_id"] for document in found] == ["kept"]
