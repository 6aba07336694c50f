"""What schemathesis cannot know about the service. It reads this file because `SCHEMATHESIS_HOOKS` names it."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.core.failures import Failure

from api.problems import BY_EXCEPTION
from kinds import SPECIFIED
from mongo.errors import EmailUnderWay, KeyReused
from mongo.suppression import NO_INDEX
from schemas import Schemas
from settings import IdType

USER = {"user_id": "638f394d4b7243fc0399ea67"}
SCHEMAS = Schemas(IdType.OBJECTID, SPECIFIED)
REFUSALS = (
    BY_EXCEPTION[KeyReused].errors or {},
    SCHEMAS.selection.validate(USER),
    SCHEMAS.create.validate({**USER, "key": "new_post", "data": {"nested": {"$\0": 2**63}}}),
    SCHEMAS.create_many_headers.validate({}),
    SCHEMAS.user.validate({}),
    {"user_id": [NO_INDEX]},
    SCHEMAS.suppression.validate({"address": "none"}),
    SCHEMAS.preferences.validate({"new_login": {"email": False}}),
)
BEYOND_SCHEMAS = {message for errors in REFUSALS for messages in errors.values() for message in messages}
"""The reasons to refuse what the document allows.

No schema can say that a key came with another body before, that it must come with one body and not with another, or
that exactly one of several parameters must be given, or an address in place of a user. That a kind is required, its
description says. Of addresses, `format: email` allows somewhat others. Only a recursive schema of `data` could say what
holds at its deeper levels.
"""


@schemathesis.hook
def filter_failure(
    _context: schemathesis.HookContext,
    failure: Failure,
    _case: schemathesis.Case[Any],
    response: schemathesis.Response,
) -> bool:
    """Accept refusals for those reasons, an erasure that has to wait for an e-mail, and nothing else."""
    if response.status_code == 503 and response.json()["detail"] == BY_EXCEPTION[EmailUnderWay].detail:
        return False
    if failure.code != "ST202" or response.status_code != 422:  # of positive_data_acceptance
        return True
    errors = response.json()["errors"]
    return not all(message in BEYOND_SCHEMAS for messages in errors.values() for message in messages)
