"""The page behind a link to unsubscribe, in the language of the browser, without a script.

To show it changes nothing, as programs follow links too. Its buttons post, and so do mail programs (RFC 8058), which
need no page. What is asked for is in the query, so that no body is read.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from aiohttp import web
from jinja2 import Environment, StrictUndefined, Template
from marshmallow import Schema, validate
from marshmallow import fields as mf

from api.middleware import RENDER_FAILURE
from api.problems import render
from config.languages import accepted, translated
from kinds import Kind
from mail.unsubscribe import Links, NoSuchLink
from mongo.preferences import Preferences
from settings import Settings

FOLDER: Final = Path(__file__).parent.parent / "web"
DEFAULT_LANGUAGE: Final = "en"
POLICY: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"  # no scripts
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Choice(enum.Enum):
    """What a POST asks for, as in `?choice=all`. Without a choice it unsubscribes from the kind of the e-mail."""

    KIND = ""
    ALL = "all"
    UNDO = "undo"
    UNDO_ALL = "undo-all"

    @property
    def undoes(self) -> bool:
        """Whether it subscribes again."""
        return self in {Choice.UNDO, Choice.UNDO_ALL}

    @property
    def is_of_all(self) -> bool:
        """Whether it is about all e-mails that are not required."""
        return self in {Choice.ALL, Choice.UNDO_ALL}


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows: names of texts in `web/unsubscribe.toml`, and a button for each of the choices."""

    heading: str
    sentence: str | None = None
    buttons: Mapping[Choice, str] = field(default_factory=dict)
    names_kind: bool = False


KIND: Final = {Choice.KIND: "unsubscribe"}
ALL: Final = {Choice.ALL: "all"}
ASK: Final = View("ask", buttons=KIND | ALL, names_kind=True)
REQUIRED: Final = View("required", "cannot", ALL, names_kind=True)
DONE: Final = {
    Choice.KIND: View("unsubscribed", "no_more", {Choice.UNDO: "undo"} | ALL, names_kind=True),
    Choice.ALL: View("unsubscribed", "only_required", {Choice.UNDO_ALL: "undo"}),
    Choice.UNDO: View("subscribed", "again", KIND | ALL, names_kind=True),
    Choice.UNDO_ALL: View("subscribed", "all_again", KIND | ALL, names_kind=True),
}
INVALID: Final = View("invalid", "reopen")
FAILED: Final = View("failed", "later")


class LinkPath(Schema):
    """The path of a link, for its description."""

    token = mf.String(required=True, metadata={"description": "From the link in an e-mail."})


class LinkQuery(Schema):
    """The query of a POST, for its description."""

    choice = mf.String(
        validate=validate.OneOf([choice.value for choice in Choice if choice.value]),
        metadata={"description": "Without one: unsubscribe from e-mails of this kind."},
    )


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a link is about: the e-mails of a kind to a user."""

    user_id: str
    kind: Kind

    def may(self, choice: Choice) -> bool:
        """Return whether the user may choose this."""
        return choice.is_of_all or not self.kind.required


def choice_of(request: web.Request) -> Choice:
    """Return what a POST asks for. Raises `NoSuchLink`: with any other choice, the address is none of ours."""
    try:
        return Choice(request.query.get("choice", ""))
    except ValueError:
        raise NoSuchLink from None


class UnsubscribePage:
    """Opens links, and renders the page."""

    def __init__(self, settings: Settings) -> None:
        self._links = Links(settings)
        self._kinds = settings.kinds

    def open(self, request: web.Request) -> Subscription:
        """Return what the link of a request is about. Its failures become pages for a browser. Raises `NoSuchLink`."""
        request[RENDER_FAILURE] = lambda exc: self._failure(request, exc)
        user_id, kind = self._links.open(request.match_info["token"])
        return Subscription(user_id, self._kinds.get(kind) or Kind(name=kind))

    def ask(self, request: web.Request, subscription: Subscription) -> web.Response:
        """Return the page that a link leads to."""
        return self._page(request, ASK if subscription.may(Choice.KIND) else REQUIRED, subscription)

    def confirm(self, request: web.Request, subscription: Subscription, choice: Choice) -> web.Response:
        """Return the page after a choice."""
        return self._page(request, DONE[choice] if subscription.may(choice) else REQUIRED, subscription)

    def _page(self, request: web.Request, view: View, subscription: Subscription) -> web.Response:
        text = self._render(request, view, subscription)
        return web.Response(text=text, content_type="text/html", headers=HEADERS)

    def _failure(self, request: web.Request, exc: Exception) -> web.Response:
        response = render(exc)
        if "text/html" in request.headers.get("Accept", ""):
            response.text = self._render(request, INVALID if isinstance(exc, NoSuchLink) else FAILED)
            response.content_type = "text/html"
        response.headers.update(HEADERS)
        return response

    def _render(self, request: web.Request, view: View, subscription: Subscription | None = None) -> str:
        wanted = accepted(request.headers.get("Accept-Language", ""))
        language = next((tag for tag in wanted if translated(_texts(), tag)), DEFAULT_LANGUAGE)
        texts = translated(_texts(), language) or {}
        return _template().render(
            language=texts["language"],
            heading=texts[view.heading],
            label=subscription.kind.called(language) if subscription and view.names_kind else "",
            sentence=texts[view.sentence] if view.sentence else "",
            buttons=[
                (f"choice={choice.value}" if choice.value else "", texts[text]) for choice, text in view.buttons.items()
            ],
        )


@cache
def _texts() -> Mapping[str, Mapping[str, str]]:
    texts: Mapping[str, Mapping[str, str]] = tomllib.loads((FOLDER / "unsubscribe.toml").read_text("utf-8"))
    return {language: {**of_one, "language": language} for language, of_one in texts.items()}


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string((FOLDER / "unsubscribe.html").read_text("utf-8"))


PAGE: Final = web.AppKey("PAGE", UnsubscribePage)
PREFERENCES: Final = web.AppKey("PREFERENCES", Preferences)


async def show_page(request: web.Request) -> web.Response:
    """Show the page that a link leads to."""
    page = request.app[PAGE]
    return page.ask(request, page.open(request))


async def unsubscribe(request: web.Request) -> web.Response:
    """Unsubscribe the user whom a link is for, or undo that. Nobody logs in, and no body is read."""
    page, preferences = request.app[PAGE], request.app[PREFERENCES]
    subscription, choice = page.open(request), choice_of(request)
    if subscription.may(choice):
        act = preferences.resubscribe if choice.undoes else preferences.unsubscribe
        await act(subscription.user_id, None if choice.is_of_all else subscription.kind.name)
    return page.confirm(request, subscription, choice)
