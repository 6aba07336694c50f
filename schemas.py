"""What a request may hold, and its limits. Input is validated here once; every other module trusts it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from marshmallow import (
    EXCLUDE,
    INCLUDE,
    RAISE,
    Schema,
    ValidationError,
    post_load,
    pre_load,
    validate,
    validates_schema,
)
from marshmallow import fields as mf

from api.compiled import CompiledSchema
from api.fields import (
    DATA_DEPTH,
    DATA_LIMIT,
    INT64_MAX,
    USERS_LIMIT,
    AddressField,
    DataField,
    IdField,
    IdsField,
    JSONBoolean,
    QueryBoolean,
    QueryInteger,
    is_unicode,
)
from config.ids import IdType
from kinds import Kinds
from mongo.document import RECENT_LIMIT
from mongo.preferences import EVERY_KIND
from mongo.requests import Create, CreateMany, ListQuery, Selection

PAGE_LIMIT: Final = 1000
"""Notifications in one page."""
UNKNOWN_LIMIT: Final = 16
"""Unknown fields of a body that its error names."""
SELECTORS: Final = ("notification_id", "target_id", "key", "all")
"""The ways to say which notifications are meant."""


def _encodable(text: str) -> None:
    if not is_unicode(text):
        raise ValidationError("Not valid Unicode.")


def _accept(kinds: Kinds, schema: Schema) -> None:
    """Let the field `key` of a schema accept these kinds; its error names them all."""
    # Not by `append`: the copies of a field share its list of validators.
    schema.fields["key"].validators = [validate.OneOf(list(kinds), error="Must be one of: {choices}.")]


def _capped(schema: Schema, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields, with no more than `UNKNOWN_LIMIT` unknown ones: a body has room for thousands."""
    if values.keys() <= schema.fields.keys():
        return values
    known = {name: value for name, value in values.items() if name in schema.fields}
    unknown = ((name, value) for name, value in values.items() if name not in schema.fields)
    return known | dict(islice(unknown, UNKNOWN_LIMIT))


USER_ID: Final = {"description": "The `_id` of the user's document.", "examples": ["638f394d4b7243fc0399ea67"]}


class IdSchema(CompiledSchema):
    """A schema whose ids are of one type."""

    def __init__(self, id_type: IdType) -> None:
        super().__init__()
        self.id_type = id_type


class CreateSchema(IdSchema):
    """The body of `POST /create`. Unknown fields are refused, so that a typo does not pass."""

    def __init__(self, id_type: IdType, kinds: Kinds) -> None:
        super().__init__(id_type)
        self._kinds = kinds
        _accept(kinds, self)

    class Meta:
        """Refuse unknown fields."""

        unknown = RAISE

    user_id = IdField(metadata=USER_ID)
    user_ids = IdsField(
        metadata={
            "description": "In place of `user_id`. It needs an `Idempotency-Key`.",
            "minItems": 1,
            "maxItems": USERS_LIMIT,
            "uniqueItems": True,
        }
    )
    target_id = IdField(allow_none=True, metadata={"description": "What the notification is about."})
    key = mf.String(required=True, metadata={"description": "The kind of notification: one of `GET /kinds`."})
    data = DataField(
        allow_none=True,
        metadata={
            "description": f"Returned by `/list` unchanged. At most {DATA_LIMIT // 1024} KiB of JSON and {DATA_DEPTH} "
            "levels deep. Names do not start with `$` or contain NUL; integers fit in 64 bits."
        },
    )

    @pre_load
    def _cap_unknown(self, values: Mapping[str, Any], **_: object) -> Mapping[str, Any]:
        return _capped(self, values)

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_or_many(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        if "user_ids" not in original and "user_id" not in original:
            raise ValidationError({"user_id": [self.fields["user_id"].error_messages["required"]]})
        if "user_ids" in original and "user_id" in original:
            raise ValidationError({"user_ids": ["Give either user_id or user_ids."]})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> Create | CreateMany:
        kind, user_ids = self._kinds[values.pop("key")], values.pop("user_ids", None)
        if user_ids is None:
            return Create(kind=kind, **values)
        return CreateMany(user_ids, Create(user_id="", kind=kind, **values))


# OpenAPI has no `\Z`. The newline that `$` lets through cannot be in a header.
KEY: Final = validate.Regexp(r"^[\x21-\x7e]{1,255}$", error="Not 1 to 255 visible ASCII characters.")


class CreateHeaders(CompiledSchema):
    """The headers of `POST /create` (draft-ietf-httpapi-idempotency-key-header; its quotes are optional here)."""

    class Meta:
        """Ignore every other header."""

        unknown = EXCLUDE

    idempotency_key = mf.String(
        data_key="Idempotency-Key",
        validate=KEY,
        metadata={
            "description": "A new one for every notification. Repeating one of the user's last "
            f"{RECENT_LIMIT} keys with the same body has no further effect."
        },
    )


class CreateManyHeaders(CreateHeaders):
    """The headers of a `POST /create` for many users, which must be safe to repeat."""

    idempotency_key = mf.String(
        data_key="Idempotency-Key",
        required=True,
        validate=KEY,
        error_messages={"required": "user_ids need one."},
    )


class UserSchema(IdSchema):
    """The query of a request about one user. Unknown parameters are ignored."""

    class Meta:
        """Ignore unknown parameters."""

        unknown = EXCLUDE

    user_id = IdField(required=True, metadata=USER_ID)


class KeySchema(UserSchema):
    """A query that may name a kind."""

    def __init__(self, id_type: IdType, kinds: Kinds) -> None:
        super().__init__(id_type)
        _accept(kinds, self)

    key = mf.String(metadata={"description": "Only those of this kind."})


class ListSchema(KeySchema):
    """The query of `GET /list`."""

    skip = QueryInteger(
        load_default=0, validate=validate.Range(0, INT64_MAX), metadata={"description": "How many to skip."}
    )
    limit = QueryInteger(
        load_default=10,
        validate=validate.Range(0, PAGE_LIMIT),
        metadata={"description": "How many to return; 0 for the counts alone."},
    )
    is_new = QueryBoolean(metadata={"description": "`true` lists only the unread, `false` only the read."})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> ListQuery:
        return ListQuery(**values)


class SelectionSchema(KeySchema):
    """The query of `/read`, `/unread` and `/delete`: a user and one selector."""

    notification_id = mf.String(
        validate=[validate.Length(1, 128), _encodable],
        metadata={"description": "The one with this `id`."},
    )
    target_id = IdField(metadata={"description": "All about this entity."})
    all = QueryBoolean(
        validate=validate.OneOf([True], error="Must be true, or left out."), metadata={"description": "All of them."}
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_selector(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        given = [name for name in SELECTORS if name in original]
        if len(given) != 1:
            message = f"Give exactly one of {', '.join(SELECTORS)}."
            raise ValidationError({name: [message] for name in given or ["notification_id"]})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> Selection:
        user_id = values.pop("user_id")
        ((name, value),) = values.items()
        match name:
            case "all":
                return Selection(user_id)
            case "notification_id":
                return Selection(user_id, "id", value)
        return Selection(user_id, name, value)


class PreferencesSchema(Schema):
    """The body of `POST /preferences`: whether e-mails are wanted, by kind; loaded as `True`, `False` or `None`."""

    class Meta:
        """The names are those of the kinds."""

        unknown = INCLUDE

    def __init__(self, kinds: Kinds) -> None:
        super().__init__()
        self._kinds = {name: kind for name, kind in kinds.items() if kind.email}

    @validates_schema(pass_original=True)  # which has the order of the request
    def _check(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        faults = {name: fault for name, value in original.items() if (fault := self._fault(name, value))}
        if faults:
            raise ValidationError({name: [fault] for name, fault in islice(faults.items(), UNKNOWN_LIMIT)})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> Mapping[str, bool | None]:
        return {name: value and value["email"] for name, value in values.items()}

    def _fault(self, name: str, value: object) -> str | None:
        if name != EVERY_KIND and name not in self._kinds:
            return f"Must be one of: {', '.join([*self._kinds, EVERY_KIND])}."
        match value:
            case None:
                return None
            case {"email": None | bool() as wanted, **others} if not others:
                is_required = name in self._kinds and self._kinds[name].required
                return "This kind is required: nobody can opt out." if wanted is False and is_required else None
        return 'Must be {"email": true}, {"email": false}, or null for the default.'


class SuppressionSchema(Schema):
    """The body of `POST /suppress`, which may be left out."""

    class Meta:
        """Refuse unknown fields."""

        unknown = RAISE

    @pre_load
    def _cap_unknown(self, values: Mapping[str, Any], **_: object) -> Mapping[str, Any]:
        return _capped(self, values)

    suppressed = JSONBoolean(
        load_default=True, metadata={"description": "`false` lifts the suppression: e-mails are sent again."}
    )
    address = AddressField(
        load_default=None,
        allow_none=True,
        metadata={
            "description": "The address that bounced, in any case, also in `<>` and behind a name. If it is no longer "
            "the user's, nothing is suppressed.",
        },
    )
    code = mf.String(
        load_default="reported",
        validate=validate.Regexp(r"^[A-Za-z0-9._-]{1,32}$", error="Not 1 to 32 letters, digits or ._-"),
        metadata={"description": "Why, for operators: an enhanced status code such as `5.1.1`."},
    )
