"""The OpenAPI 3.1 document: `openapi.json`, which `make docs` writes, completed for the kinds and ids of a service."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from kinds import Kinds, describe_kinds
from mongo.document import JSONObject
from mongo.inbox import EVERY_KIND
from settings import OBJECT_ID, STRING_LIMIT, IdType

VERSION: Final = "1.0.0"
FILE: Final = Path(__file__).with_suffix(".json")
DOCUMENT: Final[web.AppKey[Callable[[], JSONObject]]] = web.AppKey("DOCUMENT")
IDS: Final[Mapping[IdType, JSONObject]] = {
    IdType.OBJECTID: {"type": "string", "pattern": f"^{OBJECT_ID}$", "minLength": 24, "maxLength": 24},
    IdType.STRING: {"type": "string", "minLength": 1, "maxLength": STRING_LIMIT},
}


def describe(kinds: Kinds, id_type: IdType) -> JSONObject:
    emailed, kept = ([kind for kind in kinds.values() if getattr(kind, channel)] for channel in ("email", "in_app"))
    optional = [kind.name for kind in emailed if not kind.required]
    known = {
        "id": IDS[id_type],
        "id_fault": [id_type.fault],
        "kind": {"enum": [*kinds]},
        "kinds": describe_kinds(kinds),
        "emailed_kinds": {"enum": [EVERY_KIND, *(kind.name for kind in emailed)]},
        "an_emailed_kind": [*(kind.name for kind in emailed), *kinds][0],
        "a_kept_kind": [*(kind.name for kind in kept), *kinds][0],
        "an_opt_out": {[*optional, EVERY_KIND][0]: {"email": False}},
        "wanted": {kind.name: {"email": True, "required": kind.required} for kind in emailed},
        "unwanted": {kind.name: {"email": kind.required, "required": kind.required} for kind in emailed},
    }

    def complete(part: JSONObject) -> object:
        """Return what `{"x-code": …}` stands for, changed by what stands beside it."""
        if "x-code" not in part:
            return part
        value = known[part.pop("x-code")]
        return {**value, **part} if isinstance(value, Mapping) else value

    document: JSONObject = json.loads(FILE.read_text("utf-8"), object_hook=complete)
    return document
