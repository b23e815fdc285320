"""Errors as HTTP answers: OpenAI's object below /v1, but for Anthropic's routes there; TGI's
everywhere else."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from multilora_gateway.errors import (
    GatewayError,
    anthropic_body,
    openai_body,
    openai_status,
    tgi_body,
)
from multilora_gateway.http.access import guessed_for
from multilora_gateway.http.streaming import ClientGone

_ANTHROPIC = "/v1/messages"


def error_answer(path: str, error: GatewayError) -> Response:
    """The answer to a request for `path`."""
    if not path.startswith("/v1/"):
        return JSONResponse(tgi_body(error), error.status, headers=error.headers)
    anthropic = path == _ANTHROPIC or path.startswith(f"{_ANTHROPIC}/")
    body = anthropic_body(error) if anthropic else openai_body(error)
    return JSONResponse(body, openai_status(error), headers=error.headers)


def add_handlers(app: FastAPI) -> None:
    """Make an answer of every error that a route raises."""
    app.add_exception_handler(GatewayError, _gateway)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientGone, _gone)


async def _gateway(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return error_answer(request.url.path, error.guessing(guessed_for(request, error.similar)))


async def _unreadable(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        wrong = GatewayError(400, "validation", f"the body is not JSON ({reason}); correct it")
        return error_answer(request.url.path, wrong)
    path = [str(part) for part in first["loc"] if part != "body"]
    where = ".".join(path) or "the body"
    problem = (
        "is not known here; leave it out" if first["type"] == "extra_forbidden" else first["msg"]
    )
    wrong = GatewayError(422, "validation", f"`{where}`: {problem}", param=where)
    return error_answer(request.url.path, wrong)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "not_found" if error.status_code == 404 else "validation"
    message = f"{request.method} {request.url.path}: {error.detail}"
    answer = GatewayError(error.status_code, kind, message, headers=error.headers)
    return error_answer(request.url.path, answer)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # no client reads the answer; proxies log this status
