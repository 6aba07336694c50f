"""What may stand in the settings of a kind that have rules of their own, and who tells them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kinds import Kind, KindsError, describe_kinds, load_kinds
from settings import Settings
from tests.processes import COMPLETE

ICONS = ("🚚", "✉️", "🇩🇪", "👩🏽‍🚀", "1️⃣", "☂", "/icons/truck.svg", "https://x.example/truck.png?v=2")
NO_ICONS = ("", "truck", "http://x.example/a.png", "//x.example", "/a b", "javascript:x", "🚚" * 17, "\\u202e")
SPAN = "a time from 30s to 30d such as 10m or 1d"
NO_SPANS = ("", "0s", "29s", "31d", "721h", "1w", "10", "1.5h", "010m", "-1m", "99999999d")
IS_ICON = "[a]: icon must be an emoji, or an address that begins with https:// or a single /."


def kinds_file(folder: Path, text: str) -> Path:
    path = folder / "kinds.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '[a]\nname = "Orders of {data.x}"',
            "[a]: name must be one line of 1 to 500 characters, without placeholders.",
        ),
        ('[a]\nname = ""', "[a]: name must be one line"),
        ("[a]\nname = 1", "[a]: name must be one line"),
        ('[a.names]\nde = "{id}"', "[a]: names.de must be by language, such as de or pt-BR: one line of"),
        ("[a.names]\nde = 1", "[a]: names.de must be by language"),
        ('[a.names]\ngerman = "x"', "[a]: names.german must be by language"),
        ("[a]\nicon = 1", IS_ICON),
        *((f'[a]\nemail = true\nemail_after = "{span}"', f"[a]: email_after must be {SPAN}.") for span in NO_SPANS),
        ("[a]\nemail = true\nemail_after = 600", f"[a]: email_after must be {SPAN}."),
        ('[a]\nemail_after = "10m"', "[a]: email_after is for a kind that is kept and e-mailed."),
        ('[a]\nin_app = false\nemail = true\nemail_after = "10m"', "[a]: email_after is for a kind that is kept and"),
        ('[a]\nemail = true\nemail_batch = "kind"', "[a]: email_batch needs email_after."),
        ('[a]\nemail = true\nemail_after = "1d"\nemail_batch = "user"', "[a]: email_batch must be target or kind."),
        ("[a]\ncollapse = 1", "[a]: collapse must be true or false."),
        ("[a]\nin_app = false\nemail = true\ncollapse = true", "[a]: collapse is for a kind that is kept."),
        *((f'[a]\nicon = "{icon}"', IS_ICON) for icon in NO_ICONS),
    ],
)
def test_every_fault_of_a_setting_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(KindsError) as raised:
        load_kinds(kinds_file(tmp_path, text))
    assert sentence in f"{raised.value}"


def test_the_file_is_read_once(environment: Callable[..., Settings], tmp_path: Path) -> None:
    path = kinds_file(tmp_path, "[parcel_lost]")
    settings = environment(**COMPLETE, KINDS_FILE=f"{path}")
    path.unlink()
    assert list(settings.kinds) == ["parcel_lost"]


@pytest.mark.parametrize("icon", ICONS)
def test_get_kinds_includes_names_and_icons(tmp_path: Path, icon: str) -> None:
    text = f'[a]\nname = "Shipments"\nicon = "{icon}"\n[a.names]\nde = "Sendungen"\n[b]'
    kinds = load_kinds(kinds_file(tmp_path, text))
    told = describe_kinds(kinds)["data"]
    assert told["a"] == told["b"] | {"name": "Shipments", "names": {"de": "Sendungen"}, "icon": icon}


def test_settings_call_a_kind_by_its_name_and_else_by_its_label() -> None:
    named = Kind(name="a", label="Order {data.n}", title="Shipments", titles={"de": "Sendungen"})
    assert [named.called(language) for language in ("de-AT", "fr", None)] == ["Sendungen", "Shipments", "Shipments"]
    assert Kind(name="a", label="Order {data.n|of yours}").called("de") == "Order of yours"


@pytest.mark.parametrize(("span", "seconds"), [("30s", 30), ("10m", 600), ("36h", 129_600), ("30d", 2_592_000)])
def test_mail_shows_a_window_and_what_its_email_is_about(tmp_path: Path, span: str, seconds: int) -> None:
    text = f'[a]\nemail = true\nemail_after = "{span}"\nemail_batch = "target"\ncollapse = true'
    kind = load_kinds(kinds_file(tmp_path, text))["a"]
    assert (kind.window, kind.email_batch, kind.collapse) == (seconds, "target", True)
    told = kind.describe()
    assert told == Kind(name="a", email=True).describe() | {
        "email_after": span,
        "email_batch": "target",
        "collapse": True,
    }
