"""How templates and labels write numbers, amounts and moments in a user's language, by the rules of Unicode's CLDR.

The bell writes the same with the browser's `Intl`.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from babel import Locale, UnknownLocaleError, dates, numbers
from jinja2 import pass_context
from jinja2.runtime import Context

from ops.languages import forms_of

NUMBER: Final = re.compile(r"-?\d{1,30}(\.\d{1,30})?")
LARGEST: Final = 10**19
"""Above the numbers of BSON and JSON that are exact. With `DECIMALS` it has the 28 digits of Python's decimals."""
DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d\S*")
"""ISO 8601."""
DECIMALS: Final = 9
"""Digits after the point at the most: sums of floats have many more."""


def write(value: Any, form: str | None, language: str | None, zone: str | None = None) -> str:
    """Return a value as a label shows it: as a `number`, `date`, `time`, `datetime`, or `currency EUR`.

    Moments are Unix seconds or ISO 8601, shown in the time zone, else in their own, else in UTC. Without a form, a
    moment in ISO 8601 is shown as one, and a number without thousands separators, as it may be an order's. What has
    not the form is shown as it is.
    """
    locale, form = _locale(language), form or ("datetime" if isinstance(value, str) and _is_moment(value) else "")
    if form in {"date", "time", "datetime"}:
        if isinstance(moment := _moment(value, zone), date):
            return _write_moment(moment, form, locale)
    elif (amount := _amount(value, strict=not form)) is not None:
        if form.startswith("currency "):
            return numbers.format_currency(amount, form[9:], locale=locale)
        return numbers.format_decimal(
            round(amount, DECIMALS), locale=locale, decimal_quantization=False, group_separator=bool(form)
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Filters:
    """The formats as filters of templates, in the language of the e-mail that is being rendered."""

    def __init__(self) -> None:
        self.language: str | None = None

    # `pass_context` keeps Jinja from evaluating a constant once, in the language of whoever comes first.

    @pass_context
    def number(self, _: Context, value: Any) -> str:
        """Write `1,027.5`."""
        return self._write(value, "number")

    @pass_context
    def currency(self, _: Context, value: Any, code: object) -> str:
        """Write an amount of a currency (ISO 4217): `€1,027.50`."""
        return self._write(value, f"currency {code}")

    @pass_context
    def date(self, _: Context, value: Any, zone: object = None) -> str:
        """Write `Mar 9, 2026`."""
        return self._write(value, "date", zone)

    @pass_context
    def time(self, _: Context, value: Any, zone: object = None) -> str:
        """Write `11:30 PM`."""
        return self._write(value, "time", zone)

    def _write(self, value: Any, form: str, zone: object = None) -> str:
        is_missing = not value and value != 0
        return "" if is_missing else write(value, form, self.language, zone if isinstance(zone, str) else None)


@lru_cache(64)
def _locale(language: str | None) -> Locale:
    for tag in forms_of(language):
        with suppress(ValueError, UnknownLocaleError):
            return Locale.parse(tag, sep="-")
    return Locale("en")


def _is_moment(text: str) -> bool:
    return bool(DAY.fullmatch(text) or MOMENT.fullmatch(text))


def _amount(value: Any, *, strict: bool) -> Decimal | None:
    """Return a number as a decimal; unless `strict`, also of a text. `None` for what has no or too many digits."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number or (not strict and isinstance(value, str) and NUMBER.fullmatch(value)):
        amount = Decimal(f"{value}")
        return amount if abs(amount) < LARGEST else None
    return None


def _moment(value: Any, zone: str | None) -> date | None:
    """Return a day, or a moment with a time zone; `None` for what is neither."""
    with suppress(TypeError, ValueError, OverflowError, OSError):
        if isinstance(value, str) and DAY.fullmatch(value):
            return date.fromisoformat(value)  # the same day everywhere
        number = _amount(value, strict=True)
        moment = datetime.fromtimestamp(float(number), UTC) if number is not None else datetime.fromisoformat(value)
        own = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return own.astimezone(_zone(zone)) if zone else own
    return None


def _zone(name: str) -> tzinfo:
    with suppress(LookupError, ValueError, OSError):  # it may be anything that a user's document has
        return dates.get_timezone(name)
    return UTC


def _write_moment(moment: date, form: str, locale: Locale) -> str:
    day = dates.format_date(moment, "medium", locale)
    if form == "date" or not isinstance(moment, datetime):
        return day
    time = dates.format_time(moment, "short", moment.tzinfo, locale)
    both = f"{dates.get_datetime_format('medium', locale=locale)}".replace("'", "")
    return time if form == "time" else both.format(time, day)
