"""Links to unsubscribe, as tests get them: settings that make them, and the path of a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from mail.unsubscribe import Links
from settings import Settings
from tests.client import ROOT, USER

SHOP: Final = ROOT / "examples/kinds.toml"
LINKED: Final[dict[str, Any]] = {
    "kinds_file": SHOP,
    "public_url": "https://shop.example/notifications/",
    "unsubscribe_secrets": ("u" * 32,),
}
"""Settings of a service whose e-mails have links. Its kind `order_shipped` is not required, `new_login` is."""
BROWSER: Final = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def link_path(settings: Settings, kind: str = "order_shipped", user_id: str = USER) -> str:
    """Return the path of the link of an e-mail from before its kind was required, as the service sees it."""
    url = Links(replace(settings, kinds_file=None)).url(user_id, kind)
    assert url
    return "/u/" + urlsplit(url).path.rpartition("/")[2]
