"""Logging in at the mail server, with a password or a token.

Sources: RFC 4954 (AUTH), draft-murchison-sasl-login (LOGIN), RFC 7628 (OAUTHBEARER), Google's and Microsoft's pages
about XOAUTH2.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiosmtplib import SMTP, SMTPAuthenticationError, SMTPResponse

from mail.replies import SMTPFault
from mail.verdicts import Verdict

Mechanism = Callable[[SMTP, str, str], Awaitable[object]]

CHALLENGE: Final = 334
MISSING: Final = frozenset({500, 501, 502, 504, 534, 538})
"""Replies to a mechanism that the server does not have after all, or does not allow us (RFC 4954, sections 4 and 6)."""


async def _login(smtp: SMTP, login: str, password: str) -> None:
    """Send the name with the command, and again to a server that ignores or refuses it there."""
    name = b64encode(login.encode())
    response = await smtp.execute_command(b"AUTH", b"LOGIN", name)
    asks_for_name = _challenge(response).lower().startswith("user")
    if response.code in {501, 535}:  # the draft sends no name there
        response = await smtp.execute_command(b"AUTH", b"LOGIN")
        asks_for_name = response.code == CHALLENGE
    if asks_for_name:
        response = await smtp.execute_command(name)
    if response.code == CHALLENGE:
        response = await smtp.execute_command(b64encode(password.encode()))
    _expect_success(response)


async def _xoauth2(smtp: SMTP, login: str, token: str) -> None:
    await _present(smtp, b"XOAUTH2", f"user={login}\x01auth=Bearer {token}\x01\x01", b"")


async def _oauthbearer(smtp: SMTP, login: str, token: str) -> None:
    name = login.replace("=", "=3D").replace(",", "=2C")  # RFC 5801, section 4
    await _present(smtp, b"OAUTHBEARER", f"n,a={name},\x01auth=Bearer {token}\x01\x01", b64encode(b"\x01"))


async def _present(smtp: SMTP, mechanism: bytes, token: str, end: bytes) -> None:
    """Present a token. A server that refuses it says why in a challenge, and replies to AUTH only after `end`."""
    response = await smtp.execute_command(b"AUTH", mechanism, b64encode(token.encode()))
    if reason := _challenge(response):
        code, message = await smtp.execute_command(end)
        response = SMTPResponse(code, f"{message} {reason}")
    _expect_success(response)


def _challenge(response: SMTPResponse) -> str:
    try:
        return b64decode(response.message).decode(errors="replace") if response.code == CHALLENGE else ""
    except ValueError:
        return response.message


def _expect_success(response: SMTPResponse) -> None:
    if response.code // 100 != 2:
        raise SMTPAuthenticationError(response.code, response.message)


BY_PASSWORD: Final[Mapping[str, Mechanism]] = {"plain": SMTP.auth_plain, "login": _login, "cram-md5": SMTP.auth_crammd5}
BY_TOKEN: Final[Mapping[str, Mechanism]] = {"xoauth2": _xoauth2, "oauthbearer": _oauthbearer}


async def log_in(smtp: SMTP, login: str, secret: str, mechanisms: Mapping[str, Mechanism]) -> None:
    """Try the mechanisms that the server offers until it has one. A refusal is final: failed logins lock accounts.

    Raises `SMTPFault` and the errors of aiosmtplib.
    """
    known = ", ".join(name.upper() for name in mechanisms)
    fault: Exception = SMTPFault(Verdict.CONFIGURATION, f"the server offers no AUTH that we know ({known})")
    for name in (name for name in mechanisms if name in smtp.server_auth_methods):
        try:
            await mechanisms[name](smtp, login, secret)
        except SMTPAuthenticationError as exc:
            if exc.code not in MISSING:
                raise
            fault = exc
        else:
            return
    raise fault
