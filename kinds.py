"""The kinds of notification: what the service does with each, and what the bell says of it.

`KINDS_FILE` is a TOML file with a table for each kind. Without it there are the four kinds of the specification.
"""

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from config.checks import value_at
from config.languages import LANGUAGE, translated

NAME: Final = re.compile("[a-z][a-z0-9_]{0,63}")
PLACEHOLDER: Final = re.compile(
    r"\{(id|key|timestamp|user_id|target_id|data(?:\.[^{}.,|]+)+)"
    r"(?:, *(number|date|time|currency [A-Z]{3}))?(?:\|([^{}|]*))?\}"
)
"""A field of the notification, its format, and what replaces a missing field: `{data.total, number|none}`."""
ADDRESS: Final = re.compile(r"https?://[^\s\\]+|/(?!/)[^\s\\]*")
r"""An http or https address, or a path on the page's own origin. Browsers read `\` as `/`."""
ICON: Final = re.compile(r"https://[^\s\\]+|/(?!/)[^\s\\]*|[0-9#*]?[^\w\s\x00-\xa8\u2028-\u202f\u2066-\u2069]{1,16}")
"""An address as above, or an emoji, which may consist of several symbols."""
SPAN: Final = re.compile("([1-9][0-9]{0,6})([smhd])")
SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TEXT_LIMIT: Final = 500  # characters of a text in the file
VALUE_LIMIT: Final = 200  # characters of a notification's field that a label shows
STRING: Final[Mapping[str, object]] = {"type": "string"}

Write = Callable[[object, str | None, str | None], str]  # formats a value, as `mail.formats.write` does


class KindsError(Exception):
    """The file cannot be used. The message has a line for each fault."""


class Rule(NamedTuple):
    """What the value of a setting must be, in words and in JSON Schema: one value, or one for each language."""

    words: str
    holds: Callable[[Any], object]
    schema: Mapping[str, object] = STRING
    by_language: bool = False

    def wrong(self, value: object) -> Sequence[str]:
        """Return where the value is something else: `""`, or languages such as `".de"`."""
        if self.by_language and isinstance(value, dict):
            return [f".{tag}" for tag, text in value.items() if not LANGUAGE.fullmatch(tag) or not self.holds(text)]
        return [] if self.holds(value) and not self.by_language else [""]


def _one_of(*values: str) -> Rule:
    return Rule(f"{', '.join(values[:-1])} or {values[-1]}", values.__contains__, {"enum": [*values]})


def _by_language(rule: Rule) -> Rule:
    words = f"by language, such as de or pt-BR: {rule.words}"
    return Rule(words, rule.holds, {"type": "object", "additionalProperties": rule.schema}, by_language=True)


def seconds(span: object) -> float:
    """Return the seconds of a span such as `10m`, or infinity for anything else."""
    match = SPAN.fullmatch(f"{span}")
    return int(match[1]) * SECONDS[match[2]] if match else math.inf


def _is_line(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip()) and text.isprintable() and len(text) <= TEXT_LIMIT


def _is_label(text: object) -> bool:
    return _is_line(text) and not re.search("[{}]", PLACEHOLDER.sub("", f"{text}"))


LINE: Final = f"one line of 1 to {TEXT_LIMIT} characters"
SWITCH: Final = Rule("true or false", lambda value: isinstance(value, bool), {"type": "boolean"})
AFTER: Final = Rule("a time from 30s to 30d such as 10m or 1d", lambda span: 30 <= seconds(span) <= 30 * 86_400)
LABEL: Final = Rule(
    f"{LINE}, with placeholders like {{data.city}}, {{data.name|Somebody}} and {{data.total, number}}; "
    "the formats are number, date, time and such as currency EUR",
    _is_label,
)
URL: Final = Rule(
    "an address that begins with http://, https:// or a single /, with placeholders as in a label",
    lambda text: _is_label(text) and ADDRESS.fullmatch(text),
)
TITLE: Final = Rule(f"{LINE}, without placeholders", lambda text: _is_line(text) and not re.search("[{}]", text))
IMAGE: Final = Rule(
    "an emoji, or an address that begins with https:// or a single /",
    lambda text: isinstance(text, str) and len(text) <= TEXT_LIMIT and ICON.fullmatch(text),  # it may have joiners
)
EXAMPLE: Final = Rule("a table", lambda value: isinstance(value, dict), {"type": "object"})


def _setting(rule: Rule, description: str, default: Any = None, name: str | None = None) -> Any:
    schema = {**rule.schema, "description": description}
    return field(default=default, metadata={"rule": rule, "schema": schema, "name": name})


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A table of the file, whose key is `name`. Each other field is a setting; the file calls `title` a `name`."""

    name: str
    in_app: bool = _setting(SWITCH, "Whether it is kept for `/list`.", default=True)
    email: bool = _setting(SWITCH, "Whether it is e-mailed.", default=False)
    required: bool = _setting(SWITCH, "Whether the user cannot opt out.", default=False)
    priority: str | None = _setting(_one_of("high", "normal", "low"), "Which e-mails go first.")
    email_after: str | None = _setting(AFTER, "How long an e-mail waits, such as `10m`.")
    email_batch: str | None = _setting(_one_of("target", "kind"), "What one e-mail is about.")
    collapse: bool = _setting(SWITCH, "A new one replaces the unread one of its target.", default=False)
    label: str | None = _setting(LABEL, "What the bell says, with placeholders.")
    url: str | None = _setting(URL, "Where a click leads, with placeholders.")
    labels: Mapping[str, str] | None = _setting(_by_language(LABEL), "Labels by language.")
    title: str | None = _setting(TITLE, "What settings call it.", name="name")
    titles: Mapping[str, str] | None = _setting(_by_language(TITLE), "Names by language.", name="names")
    icon: str | None = _setting(IMAGE, "An emoji, an https address, or a path.")
    example: Mapping[str, Any] | None = _setting(EXAMPLE, "`data` to try it with.")

    @property
    def rank(self) -> str:
        return self.priority or ("high" if self.required else "normal")

    @cached_property
    def window(self) -> float | None:
        return seconds(self.email_after) if self.email_after else None

    def describe(self) -> dict[str, Any]:
        """Return its entry in `GET /kinds`: `TOLD`, and any other setting that is not the default."""
        values = {setting: getattr(self, f.name) for setting, f in SETTINGS.items()}
        return {name: value for name, value in values.items() if name in TOLD or value != SETTINGS[name].default}

    def say(self, language: str | None, notification: Mapping[str, Any], write: Write) -> str:
        """Return the label in a language, filled in from a notification; "…" stands for a missing field."""

        def fill(placeholder: re.Match[str]) -> str:
            path, form, fallback = placeholder.groups()
            value = value_at(notification, path)
            if value is None or value == "":
                return "…" if fallback is None else str(fallback)
            return write(value, form or ("datetime" if path == "timestamp" else None), language)[:VALUE_LIMIT]

        label = translated(self.labels or {}, language) or self.label or self.name.replace("_", " ").capitalize()
        return PLACEHOLDER.sub(fill, label)

    def called(self, language: str | None) -> str:
        """Return what settings and the page to unsubscribe call the kind: its title, or else its label."""
        return translated(self.titles or {}, language) or self.title or self.say(language, {}, lambda *_: "")

    def faults(self) -> list[str]:
        rules = {
            "needs a channel: in_app or email must be true": self.in_app or self.email,
            "email_after is for a kind that is kept and e-mailed": not self.email_after or (self.in_app and self.email),
            "email_batch needs email_after": not self.email_batch or self.email_after,
            "collapse is for a kind that is kept": not self.collapse or self.in_app,
        }
        return [rule for rule, holds in rules.items() if not holds]


SETTINGS: Final = {f.metadata["name"] or f.name: f for f in fields(Kind) if f.metadata}  # by their name in the file
TOLD: Final = frozenset({"in_app", "email", "required"})  # what `GET /kinds` always has

Kinds = Mapping[str, Kind]

SPECIFIED: Final[Kinds] = {
    "registration": Kind(name="registration", in_app=False, email=True, required=True),
    "new_message": Kind(name="new_message"),
    "new_post": Kind(name="new_post"),
    "new_login": Kind(name="new_login", email=True, required=True),
}


def load_kinds(path: Path | None) -> Kinds:
    """Return the kinds of a file, or those of the specification. Raises `KindsError`."""
    if path is None:
        return SPECIFIED
    try:
        tables = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as exc:  # a UnicodeDecodeError or a TOMLDecodeError
        raise KindsError(f"Cannot be read as TOML: {path}: {getattr(exc, 'strerror', None) or exc}.") from None
    faults = [] if tables else ["Has no kinds."]
    kinds = {name: _load(name, table, faults) for name, table in tables.items()}
    if faults:
        raise KindsError("\n".join(faults))
    return kinds


def _load(name: str, table: object, faults: list[str]) -> Kind:
    if not NAME.fullmatch(name) or not isinstance(table, dict):
        faults.append(f"[{name}]: must be a table, named with 1 to 64 small letters, digits and _, the first a letter.")
    values = {}
    for setting, value in table.items() if isinstance(table, dict) else ():
        if setting not in SETTINGS:
            faults.append(f"[{name}]: there is no setting {setting!r}; the settings are {', '.join(SETTINGS)}.")
            continue
        rule = SETTINGS[setting].metadata["rule"]
        if wrong := rule.wrong(value):
            faults += [f"[{name}]: {setting}{where} must be {rule.words}." for where in wrong]
        else:
            values[SETTINGS[setting].name] = value
    kind = Kind(name=name, **values)
    faults += [f"[{name}]: {fault}." for fault in kind.faults()]
    return kind


def describe_kinds(kinds: Kinds) -> Mapping[str, Any]:
    return {"success": True, "data": {name: kind.describe() for name, kind in kinds.items()}}
