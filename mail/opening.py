"""Opens connections to the mail server: its addresses, TLS, the greeting and the login.

Sources: RFC 5321 (SMTP), RFC 8305 (happy eyeballs), RFC 8314 (implicit TLS), RFC 3207 (STARTTLS).
"""

import asyncio
import math
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiohappyeyeballs import start_connection
from aiosmtplib import SMTP, SMTPAuthenticationError, SMTPException, SMTPHeloError

from config.checks import domain
from mail.connection import Address, Connection, Protocol, drop
from mail.login import BY_PASSWORD, BY_TOKEN, Tokens, log_in
from mail.replies import SMTPFault, Verdict
from settings import Security, Settings

AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
ADDRESS_REST: Final = 60.0  # seconds for which an address is tried last after a connection to it has failed
ADDRESSES: Final = 4  # addresses that are tried for one connection, after the first
ATTEMPT_DELAY: Final = 0.25  # seconds before the server's next address is tried as well (RFC 8305, section 5)
NOT_IMPLEMENTED: Final = frozenset({500, 501, 502, 504})  # replies to an unknown command (RFC 5321, section 4.2.4)
SILENT_STEP: Final = "the greeting"  # at which a server that expects TLS waits for the client to begin
EXPECTS_TLS: Final = "; a server that expects TLS from the start needs SMTP_SECURITY=tls"
NO_STARTTLS: Final = "the server offers no STARTTLS, and SMTP_SECURITY requires it: only none logs in without TLS"


@dataclass(slots=True)
class Attempt:
    """How far an attempt to open a connection came: its last step, and the address that accepted it."""

    step: str = ""
    address: Address | None = None


class Opener:
    def __init__(self, settings: Settings, local_hostname: str) -> None:
        self._settings = settings
        self._local_hostname = domain(settings.smtp_helo) if settings.smtp_helo else local_hostname
        self._tls = ssl.create_default_context()
        if settings.smtp_ca_file:
            self._tls.load_verify_locations(settings.smtp_ca_file)
        if settings.smtp_client_cert:
            self._tls.load_cert_chain(settings.smtp_client_cert)
        self.tokens = Tokens(settings, self._tls) if settings.smtp_oauth_token_url else None
        self.last = Attempt()
        self._resting: dict[Address, float] = {}

    async def open(self, tries: int = 1) -> Connection:
        """Open a connection. If that fails, try the server's other addresses, unless they have failed lately.

        If all have, a server that refuses at once is asked up to `tries` times. Raises `SMTPFault`, and the errors of
        aiosmtplib, ssl and the network.
        """
        if self.tokens:
            return await self.tokens.try_with(partial(self._open_somewhere, tries))
        return await self._open_somewhere(tries, self._settings.smtp_password or "")

    async def close(self) -> None:
        if self.tokens:
            await self.tokens.close()

    def rest(self, address: Address) -> None:
        """Try an address of the server last for some time, as its machine may be broken."""
        self._resting[address] = time.monotonic() + ADDRESS_REST

    async def _open_somewhere(self, tries: int, secret: str) -> Connection:
        left = ADDRESSES
        while True:
            self.last = attempt = Attempt()
            try:
                return await self._open_in_time(attempt, secret)
            except SMTPAuthenticationError:  # another address would refuse the login as well
                raise
            except (SMTPException, SMTPFault, OSError) as exc:
                if attempt.address is None or not left:
                    raise
                left -= 1
                self.rest(attempt.address)
                if all(map(self._rests, await self._addresses())):
                    tries -= 1
                    if not tries or isinstance(exc, SMTPFault):
                        raise

    def _rests(self, info: AddressInfo) -> float:
        """Return the seconds for which an address is still tried last."""
        return max(0.0, self._resting.get(info[4][:2], -math.inf) - time.monotonic())

    async def _addresses(self) -> Sequence[AddressInfo]:
        host, port = self._settings.smtp_host, self._settings.smtp_port
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def _open_in_time(self, attempt: Attempt, secret: str) -> Connection:
        timeout = self._settings.smtp_connect_timeout
        try:
            async with asyncio.timeout(timeout):
                return await self._open(attempt, secret)
        except TimeoutError:
            hint = EXPECTS_TLS if attempt.step == SILENT_STEP else ""
            raise SMTPFault(Verdict.CONNECTION, f"{attempt.step} timed out after {timeout:g} s{hint}") from None

    async def _open(self, attempt: Attempt, secret: str) -> Connection:
        settings, security = self._settings, self._settings.security
        attempt.step = "connecting"
        addresses = sorted(await self._addresses(), key=self._rests)
        connected = await start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY, interleave=1)
        attempt.address = connected.getpeername()[:2]
        smtp = SMTP(
            hostname=settings.smtp_host.removesuffix("."),  # the name that the certificate must have
            port=None,
            sock=connected,
            use_tls=security is Security.TLS,
            start_tls=False,  # decided in _upgrade
            tls_context=self._tls,
            local_hostname=self._local_hostname,  # aiosmtplib would ask DNS for our name
            timeout=settings.smtp_connect_timeout,
        )
        try:
            attempt.step = "TLS or the greeting" if security is Security.TLS else SILENT_STEP
            await smtp.connect()
            protocol = Protocol(smtp)
            await self._greet(attempt, smtp)
            if security in {Security.AUTO, Security.STARTTLS}:
                await self._upgrade(attempt, smtp)
            if settings.smtp_login:
                attempt.step = "the login"
                await log_in(smtp, settings.smtp_login, secret, BY_TOKEN if self.tokens else BY_PASSWORD)
        except BaseException:
            drop(smtp)
            raise
        pipelines = smtp.supports_extension("pipelining")
        return Connection(smtp, protocol, settings.smtp_command_timeout, pipelines, attempt.address)

    async def _greet(self, attempt: Attempt, smtp: SMTP) -> None:
        """Say EHLO, or HELO to a server that does not know EHLO (RFC 5321, section 3.2)."""
        attempt.step = "EHLO"
        try:
            await smtp.ehlo()
        except SMTPHeloError as exc:
            if exc.code not in NOT_IMPLEMENTED:
                raise
            await smtp.helo()

    async def _upgrade(self, attempt: Attempt, smtp: SMTP) -> None:
        settings, attempt.step = self._settings, "STARTTLS"
        if smtp.supports_extension("starttls"):
            await smtp.starttls()
            await self._greet(attempt, smtp)
        elif settings.security is Security.STARTTLS or settings.smtp_login or settings.smtp_client_cert:
            raise SMTPFault(Verdict.CONFIGURATION, NO_STARTTLS)
