"""The routes of an operator: health, metrics, and the page."""

import asyncio
import importlib.metadata
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from multilora_gateway.errors import RETRY_SECONDS, GatewayError

router = APIRouter()
_DISTRIBUTION = "multilora-triton"
PAGE = Path(__file__).parents[1] / "page"
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class _PageFiles(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_POLICY)
        return response


def page_files() -> StaticFiles:
    """The files of the page."""
    return _PageFiles(directory=PAGE, check_dir=False)


@router.head("/", include_in_schema=False)
@router.get("/", response_class=Response)
async def root(request: Request) -> Response:
    """The page for a browser; for everybody else the same as /health, as in TGI."""
    if "text/html" in request.headers.get("accept", ""):
        return FileResponse(PAGE / "index.html", headers=_POLICY)
    return await health(request)


@router.head("/ping", include_in_schema=False)
@router.get("/ping", response_class=Response)
@router.head("/health", include_in_schema=False)
@router.get("/health", response_class=Response)
async def health(request: Request) -> Response:
    """200 when a request would be taken now, else 503."""
    if not await request.app.state.gateway.backend.is_ready():
        headers = {"Retry-After": str(RETRY_SECONDS)}
        raise GatewayError(503, "healthcheck", "unhealthy", headers=headers)
    return Response()


@router.get("/version")
async def version() -> dict[str, str]:
    """Of this software, in vLLM's shape."""
    return {"version": importlib.metadata.version(_DISTRIBUTION)}


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The metrics of the Triton server and the gateway's own, for Prometheus."""
    text = await asyncio.shield(request.app.state.gateway.metrics.text())
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
