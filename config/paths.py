"""Paths into documents, such as `emails.0.address` in a setting and `data.city` in a label."""

from __future__ import annotations

from collections.abc import Mapping


def value_at(document: object, path: str) -> object:
    """Return the value at a path through documents and arrays, or `None`."""
    for name in path.split("."):
        if isinstance(document, Mapping):
            document = document.get(name)
        elif isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document
