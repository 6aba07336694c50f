"""The kinds of notification: what each does, and what the bell says of it. One table for the whole service.

`KINDS_FILE` is a TOML file with a table for each kind. Without it there are the four of the specification.
"""

from __future__ import annotations

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
TEXT_LIMIT: Final = 500
"""Characters of a label or a url."""
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
    """What to do with a notification of this kind, and what the bell says of it."""

    name: str
    in_app: bool = True
    email: bool = False
    required: bool = False
    priority: str | None = None
    label: str | None = None
    url: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> str:
        """Which of `PRIORITIES` its e-mails have: what is written, else what `required` implies."""
        return self.priority or ("high" if self.required else "normal")

    def describe(self) -> dict[str, Any]:
        """Return what `GET /kinds` tells of it, all that matters to pages."""
        described = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        return {name: value for name, value in described.items() if name not in {"name", "priority"}}

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
}


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
    return {name: Kind(name=name, **table) for name, table in tables.items()}


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
        elif not isinstance(value, TYPES[setting][0]) or (setting == "priority" and value not in PRIORITIES):
            yield f"[{name}]: {setting} must be {TYPES[setting][1]}."
    if table.get("in_app", True) is False and table.get("email", False) is False:
        yield f"[{name}]: needs a channel: in_app or email must be true."
    if isinstance(table.get("label"), str):
        yield from _text_faults(f"[{name}]: label", table["label"])
    if isinstance(table.get("url"), str):
        yield from _url_faults(f"[{name}]: url", table["url"])
    if isinstance(table.get("labels"), dict):
        yield from _label_faults(f"[{name}.labels]", table["labels"])


def _label_faults(place: str, labels: Mapping[str, object]) -> Iterator[str]:
    for language, label in labels.items():
        if not LANGUAGE.fullmatch(language):
            yield f"{place}: {language!r} is not a language such as de or pt-BR."
        if isinstance(label, str):
            yield from _text_faults(f"{place}: {language}", label)
        else:
            yield f"{place}: {language} must be a text."


def _url_faults(place: str, url: str) -> Iterator[str]:
    yield from _text_faults(place, url)
    if not URL.fullmatch(url):
        yield f"{place} must begin with http://, https:// or a single /, and have no space or backslash."


def _text_faults(place: str, text: str) -> Iterator[str]:
    if not text.strip() or not text.isprintable() or len(text) > TEXT_LIMIT:
        yield f"{place} must be one line of 1 to {TEXT_LIMIT} characters."
    if re.search("[{}]", PLACEHOLDER.sub("", text)):
        yield (
            f"{place} has a placeholder that is none such as {{data.city}}, {{data.name|Somebody}} or "
            "{data.total, number}; the formats are number, date, time and such as currency EUR."
        )
