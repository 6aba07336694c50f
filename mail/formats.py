"""Numbers, amounts and moments in the user's language, for templates and labels. The bell writes them with `Intl`."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from babel import Locale, UnknownLocaleError, dates, numbers
from jinja2 import pass_context
from jinja2.runtime import Context

from config.languages import forms_of

NUMBER: Final = re.compile(r"-?\d{1,30}(\.\d{1,30})?")
DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d\S*)?")  # ISO 8601
DECIMALS: Final = 9  # maximum digits after the point; sums of floats have many more
LARGEST: Final = 10**19  # with `DECIMALS`, larger numbers may exceed `Decimal`'s 28 digits: they stay as they are


def write(value: Any, form: str | None, language: str | None, zone: str | None = None) -> str:
    """Format a value as a `number`, `date`, `time`, `datetime` or `currency EUR`. Anything else is written as it is.

    Moments are Unix seconds or ISO 8601. They are written in the given time zone, else in their own, else in UTC.
    Without a form, ISO 8601 is a `datetime`, and a number gets no thousands separators, as it may be an order number.
    """
    locale = _locale(language)
    if not form and isinstance(value, str) and MOMENT.fullmatch(value):
        form = "datetime"
    if form in {"date", "time", "datetime"}:
        if moment := _moment(value, form, zone, locale):
            return moment
    elif (amount := _amount(value, of_text=bool(form))) is not None:
        if form and form.startswith("currency "):
            return numbers.format_currency(amount, form[9:], locale=locale)
        rounded, grouped = round(amount, DECIMALS), bool(form)
        return numbers.format_decimal(rounded, locale=locale, decimal_quantization=False, group_separator=grouped)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def filters(language: Callable[[], str | None]) -> dict[str, Any]:
    """Return the filters `number`, `currency("EUR")`, `date` and `time`; the last two may be given a time zone."""

    def filter_of(form: str) -> Any:
        @pass_context  # or Jinja would format a constant only once, in the language of the first user
        def filter_(_: Context, value: Any, option: object = None) -> str:
            if not value and value != 0:
                return ""
            if form == "currency":
                return write(value, f"currency {option}", language())
            return write(value, form, language(), option if isinstance(option, str) else None)

        return filter_

    return {form: filter_of(form) for form in ("number", "currency", "date", "time")}


@lru_cache(64)
def _locale(language: str | None) -> Locale:
    for tag in forms_of(language):
        with suppress(ValueError, UnknownLocaleError):
            return Locale.parse(tag, sep="-")
    return Locale("en")


def _amount(value: Any, *, of_text: bool) -> Decimal | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number or (of_text and isinstance(value, str) and NUMBER.fullmatch(value)):
        amount = Decimal(f"{value}")
        return amount if abs(amount) < LARGEST else None
    return None


def _moment(value: Any, form: str, zone: str | None, locale: Locale) -> str | None:
    with suppress(TypeError, ValueError, OverflowError, OSError):
        if isinstance(value, str) and DAY.fullmatch(value):  # which is the same in every time zone
            return dates.format_date(date.fromisoformat(value), "medium", locale)
        seconds = _amount(value, of_text=False)
        moment = datetime.fromisoformat(value) if seconds is None else datetime.fromtimestamp(float(seconds), UTC)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moment = moment.astimezone(_zone(zone)) if zone else moment
        day, time = dates.format_date(moment, "medium", locale), dates.format_time(moment, "short", None, locale)
        both = f"{dates.get_datetime_format('medium', locale=locale)}".replace("'", "")
        return {"date": day, "time": time}.get(form) or both.format(time, day)
    return None


def _zone(name: str) -> tzinfo:
    with suppress(LookupError, ValueError, OSError):  # it may come from the user's document
        return dates.get_timezone(name)
    return UTC
