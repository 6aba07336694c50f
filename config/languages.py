"""Language tags (RFC 5646), and the texts that fit one best (RFC 4647)."""

import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

LANGUAGE: Final = re.compile("[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8}){0,5}")  # no language has a longer first part
TRADITIONAL: Final = dict.fromkeys(("zh-tw", "zh-hk", "zh-mo"), "zh-hant")  # Unicode CLDR, likely subtags
WEIGHT: Final = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)  # RFC 9110, section 12.4.2


def tag_of(language: str | None) -> str | None:
    """Return the language of a user's document as a tag, `de-AT` for `de_AT`, or `None` if it is not a language."""
    tag = (language or "").replace("_", "-")
    return tag if LANGUAGE.fullmatch(tag) else None


def forms_of(language: str | None) -> Sequence[str]:
    """Return the language, then each more general one, in lower case: `de-at`, `de` (RFC 4647, section 3.4)."""
    parts = (tag_of(language) or "").lower().split("-")
    forms = ["-".join(parts[:n]) for n in range(len(parts), 0, -1) if parts[0]]
    return [name for form in forms for name in (form, TRADITIONAL.get(form)) if name]


def translated(texts: Mapping[str, T], language: str | None) -> T | None:
    """Return the text in the language, or in a more general one. The case of tags makes no difference."""
    known = {tag.lower(): text for tag, text in texts.items()}
    return next((known[tag] for tag in forms_of(language) if tag in known), None)


def accepted(header: str) -> Sequence[str]:
    """Return the languages of an `Accept-Language`, the most wanted first. Anything else in it is ignored."""
    weights = {}
    for part in header.split(","):
        tag, _, parameter = (piece.strip() for piece in part.partition(";"))
        weight = WEIGHT.fullmatch(parameter or "q=1")
        if LANGUAGE.fullmatch(tag) and weight and float(weight[1]) > 0:
            weights[tag] = float(weight[1])
    return sorted(weights, key=lambda tag: -weights[tag])
