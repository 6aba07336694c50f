"""The page behind a link to unsubscribe, in the language of the browser, without a script.

Showing it changes nothing, as programs follow links too. Its buttons post, and so do mail programs (RFC 8058), which
need no page. What is asked for is in the query, so that no body is read. Either way, the page shows the present state.
"""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

from aiohttp import web
from jinja2 import Environment, StrictUndefined, Template

from api.middleware import RENDER_FAILURE
from api.pages import FOLDER, NO_STORE, OWN_ORIGIN_HEADERS
from api.problems import render
from config.checks import is_address
from config.languages import accepted, translated
from kinds import Kind
from mail.unsubscribe import Links, NoSuchLink
from mongo.inbox import EVERY_KIND, Preferences, wants_email

DEFAULT_LANGUAGE: Final = "en"
HEADERS: Final = {
    **OWN_ORIGIN_HEADERS,
    **NO_STORE,
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",  # no scripts
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex",
}
CHOICES: Final = ("", "all", "undo", "undo-all")
"""What a POST may ask for, as in `?choice=all`: by default, no more e-mails of this kind."""


class View(NamedTuple):
    """What the page shows: names of texts in `web/unsubscribe.toml`, and for each button its choice and its text."""

    heading: str
    sentence: str
    buttons: Sequence[tuple[str, str]] = ()
    of_kind: bool = True


THIS: Final = ("", "unsubscribe")
ALL: Final = ("all", "all")
ASK: Final = View("ask", "on", (THIS, ALL))
SUBSCRIBED: Final = View("subscribed", "on", (THIS, ALL))
UNSUBSCRIBED: Final = View("unsubscribed", "off", (("undo", "resubscribe"), ALL))
UNSUBSCRIBED_FROM_ALL: Final = View("unsubscribed", "only_required", (("undo-all", "resubscribe"),), of_kind=False)
REQUIRED: Final = View("required", "cannot", (ALL,))
INVALID: Final = View("invalid", "reopen")
FAILED: Final = View("failed", "later")


def view_of(kind: Kind, preferences: object, *, has_chosen: bool) -> View:
    wants_this, wants_others = wants_email(preferences, kind.name), wants_email(preferences, EVERY_KIND)
    if not wants_others and (kind.required or not wants_this):
        return UNSUBSCRIBED_FROM_ALL
    if kind.required:
        return REQUIRED
    if not wants_this:
        return UNSUBSCRIBED
    return SUBSCRIBED if has_chosen else ASK


def masked(address: object) -> str:
    """Return an address that its owner recognises, `a•••@example.com`, or nothing if it is not an address."""
    text = f"{address}".strip()
    return f"{text[0]}•••@{text.rpartition('@')[2]}" if is_address(address) else ""


def _open(request: web.Request) -> tuple[str, Kind]:
    """Return the user's id and the kind of a link. Failures become pages for a browser. Raises `NoSuchLink`."""
    request[RENDER_FAILURE] = lambda exc: _failure(request, exc)
    links = request.app[LINKS]
    user_id, kind = links.open(request.match_info["token"])
    return user_id, links.settings.kinds.get(kind) or Kind(name=kind)


def _failure(request: web.Request, exc: Exception) -> web.Response:
    response = render(exc)
    if "text/html" in request.headers.get("Accept", ""):
        response.text = _page(request, INVALID if isinstance(exc, NoSuchLink) else FAILED)
        response.content_type = "text/html"
    response.headers.update(HEADERS)
    return response


def _page(request: web.Request, view: View, kind: Kind | None = None, sender: str = "", recipient: str = "") -> str:
    wanted = accepted(request.headers.get("Accept-Language", ""))
    language = next((tag for tag in wanted if translated(_texts(), tag)), DEFAULT_LANGUAGE)
    label = kind.called(language) if kind and view.of_kind else ""
    texts = translated(_texts(), language)
    return _template().render(view=view, text=texts, label=label, sender=sender, recipient=recipient)


@cache
def _texts() -> Mapping[str, Mapping[str, str]]:
    texts: Mapping[str, Mapping[str, str]] = tomllib.loads((FOLDER / "unsubscribe.toml").read_text("utf-8"))
    return {language: {**of_one, "language": language} for language, of_one in texts.items()}


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string((FOLDER / "unsubscribe.html").read_text("utf-8"))


LINKS: Final = web.AppKey("LINKS", Links)
PREFERENCES: Final = web.AppKey("PREFERENCES", Preferences)


async def show_page(request: web.Request) -> web.Response:
    user_id, kind = _open(request)
    address, preferences = await request.app[PREFERENCES].with_address(user_id)
    view = view_of(kind, preferences, has_chosen=request.method == "POST")
    text = _page(request, view, kind, request.app[LINKS].settings.smtp_from, masked(address))
    return web.Response(text=text, content_type="text/html", headers=HEADERS)


async def unsubscribe(request: web.Request) -> web.Response:
    """Unsubscribe the user whom a link is for, or undo that; show the page. Nobody logs in, and no body is read."""
    user_id, kind = _open(request)
    choice, preferences = request.query.get("choice", ""), request.app[PREFERENCES]
    if choice not in CHOICES:  # the page has no such button
        raise NoSuchLink
    concerns_all = choice.endswith("all")
    if concerns_all or not kind.required:
        of_kind = None if concerns_all else kind.name
        await preferences.choose(user_id, of_kind, wanted=choice.startswith("undo"))
    return await show_page(request)
