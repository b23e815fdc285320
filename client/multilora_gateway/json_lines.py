"""Log lines as TGI writes them with --json-output: one JSON object a line."""

import json
import logging
import time

_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}  # where TGI's names differ


def json_line(
    level: str, target: str, message: str, created: float | None = None, **fields: str
) -> str:
    """`level` is one of logging's names; `created` is in seconds since 1970, None for now."""
    seconds, micros = divmod(round((time.time() if created is None else created) * 1e6), 10**6)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    line = {
        "timestamp": f"{moment}.{micros:06d}Z",
        "level": _LEVELS.get(level, level),
        "fields": {"message": message, **fields},
        "target": target,
    }
    return json.dumps(line, ensure_ascii=False)


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, str] = {}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        message = record.getMessage()
        return json_line(record.levelname, record.name, message, record.created, **fields)
