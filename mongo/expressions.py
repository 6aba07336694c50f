"""Expressions of MongoDB's aggregation language, and the arrays of a user's document as such expressions."""

from typing import Final

from mongo.document import JSONObject


def _array(field: str) -> JSONObject:
    return {"$cond": [{"$isArray": f"${field}"}, f"${field}", []]}


OUTBOX: Final = _array("notifier.outbox")
WAITING: Final = _array("notifier.waiting")
DELETED: Final = _array("notifier.deleted")
NOTIFICATIONS: Final = _array("notifications")


def absent_or_array(field: str) -> JSONObject:
    return {"$or": [{field: {"$exists": False}}, {field: {"$type": "array"}}]}


def only(array: object, condition: object) -> JSONObject:
    """Return the expression that filters an array; `condition` refers to the element as `$$this`."""
    return {"$filter": {"input": array, "cond": condition}}


def without(array: object, condition: object) -> JSONObject:
    return only(array, {"$not": [condition]})


def each(array: object, expression: object) -> JSONObject:
    """Return the expression that maps an array; `expression` refers to the element as `$$this`."""
    return {"$map": {"input": array, "in": expression}}


def any_of(array: object, condition: object) -> JSONObject:
    return {"$anyElementTrue": each(array, condition)}


def concat(*arrays: object) -> JSONObject:
    return {"$concatArrays": [*arrays]}
