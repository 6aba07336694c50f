"""A token server, and a mail server that takes its tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.test_utils import TestServer
from aiosmtpd.smtp import MISSING, SMTP, AuthResult

from tests.servers import MailServer

CLIENT: Final[dict[str, Any]] = {
    "smtp_password": None,
    "smtp_oauth_client_id": "the-client",
    "smtp_oauth_client_secret": "the-secret",
    "smtp_oauth_scope": "https://mail.example.com/.default",
}
"""Settings of a login by client credentials, without the URL."""
CHALLENGE: Final = {"status": "400", "schemes": "Bearer", "scope": "https://mail.example.com/.default"}


@dataclass
class TokenServer:
    """What a token server was asked, and its answers: tokens `token-1`, `token-2` and so on, valid for an hour.

    `script` is called with the form before that, and may return another answer, or wait.
    """

    url: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    script: Callable[[Mapping[str, str]], Awaitable[web.Response | None]] | None = None
    more: dict[str, Any] = field(default_factory=lambda: {"expires_in": 3599})

    async def answer(self, request: web.Request) -> web.Response:
        form = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        self.asked.append(form)
        number = len(self.asked)
        answer = await self.script(form) if self.script else None
        return answer or web.json_response({"token_type": "Bearer", "access_token": f"token-{number}", **self.more})

    def always(self, status: int, body: Mapping[str, Any] | str, **headers: str) -> None:
        """Give this answer from now on."""

        async def script(_: Mapping[str, str]) -> web.Response:
            text = body if isinstance(body, str) else json.dumps(body)
            return web.Response(status=status, text=text, headers=headers)

        self.script = script


@asynccontextmanager
async def token_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[TokenServer]:
    """Run a token server, over TLS if `tls` is given."""
    state = TokenServer()
    app = web.Application()
    app.router.add_post("/tenant/token", state.answer)
    server = TestServer(app, scheme="https" if tls else "http")
    await server.start_server(ssl=tls) if tls else await server.start_server()
    state.url = f"{server.make_url('/tenant/token')}"
    try:
        yield state
    finally:
        await server.close()


@dataclass
class BearerServer(MailServer):
    """A mail server that takes the tokens in `valid`, by XOAUTH2 and OAUTHBEARER."""

    valid: set[str] = field(default_factory=lambda: {"token-1"})
    presented: list[tuple[str, str, str]] = field(default_factory=list)
    challenges: bool = True
    """Whether it says in a challenge why it refuses a token, as Gmail does, or refuses at once, as Exchange does."""

    transports: list[asyncio.WriteTransport] = field(default_factory=list)

    def hang_up(self) -> None:
        """Close all connections, so that the next e-mail needs a login."""
        while self.transports:
            if not (transport := self.transports.pop()).is_closing():
                transport.abort()

    async def auth_XOAUTH2(self, server: SMTP, arguments: list[str]) -> AuthResult:  # noqa: N802 - aiosmtpd's names
        return await self._judge(server, arguments, "user=(.*)\x01auth=Bearer (.*)\x01\x01", b"")

    async def auth_OAUTHBEARER(self, server: SMTP, arguments: list[str]) -> AuthResult:  # noqa: N802
        return await self._judge(server, arguments, "n,a=(.*),\x01auth=Bearer (.*)\x01\x01", b"\x01")

    async def _judge(self, server: SMTP, arguments: list[str], form: str, end: bytes) -> AuthResult:
        found = re.fullmatch(form, base64.b64decode(arguments[1], validate=True).decode())
        assert found
        self.presented.append((arguments[0], found[1], found[2]))
        self.transports.append(cast("asyncio.WriteTransport", server.transport))
        if found[2] in self.valid:
            return AuthResult(success=True)
        if self.challenges:
            answer = await server.challenge_auth(json.dumps(CHALLENGE))
            assert answer is not MISSING
            assert answer == end
        return AuthResult(success=False, handled=False, message="535 5.7.8 Username and token not accepted")
