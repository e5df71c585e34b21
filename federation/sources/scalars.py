"""What an unquoted word of YAML means: null, a truth value, a number, or text.

As Kubernetes' own reader has it, except that times and base-60 numbers stay text, which is what their writers meant.
"""

import re

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,99})")
_BASED = re.compile(r"[-+]?0(?:x[0-9a-fA-F]{1,99}|o?[0-7]{1,99})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,99}(?:\.[0-9]{0,99})?|\.[0-9]{1,99})(?:[eE][-+]?[0-9]{1,9})?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def read_plain(text: str) -> bool | int | float | str | None:
    """Returns the value of an unquoted scalar."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return _based(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _based(text: str) -> int:
    """Reads 0x1f, 0o17 and the older 017."""
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")[1:].lower()
    if digits.startswith("x"):
        return sign * int(digits[1:], 16)
    return sign * int(digits.removeprefix("o"), 8)
