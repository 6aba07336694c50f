"""An e-mail ready for the server: to whom it goes, its commands and its message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from marshmallow import ValidationError

from config.address import envelope_address
from mail.connection import Connection
from mail.lease import Lease
from mail.message import Sender, compose
from mail.replies import Outcome, SMTPFault
from mail.templates import Content
from mail.verdicts import Stage, Verdict

MUTED: Final = Outcome(verdict=Verdict.MUTED, status="opted out", stage=Stage.CONNECT)
READ: Final = Outcome(verdict=Verdict.READ, status="nothing to tell", stage=Stage.CONNECT)


class Worker:
    """What the mailer asks while it sends an e-mail. By itself, every e-mail is wanted, and none follows it."""

    async def content(self, lease: Lease) -> Content:
        """Return what an e-mail says, after the look. Errors reach the caller of the mailer: none may be a `FAULTS`."""
        raise NotImplementedError

    async def look(self, lease: Lease) -> None:
        """Look whether the user wants an e-mail. This comes before MAIL, unless it is known."""

    def late(self, lease: Lease) -> None:
        """Note that the reply to the message does not come soon."""

    def following(self) -> Lease | None:
        """Take the next e-mail, if there is one that may be sent at once."""
        return None

    def give_back(self, lease: Lease) -> None:
        """Take an e-mail back that followed, and that the server has not got."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message and the commands before it, each with its stage and the kind of reply that accepts it."""

    lease: Lease
    commands: Mapping[str, tuple[Stage, int]]
    message: bytes


def letter_of(lease: Lease, sender: Sender, to: str, content: Content, connection: Connection) -> Letter:
    """Make a letter. Raises `SMTPFault` if that cannot be done, or not for this server."""
    option = _option(sender, to, connection)
    try:
        message = compose(lease.email, sender, to, content)
    except ValueError as exc:  # which says nothing about the server
        raise SMTPFault(Verdict.TRANSIENT, f"the message cannot be made: {type(exc).__name__}") from exc
    # If only the recipient needs an option, a refused MAIL concerns this e-mail.
    first = Stage.RCPT if option and sender.is_ascii else Stage.MAIL
    commands = {
        f"MAIL FROM:<{sender.envelope}>{option}": (first, 2),
        f"RCPT TO:<{to}>": (Stage.RCPT, 2),
        "DATA": (Stage.DATA_COMMAND, 3),
    }
    return Letter(lease, commands, message)


def _option(sender: Sender, to: str, connection: Connection) -> str:
    """Ask for SMTPUTF8 if an address needs it. Raises `SMTPFault` if the server lacks it (RFC 6531)."""
    if sender.is_ascii and to.isascii():
        return ""
    if not connection.smtp.supports_extension("smtputf8"):
        verdict = Verdict.PERMANENT if sender.is_ascii else Verdict.CONFIGURATION
        raise SMTPFault(verdict, "the server offers no SMTPUTF8, which the address needs")
    return " SMTPUTF8"


def recipient_of(lease: Lease) -> str | Outcome:
    """Return the address, or the outcome of an e-mail that cannot be sent to one."""
    email = lease.email
    if not email.address:
        return _unsendable("The user's document has no e-mail address.")
    try:
        to = envelope_address(email.address)
    except ValidationError:
        return _unsendable("The e-mail address in the user's document is not valid.")
    if email.suppression and email.suppression.covers(to, email.at):
        detail = f"Suppressed: no e-mail is sent to this address ({email.suppression.code})."
        return Outcome(verdict=Verdict.SUPPRESSED, status="no attempt", detail=detail, stage=Stage.CONNECT)
    return to


def unwanted(lease: Lease) -> Outcome | None:
    """Return the outcome of an e-mail that is not to be sent; `None` if its lease has ended."""
    return (READ if lease.wanted else MUTED) if lease.held else None


def _unsendable(detail: str) -> Outcome:
    return Outcome(verdict=Verdict.PERMANENT, status="no address", detail=detail, stage=Stage.CONNECT)
