"""Events as the world outside gets them: CloudEvents 1.0 in JSON, signed as Standard Webhooks has it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import math
from datetime import UTC, datetime
from typing import Any, Final

from server.watch.triggers import Event

TYPE: Final = "kairos.trigger.raised"
CONTENT_TYPE: Final = "application/cloudevents+json; charset=UTF-8"
_PREFIX: Final = "whsec_"


def cloud_event(event: Event, source: str) -> dict[str, Any]:
    """The event in structured mode. `source` says which server it is, as a URI reference."""
    data = {
        "rule": event.rule, "model": event.model, "version": str(event.version), "episode": event.episode,
        "signal": event.signal, "value": event.value, "threshold": _number(event.threshold),
        "samples": event.samples, "p_value": _number(event.p_value),
    }  # fmt: skip
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": TYPE,
        "subject": f"{event.model}/{event.version}",
        "time": datetime.fromtimestamp(event.at, UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }


def as_text(event: Event, source: str) -> str:
    """The same as one line of JSON."""
    return json.dumps(cloud_event(event, source), ensure_ascii=False, allow_nan=False)


def signature_headers(secret: str, id_: str, at: int, body: bytes) -> dict[str, str]:
    """Headers by which a receiver knows that the body is ours and not an old one. `at`: seconds since 1970."""
    digest = hmac.new(key_of(secret), f"{id_}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id_,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def key_of(secret: str) -> bytes:
    """The bytes of a secret: those that `whsec_` is followed by in base64, else the text itself. Raises ValueError."""
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a secret that begins with {_PREFIX} goes on in base64") from error


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
