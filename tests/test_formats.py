"""Numbers, amounts and moments in a user's language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mail.formats import write
from tests import templates

SECONDS = 1795406836


@pytest.mark.parametrize(
    ("value", "form", "language", "written"),
    [
        (1234567.5, "number", "de-AT", "1.234.567,5"),
        (1234567.5, "number", "hi_IN", "12,34,567.5"),
        ("1234.5", "number", "fr", "1\u202f234,5"),
        (1027.0, None, "de", "1027"),
        (1027.5, None, "de", "1027,5"),
        ("1027", None, "de", "1027"),
        (0.1 + 0.2, "number", "en", "0.3"),
        (2**62, "number", "en", "4,611,686,018,427,387,904"),
        (1e300, "number", "en", "1e+300"),
        ("9" * 30, "number", "en", "9" * 30),
        (12.5, "currency EUR", "de", "12,50\xa0€"),
        (12.5, "currency JPY", "ja", "￥12"),
        (12.5, "currency <b>", "en", "<b>12.50"),
        (SECONDS, "date", "de", "23.11.2026"),
        (SECONDS, "time", "en", "4:07\u202fAM"),
        (SECONDS, "datetime", "de", "23.11.2026, 04:07"),
        ("2026-03-09", "time", "de", "09.03.2026"),
        ("2026-03-09", None, "en", "Mar 9, 2026"),
        ("2026-03-09T23:30:00+02:00", None, "de", "09.03.2026, 23:30"),
        ("2026-03-09T23:30", "time", "de", "23:30"),
        ("2026-99-09", "date", "de", "2026-99-09"),
        (1e17, "date", "de", "1e+17"),
        (True, "number", "de", "true"),
        ("soon", "date", "de", "soon"),
        ({"a": [1, "é"]}, "number", "de", '{"a":[1,"é"]}'),
        (1234.5, "number", "xx-YY", "1,234.5"),
        (1234.5, "number", None, "1,234.5"),
    ],
)
def test_a_value_is_written_in_the_language(value: Any, form: str | None, language: str | None, written: str) -> None:
    assert write(value, form, language) == written


@pytest.mark.parametrize(
    ("zone", "time"), [("Europe/Oslo", "05:07"), ("Nowhere/At_All", "04:07"), ("../../etc", "04:07")]
)
def test_a_moment_is_shown_in_a_time_zone(zone: str, time: str) -> None:
    assert write(SECONDS, "time", "de", zone) == time


def test_templates_have_the_formats_as_filters(tmp_path: Path) -> None:
    text = (
        '{{ data.n|number }} {{ data.n|currency("EUR") }} {{ timestamp|date }} {{ timestamp|time(data.zone) }}'
        "[{{ data.x|number }}{{ data.x|date }}{{ data.gap|currency(data.code) }}]{{ 0|number }} {{ 1234.5|number }}"
    )
    macro = "{% macro total(n) %}{{ n|number }}{% endmacro %}"
    imported = "{% import '_m.txt' as m %} {{ m.total(data.n) }}"
    folder = templates.write(tmp_path, {"new_login.txt": text + imported, "_m.txt": macro})
    rendered = templates.Rendered(folder)
    about = {"key": "new_login", "timestamp": SECONDS, "data": {"n": 1234.5, "gap": None, "zone": "Europe/Oslo"}}
    assert rendered.render(about, "de").text == "1.234,5 1.234,50\xa0€ 23.11.2026 05:07[]0 1.234,5 1.234,5"
    # Neither a constant nor a macro keeps the language of the first user.
    assert rendered.render(about, "en").text == "1,234.5 €1,234.50 Nov 23, 2026 5:07\u202fAM[]0 1,234.5 1,234.5"
