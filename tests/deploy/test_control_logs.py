"""Logs are a constant message and fields, for people and for machines."""

import json
import logging

import pytest

from deploy.logs import JsonFormatter, TextFormatter


def a_record(**fields: object) -> logging.LogRecord:
    record = logging.makeLogRecord(
        {"name": "federation.peering.peers", "levelname": "INFO", "msg": "peer synced", "created": 0.5}
    )
    record.__dict__.update(fields)
    return record


def test_text_puts_the_fields_behind_the_message() -> None:
    line = TextFormatter().format(a_record(peer="west", keys=3, reason="not reached: gone"))
    assert line == (
        "1970-01-01T00:00:00.500Z INFO federation.peering.peers peer synced peer=west keys=3 reason='not reached: gone'"
    )


def test_json_is_one_object_a_line_whatever_the_fields_are() -> None:
    line = JsonFormatter().format(a_record(peer="west", address=ValueError("bad\nline")))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "info",
        "logger": "federation.peering.peers",
        "message": "peer synced",
        "peer": "west",
        "address": "bad\nline",
    }


def test_an_exception_is_shown_with_its_traceback() -> None:
    with pytest.raises(RuntimeError) as error:
        raise RuntimeError("lost")
    record = a_record(exc_info=(error.type, error.value, error.tb))
    assert "RuntimeError: lost" in TextFormatter().format(record)
    assert "RuntimeError: lost" in json.loads(JsonFormatter().format(record))["exception"]
