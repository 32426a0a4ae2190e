"""Numbers, durations and dates as a person would write them."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def number(value: Any, digits: int = 3) -> str:
    """``digits`` significant digits, exponent only where it is shorter: 0.0123, 1,520, 3e-5."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE if value is None else str(value)
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if exponent < -3 or exponent >= 7:
        mantissa = f"{rounded / 10.0**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
        return f"{mantissa}e{exponent}".replace("-", _MINUS)
    if exponent >= digits - 1:
        return f"{value:,.0f}".replace("-", _MINUS)
    return f"{rounded:.{digits - 1 - exponent}f}".replace("-", _MINUS)


def plain(value: float) -> str:
    """A round number without trailing zeros: 20, 0.25, 5e-4."""
    text = number(value)
    if "e" in text or "." not in text:
        return text
    return text.rstrip("0").rstrip(".")


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    return f"{value:,.0f}" if isinstance(value, int | float) and math.isfinite(value) else NONE


def short_count(value: float) -> str:
    """3 significant digits with a suffix: 950, 12.3 k, 3.75 M, 3.09 B."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:.3g}"


def percent(share: float, digits: int = 0) -> str:
    """``0.85`` -> ``85 %``."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else NONE


def rate(share: float) -> str:
    """As :func:`percent`, with a decimal only where it is needed: ``95 %``, ``92.5 %``."""
    return percent(share, 0 if math.isfinite(share) and math.isclose(100 * share, round(100 * share)) else 1)


def duration(seconds: float) -> str:
    """``93`` -> ``1 min 33 s``."""
    if not math.isfinite(seconds) or seconds < 0:
        return NONE
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _moment(iso: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(iso) if isinstance(iso, str) else None
    except ValueError:
        return None


def date(iso: Any) -> str:
    """An ISO time to the minute, in the zone it was written in; anything else as it is."""
    moment = _moment(iso)
    if moment is None:
        return NONE if iso is None else str(iso)
    zone = moment.strftime("%Z")
    return moment.strftime("%Y-%m-%d %H:%M") + (f" {zone}" if zone else "")


def between(started: Any, finished: Any) -> float | None:
    """Seconds between two ISO times, or None."""
    first, last = _moment(started), _moment(finished)
    if first is None or last is None or (first.tzinfo is None) != (last.tzinfo is None):
        return None
    return (last - first).total_seconds()


def label(name: str) -> str:
    """``end_effector_position_0`` -> ``end effector position 0``."""
    return name.replace("_", " ")


def unit(symbol: str) -> str:
    """Unit as shown; the unit ``1`` is no unit."""
    return "" if symbol in ("", "1") else symbol
