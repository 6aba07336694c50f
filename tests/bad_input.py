"""Bodies that `POST /create` refuses: tables, with the status and the fields that the answer names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from api.bodies import BODY_LIMIT
from tests.client import TARGET, USER

GOOD: Mapping[str, Any] = {"user_id": USER, "key": "new_login"}


def with_(**fields: Any) -> bytes:
    """Return a good body with some fields changed."""
    return json.dumps({**GOOD, **fields}).encode()


def with_data(text: str) -> bytes:
    """Return a good body whose `data` is this text."""
    return b'{"user_id": "%s", "key": "new_login", "data": %s}' % (USER.encode(), text.encode())


BAD_BODIES = [
    pytest.param(b"", 400, None, id="empty"),
    pytest.param(b"{", 400, None, id="cut off"),
    pytest.param(b"[]", 400, None, id="array"),
    pytest.param(b"null", 400, None, id="null"),
    pytest.param(b"\xff\xfe", 400, None, id="not UTF-8"),
    pytest.param(json.dumps(GOOD).encode("utf-8-sig"), 400, None, id="BOM"),
    pytest.param(json.dumps(GOOD).encode("utf-16"), 400, None, id="UTF-16"),
    pytest.param(b"[" * 60_000, 400, None, id="60 KB of ["),
    pytest.param(with_data('{"a":' * 5000 + "1" + "}" * 5000), 400, None, id="depth 5000"),
    pytest.param(with_data('{"a":' * 900 + "1" + "}" * 900), 422, {"data"}, id="depth 900"),
    pytest.param(with_data('{"a": NaN}'), 400, None, id="NaN"),
    pytest.param(with_data('{"a": -Infinity}'), 400, None, id="infinity"),
    pytest.param(with_data("9" * 5000), 400, None, id="5000 digits"),
    pytest.param(b" " * (BODY_LIMIT + 1), 413, None, id="70 KB"),
    pytest.param(b"{}", 422, {"user_id", "key"}, id="everything missing"),
    pytest.param(b'{"key": "new_post"}', 422, {"user_id"}, id="no user_id"),
    pytest.param(b'{"user_id": "%s"}' % USER.encode(), 422, {"key"}, id="no key"),
    pytest.param(with_(user_id=None), 422, {"user_id"}, id="null user_id"),
    pytest.param(with_(user_id=1), 422, {"user_id"}, id="number as user_id"),
    pytest.param(with_(user_id={"$gt": ""}), 422, {"user_id"}, id="operator as user_id"),
    pytest.param(with_(user_id=USER + "\n"), 422, {"user_id"}, id="user_id and newline"),
    pytest.param(with_(user_id=""), 422, {"user_id"}, id="empty user_id"),
    pytest.param(with_(user_id="a" * 50_000), 422, {"user_id"}, id="long user_id"),
    pytest.param(with_(target_id=""), 422, {"target_id"}, id="empty target_id"),
    pytest.param(with_(target_id=[TARGET]), 422, {"target_id"}, id="list as target_id"),
    pytest.param(with_(key=None), 422, {"key"}, id="null key"),
    pytest.param(with_(key="NEW_LOGIN"), 422, {"key"}, id="unknown key"),
    pytest.param(with_(key=["new_login"]), 422, {"key"}, id="list as key"),
    pytest.param(with_(key={}), 422, {"key"}, id="object as key"),
    pytest.param(with_(data=[]), 422, {"data"}, id="list as data"),
    pytest.param(with_(data="x"), 422, {"data"}, id="text as data"),
    pytest.param(with_(data={"$where": "1"}), 422, {"data"}, id="$ name"),
    pytest.param(with_(data={"a": [{"$ref": "x", "$id": 1}]}), 422, {"data"}, id="DBRef"),
    pytest.param(with_(data={"a\0b": 1}), 422, {"data"}, id="NUL in a name"),
    pytest.param(with_(data={"a": 2**63}), 422, {"data"}, id="2^63"),
    pytest.param(with_(data={"a": -(2**63) - 1}), 422, {"data"}, id="-2^63-1"),
    pytest.param(with_data('{"a": 1e400}'), 422, {"data"}, id="1e400"),
    pytest.param(with_(data={"a": "\ud800"}), 422, {"data"}, id="lone surrogate"),
    pytest.param(with_(data={"\udfff": 1}), 422, {"data"}, id="lone surrogate in a name"),
    pytest.param(with_(data={"a": "x" * 17_000}), 422, {"data"}, id="17 KB of data"),
    pytest.param(with_(datta={}), 422, {"datta"}, id="unknown field"),
    pytest.param(
        b'{"user_id": 1, "target_id": "", "key": "y", "data": 1, "\\ud800": 0}',
        422,
        {"user_id", "target_id", "key", "data", "\ud800"},
        id="everything wrong",
    ),
]
BAD_OBJECT_IDS = [
    pytest.param(with_(user_id=USER[:-1]), 422, {"user_id"}, id="short user_id"),
    pytest.param(with_(user_id="z" * 24), 422, {"user_id"}, id="user_id not hex"),
    pytest.param(with_(user_id="٣" * 24), 422, {"user_id"}, id="user_id in Arabic digits"),
    pytest.param(with_(target_id="x"), 422, {"target_id"}, id="short target_id"),
    pytest.param(with_(user_id="x", target_id="y", key="z"), 422, {"user_id", "target_id", "key"}, id="three wrong"),
]
"""Further such bodies, for ids that are ObjectIds."""
BAD_STRING_IDS = [
    pytest.param(with_(user_id="x" * 129), 422, {"user_id"}, id="129 characters"),
    pytest.param(with_(user_id="é🎉" * 65), 422, {"user_id"}, id="130 characters beyond ASCII"),
    pytest.param(with_(user_id="a\0b"), 422, {"user_id"}, id="NUL in user_id"),
    pytest.param(with_(user_id="a\x1b[31m"), 422, {"user_id"}, id="escape in user_id"),
    pytest.param(with_(user_id="a\x7f"), 422, {"user_id"}, id="DEL in user_id"),
    pytest.param(with_(user_id="a\x85b"), 422, {"user_id"}, id="next line in user_id"),
    pytest.param(with_(user_id="a\ud800"), 422, {"user_id"}, id="lone surrogate in user_id"),
    pytest.param(with_(target_id="\udfff"), 422, {"target_id"}, id="lone surrogate as target_id"),
    pytest.param(with_(target_id="\t", user_id="\r"), 422, {"target_id", "user_id"}, id="both wrong"),
]
"""Further such bodies, for ids that are strings."""
