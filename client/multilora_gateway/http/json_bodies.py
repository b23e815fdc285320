"""Bodies are JSON and say so.

A web page may send any other body to any server without asking first, and so act there for whoever
looks at the page; for application/json its browser asks (CORS).
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from multilora_gateway.errors import GatewayError
from multilora_gateway.http.error_answers import error_answer

_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
_CHARSETS = ("utf-8", "utf8", "us-ascii")


class JsonBodies:
    """ASGI middleware: 415 for a body that is not declared as JSON in UTF-8."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _WITHOUT_BODY:
            headers = dict(scope["headers"])
            has_body = headers.get(b"content-length", b"0").strip(b"0")
            if has_body or b"transfer-encoding" in headers:
                types = [value for name, value in scope["headers"] if name == b"content-type"]
                encoding = headers.get(b"content-encoding", b"identity")
                if error := _refusal(types, encoding.decode("latin-1")):
                    return await error_answer(scope["path"], error)(scope, receive, send)
        await self._app(scope, receive, send)


def _refusal(types: list[bytes], encoding: str) -> GatewayError | None:
    media, *parameters = b", ".join(types).decode("latin-1").lower().split(";")
    media = media.strip()
    if media != "application/json" and not (
        media.startswith("application/") and media.endswith("+json")
    ):
        given = f"is {media[:100]}" if media else "is not given"
        return _unsupported(
            f"the Content-Type {given}; send JSON with -H 'Content-Type: application/json'"
        )
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in _CHARSETS:
            return _unsupported(f"the charset is {value.strip()[:100]}; send UTF-8")
    if encoding.strip().lower() != "identity":
        return _unsupported(f"the Content-Encoding is {encoding[:100]}; send the body plainly")
    return None


def _unsupported(message: str) -> GatewayError:
    return GatewayError(415, "validation", message)
