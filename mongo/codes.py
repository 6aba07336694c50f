"""MongoDB's error codes and the driver's messages, and what they mean for an operation.

Source of the names: src/mongo/base/error_codes.yml of MongoDB 8; older servers and hosted services where noted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

REFUSED_US: Final[Mapping[int, str]] = {
    13: "does not give the user of DB_URI the rights it needs: the role readWrite on the database",
    18: "refuses the user name or password of DB_URI; authSource may have to name another database",
    334: "does not offer the authMechanism of DB_URI",
}
"""Unauthorized, AuthenticationFailed and MechanismUnavailable. They are corrected at MongoDB or in `DB_URI`."""
ATLAS: Final = 8000
"""Atlas has one code for all its own errors."""
ATLAS_REFUSED_US: Final[Mapping[str, int]] = {"bad auth": 18, "not allowed to do action": 13}
"""What its texts then say, and the code that MongoDB has for that."""
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
    ATLAS: "AtlasError",
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


NO_ANSWER: Final = "MongoDB does not answer in time."


class Reason(NamedTuple):
    """What the driver says, as a regular expression, and what that means for an operator."""

    text: str
    sentence: str
    configuration: bool = False  # only a change of the configuration, or of rights, helps


# Of each table the first match counts, and the last row matches everything. The driver's text may begin with the name
# of a host, so no expression may match one.
UNREACHABLE: Final = (
    Reason(
        r"(Hostname|IP address) mismatch|doesn't match",
        "MongoDB has a TLS certificate for another host than the one in DB_URI.",
        configuration=True,
    ),
    Reason("certificate has expired", "MongoDB has a TLS certificate that has expired."),
    Reason(
        "CERTIFICATE_VERIFY_FAILED",
        "MongoDB has a TLS certificate that is not trusted; tlsCAFile in DB_URI names another authority.",
        configuration=True,
    ),
    Reason(
        "CERTIFICATE_REQUIRED|certificate required",
        "MongoDB wants a client's certificate; tlsCertificateKeyFile in DB_URI names one.",
        configuration=True,
    ),
    Reason(
        r"SSL handshake failed|\[SSL",
        "MongoDB does not answer with TLS, which DB_URI asks for.",
        configuration=True,
    ),
    Reason("Authentication failed", f"MongoDB {REFUSED_US[18]}.", configuration=True),
    Reason("MechanismUnavailable", f"MongoDB {REFUSED_US[334]}.", configuration=True),
    Reason(
        r"\[Errno -\d|Name or service not known|nodename nor|getaddrinfo",
        "DNS does not know the host of DB_URI.",
    ),
    Reason("Connection refused", "MongoDB does not listen at the host and port of DB_URI: the connection is refused."),
    Reason(
        "No replica set members available|this node belongs to a set",
        "MongoDB is not a member of the replica set that DB_URI names.",
        configuration=True,
    ),
    Reason(
        r"match selector|not primary|no primary", "MongoDB has no primary now; a new replica set needs rs.initiate()."
    ),
    Reason(
        "Got response id|Message length|Unknown opcode", "What listens at the host and port of DB_URI is no MongoDB."
    ),
    Reason(
        "connection closed|Connection reset",
        "MongoDB closes the connection: it is stopping, or expects TLS or a client's certificate.",
    ),
    Reason("timed out|No servers found yet", NO_ANSWER),
    Reason("", "MongoDB cannot be reached at the host and port of DB_URI."),
)
"""The connection could not be made, or broke."""
EXPECTS_TLS: Final = "MongoDB expects TLS, which DB_URI does not ask for."
NOT_USABLE: Final = (
    Reason(
        "DNS query name does not exist|does not contain|no answer|None of DNS",
        "DB_URI names a mongodb+srv:// host that DNS does not know.",
        configuration=True,
    ),
    Reason(
        "lifetime expired|nameservers failed|timed out", "DNS does not answer for the mongodb+srv:// host of DB_URI."
    ),
    Reason(
        "load balanc",
        "DB_URI says loadBalanced=true, and MongoDB is behind no load balancer.",
        configuration=True,
    ),
    Reason(
        "must be installed|requires pymongo",
        "DB_URI names an authMechanism or a compressor whose package is not installed.",
        configuration=True,
    ),
    Reason("", "DB_URI has an option that is not valid, or options that contradict each other.", configuration=True),
)
"""The connection string is understood, and cannot be used."""


def find(table: Sequence[Reason], text: str) -> Reason:
    """Return the first row that matches."""
    own = re.split(r" \(configured timeouts|, Timeout: ", text)[0]  # without the description of all hosts
    return next(row for row in table if re.search(row.text, own, re.IGNORECASE))
