"""What Postfix delivers to a mailbox of an e-mail that the service sent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final

import pytest
from bson import ObjectId

from settings import Security
from tests.client import DB, USER, assert_length, create, owe, owed, settled
from tests.fixtures import Start
from tests.links import LINKED
from tests.programs import needed
from tests.servers import free_port
from tests.waiting import eventually, eventually_async

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="Only root can run Postfix.")
MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.example.com
mydestination =
alias_maps =
alias_database =
virtual_mailbox_domains = example.com
virtual_mailbox_maps = static:mailbox/
virtual_mailbox_base = {folder}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{uid}
smtputf8_enable = no
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
error unix - - n - - error
virtual unix - n n - - virtual
postlog unix-dgram n - n - 1 postlogd
"""
UID = 5000
"""The user that owns the mailbox; it needs no entry in `/etc/passwd`."""


@pytest.fixture
def postfix(request: pytest.FixtureRequest) -> Iterator[tuple[int, Path]]:
    """Run Postfix on loopback; return its port and the folder of the mailbox that has every e-mail.

    The parameter, if there is one, is added to its configuration.
    """
    program, port = needed("postfix"), free_port()
    with tempfile.TemporaryDirectory(prefix="postfix-") as name:  # pytest's own folders are closed to other users
        folder, etc = Path(name), Path(name) / "etc"
        folder.chmod(0o755)
        for own in (etc, folder / "queue", folder / "mailbox"):
            own.mkdir()
        (folder / "data").mkdir(mode=0o700)
        shutil.chown(folder / "data", "postfix")
        os.chown(folder / "mailbox", UID, UID)
        (etc / "main.cf").write_text(MAIN.format(folder=folder, uid=UID) + getattr(request, "param", ""))
        (etc / "master.cf").write_text(MASTER.format(port=port))
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen([program, "-c", f"{etc}", "start-fg"], stdout=output, stderr=output)
        try:
            eventually(lambda: _started(folder), 30)
            yield port, folder / "mailbox/new"
        finally:
            os.kill(int((folder / "queue/pid/master.pid").read_text()), signal.SIGTERM)
            process.wait(20)


def _started(folder: Path) -> None:
    log = folder / "log"
    assert log.exists(), (folder / "output").read_text()
    assert "daemon started" in log.read_text()


PLAIN: Final[Mapping[str, Any]] = {"smtp_security": Security.NONE, "smtp_login": None, "smtp_password": None}
TWO_CONNECTIONS = "smtpd_client_connection_count_limit = 2\nsmtpd_client_event_limit_exceptions =\n"


@pytest.mark.parametrize("postfix", [TWO_CONNECTIONS], indirect=True)
async def test_a_limit_of_two_connections_is_found_without_an_alarm(
    start: Start, database: DB, postfix: tuple[int, Path], caplog: pytest.LogCaptureFixture
) -> None:
    port, mailbox = postfix
    client = await start(smtp_port=port, **PLAIN)
    await owe(client, 60)
    await settled(database, 30)
    await eventually_async(lambda: assert_length(list(mailbox.iterdir()), 60), 20)
    assert database.dead_mail.count_documents({}) == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("postfix", ["smtpd_recipient_restrictions = reject\n"], indirect=True)
async def test_a_postfix_demanding_a_login_kills_and_suppresses_nobody(
    start: Start, database: DB, postfix: tuple[int, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """It says 554 5.7.1 Recipient address rejected: Access denied."""
    client = await start(smtp_port=postfix[0], **PLAIN)
    await owe(client, 8)

    def alarmed() -> None:
        alarms = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert any("line stopped" in alarm and "Recipient address rejected" in alarm for alarm in alarms)
        assert not any("@" in alarm for alarm in alarms)

    await eventually_async(alarmed, 10)
    assert (len(owed(database)), database.dead_mail.count_documents({})) == (8, 0)
    assert database.users.count_documents({"notifier.suppression": {"$exists": True}}) == 0


async def test_postfix_delivers_the_one_click_headers_unchanged(
    start: Start, database: DB, postfix: tuple[int, Path]
) -> None:
    port, mailbox = postfix
    database.users.insert_one({"_id": ObjectId(USER), "email": "ann@example.com"})
    plain = {"smtp_port": port, "smtp_security": Security.NONE, "smtp_login": None, "smtp_password": None}
    long = {"public_url": "https://notifications.example.com/" + "a" * 140}
    client = await start(**LINKED | long | plain)
    for key in ("order_shipped", "new_login"):
        await create(client, key=key)

    def delivered() -> list[bytes]:
        assert mailbox.is_dir()
        found = [path.read_bytes() for path in mailbox.iterdir()]
        assert len(found) == 2
        return found

    await eventually_async(lambda: delivered() and None, 20)
    messages = {message["Subject"]: message for message in map(parse, delivered())}
    shipped, login = messages["order_shipped"], messages["new_login"]
    assert "Postfix" in shipped["Received"]
    assert shipped["Delivered-To"] == shipped["To"] == "ann@example.com"
    link = shipped["List-Unsubscribe"].strip("<>")
    assert f"\nList-Unsubscribe: <{link}>\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\n".encode() in b"".join(
        delivered()
    )
    assert link.startswith(f"{long['public_url']}/u/")
    assert not {"List-Unsubscribe", "List-Unsubscribe-Post"} & set(login.keys())
    response = await client.post(link.removeprefix(long["public_url"]), data={"List-Unsubscribe": "One-Click"})
    assert response.status == 200
    (user,) = database.users.find()
    assert user["notifier"]["preferences"] == {"order_shipped": {"email": False}}


def parse(raw: bytes) -> EmailMessage:
    """Read a message as a mail program does."""
    message = message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message
