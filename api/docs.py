"""An OpenAPI document as a page for people: HTML without scripts, which asks for nothing else and works offline."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from html import escape
from typing import Any, Final

from mongo.document import JSONObject

STYLE: Final = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 sans-serif; color: #222; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; border: 1px solid #ddd; text-align: left; vertical-align: top; }
code, pre { font: .9rem/1.4 monospace; background: #f5f5f5; overflow-wrap: anywhere; }
pre { padding: .6rem; overflow: auto; }
h2 code { font-size: 1.3rem; background: none; }
td p:first-child { margin-top: 0; }
"""
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page, which needs its own style and nothing else."""


def page(document: JSONObject) -> str:
    """Return the page of a document."""
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{title}</h1>',
        _text(document["info"]["description"]),
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>',
        *(_section(name, operation) for name, operation in operations),
        "<h2>Callers</h2>",
        *(
            _text(f"`{name}`: {scheme['description']}")
            for name, scheme in document["components"]["securitySchemes"].items()
        ),
        "<h2>Schemas</h2>",
        *(f'<h3 id="{name}">{name}</h3>{_json(schema)}' for name, schema in document["components"]["schemas"].items()),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _section(name: str, operation: JSONObject) -> str:
    parts = [
        f'<h2 id="{operation["operationId"]}"><code>{name}</code></h2>',
        f"<p><strong>{escape(operation['summary'])}.</strong></p>{_text(operation.get('description', ''))}",
        _table(("parameter", "in", "", "meaning", "schema"), map(_parameter, operation.get("parameters", ()))),
    ]
    if callers := [f"`{name}`" for caller in operation.get("security", ()) for name in caller]:
        parts.insert(2, _text(f"Authorization: Bearer {' or '.join(callers)}, where the API is not open."))
    if body := operation.get("requestBody"):
        parts.append(f"<p>Body:</p>{_content(body['content'])}")
    parts.append(_table(("status", "meaning", "answer"), map(_answer, operation["responses"].items())))
    return "\n".join(parts)


def _parameter(it: JSONObject) -> Iterable[str]:
    required = "required" if it["required"] else ""
    return f"<code>{it['name']}</code>", it["in"], required, _text(it["description"]), _schema(it["schema"])


def _answer(answer: tuple[str, JSONObject]) -> Iterable[str]:
    status, it = answer
    return status, _text(it["description"]) + _headers(it["headers"]), _content(it.get("content", {}))


def _content(content: JSONObject) -> str:
    return "".join(
        f"<code>{media_type}</code> {_schema(it['schema'])}"
        + "".join(_json(example["value"]) for example in it["examples"].values())
        for media_type, it in content.items()
    )


def _headers(headers: JSONObject) -> str:
    return "".join(_text(f"`{name}`: {it['description']}") for name, it in headers.items() if name != "X-Request-ID")


def _schema(schema: JSONObject) -> str:
    """Return a link to a named schema, or a short one itself."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return f'<a href="#{name}">{name}</a>' if name else f"<code>{escape(json.dumps(schema))}</code>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in rows]
    return f"<table><tr>{''.join(f'<th>{cell}' for cell in head)}{''.join(lines)}</table>" if lines else ""


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _text(text: str) -> str:
    """Return a paragraph, with what stands between backticks as code."""
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return f"<p>{marked}</p>" if text else ""
