"""Opens connections to the mail server: its addresses, TLS, the greeting and the login.

Sources: RFC 5321 (SMTP), RFC 8305 (happy eyeballs), RFC 8314 (implicit TLS), RFC 3207 (STARTTLS).
"""

from __future__ import annotations

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

ADDRESS_REST: Final = 60.0
"""Seconds for which an address of the server is tried last after a connection to it has failed."""
ATTEMPT_DELAY: Final = 0.25
"""Seconds before the server's next address is tried as well (RFC 8305, section 5)."""
PIPELINING_PAUSE: Final = 600.0
"""Seconds without pipelining after commands sent together got the wrong replies."""
NOT_IMPLEMENTED: Final = frozenset({500, 501, 502, 504})
"""Replies to a command that the server does not implement (RFC 5321, section 4.2.4)."""
SILENT_STEP: Final = "the greeting"
ADDRESSES: Final = 4
"""Addresses of the server that are tried for one connection, after the first."""
AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
EXPECTS_TLS: Final = "; a server that expects TLS from the start needs SMTP_SECURITY=tls"
"""Such a server waits silently for the client to begin (SMTPS on a port other than 465)."""


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
        self._last = Attempt()
        self._resting: dict[Address, float] = {}
        self._one_by_one_until = -math.inf

    @property
    def step(self) -> str:
        """How far the last connection came."""
        return self._last.step

    @property
    def pipelining(self) -> bool:
        """Whether commands may be sent together to a server that offers it."""
        return time.monotonic() > self._one_by_one_until

    def pause_pipelining(self) -> None:
        """Send commands one by one for some time, so that each reply is known to belong to its command."""
        self._one_by_one_until = time.monotonic() + PIPELINING_PAUSE

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

    def rest(self, address: Address | None) -> None:
        """Try an address of the server last for some time, as its machine may be broken."""
        if address:
            self._resting[address] = time.monotonic() + ADDRESS_REST

    async def _open_somewhere(self, tries: int, secret: str) -> Connection:
        for _ in range(ADDRESSES):
            attempt = Attempt()
            try:
                return await self._open_in_time(attempt, secret)
            except SMTPAuthenticationError:  # another address would refuse the login as well
                raise
            except (SMTPException, SMTPFault, OSError) as exc:
                if attempt.address is None:
                    raise
                self.rest(attempt.address)
                if all(map(self._rests, await self._addresses())):
                    tries -= 1
                    if not tries or isinstance(exc, SMTPFault):
                        raise
        return await self._open_in_time(Attempt(), secret)

    def _rests(self, info: AddressInfo) -> float:
        """Return the seconds for which an address is still tried last."""
        return max(0.0, self._resting.get(info[4][:2], -math.inf) - time.monotonic())

    async def _addresses(self) -> Sequence[AddressInfo]:
        host, port = self._settings.smtp_host, self._settings.smtp_port
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def _open_in_time(self, attempt: Attempt, secret: str) -> Connection:
        self._last, timeout = attempt, self._settings.smtp_connect_timeout
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
                await self._upgrade(attempt, smtp, required=security is Security.STARTTLS)
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

    async def _upgrade(self, attempt: Attempt, smtp: SMTP, *, required: bool) -> None:
        if smtp.supports_extension("starttls"):
            attempt.step = "STARTTLS"
            await smtp.starttls()
            await self._greet(attempt, smtp)
        elif required:
            raise SMTPFault(Verdict.CONFIGURATION, "the server offers no STARTTLS, and SMTP_SECURITY requires it")
        elif self._settings.smtp_login or self._settings.smtp_client_cert:
            raise SMTPFault(
                Verdict.CONFIGURATION,
                "the server offers no STARTTLS, and without TLS a login needs SMTP_SECURITY=none",
            )
