"""How the processes of Isthmus log: a constant message and fields, as text for people or JSON for machines.

Code logs by the standard library: `log.info("peer synced", extra={"peer": peer, "keys": 3})`.
"""

import logging
import sys
from datetime import UTC, datetime

import msgspec

_OF_THE_LIBRARY = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""Attributes that every record has: what is left are the fields that the caller gave."""


def start_logging(form: str, level: int = logging.INFO) -> None:
    """Sends all logs of this process to standard error; `form` is "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Libraries that tell every step: what the steps led to is in our own lines.
    for chatty in ("aiohttp.access", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO federation.peering.peers peer synced peer=west keys=3`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a record, and its traceback below."""
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        line = f"{_moment(record)} {record.levelname} {record.name} {record.getMessage()}{fields}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, the fields, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a record."""
        line = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in _OF_THE_LIBRARY}


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(letter.isspace() or letter in "\"'=" for letter in text) else text
