"""An e-mail owed: an element of the outbox, and the form in which a worker gets it."""

import math
import random
import time
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from config.checks import value_at
from mongo.document import OPTIONAL_FIELDS, ORIGIN_FIELDS, JSONObject
from mongo.expressions import OUTBOX, WAITING, concat, each, only, without
from mongo.suppression import Suppression, load_suppression
from settings import Settings

NO_TOKEN: Final = "0" * 24  # the token where nobody leases: as long as any other, as a document may have no room
UNTRIED: Final = {"tries": 0, "token": NO_TOKEN, "error": None, "dead": False}
FLUSHED: Final = "flush"  # `held` of an e-mail that an operator wants to be tried now, whatever has stopped
COUNT_LIMIT: Final = 10**7  # attempts, and seconds, that are counted
TOLD_LIMIT: Final = 4096  # bytes of a field of the user's document that templates see, as JSON
ERAS: Final = {
    "high": datetime(1968, 1, 1, tzinfo=UTC),
    "normal": datetime(1970, 1, 1, tzinfo=UTC),
    "low": datetime(1972, 1, 1, tzinfo=UTC),
}
"""When new e-mails fell due, by priority: in the past, and before whatever is due again. So one index orders them."""
ERAS_END: Final = datetime(1974, 1, 1, tzinfo=UTC)
EDGES: Final = (ERAS["normal"], ERAS["low"], ERAS_END)  # where each band of priorities ends, and the next begins
BULK: Final = timedelta(days=365)  # by which an e-mail of a fan-out falls due later in its era
LEFT_TO_OTHERS: Final = 300.0
"""Seconds for which an e-mail of an unknown kind waits: in a rolling update, only the new version knows a new kind."""
NEXT_LOOK: Final = 5.0  # seconds between two looks at such an e-mail
OF_ONE_TYPE: Final = {  # fields of an element that become those of an `OwedEmail`
    **dict.fromkeys(("id", "key", "token", "error", "held"), str),
    **dict.fromkeys(("at", "tried"), datetime),
    "dead": bool,
}
KEPT: Final = {**OPTIONAL_FIELDS, **ORIGIN_FIELDS, "ids": list}  # by a dead letter, for when it is owed again


def has_type(name: str, *types: str) -> JSONObject:
    return {"$in": [{"$type": f"$$this.{name}"}, list(types)]}


IS_EMAIL: Final = {
    "$and": [
        *(has_type(name, "string") for name in ("id", "key", "token")),
        *(has_type(name, "date") for name in ("at", "next_at")),
        has_type("tries", "int", "long", "double"),
        # as far as Python's dates go, whatever the time zone
        {"$gte": ["$$this.at", datetime(1970, 1, 1, tzinfo=UTC)]},
        {"$lt": ["$$this.at", datetime(9999, 1, 1, tzinfo=UTC)]},
    ]
}
IS_WAITING: Final = {"$and": [has_type("id", "string"), has_type("key", "string"), has_type("due", "date")]}
"""Whether an element of the outbox, or of `waiting`, has everything that the service writes into one."""
DUE_TIMES: Final = concat(each(only(OUTBOX, IS_EMAIL), "$$this.next_at"), each(only(WAITING, IS_WAITING), "$$this.due"))
DUE_IS_OURS: Final = {"$in": [{"$type": "$notifier.due"}, ["date", "missing"]]}
SET_DUE: Final = {
    "$set": {"notifier.due": {"$cond": [DUE_IS_OURS, {"$ifNull": [{"$min": DUE_TIMES}, "$$REMOVE"]}, "$notifier.due"]}}
}
"""The stage that follows a change of the outbox. A `due` of another type is another program's."""
IS_DUE: Final = {"$and": [IS_EMAIL, {"$lte": ["$$this.next_at", "$$NOW"]}]}
IS_FREE: Final = {"$eq": ["$$this.token", NO_TOKEN]}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedEmail:
    """A leased e-mail. `id` and `at` make its `Message-ID` and `Date`, which never change."""

    document_id: object  # the `_id` of the user's document; `user_id` is the same as a string
    user_id: str
    id: str
    key: str
    at: datetime
    tries: int  # refused attempts after which others got through
    token: str
    error: str | None = None
    dead: bool = False
    copies: int = 0  # messages that the server may have accepted
    tried: datetime | None = None  # when the last attempt was
    waited: float = 0.0  # seconds that the schedule of attempts has taken, without those of a stop
    held: str | None = None  # the stop for which it waits
    crashes: int = 0  # how often its rendering ended the process that renders
    origin: Mapping[str, str] = field(default_factory=dict)
    address: object = None  # the user's, of whatever type the document has it
    suppression: Suppression | None = None  # the user's, perhaps of an earlier address
    language: str | None = None
    optional: JSONObject = field(default_factory=dict)
    user: JSONObject | None = None  # the fields of TEMPLATE_FIELDS
    ids: Sequence[str] = ()  # notifications: the e-mail tells those that are unread when it is sent


def batch(told: Sequence[JSONObject]) -> JSONObject:
    """Return the fields of an e-mail about many: the newest notification's, the list, and a count."""
    newest = {name: told[-1].get(name) for name in ("id", "timestamp", *OPTIONAL_FIELDS)}
    return newest | {"notifications": told, "count": sum(max(1, int(_number(item.get("count")))) for item in told)}


def first_due(rank: str, *, in_bulk: bool = False) -> datetime:
    """Return when a new e-mail falls due: at once. A classic update has no `$$NOW`, and our clock may be ahead."""
    return ERAS[rank] + timedelta(milliseconds=time.time()) + (BULK if in_bulk else timedelta())


def due_as_before(ranks: Mapping[str, str]) -> JSONObject:
    """Return the expression of when an e-mail falls due as if never claimed, by the priority of its kind."""
    cases: list[JSONObject] = [{"case": {"$gt": ["$$this.tries", 0]}, "then": ERAS_END}]
    for rank in ("high", "low"):
        keys = [key for key, of_key in ranks.items() if of_key == rank]
        cases.append({"case": {"$in": ["$$this.key", {"$literal": keys}]}, "then": ERAS[rank]})
    seconds = {"$toLong": {"$divide": [{"$toLong": "$$this.at"}, 1000]}}
    return {"$add": [{"$switch": {"branches": cases, "default": ERAS["normal"]}}, seconds]}


def band_of(due: object) -> int:
    """Return the number of the band: a priority, or e-mails due again."""
    return bisect(EDGES, due) if isinstance(due, datetime) else 0  # dates before Python's are no `datetime`


def shares(due: Iterable[tuple[object, int]], users: int, share: int) -> list[object]:
    """Choose users at random, each given with a band: a share from each, the rest from the first bands."""
    bands: list[dict[str, object]] = [{} for _ in range(len(EDGES) + 1)]
    for id_, band in due:
        bands[band][repr(id_)] = id_
    shuffled = [random.sample(list(band.values()), len(band)) for band in bands]
    fair = [id_ for ids in shuffled for id_ in ids[:share]]
    return [*fair, *(id_ for ids in shuffled for id_ in ids[share:])][:users]


def new_element(id_: str, key: str, at: datetime, fields: JSONObject, due: datetime | None = None) -> JSONObject:
    """Make an element of the outbox. `at` is when it was first owed, by MongoDB's clock."""
    return {"id": id_, "key": key, "at": at, "next_at": due or first_due("normal"), **UNTRIED, **fields}


def rewrite(condition: JSONObject, change: JSONObject | None) -> list[JSONObject]:
    """Merge `change` into the elements that meet a condition, or remove them; others stay in place."""
    outbox = merged(OUTBOX, condition, change) if change is not None else without(OUTBOX, condition)
    return [{"$set": {"notifier.outbox": outbox}}, SET_DUE]


def merged(array: JSONObject, condition: JSONObject, change: JSONObject) -> JSONObject:
    return each(array, {"$cond": [condition, {"$mergeObjects": ["$$this", change]}, "$$this"]})


def from_now(seconds: float) -> JSONObject:
    return {"$add": ["$$NOW", round(seconds * 1000)]}


def is_ours_to_send(kinds: Iterable[str]) -> JSONObject:
    """Return the expression: the element's kind is among these, or its time for other processes is over."""
    is_known = {"$in": ["$$this.key", {"$literal": list(kinds)}]}
    return {"$or": [is_known, {"$eq": ["$$this.dead", True]}, {"$lte": [_until(), "$$NOW"]}]}


def left_to_others(due: str) -> JSONObject:
    """Return the change that leaves an element to other processes; `due` is a field's name."""
    return {due: from_now(NEXT_LOOK), "unknown_until": _until()}


def _until() -> JSONObject:
    return {"$min": ["$$this.unknown_until", from_now(LEFT_TO_OTHERS)]}


def load_emails(user: Mapping[str, Any], token: str, settings: Settings) -> Sequence[OwedEmail]:
    told = _told(user, settings.template_fields)
    language = value_at(user, settings.language_field) if settings.language_field else None
    return [
        OwedEmail(
            user=told,
            document_id=user["_id"],
            user_id=str(user["_id"]),
            address=value_at(user, settings.email_field),
            suppression=load_suppression(user),
            language=language if isinstance(language, str) else None,
            **typed(item, OF_ONE_TYPE),
            tries=int(_number(item["tries"])),
            copies=int(_number(item.get("copies"))),
            crashes=int(_number(item.get("crashes"))),
            waited=_number(item.get("waited")),
            origin=typed(item, ORIGIN_FIELDS),
            optional=typed(item, OPTIONAL_FIELDS),
            ids=[id_ for id_ in typed(item, {"ids": list}).get("ids", ()) if isinstance(id_, str)],
        )
        for item in elements(user.get("notifier"), "outbox")
        if item.get("token") == token
    ]


def _told(user: Mapping[str, Any], paths: Sequence[str]) -> JSONObject:
    """Return these fields of a document, each at its path, but large values and those without a JSON form."""
    told: JSONObject = {}
    for path in paths:
        *parents, name = path.split(".")
        below = told
        with suppress(TypeError, AttributeError):  # a binary value, say, or a path below one that is told already
            value = orjson.dumps(value_at(user, path))
            if len(value) <= TOLD_LIMIT:
                for parent in parents:
                    below = below.setdefault(parent, {})
                below[name] = orjson.loads(value)
    return told


def elements(parent: object, field: str) -> list[JSONObject]:
    """Return the objects in an array of the document; anything else is another program's."""
    array = parent.get(field) if isinstance(parent, dict) else None
    return [item for item in array if isinstance(item, dict)] if isinstance(array, list) else []


def typed(item: Mapping[str, Any], types: Mapping[str, type]) -> JSONObject:
    """Return those fields of an item that have these types. A value of another type is another program's."""
    return {name: item[name] for name, type_ in types.items() if isinstance(item.get(name), type_)}


def _number(value: Any) -> float:
    """Return a number between 0 and `COUNT_LIMIT`, whatever somebody has set it to."""
    is_number = isinstance(value, int | float) and not math.isnan(value)
    return min(max(value, 0), COUNT_LIMIT) if is_number else 0.0
