"""The program of docs/bounces.md, which translates the webhooks of mail providers, with bodies as those send them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from bson import ObjectId

from tests.client import DB, KEY, PROTECTED, ROOT, USER, Client, ours
from tests.fixtures import Start

ADDRESS = "ann@example.com"
POSTMARK = {
    "RecordType": "Bounce",
    "ID": 42,
    "Type": "HardBounce",
    "TypeCode": 1,
    "Email": "Ann@Example.com",
    "BouncedAt": "2026-11-30T10:00:00Z",
    "Inactive": True,
}
SENDGRID = {
    "email": ADDRESS,
    "timestamp": 1796032800,
    "event": "bounce",
    "type": "bounce",
    "status": "5.1.1",
    "reason": "no",
}
MAILGUN = {
    "event": "failed",
    "severity": "permanent",
    "reason": "bounce",
    "recipient": ADDRESS,
    "delivery-status": {"code": 550, "enhanced-code": "5.1.1", "message": "no such user"},
}


def ses(**message: Any) -> dict[str, str]:
    return {"Type": "Notification", "MessageId": "1", "Message": json.dumps(message)}


def ses_bounce(kind: str, **recipient: str) -> dict[str, str]:
    bounced = [{"emailAddress": f"Ann <{ADDRESS}>", "action": "failed", **recipient}]
    return ses(notificationType="Bounce", bounce={"bounceType": kind, "bouncedRecipients": bounced})


BODIES: list[tuple[str, Any, str | None]] = [
    ("ses", ses_bounce("Permanent", status="5.1.1"), "5.1.1"),
    ("ses", ses_bounce("Permanent"), "bounce"),
    ("ses", ses_bounce("Transient", status="4.4.7"), None),
    ("ses", ses(eventType="Complaint", complaint={"complainedRecipients": [{"emailAddress": ADDRESS}]}), "complaint"),
    ("ses", {"Type": "SubscriptionConfirmation", "SubscribeURL": "https://sns.example.com/x"}, None),
    ("postmark", POSTMARK, "HardBounce"),
    ("postmark", POSTMARK | {"Type": "SoftBounce"}, None),
    ("postmark", {"RecordType": "SpamComplaint", "Email": ADDRESS}, "complaint"),
    ("postmark", {"RecordType": "Delivery", "Recipient": ADDRESS}, None),
    ("sendgrid", [SENDGRID], "5.1.1"),
    ("sendgrid", [SENDGRID | {"type": "blocked"}], None),
    ("sendgrid", [{"email": ADDRESS, "event": "delivered"}, {"email": ADDRESS, "event": "spamreport"}], "complaint"),
    ("mailgun", {"signature": {}, "event-data": MAILGUN}, "5.1.1"),
    ("mailgun", {"event-data": MAILGUN | {"severity": "temporary"}}, None),
    ("mailgun", {"event-data": {"event": "complained", "recipient": ADDRESS}}, "complaint"),
]


@pytest.fixture
async def service(start: Start, database: DB) -> Client:
    """Start the service, with an index that finds its one user by the address."""
    database.users.create_index("email", collation={"locale": "en", "strength": 2})
    database.users.insert_one({"_id": ObjectId(USER), "email": ADDRESS})
    return await start(**PROTECTED)


@pytest.fixture
async def hooks(service: Client, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """Run the program of the page."""
    page = (ROOT / "docs/bounces.md").read_text()
    program: dict[str, Any] = {"__name__": "webhooks"}
    monkeypatch.setenv("NOTIFIER_URL", f"{service.make_url('')}".rstrip("/"))
    monkeypatch.setenv("NOTIFIER_KEY", KEY)
    monkeypatch.setenv("WEBHOOK_SECRET", "the-secret")
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), program)  # noqa: S102 - it is ours
    async with TestClient(TestServer(program["app"])) as client:
        yield client


async def test_webhooks_suppress_what_bounced_for_good(hooks: Client, database: DB) -> None:
    for name, body, code in BODIES:
        database.users.update_one({"_id": ObjectId(USER)}, {"$unset": {"notifier": 1}})
        # SNS calls its JSON plain text.
        response = await hooks.post(
            f"/the-secret/{name}",
            data=json.dumps(body),
            headers={"Content-Type": "text/plain"} if name == "ses" else {"Content-Type": "application/json"},
        )
        assert response.status == 200
        assert ours(database).get("suppression", {}).get("code") == code, (name, body)


async def test_a_hook_ignores_bad_addresses_and_reports_failures(hooks: Client, service: Client) -> None:
    body = [SENDGRID | {"email": "nobody"}]
    assert (await hooks.post("/the-secret/sendgrid", json=body)).status == 200
    assert (await hooks.post("/another/sendgrid", json=body)).status == 404
    await service.close()
    assert (await hooks.post("/the-secret/sendgrid", json=[SENDGRID])).status == 500
