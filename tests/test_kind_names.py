"""`name` and `icon` of a kind: what may stand there, and who tells them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.kinds import Kind, KindsError, describe_kinds, load_kinds

ICONS = ("🚚", "✉️", "🇩🇪", "👩🏽‍🚀", "1️⃣", "☂", "/icons/truck.svg", "https://x.example/truck.png?v=2")
NO_ICONS = ("", "truck", "http://x.example/a.png", "//x.example", "/a b", "javascript:x", "🚚" * 17, "\\u202e")
IS_ICON = "[a]: icon must be an emoji, or an address that begins with https:// or a single /."


def kinds_file(folder: Path, text: str) -> Path:
    path = folder / "kinds.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[a]\nname = "Orders of {data.x}"', "[a]: name must not have a placeholder"),
        ('[a]\nname = ""', "[a]: name must be one line"),
        ("[a]\nname = 1", "[a]: name must be a text."),
        ('[a.names]\nde = "{id}"', "[a.names]: de must not have a placeholder"),
        ("[a.names]\nde = 1", "[a.names]: de must be a text."),
        ('[a.names]\ngerman = "x"', "[a.names]: 'german' is not a language"),
        ("[a]\nicon = 1", "[a]: icon must be a text."),
        *((f'[a]\nicon = "{icon}"', IS_ICON) for icon in NO_ICONS),
    ],
)
def test_faults_of_names_and_icons_are_told(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(KindsError) as raised:
        load_kinds(kinds_file(tmp_path, text))
    assert sentence in f"{raised.value}"


@pytest.mark.parametrize("icon", ICONS)
def test_a_name_and_an_icon_are_told(tmp_path: Path, icon: str) -> None:
    text = f'[a]\nname = "Shipments"\nicon = "{icon}"\n[a.names]\nde = "Sendungen"\n[b]'
    kinds = load_kinds(kinds_file(tmp_path, text))
    told = describe_kinds(kinds)["data"]
    assert told["a"] == told["b"] | {"name": "Shipments", "names": {"de": "Sendungen"}, "icon": icon}


def test_settings_call_a_kind_by_its_name_and_else_by_its_label() -> None:
    named = Kind(name="a", label="Order {data.n}", title="Shipments", titles={"de": "Sendungen"})
    assert [named.called(language) for language in ("de-AT", "fr", None)] == ["Sendungen", "Shipments", "Shipments"]
    assert Kind(name="a", label="Order {data.n|of yours}").called("de") == "Order of yours"
