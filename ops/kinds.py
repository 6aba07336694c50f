"""The kinds of notification: what each does, and what the bell says of it. One table for the whole service.

`KINDS_FILE` is a TOML file with a table for each kind. Without it there are the four of the specification.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ops.languages import LANGUAGE, translated

NAME: Final = re.compile("[a-z][a-z0-9_]{0,63}")
PLACEHOLDER: Final = re.compile(
    r"\{(id|key|timestamp|user_id|target_id|data(?:\.[^{}.,|]+)+)"
    r"(?:, *(number|date|time|currency [A-Z]{3}))?(?:\|([^{}|]*))?\}"
)
"""A field of the notification, how to write it, and what replaces a missing one: `{data.total, number|none}`."""
URL: Final = re.compile(r"https?://[^\s\\]+|/(?!/)[^\s\\]*")
r"""Where a click may lead: an http or https address, or a path on the page's own origin. To a browser `\` is a `/`."""
ICON: Final = re.compile(r"https://[^\s\\]+|/(?!/)[^\s\\]*|[0-9#*]?[^\w\s\x00-\xa8\u2028-\u202f\u2066-\u2069]{1,16}")
"""An https address, a path on the page's own origin, or an emoji: symbols, of which several may make one picture."""
SPAN: Final = re.compile("([1-9][0-9]{0,6})([smhd])")
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
WINDOW: Final = (30, 30 * 86_400)
"""Shortest and longest window, in seconds."""
BATCHES: Final = ("target", "kind")
"""What an e-mail about many can be about: the notifications of a target, or all of the kind."""
TEXT_LIMIT: Final = 500
"""Characters of a label, a name or a url."""
PRIORITIES: Final = ("high", "normal", "low")
"""Which e-mails go first."""
VALUE_LIMIT: Final = 200
"""Characters of a field in a label."""


Write = Callable[[object, str | None, str | None], str]
"""What writes a value, in a format, in a language: `mail.formats.write`, which the service itself does not load."""


class KindsError(Exception):
    """The table cannot be used. The message has a line for each fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What to do with a notification of this kind, and what the bell says of it.

    `name` is its key. What settings call it, the file's `name`, is its `title`.
    """

    name: str
    in_app: bool = True
    email: bool = False
    required: bool = False
    priority: str | None = None
    label: str | None = None
    url: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    title: str | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    icon: str | None = None
    email_after: str | None = None
    email_batch: str | None = None
    collapse: bool = False
    example: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> str:
        """Which of `PRIORITIES` its e-mails have: what is written, else what `required` implies."""
        return self.priority or ("high" if self.required else "normal")

    @property
    def window(self) -> float | None:
        """For how many seconds an e-mail waits; `None` if it is due at once."""
        return seconds_of(self.email_after) if self.email_after else None

    def describe(self) -> dict[str, Any]:
        """Return what `GET /kinds` tells of it, all that matters to pages."""
        told = {name: value for name, value in asdict(self).items() if name not in {"name", "priority", "collapse"}}
        told |= {"collapse": True} if self.collapse else {}
        return {SETTINGS.get(name, name): value for name, value in told.items() if value not in (None, {})}

    def say(self, language: str | None, fields: Mapping[str, Any], write: Write) -> str:
        """Return the label in a language with the fields of a notification; "…" stands where one is missing."""

        def fill(found: re.Match[str]) -> str:
            path, form, other = found.groups()
            value = _value(fields, path)
            if value is None or value == "":
                return "…" if other is None else str(other)
            return write(value, form or ("datetime" if path == "timestamp" else None), language)[:VALUE_LIMIT]

        label = translated(self.labels, language) or self.label or self.name.replace("_", " ").capitalize()
        return PLACEHOLDER.sub(fill, label)

    def called(self, language: str | None) -> str:
        """Return what settings call the kind in a language: its title, else its label without a notification."""
        return translated(self.titles, language) or self.title or self.say(language, {}, lambda *_: "")


Kinds = Mapping[str, Kind]

SPECIFIED: Final[Kinds] = {
    kind.name: kind
    for kind in (
        Kind(name="registration", in_app=False, email=True, required=True),
        Kind(name="new_message"),
        Kind(name="new_post"),
        Kind(name="new_login", email=True, required=True),
    )
}
"""The kinds of the specification."""
TYPES: Final[Mapping[str, tuple[type, str]]] = {
    "in_app": (bool, "true or false"),
    "email": (bool, "true or false"),
    "required": (bool, "true or false"),
    "priority": (str, "high, normal or low"),
    "label": (str, "a text"),
    "url": (str, "a text"),
    "labels": (dict, "a table of texts by language"),
    "name": (str, "a text"),
    "names": (dict, "a table of texts by language"),
    "icon": (str, "a text"),
    "email_after": (str, "a time from 30s to 30d such as 10m or 1d"),
    "email_batch": (str, '"target" or "kind"'),
    "collapse": (bool, "true or false"),
    "example": (dict, "a table that JSON can write"),
}
FIELDS: Final = {"name": "title", "names": "titles"}
"""Settings whose field has another name, as `name` is the key of a kind."""
SETTINGS: Final = {field: setting for setting, field in FIELDS.items()}


def seconds_of(span: str) -> float:
    """Return the seconds of a time such as `10m`, or infinity if it is none."""
    found = SPAN.fullmatch(span)
    return int(found[1]) * UNITS[found[2]] if found else math.inf


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # TOML has dates, times and infinity
        return False
    return True


VALID: Final[Mapping[str, Callable[[Any], bool]]] = {
    "priority": PRIORITIES.__contains__,
    "email_after": lambda span: WINDOW[0] <= seconds_of(span) <= WINDOW[1],
    "email_batch": BATCHES.__contains__,
    "example": _is_json,
}
"""What a setting of the right type must also be."""


def load_kinds(path: Path | None) -> Kinds:
    """Read the table of a file, or return that of the specification. Raises `KindsError` with every fault."""
    if path is None:
        return SPECIFIED
    try:
        tables = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as exc:
        raise KindsError(f"Cannot be read as UTF-8: {path}: {getattr(exc, 'strerror', None) or exc}.") from None
    except tomllib.TOMLDecodeError as exc:
        raise KindsError(f"Is not TOML: {exc}.") from None
    faults = [fault for name, table in tables.items() for fault in _faults(name, table)]
    if not tables:
        faults.append("Has no kinds.")
    if faults:
        raise KindsError("\n".join(faults))
    return {
        key: Kind(name=key, **{FIELDS.get(setting, setting): value for setting, value in table.items()})
        for key, table in tables.items()
    }


def describe_kinds(kinds: Kinds) -> Mapping[str, Any]:
    """Return the answer of `GET /kinds`."""
    return {"success": True, "data": {name: kind.describe() for name, kind in kinds.items()}}


def _value(fields: Mapping[str, Any], path: str) -> object:
    """Return what a notification has at a path such as `data.city`, or `None` if that is missing."""
    value: Any = fields
    for name in path.split("."):
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _faults(name: str, table: object) -> Iterator[str]:
    if not NAME.fullmatch(name):
        yield f"[{name}]: a name has 1 to 64 small letters, digits and _, and begins with a letter."
    if not isinstance(table, dict):
        yield f"{name}: is not a table such as [{name}]."
        return
    for setting, value in table.items():
        if setting not in TYPES:
            yield f"[{name}]: there is no setting {setting!r}; the settings are {', '.join(TYPES)}."
        elif not isinstance(value, TYPES[setting][0]) or not VALID.get(setting, lambda _: True)(value):
            yield f"[{name}]: {setting} must be {TYPES[setting][1]}."
    if table.get("in_app", True) is False and table.get("email", False) is False:
        yield f"[{name}]: needs a channel: in_app or email must be true."
    is_kept, is_emailed = table.get("in_app", True) is not False, table.get("email", False) is not False
    if "email_after" in table and not (is_kept and is_emailed):
        yield f"[{name}]: email_after is for a kind that is kept and e-mailed."
    if "email_batch" in table and "email_after" not in table:
        yield f"[{name}]: email_batch needs email_after."
    if table.get("collapse") is True and not is_kept:
        yield f"[{name}]: collapse is for a kind that is kept."
    yield from _text_faults_of(name, table)


def _text_faults_of(name: str, table: Mapping[str, object]) -> Iterator[str]:
    """Yield the faults of texts that have the right type."""
    checks = {"label": _text_faults, "url": _url_faults, "name": _name_faults, "icon": _icon_faults}
    for setting, check in checks.items():
        if isinstance(text := table.get(setting), str):
            yield from check(f"[{name}]: {setting}", text)
    for setting, check in (("labels", _text_faults), ("names", _name_faults)):
        if isinstance(texts := table.get(setting), dict):
            yield from _translation_faults(f"[{name}.{setting}]", texts, check)


def _translation_faults(
    place: str, texts: Mapping[str, object], check: Callable[[str, str], Iterator[str]]
) -> Iterator[str]:
    for language, text in texts.items():
        if not LANGUAGE.fullmatch(language):
            yield f"{place}: {language!r} is not a language such as de or pt-BR."
        if isinstance(text, str):
            yield from check(f"{place}: {language}", text)
        else:
            yield f"{place}: {language} must be a text."


def _name_faults(place: str, name: str) -> Iterator[str]:
    yield from _line_faults(place, name)
    if re.search("[{}]", name):
        yield f"{place} must not have a placeholder: it is the name of the kind, not of a notification."


def _icon_faults(place: str, icon: str) -> Iterator[str]:
    if not ICON.fullmatch(icon) or len(icon) > TEXT_LIMIT:
        yield f"{place} must be an emoji, or an address that begins with https:// or a single /."


def _url_faults(place: str, url: str) -> Iterator[str]:
    yield from _text_faults(place, url)
    if not URL.fullmatch(url):
        yield f"{place} must begin with http://, https:// or a single /, and have no space or backslash."


def _line_faults(place: str, text: str) -> Iterator[str]:
    if not text.strip() or not text.isprintable() or len(text) > TEXT_LIMIT:
        yield f"{place} must be one line of 1 to {TEXT_LIMIT} characters."


def _text_faults(place: str, text: str) -> Iterator[str]:
    yield from _line_faults(place, text)
    if re.search("[{}]", PLACEHOLDER.sub("", text)):
        yield (
            f"{place} has a placeholder that is none such as {{data.city}}, {{data.name|Somebody}} or "
            "{data.total, number}; the formats are number, date, time and such as currency EUR."
        )
