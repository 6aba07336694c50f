"""The command `check`: the configuration, MongoDB and the mail server, step by step, as the service would use them."""

import asyncio
import json
import math
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import jwt
from aiosmtplib import SMTPResponseException
from bson import ObjectId

from cli.command import counted, fail, say
from cli.environment import SettingsError, read_settings
from config.checks import DEAD_MAIL, is_address, value_at
from mail.connection import Connection, Opener
from mail.feedback import Feedback
from mail.lease import Lease
from mail.login import Token
from mail.message import Letters
from mail.pool import FAULTS
from mail.replies import SMTPFault, Verdict
from mail.templates import Content
from mailer import Mailer, Worker
from mongo.connection import connected
from mongo.errors import Misconfigured, StoreError
from mongo.owed import NO_TOKEN, OwedEmail
from mongo.serving import version_of
from mongo.suppression import address_index
from mongo.users import REFUSING, foreign_fields, persist
from ops.local import with_database
from settings import IdType, Security, Settings
from store import Store

DEADLINE: Final = 6.0  # seconds for each question to MongoDB
NEEDED: Final = ("find", "insert", "update", "remove", "createIndex", "listIndexes")  # actions, all in readWrite
LOCAL: Final = "a local run, as nothing is configured; set DB_URI, EMAIL and SMTP_HOST for any other"
STANDALONE: Final = "a standalone server"
FAILED_AT: Final = {"": "oauth_token", "connecting": "smtp_tcp", "the login": "smtp_login"}
TRUSTED: Final = "it must name SMTP_HOST, and its authority must be one of the system's or in SMTP_CA_FILE."
NO_TLS: Final = "the server does not speak TLS from the start; SMTP_SECURITY=starttls is for those that upgrade."
TLS_FAULTS: Final = {
    "WRONG_VERSION_NUMBER": NO_TLS,
    "RECORD_LAYER_FAILURE": NO_TLS,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server asks for a client certificate: SMTP_CLIENT_CERT.",
}


class Result(NamedTuple):
    state: str  # `ok`, `failed` or `skipped`
    check: str
    detail: str


def run_check(to: str | None, *, as_json: bool) -> int:
    """Return 0, 1 if a step failed, or 2 for a wrong configuration."""
    if to and not is_address(to):
        return fail("--to: Not a valid email address.", 2)
    try:
        settings, warnings = read_settings()
        results = asyncio.run(_check(settings, warnings, to))
        code = int(any(result.state == "failed" for result in results))
    except SettingsError as exc:
        _, *faults = f"{exc}".split("\n  ")
        results, code = [Result("failed", "configuration", fault) for fault in faults], 2
    if as_json:
        say(json.dumps({"ok": not code, "checks": [result._asdict() for result in results]}))
    else:
        say(*(f"{state:9}{step:15}{' '.join(detail.split())}" for state, step, detail in results))
    return code


async def _check(settings: Settings, warnings: Sequence[str], to: str | None) -> Sequence[Result]:
    detail = "; ".join(filter(None, [LOCAL if settings.local else "valid", *warnings, settings.openness]))
    mongodb, mail = await asyncio.gather(_check_mongodb(settings), check_mail(settings, to))
    return [Result("ok", "configuration", detail), *mongodb, *mail]


async def _check_mongodb(settings: Settings) -> Sequence[Result]:
    """Take each of `STEPS`, whether or not others fail. Nothing is written."""
    results = {step: Result("skipped", step, "MongoDB is not reached.") for step in STEPS}
    try:
        async with connected(with_database(settings).db_uri) as connection:
            store = Store(connection, settings)
            await store.clock.sync(DEADLINE)
            for step, ask in STEPS.items():
                try:
                    results[step] = Result("ok", step, await ask(store, settings))
                except StoreError as exc:
                    results[step] = Result("failed", step, f"{exc}")
    except StoreError as exc:
        results["mongodb"] = Result("failed", "mongodb", f"{exc}")
    return list(results.values())


async def _version(store: Store, _: Settings) -> str:
    return f"MongoDB {await version_of(store.database, DEADLINE)}, {await _topology(store)}"


async def _topology(store: Store) -> str:
    hello = await persist(lambda _: store.database.command("hello"), DEADLINE)
    if hello.get("msg") == "isdbgrid":
        return "a sharded cluster"
    members = len(hello.get("hosts", [])) + len(hello.get("passives", []))
    return f"a replica set with {counted(members, 'member')}" if "setName" in hello else STANDALONE


async def _rights(store: Store, settings: Settings) -> str:
    """Judge the user's privileges (MongoDB manual, "connectionStatus" and "Resource Document")."""
    question, name = {"connectionStatus": 1, "showPrivileges": True}, store.database.name
    who: Mapping[str, Any] = (await persist(lambda _: store.database.command(question), DEADLINE))["authInfo"]
    if not who["authenticatedUsers"]:
        await store.users.find_one({}, {"_id": 1}, deadline=DEADLINE)
        return "MongoDB asks for no login"
    lacking = []
    for collection, needed in {settings.users_collection: (*NEEDED, "changeStream"), DEAD_MAIL: NEEDED}.items():
        allowed: set[str] = set()
        for privilege in who["authenticatedUserPrivileges"]:
            on = privilege["resource"]
            if on.get("anyResource") or (on.get("db") in {"", name} and on.get("collection") in {"", collection}):
                allowed |= set(privilege["actions"])
        if missing := [action for action in needed if action not in allowed]:
            lacking.append(f"{', '.join(missing)} on {collection}")
    if lacking:
        advice = f"grant it the role readWrite on the database {name}"
        raise Misconfigured(f"The user of DB_URI may not {' and '.join(lacking)}: {advice}.")
    return f"the user of DB_URI may read and write the database {name}"


async def _index(store: Store, _: Settings) -> str:
    due = store.outbox.due
    indexes = await persist(lambda _: store.users.collection.list_indexes().to_list(None), DEADLINE)
    if fault := due.fault(indexes):
        raise Misconfigured(fault)
    if not (serving := due.serving(indexes)):
        return "not there yet; the service makes it when it runs"
    large = "" if serving.get("sparse") else f"; {serving['name']} is not, and so it is large: drop it"
    return f"notifier.due, sparse{large}"


async def _suppress(store: Store, settings: Settings) -> str:
    if index := await address_index(store.users):
        return f"POST /suppress takes an address alone, by the index {index[0]}"
    return f"POST /suppress needs user_id, as no index has {settings.email_field} first"


async def _streams(store: Store, _: Settings) -> str:
    if await _topology(store) != STANDALONE:
        return "possible"
    poll = "a replica set of one member has streams; until then, clients poll /list"
    return f"not possible, as MongoDB is {STANDALONE}: {poll}"


async def _users(store: Store, settings: Settings) -> str:
    total = await store.users.persist(lambda _: store.users.collection.estimated_document_count(), DEADLINE)
    path = settings.email_field
    top = path.partition(".")[0]
    read = {"_id": {"$type": "$_id"}, "address": f"${top}", **REFUSING}
    users = await store.users.aggregate([{"$sample": {"size": 1000}}, {"$project": read}], deadline=60)
    if not users:
        return f"none in the collection {settings.users_collection}"
    expected = "objectId" if settings.id_type is IdType.OBJECTID else "string"
    some = f"Of {counted(len(users), 'user')} looked at"
    fitting = sum(user["_id"] == expected for user in users)
    addresses = sum(is_address(value_at({top: user.get("address")}, path)) for user in users)
    if not fitting:
        raise Misconfigured(f"{some}, none has an _id of the type {expected}, but {users[0]['_id']}; check ID_TYPE.")
    if not addresses:
        raise Misconfigured(f"{some}, none has an address at {path}; check EMAIL_FIELD.")
    if foreign := sum(bool(foreign_fields(user)) for user in users):
        theirs = "have something in `notifications` or `notifier` that is not the service's"
        raise Misconfigured(f"{some}, {foreign} {theirs}; rename it.")
    fit = f"{fitting} have an _id of the type {expected}, and {addresses} have an address"
    return f"{counted(total, 'user')} in all. {some}, {fit}."


async def _dead_mail(store: Store, _: Settings) -> str:
    count = await store.dead_mail.count()
    return f"{counted(count, 'dead letter')}; `notifier.py dead` shows why" if count else "no dead letters"


STEPS: Final[Mapping[str, Callable[[Store, Settings], Awaitable[str]]]] = {
    "mongodb": _version,
    "rights": _rights,
    "index": _index,
    "suppress": _suppress,
    "streams": _streams,
    "users": _users,
    "dead_mail": _dead_mail,
}


# --- the mail server --------------------------------------------------------------------------------


async def check_mail(settings: Settings, to: str | None) -> Sequence[Result]:
    tls, ehlo = {"smtp_tls": "as SMTP_SECURITY says"}, {"smtp_ehlo": "the server greets us"}
    said = {
        **({"oauth_token": ""} if settings.smtp_oauth_token_url else {}),
        "smtp_dns": f"{settings.smtp_host} is known",
        "smtp_tcp": f"port {settings.smtp_port} is open",
        **(tls | ehlo if settings.security is Security.TLS else ehlo | tls),
        "smtp_login": "accepted" if settings.smtp_login else "none, as SMTP_LOGIN is not set",
        **({"smtp_test": "the server accepted the test e-mail; see whether it arrives"} if to else {}),
    }
    if settings.local:
        return [Result("skipped", step, "a local run has a mailbox of its own, .notifier/mail") for step in said]
    failure, steps = await _deliver(settings, to, said), list(said)
    end = steps.index(failure.check) if failure else len(steps)
    done = [Result("ok", step, said[step]) for step in steps[:end]]
    skipped = [Result("skipped", step, "an earlier step failed") for step in steps[end + 1 :]]
    return [*done, *([failure] if failure else []), *skipped]


async def _deliver(settings: Settings, to: str | None, said: dict[str, str]) -> Result | None:
    """Take each step, and add to what is said of it. Return the first failure."""
    opener = Opener(settings)
    try:
        if opener.tokens:
            said["oauth_token"] = _about_token(await opener.tokens.get(), opener.tokens.grant)
        connection = await opener.open()
        said["smtp_tls"] = _about_certificate(connection, settings)
        await connection.quit()
    except FAULTS as exc:
        return _failure(exc, opener.last.step, settings)
    finally:
        await opener.close()
    return await _send(settings, to) if to else None


def _about_token(token: Token, grant: str) -> str:
    scope = token.scope
    with suppress(jwt.InvalidTokenError):  # Microsoft says the scope only in the token itself, a JWT
        claims = jwt.decode(token.value, options={"verify_signature": False})
        scope = scope or f"{claims.get('scp') or claims.get('roles') or 'no role'}".strip("[]")
    return f"by {grant}, valid for {(token.ends - time.monotonic()) / 60:.0f} min, for {scope or 'an unnamed scope'}"


def _about_certificate(connection: Connection, settings: Settings) -> str:
    if not (certificate := connection.smtp.get_transport_info("peercert")):
        asked = settings.security is Security.NONE
        return "none, as SMTP_SECURITY says" if asked else "none: the server offers no STARTTLS"
    name = next((f"{value}" for _, value in certificate.get("subjectAltName", ())), "no name")
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    days = (ends - datetime.now(UTC)).days
    return f"certificate of {name}, valid for {counted(days, 'day')}, until {ends:%F}{'; renew it soon' * (days < 14)}"


def _failure(exc: Exception, at: str, settings: Settings) -> Result:
    """Return which step failed, and why, if opening a connection came as far as `at`."""
    cause: BaseException = exc
    while cause.__cause__ and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__
    step = FAILED_AT.get(at, "smtp_tls" if "TLS" in at else "smtp_ehlo")
    words = f"The connection breaks at {at} ({type(exc).__name__})."
    if isinstance(cause, ssl.SSLError):
        step, words = "smtp_tls", TLS_FAULTS.get(f"{cause.reason}", f"TLS fails: {cause.reason}.")
        if isinstance(cause, ssl.SSLCertVerificationError):
            words = f"the certificate is refused ({cause.verify_message.rstrip('.')}): {TRUSTED}"
    elif isinstance(exc, socket.gaierror):
        step, words = "smtp_dns", f"{settings.smtp_host}: DNS does not know it, or does not answer; check SMTP_HOST."
    elif at == "connecting":
        why = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else f"{exc}"
        words = f"Port {settings.smtp_port}: {why}; check SMTP_PORT, and firewalls."
    elif isinstance(exc, SMTPFault):
        words = f"{exc}"[0].upper() + f"{exc}."[1:]
    elif isinstance(exc, SMTPResponseException):
        secret = "the token for SMTP_LOGIN" if settings.smtp_oauth_token_url else "SMTP_LOGIN and SMTP_PASSWORD"
        words = f"The server refuses {secret if at == 'the login' else 'us'}: {exc.code} {exc.message}"
    return Result("failed", step, words)


class _Test(Letters):
    async def content(self, _: Lease) -> Content:
        text = "`notifier.py check --to` sent this e-mail. The service can send e-mails through its mail server."
        return Content(subject="Test of the notification service", text=text)


async def _send(settings: Settings, to: str) -> Result | None:
    now, id_ = datetime.now(UTC), f"{ObjectId()}"
    email = OwedEmail(document_id=None, user_id="", id=id_, key="check", at=now, tries=0, token=NO_TOKEN, address=to)
    mailer = Mailer(settings, Feedback(settings), _Test(settings), Worker())
    outcome = await mailer.send(Lease(email, math.inf))
    await mailer.pool.close_all()
    if outcome and outcome.verdict is Verdict.SENT:
        return None
    return Result("failed", "smtp_test", f"The test e-mail was not sent: {outcome.detail if outcome else ''}")
