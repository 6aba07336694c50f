"""MongoDB's error codes and the driver's messages, and what they mean for an operation.

Source of the names: src/mongo/base/error_codes.yml of MongoDB 8; older servers and hosted services where noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

REFUSED_US: Final[Mapping[int, str]] = {
    13: "does not give the user of DB_URI the rights it needs: the role readWrite on the database",
    18: "refuses the user name or password of DB_URI; authSource may name another database",
}
"""Unauthorized and AuthenticationFailed. They are corrected at MongoDB or in `DB_URI`."""
NOT_NOW: Final[Mapping[int, str]] = {
    # --- MongoDB's error_codes.yml: the categories RetriableError, NotPrimaryError, ShutdownError, Interruption,
    #     ExceededTimeLimitError, NetworkError, SystemOverloadedError and StaleShardVersionError
    6: "HostUnreachable",
    7: "HostNotFound",
    24: "LockTimeout",
    50: "MaxTimeMSExpired",
    89: "NetworkTimeout",
    90: "CallbackCanceled",
    91: "ShutdownInProgress",
    134: "ReadConcernMajorityNotAvailableYet",
    150: "StaleEpoch",
    189: "PrimarySteppedDown",
    202: "NetworkInterfaceExceededTimeLimit",
    237: "CursorKilled",
    262: "ExceededTimeLimit",
    279: "ClientDisconnect",
    290: "TransactionExceededLifetimeLimitSeconds",
    317: "ConnectionPoolExpired",
    355: "InterruptedDueToStorageChange",
    358: "InternalTransactionNotSupported",
    384: "ConnectionError",
    402: "ResourceExhausted",
    406: "MigrationBlockingOperationCoordinatorCleaningUp",
    407: "PooledConnectionAcquisitionExceededTimeLimit",
    412: "UpdatesStillPending",
    433: "AdmissionQueueOverflow",
    449: "RateLimitExceeded",
    450: "PooledConnectionAcquisitionRejected",
    453: "InterruptedDueToOverload",
    462: "IngressRequestRateLimitExceeded",
    9001: "SocketException",
    10107: "NotWritablePrimary",
    11600: "InterruptedAtShutdown",
    11601: "Interrupted",
    11602: "InterruptedDueToReplStateChange",
    13388: "StaleConfig",
    13435: "NotPrimaryNoSecondaryOk",
    13436: "NotPrimaryOrSecondary",
    91331: "RetryableError",
    # --- error_codes.yml, without a category: states that end by themselves, or once an operator acts
    46: "LockBusy",
    63: "StaleShardVersion",
    70: "ShardNotFound",
    107: "LockFailed",
    112: "WriteConflict",
    117: "ConflictingOperationInProgress",
    133: "FailedToSatisfyReadPreference",
    145: "PooledConnectionsDropped",
    146: "ExceededMemoryLimit",
    149: "NoConfigPrimary",
    175: "QueryPlanKilled",
    208: "TooManyLocks",
    215: "DatabaseDropPending",
    216: "ElectionInProgress",
    249: "StaleDbVersion",
    261: "TooManyLogicalSessions",
    264: "TooManyFilesOpen",
    308: "CurrentConfigNotCommittedYet",
    319: "MovePrimaryInProgress",
    338: "ReshardCollectionInProgress",
    342: "ReshardingCriticalSectionTimeout",
    343: "ShardCannotRefreshDueToLocksHeld",
    365: "TemporarilyUnavailable",
    371: "UserWritesBlocked",
    388: "TransactionTooLargeForCache",
    391: "ReauthenticationRequired",
    14031: "OutOfDiskSpace",
    # --- hosted services: Atlas when its storage quota is used up, Cosmos DB when "Request rate is large"
    8000: "AtlasError",
    16500: "TooManyRequests",
}
"""What MongoDB cannot do now and may do later."""
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
CONFLICTS: Final[Mapping[int, str]] = {
    2: "a field of another type",  # BadValue, such as a push to a field that is no array
    14: "a field of another type",  # TypeMismatch
    28: "a field of another type",  # PathNotViable
    121: "a validator of the collection",  # DocumentValidationFailure
    166: "a view in place of the collection",  # CommandNotSupportedOnView
    16837: "a field of another type",  # an update operator met a value that it cannot change
    **{code: f"an index of the collection ({name})" for code, name in INDEX_CODES.items()},
}
"""Final refusals because of what the team keeps in the collection."""


class Unreachable(NamedTuple):
    """What the driver says when it cannot reach a server, and what that means."""

    text: str
    reason: str
    configuration: bool = False


UNREACHABLE: Final = (
    # the first match counts
    Unreachable(
        "CERTIFICATE_VERIFY_FAILED", "has a TLS certificate that is not trusted; see tlsCAFile", configuration=True
    ),
    Unreachable("SSL|TLS|handshake", "and DB_URI disagree about TLS: only one of them uses it", configuration=True),
    Unreachable("Authentication failed", REFUSED_US[18], configuration=True),
    Unreachable("Name or service not known|nodename nor|getaddrinfo|No address", "has a host that DNS does not know"),
    Unreachable("Connection refused", "is not running at the host and port of DB_URI: they refuse connections"),
    Unreachable("No replica set members|replica set name", "is not a member of the replica set that DB_URI names"),
    Unreachable("No primary|ReplicaSetNoPrimary", "has no primary now"),
    Unreachable("connection closed", "closes the connection; it may be stopping, or expect TLS"),
    Unreachable("timed out", "does not answer in time"),
    Unreachable("", "cannot be reached at the host and port of DB_URI"),
)
