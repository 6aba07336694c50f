"""The leases that this process has on e-mails, and their extension."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from config.address import parse_address
from mail.connection import Connection
from mail.stops import Mail
from mongo.document import JSONObject
from mongo.outbox import Outbox
from mongo.owed import FLUSHED, OwedEmail

log = logging.getLogger("notifier.delivery")

SENDING_PART: Final = 0.8
"""Fraction of the lease during which sending may start: the message takes its time too."""
EXTENSION_PART: Final = 1 / 3
"""Fraction of the lease after which it is extended."""
RETRY_PART: Final = 0.03
"""Fraction of the lease to wait after a failed extension."""


@dataclass(eq=False, slots=True)
class Lease:
    """An e-mail that this process holds, until `ends` (monotonic seconds) unless the lease is extended.

    `wanted` is whether the user wants the e-mail, as far as is known until `known_until`. A `required` one counts as
    wanted. `told` are the notifications that one with `ids` speaks of, as far as is known.

    `replaced` says that another worker goes on meanwhile, as the reply to the message does not come soon. `then` is the
    e-mail whose commands were sent together with the message, once that was accepted; it was sent over `connection`.
    """

    email: OwedEmail
    ends: float
    required: bool = False
    wanted: bool = True
    told: Sequence[JSONObject] = ()
    known_until: float = math.inf
    replaced: bool = False
    began: float = 0.0
    """When the e-mail was taken in order to be sent."""
    then: Lease | None = None
    connection: Connection | None = None
    mail: Mail = field(init=False)
    """The e-mail as evidence."""

    def __post_init__(self) -> None:
        email = self.email
        self.mail = Mail(
            email.id,
            email.key,
            email.user_id,
            parse_address(email.address) or "",
            fresh=email.tried is None,
            counted=email.tries > 0,
            urged=email.held == FLUSHED,
        )

    @property
    def held(self) -> bool:
        """Whether the lease has not ended. Once it has, the e-mail may be another worker's."""
        return time.monotonic() < self.ends

    @property
    def known(self) -> bool:
        """Whether it is known if the user wants the e-mail."""
        return time.monotonic() < self.known_until

    @property
    def is_read(self) -> bool:
        """Whether nothing is left to tell: what the e-mail was to speak of is read, deleted or pushed out."""
        return bool(self.email.ids) and not self.told

    def lose(self) -> None:
        """Note that the e-mail is another worker's, or that nothing of it can be known. It will be left alone."""
        self.ends = -math.inf


class Leases:
    """All leases that this process holds, each lasting `seconds` after it was last extended."""

    def __init__(self, outbox: Outbox, seconds: float) -> None:
        self._outbox = outbox
        self.held: set[Lease] = set()
        self.seconds = seconds

    def end(self) -> float:
        """Return when a lease taken now ends for us, which is sooner than for others."""
        return time.monotonic() + SENDING_PART * self.seconds

    def add(self, lease: Lease) -> None:
        """Extend a lease from now on."""
        self.held.add(lease)

    def discard(self, lease: Lease) -> None:
        """Extend a lease no longer."""
        self.held.discard(lease)

    async def keep(self) -> None:
        """Extend the leases long before they end, for ever."""
        pause = self.seconds * EXTENSION_PART
        while True:
            await asyncio.sleep(pause)
            # A lease that has ended may be another worker's, and must not be taken back.
            if leases := [lease for lease in self.held if lease.held]:
                pause = self.seconds * (EXTENSION_PART if await self._extend(leases) else RETRY_PART)

    async def _extend(self, leases: Sequence[Lease]) -> bool:
        end = self.end()
        try:
            async with asyncio.timeout(self.seconds * EXTENSION_PART):
                await self._outbox.extend([lease.email for lease in leases], self.seconds)
        except Exception as exc:  # noqa: BLE001 - there is time for another attempt
            log.warning("leases could not be extended: %s", type(exc).__name__)
            return False
        for lease in leases:
            if lease.held:  # it may have been lost meanwhile
                lease.ends = end
        return True
