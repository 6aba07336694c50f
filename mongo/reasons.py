"""Why MongoDB cannot be reached: what an exception means, and a look of our own at what listens there.

The driver strips the errors of its monitors of their causes, and only their wording remains. So the address is tried
once more, as far as MongoDB's first reply, and what fails then has a type and a code.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final

import bson
from bson.errors import BSONError
from dns.exception import Timeout
from dns.resolver import NXDOMAIN, NoAnswer, NoNameservers, NoResolverConfiguration
from pymongo.errors import ConfigurationError, NetworkTimeout, ProtocolError, WaitQueueTimeoutError

Address = tuple[str, int | None]

TIMEOUT: Final = 1.0
"""Seconds for each step of a look."""
HEADER: Final = struct.Struct("<iiii")
OP_MSG: Final = 2013
"""The header of a message, and the code of the only kind that is used (MongoDB Wire Protocol)."""
REPLY_LIMIT: Final = 1 << 20
EXPIRED, OTHER_NAMES = 10, (62, 64)
"""X509_V_ERR_CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH (x509_vfy.h of OpenSSL)."""


class Reason(Enum):
    """Why MongoDB cannot be used, in a sentence; whether only a change of the configuration, or of rights, helps."""

    NO_ANSWER = "MongoDB does not answer in time.", False
    UNREACHABLE = "MongoDB cannot be reached at the host and port of DB_URI.", False
    REFUSED = "MongoDB does not listen at the host and port of DB_URI: the connection is refused.", False
    CLOSED = "MongoDB closes the connection: it is stopping, is full, or wants a client's certificate.", False
    NO_FILES = "This process may open no more files, so none for MongoDB; raise its limit (ulimit -n).", False
    UNKNOWN_HOST = "DNS does not know the host of DB_URI.", False
    NO_DNS = "DNS does not answer, so the host of DB_URI is not found.", False
    NOT_MONGODB = "What listens at the host and port of DB_URI is no MongoDB.", False
    EXPECTS_TLS = "MongoDB expects TLS, which DB_URI does not ask for.", True
    NO_TLS = "MongoDB does not answer with TLS, which DB_URI asks for.", True
    UNTRUSTED = "MongoDB has a TLS certificate that is not trusted; tlsCAFile in DB_URI names another authority.", True
    OTHER_NAME = "MongoDB has a TLS certificate for another host than the one in DB_URI.", True
    EXPIRED = "MongoDB has a TLS certificate that has expired.", False
    CLIENT_CERTIFICATE = "MongoDB wants a client's certificate; tlsCertificateKeyFile in DB_URI names one.", True
    NO_PRIMARY = "MongoDB has no primary now; a new replica set needs rs.initiate().", False
    OTHER_SET = "MongoDB is not a member of the replica set that DB_URI names.", True
    MEMBER_NAMES = "MongoDB's primary cannot be reached by the name that rs.conf() gives it.", False
    UNKNOWN_SRV = "DB_URI names a mongodb+srv:// host that DNS does not know.", True
    OPTIONS = "DB_URI has options that are not valid, contradict each other, or need what is not there.", True

    @property
    def sentence(self) -> str:
        """The sentence."""
        return self.value[0]

    @property
    def is_configuration(self) -> bool:
        """Whether waiting does not help."""
        return self.value[1]


class _Closed(Exception):
    """The server closed the connection before it replied."""


BY_TYPE: Final = (
    ((NXDOMAIN, NoAnswer), Reason.UNKNOWN_SRV),
    ((NoNameservers, NoResolverConfiguration, Timeout), Reason.NO_DNS),
    (ConnectionRefusedError, Reason.REFUSED),
    ((ConnectionResetError, BrokenPipeError, _Closed), Reason.CLOSED),
    ((TimeoutError, NetworkTimeout, WaitQueueTimeoutError), Reason.NO_ANSWER),
    ((ProtocolError, BSONError, struct.error), Reason.NOT_MONGODB),
    ((ConfigurationError, ValueError, TypeError, LookupError), Reason.OPTIONS),
)


def reason_of(exc: BaseException) -> Reason:
    """Return what an exception of the driver, of a socket or of DNS means: that of its cause, if that tells more."""
    return next((reason for link in _chain(exc) if (reason := _meaning(link))), Reason.UNREACHABLE)


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    links = []
    while exc and exc not in links:
        links.append(exc)
        exc = exc.__cause__
    return reversed(links)


def _meaning(exc: BaseException) -> Reason | None:
    match exc:
        case ssl.SSLCertVerificationError():
            found = {EXPIRED: Reason.EXPIRED, **dict.fromkeys(OTHER_NAMES, Reason.OTHER_NAME)}
            return found.get(exc.verify_code, Reason.UNTRUSTED)
        case ssl.SSLError():
            alert = "CERTIFICATE_REQUIRED" in (exc.reason or "")  # the name of OpenSSL's reason, not a text
            return Reason.CLIENT_CERTIFICATE if alert else Reason.NO_TLS
        case socket.gaierror():
            return Reason.NO_DNS if exc.errno == socket.EAI_AGAIN else Reason.UNKNOWN_HOST
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return Reason.NO_FILES
        case OSError(errno=None) if type(exc) is OSError:  # the driver's own, for a connection that is closed
            return Reason.CLOSED
    return next((reason for kinds, reason in BY_TYPE if isinstance(exc, kinds)), None)


async def diagnose(seeds: Sequence[Address], tls: ssl.SSLContext | None, replica_set: str | None) -> Reason | None:
    """Look at the addresses of a connection string; return why MongoDB cannot be used, or `None` if it could be."""
    found = await asyncio.gather(*(asyncio.to_thread(_look, address, tls) for address in seeds))
    replies = [reply for reply in found if not isinstance(reply, Reason)]
    if not replies:
        reasons = [reason for reason in found if isinstance(reason, Reason)]
        return next((reason for reason in reasons if reason.is_configuration), reasons[0]) if reasons else None
    names = {reply.get("setName") for reply in replies}
    if replica_set and replica_set not in names and not any(reply.get("isreplicaset") for reply in replies):
        return Reason.OTHER_SET
    if not any(reply.get("isWritablePrimary") or reply.get("primary") for reply in replies):
        return Reason.NO_PRIMARY
    primary = next((_split(reply["primary"]) for reply in replies if reply.get("primary")), None)
    if primary and isinstance(reason := await asyncio.to_thread(_look, primary, tls), Reason):
        return reason if primary in seeds else Reason.MEMBER_NAMES
    return None


def _split(name: str) -> Address:
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def _look(address: Address, tls: ssl.SSLContext | None) -> Mapping[str, Any] | Reason:
    """Return what the server at an address says of itself, or what is in the way."""
    try:
        with _connected(address) as plain:
            if not tls:
                return _hello(plain)
            with tls.wrap_socket(plain, server_hostname=address[0]) as secured:
                return _hello(secured)
    except (_Closed, ConnectionResetError):
        return Reason.EXPECTS_TLS if not tls and _speaks_tls(address) else Reason.CLOSED
    except (OSError, BSONError, struct.error, ValueError) as exc:
        return reason_of(exc) if isinstance(exc, OSError) else Reason.NOT_MONGODB


def _connected(address: Address) -> socket.socket:
    host, port = address
    if port is not None:
        return socket.create_connection((host, port), TIMEOUT)
    local = socket.socket(socket.AF_UNIX)
    local.settimeout(TIMEOUT)
    local.connect(host)
    return local


def _hello(connection: socket.socket) -> Mapping[str, Any]:
    """Ask `hello`, which needs no login. Raises what `_look` catches."""
    body = bytes(5) + bson.encode({"hello": 1, "$db": "admin"})
    connection.sendall(HEADER.pack(HEADER.size + len(body), 1, 0, OP_MSG) + body)
    length, _, _, kind = HEADER.unpack(_receive(connection, HEADER.size))
    if kind != OP_MSG or not HEADER.size < length < REPLY_LIMIT:
        raise ValueError
    reply: Mapping[str, Any] = bson.decode(_receive(connection, length - HEADER.size)[5:])
    return reply


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        if not (part := connection.recv(size - len(received))):
            raise _Closed
        received += part
    return received


def _speaks_tls(address: Address) -> bool:
    with suppress(OSError, ValueError):
        return bool(ssl.get_server_certificate((address[0], address[1] or 0), timeout=TIMEOUT))
    return False
