"""What requests may hold. Input is validated here once; every other module trusts it."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from marshmallow import EXCLUDE, INCLUDE, ValidationError
from marshmallow import fields as mf
from marshmallow.validate import Length, Range, Regexp

from api import fields
from kinds import Kinds
from mongo.inbox import EVERY_KIND
from settings import IdType

PAGE_LIMIT: Final = 1000  # notifications in one page
SELECTORS: Final = ("notification_id", "target_id", "key", "all")  # the ways to say which notifications are meant


class CreateSchema(fields.RequestSchema):
    user_id = fields.IdField(required=True)
    target_id = fields.IdField(allow_none=True)
    key = fields.KindField(attribute="kind", required=True)
    data = fields.DataField(allow_none=True)

    def handle_error(self, error: ValidationError, data: Mapping[str, Any], **_: object) -> None:
        if {"user_id", "user_ids"} <= data.keys():
            error.messages_dict["user_ids"] = ["Give either user_id or user_ids."]


class CreateManySchema(CreateSchema):
    class Meta:
        exclude = ("user_id",)

    user_ids = fields.IdsField(required=True)


class QuerySchema(fields.RequestSchema):
    class Meta:
        unknown = EXCLUDE


# OpenAPI has no `\Z`. The newline that `$` lets through cannot be in a header.
KEY: Final = Regexp(r"^[\x21-\x7e]{1,255}$", error="Not 1 to 255 visible ASCII characters.")


class CreateHeaders(QuerySchema):
    """The headers of `POST /create` (draft-ietf-httpapi-idempotency-key-header; its quotes are optional here)."""

    idempotency_key = mf.String(data_key="Idempotency-Key", validate=KEY)


class CreateManyHeaders(QuerySchema):
    idempotency_key = mf.String(data_key="Idempotency-Key", required=True, validate=KEY)


class UserSchema(QuerySchema):
    user_id = fields.IdField(required=True)


class SuppressedUserSchema(QuerySchema):
    """The query of `POST /suppress` whose body has an address."""

    user_id = fields.IdField()


class ListSchema(UserSchema):
    key = fields.KindNameField()
    skip = mf.Integer(load_default=0, validate=Range(0, fields.INT64_MAX))
    limit = mf.Integer(load_default=10, validate=Range(0, PAGE_LIMIT))
    is_new = mf.Boolean(truthy={"true"}, falsy={"false"})


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValidationError("Not valid Unicode.") from None


class SelectionSchema(UserSchema):
    """The query of `POST /read`, `/unread` and `/delete`: a user and one selector."""

    key = fields.KindNameField()
    notification_id = mf.String(attribute="id", validate=[Length(1, 128), _encodable])
    target_id = fields.IdField()
    all = mf.Boolean(truthy={"true"}, falsy={})

    def check(self, original: Mapping[str, Any]) -> None:
        selectors = [name for name in SELECTORS if name in original]
        if len(selectors) != 1:
            message = f"Give exactly one of {', '.join(SELECTORS)}."
            raise ValidationError({name: [message] for name in selectors or ["notification_id"]})


class PreferencesSchema(fields.RequestSchema):
    """The body of `POST /preferences`: whether e-mails are wanted, by kind."""

    class Meta:
        unknown = INCLUDE  # the names are those of the kinds

    def check(self, original: Mapping[str, Any]) -> None:
        faults = {name: [fault] for name, value in original.items() if (fault := self._fault(name, value))}
        if faults:
            raise ValidationError(dict(islice(faults.items(), fields.UNKNOWN_LIMIT)))

    def _fault(self, name: str, value: object) -> str | None:
        emailed = {kind.name: kind for kind in self.kinds.values() if kind.email}
        if name != EVERY_KIND and name not in emailed:
            return f"Must be one of: {', '.join([*emailed, EVERY_KIND])}."
        match value:
            case None:
                return None
            case {"email": None | bool() as wanted, **others} if not others:
                is_required = name in emailed and emailed[name].required
                return "This kind is required: nobody can opt out." if wanted is False and is_required else None
        return 'Must be {"email": true}, {"email": false}, or null for the default.'


class SuppressionSchema(fields.RequestSchema):
    suppressed = fields.JSONBoolean(load_default=True)
    address = fields.AddressField(load_default=None, allow_none=True)
    code = mf.String(
        load_default="reported",
        validate=Regexp(r"^[A-Za-z0-9._-]{1,32}$", error="Not 1 to 32 letters, digits or ._-"),
    )


class Schemas:
    def __init__(self, id_type: IdType, kinds: Kinds) -> None:
        self.kinds = kinds
        self.create = CreateSchema(id_type, kinds)
        self.create_headers = CreateHeaders(id_type, kinds)
        self.create_many = CreateManySchema(id_type, kinds)
        self.create_many_headers = CreateManyHeaders(id_type, kinds)
        self.list = ListSchema(id_type, kinds)
        self.selection = SelectionSchema(id_type, kinds)
        self.user = UserSchema(id_type, kinds)
        self.preferences = PreferencesSchema(id_type, kinds)
        self.suppression = SuppressionSchema(id_type, kinds)
        self.suppressed_user = SuppressedUserSchema(id_type, kinds)
