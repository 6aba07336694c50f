"""A message that travels with the commands about the next one (RFC 2920): each e-mail gets what it would get alone.

The mailer is tested with a queue in memory and a server that answers oddly in each place.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from kinds import SPECIFIED
from mail.feedback import Feedback
from mail.lease import Lease
from mail.message import Letters, Look
from mail.replies import Outcome, Verdict
from mail.templates import Content
from mailer import SENT, Mailer, Worker
from mongo.owed import NO_TOKEN, OwedEmail
from settings import Security, Settings
from tests.client import DB, owed, settled
from tests.fixtures import Start
from tests.owing import ids, owing
from tests.smtp import DROP, HANG, REPLIES, conversing, raw_server

ODD = "odd@example.com"
COMMANDS = ("MAIL", "RCPT", "DATA")


@dataclass
class Steps:
    """A server that answers all that it has read at once, in pieces of so many bytes."""

    odd: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """What is answered to a step about a recipient, or about `message N`, in place of the usual reply."""
    times: float = math.inf
    """How often that is answered."""
    piece: int = 1 << 20
    port: int = 0
    read: list[bytes] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        received, step, recipient, begun = b"", "", "", False
        while data := await reader.read(1 << 20):
            self.read.append(data)
            received += data
            said = b""
            while (b"\r\n.\r\n" if step == "message" else b"\r\n") in received:
                line, _, received = received.partition(b"\r\n.\r\n" if step == "message" else b"\r\n")
                step = "dot" if step == "message" else line.split(b" ")[0].decode()
                if step in {"MAIL", "RCPT"}:  # at MAIL, as far as it has been told
                    recipient = (line + b"\r\n" + received).partition(b"RCPT TO:<")[2].partition(b">")[0].decode()
                reply = self._reply(step, recipient)
                if reply in {DROP, HANG}:
                    await self._say(writer, said)
                    if reply == DROP:
                        return
                    self.hanging.set()
                    await self.goes_on.wait()
                    said, reply = b"", REPLIES[step]
                if step == "MAIL" and begun:
                    reply = b"503 5.5.1 nested MAIL\r\n"
                begun = step not in {"dot", "RSET"} and (begun or (step == "MAIL" and reply.startswith(b"250")))
                said += reply
                if step == "dot" and reply.startswith(b"250"):
                    self.accepted.append(recipient)
                step = "message" if reply.endswith(b"354 go on\r\n") else step
            await self._say(writer, said)

    def _reply(self, step: str, recipient: str) -> bytes:
        for about in (recipient, f"message {len(self.accepted) + 1}"):
            if (step, about) in self.odd and self.times > 0:
                self.times -= 1
                return self.odd[step, about]
        return REPLIES.get(step, b"502 no\r\n")

    async def _say(self, writer: asyncio.StreamWriter, said: bytes) -> None:
        for start in range(0, len(said), self.piece):
            writer.write(said[start : start + self.piece])
            await writer.drain()
            await asyncio.sleep(0)


@asynccontextmanager
async def steps(**script: object) -> AsyncIterator[Steps]:
    state = Steps(**script)  # type: ignore[arg-type] # as the tests name them

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await state.converse(reader, writer)

    async with conversing(converse) as state.port:
        yield state


class Dotted(Letters):
    """Letters with lines that begin with a dot."""

    async def content(self, lease: Lease) -> Content:
        return Content("subject", f".dot\r\n.\r\n{lease.email.address}")


class Queue(Worker):
    """E-mails in memory, to these addresses. `taken` are those that followed another at once."""

    def __init__(self, addresses: Sequence[str], *, follows: bool = True) -> None:
        self.waiting = [Lease(email(address), math.inf) for address in addresses]
        self.follows = follows
        self.given_back: list[str] = []
        self.changed = asyncio.Event()

    def following(self) -> Lease | None:
        return self.waiting.pop(0) if self.waiting and self.follows else None

    def give_back(self, lease: Lease) -> None:
        self.given_back.append(f"{lease.email.address}")
        self.waiting.insert(0, lease)
        self.changed.set()


def email(address: str) -> OwedEmail:
    now = datetime.now(UTC)
    return OwedEmail(
        document_id=None, user_id=address, id=address[:3], key="k", at=now, tries=0, token=NO_TOKEN, address=address
    )


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no e-mail go another way because the machine is slow."""
    monkeypatch.setattr("mailer.READY", 60.0)
    monkeypatch.setattr("mailer.SOON", 60.0)


@pytest.fixture
def plain(settings: Settings) -> Settings:
    return replace(settings, smtp_security=Security.NONE, smtp_login=None, smtp_password=None, smtp_command_timeout=0.5)


def mailer_of(settings: Settings, port: int, queue: Queue, look: Look | None = None) -> Mailer:
    changed = replace(settings, smtp_port=port)
    return Mailer(changed, Feedback(changed), Dotted(changed, look), queue)


async def sent(settings: Settings, server: Steps, queue: Queue) -> dict[str, Outcome | None]:
    """Send what is queued, as a worker does; return what became of each."""
    mailer, outcomes = mailer_of(settings, server.port, queue), {}
    lease: Lease | None = None
    while lease := (lease and lease.then) or (queue.waiting.pop(0) if queue.waiting else None):
        assert lease.email.address not in outcomes
        outcomes[f"{lease.email.address}"] = await mailer.send(lease)
    await mailer.pool.close_all()
    return outcomes


def addresses(odd_at: int = 2) -> list[str]:
    found = [f"{n}@example.com" for n in range(6)]
    found[odd_at] = ODD
    return found


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
async def test_each_message_travels_with_the_next_commands(plain: Settings, piece: int) -> None:
    async with steps(piece=piece) as server:
        outcomes = await sent(plain, server, Queue(addresses()))
    assert {outcome and outcome.verdict for outcome in outcomes.values()} == {Verdict.SENT}
    assert server.accepted == addresses()
    together = [data for data in server.read if b"\r\n.\r\nMAIL FROM:" in data]
    assert len(together) == 4  # not the first on a connection, which has proved nothing, nor the last
    assert all(data.endswith(b"\r\nDATA\r\n") for data in together)


REACTIONS = {
    "refuses for now": b"451 4.3.0 later\r\n",
    "refuses": b"550 5.7.1 no\r\n",
    "knows no such user": b"550 5.1.1 unknown\r\n",
    "closes": b"421 4.3.2 bye\r\n",
    "accepts oddly": b"250 OK\r\n",
    "says nonsense": b"what?\r\n",
    "asks for a message": b"354 go on\r\n",
    "hangs up": DROP,
    "hangs": HANG,
}


@pytest.mark.parametrize("times", [1, math.inf])
@pytest.mark.parametrize("step", [*COMMANDS, "dot"])
@pytest.mark.parametrize("reaction", REACTIONS)
async def test_an_odd_reply_means_the_same_as_alone(
    plain: Settings, monkeypatch: pytest.MonkeyPatch, reaction: str, step: str, times: float
) -> None:
    monkeypatch.setattr("mailer.SOON", 0.1)
    monkeypatch.setattr("mail.connection.REPLY_TIMEOUT", 0.5)
    found = []
    for follows in (False, True):
        script = {(step, ODD): REACTIONS[reaction]}
        async with steps(odd=script, times=times) as server:
            outcomes = await sent(plain, server, Queue(addresses(), follows=follows))
        others = {to: outcome and outcome.verdict for to, outcome in outcomes.items() if to != ODD}
        assert others == dict.fromkeys(others, Verdict.SENT)
        assert sorted(to for to in server.accepted if to != ODD) == sorted(others)
        found.append((outcomes[ODD], server.accepted.count(ODD)))
    alone, ahead = found
    if times == math.inf:
        assert ahead == alone
    else:  # once, it may have been the answer to what was sent ahead, which does not count
        assert (ahead[0] and ahead[0].verdict, ahead[1]) in {
            (alone[0] and alone[0].verdict, alone[1]),
            (Verdict.SENT, 1),
        }


# --- beside other workers -----------------------------------------------------------------------------


async def test_an_email_behind_a_slow_message_takes_another_connection(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailer.SOON", 0.1)
    async with steps(odd={("dot", ODD): HANG}, piece=8) as server:  # so that each reply comes by itself
        queue = Queue(addresses())
        mailer = mailer_of(plain, server.port, queue)
        slow: asyncio.Task[Outcome | None] | None = None
        lease: Lease | None = queue.waiting.pop(0)
        while lease and not slow:
            if lease.email.address == ODD:
                slow = asyncio.create_task(mailer.send(lease))
                await queue.changed.wait()
            else:
                await mailer.send(lease)
                lease = lease.then or queue.waiting.pop(0)
        assert queue.given_back == ["3@example.com"]
        for _ in range(2):
            assert await mailer.send(queue.waiting.pop(0)) == SENT
        server.goes_on.set()
        assert slow
        assert await slow == SENT
        assert await mailer.send(queue.waiting.pop(0)) == SENT
        # not where the server waits for a message
        assert sum(b"RCPT TO:<5@example.com>" in data for data in server.read) == 1
        assert server.accepted == [f"{n}@example.com" for n in (0, 1, 3, 4)] + [ODD, "5@example.com"]
        await mailer.pool.close_all()


async def test_a_server_that_waits_for_a_message_gets_no_command(plain: Settings) -> None:
    async with steps(odd={("DATA", ODD): HANG}) as server:
        lost, other = Queue([ODD, "1@example.com"]).waiting
        mailer = mailer_of(plain, server.port, Queue([]))
        sending = asyncio.create_task(mailer.send(lost))
        await server.hanging.wait()
        lost.lose()
        server.goes_on.set()
        assert await sending is None
        assert await mailer.send(other) == SENT
        assert (server.accepted, sum(b"RCPT TO:<1@" in data for data in server.read)) == (["1@example.com"], 1)
        await mailer.pool.close_all()


async def test_a_message_does_not_wait_for_the_next_email_to_get_ready(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailer.READY", 0.02)

    async def look(_: Lease) -> None:
        await asyncio.Event().wait()

    async with steps() as server:
        queue = Queue(addresses())
        mailer = mailer_of(plain, server.port, queue, look)
        queue.waiting[2].known_until = 0.0
        for _ in range(2):
            assert await mailer.send(queue.waiting.pop(0)) == SENT
        assert queue.given_back == [ODD]
        assert not any(b"\r\n.\r\nMAIL FROM:" in data for data in server.read)
        await mailer.pool.close_all()


async def test_an_accepted_message_waits_for_no_goodbye(plain: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stopped the worker meanwhile would have it sent again."""
    monkeypatch.setattr("mail.connection.QUIT_TIMEOUT", 60.0)

    def worn_out(command: str, number: int, messages: int) -> bytes | None:
        return {"MAIL": b"452 4.4.5 no more\r\n", "QUIT": HANG}.get(command) if number == 1 == messages else None

    async with raw_server() as server:
        server.behave = worn_out
        mailer = mailer_of(plain, server.port, Queue([]))
        for lease in Queue(addresses()).waiting[:2]:
            assert await asyncio.wait_for(mailer.send(lease), 15) == SENT
        await mailer.pool.close_all()


UNPROTECTED = {"smtp_connections": 1, "smtp_security": Security.NONE, "smtp_login": None, "smtp_password": None}


@pytest.fixture
async def twelve(settings: Settings) -> None:
    """Owe twelve e-mails."""
    async with owing(settings, dict.fromkeys(ids(12), 1), SPECIFIED["registration"]):
        pass


@pytest.mark.usefixtures("twelve")
async def test_the_service_sends_commands_ahead(start: Start, database: DB) -> None:
    async with steps() as server:
        await start(smtp_port=server.port, **UNPROTECTED)
        await settled(database)
    assert len(server.accepted) == 12
    assert any(b"\r\n.\r\nMAIL FROM:" in data for data in server.read)


@pytest.mark.usefixtures("twelve")
async def test_a_stop_gives_back_what_hangs_and_what_follows_it(
    start: Start, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("delivery.STOP_GRACE", 0.1)
    async with steps(odd={("dot", "message 3"): HANG}) as server:
        client = await start(smtp_port=server.port, **UNPROTECTED)
        await asyncio.wait_for(server.hanging.wait(), 15)
        await client.close()
    assert b"\r\n.\r\nMAIL FROM:" in server.read[-1]
    left = owed(database)
    assert (len(left), {item["token"] for item in left}, {item["tries"] for item in left}) == (10, {NO_TOKEN}, {0})
