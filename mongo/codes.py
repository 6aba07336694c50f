"""MongoDB's error codes, and what they mean for an operation.

Source of the names: src/mongo/base/error_codes.yml of MongoDB 8; hosted services where noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

REFUSED_US: Final[Mapping[int, str]] = {
    13: "does not give the user of DB_URI the rights it needs: the role readWrite on the database",
    18: "refuses the user name or password of DB_URI; authSource may have to name another database",
    334: "does not offer the authMechanism of DB_URI",
    13297: "has a database whose name differs from that in DB_URI only in case, and admits no second one",
}
"""Unauthorized, AuthenticationFailed, MechanismUnavailable and DatabaseDifferCase. They are corrected at MongoDB or in
`DB_URI`."""
ATLAS: Final = 8000
"""Atlas has one code for all its own errors, such as that the storage quota is used up."""
ATLAS_REFUSED_US: Final[Mapping[str, int]] = {"bad auth": 18, "not allowed to do action": 13}
"""What its texts then say, and the code that MongoDB has for that."""
INDEX_CODES: Final[Mapping[int, str]] = {
    67: "CannotCreateIndex",
    171: "CannotIndexParallelArrays",  # a compound index over two of the document's arrays
    201: "CannotBuildIndexKeys",
    16755: "2dsphere",  # "Can't extract geo keys"
    16766: "hashed",  # "hashed indexes do not currently support array values"
    13026: "2d",
    13027: "2d",
    13068: "2d",
    16804: "2d",
    17261: "text",  # "found language override field in document with non-string type"
    17262: "text",  # "language override unsupported"
    17280: "KeyTooLong",
}
"""A team's index that has no key for the document (expression_keys_private.cpp, fts_spec.cpp and
btree_key_generator.cpp of MongoDB 6.0)."""
TOO_LARGE: Final = frozenset({10334, 17419, 17420})
"""BSONObjectTooLarge, and the codes of an update that would make such a document."""
DUPLICATE_KEY: Final = 11000
WRONG_TYPE: Final = frozenset({2, 14, 28, 16837, 40400})
"""BadValue (such as a push to what is no array), TypeMismatch, PathNotViable, an update operator that met a value
which it cannot change, and `$mergeObjects` with what is no object."""
CONFLICTS: Final[Mapping[int, str]] = {
    DUPLICATE_KEY: "a unique index",
    121: "a validator of the collection",  # DocumentValidationFailure
    166: "a view in place of the collection",  # CommandNotSupportedOnView
    **{code: f"an index of the collection ({name})" for code, name in INDEX_CODES.items()},
}
"""Final refusals because of what the team keeps in the collection."""
FIRST_PLACE: Final = 1000
"""From here on a code is a place in MongoDB's source where a statement, or a document that it met, was refused. Below,
nearly every code is a state of the server, which may end."""
STATES: Final = frozenset(
    {ATLAS, 9001, 10107, 11600, 11601, 11602, 13388, 13435, 13436, 14031, 16500, 46841, 50915, 56846, 57986, 91331}
)
"""Codes from `FIRST_PLACE` on that are states: of the network, of a member of the replica set, of a cluster, of the
disk. 16500 is Cosmos DB's "Request rate is large"."""
FINAL: Final = frozenset(
    {
        *(1, 2, 4, 5, 8, 9, 10, 12, 14, 15, 16, 17, 20, 21, 22),  # InternalError … IllegalOperation … InvalidBSON
        *(26, 27, 28, 29, 30, 34, 40, 47, 52, 53, 54, 55, 56, 57, 59),  # NamespaceNotFound … CommandNotFound
        *(61, 65, 66, 67, 68, 72, 73, 85, 86, 96, 115),  # ShardKeyNotFound … CommandNotSupported
        *(121, 136, 166, 168, 171, 197, 201, 222, 224),  # DocumentValidationFailure … QueryFeatureNotAllowed
        *(238, 241, 260, 280, 286, 292, 303, 323),  # NotImplemented … ChangeStreamHistoryLost … APIStrictError
    }
)
"""Codes below `FIRST_PLACE` that are about the statement, the document or the stream: waiting does not help. 303 is
Amazon DocumentDB's "Feature not supported"."""


def is_final(code: int | None) -> bool:
    """Return whether MongoDB would refuse the same again. One without a code is the driver's own."""
    if code is None:
        return True
    return code not in STATES if code >= FIRST_PLACE else code in FINAL
