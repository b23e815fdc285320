"""One /metrics with the gateway's own metrics beside those of the Triton server."""

import asyncio
import time
import urllib.request
from http.client import HTTPException

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = 5.0
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy
REFUSALS = ("connections", "connections_per_client", "head_size", "head_time", "malformed", "host")
_OTHER = "other"  # label of unknown paths, which must not become series


class GatewayMetrics:
    """Counts requests by route and status, and adds the metrics of the Triton server, which are at
    `triton_url`."""

    def __init__(self, triton_url: str) -> None:
        self._triton_url = triton_url
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gateway_requests", "HTTP requests answered", ("route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "gateway_request_seconds", "Seconds from request to the end of its answer", ("route",),
            registry=self._registry, buckets=_BUCKETS,
        )  # fmt: skip
        self._open = Gauge(
            "gateway_open_requests", "HTTP requests being answered", registry=self._registry
        )
        self._refused = Counter(
            "gateway_refused", "Connections and requests refused before any route was chosen",
            ("reason",), registry=self._registry,
        )  # fmt: skip
        for reason in REFUSALS:
            self._refused.labels(reason)

    def begin(self) -> float:
        self._open.inc()
        return time.perf_counter()

    def end(self, route: str, status: int, began: float) -> None:
        self._open.dec()
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(time.perf_counter() - began)

    def refuse(self, reason: str) -> None:
        """Count a connection, or a request, that was refused for one of the REFUSALS."""
        self._refused.labels(reason).inc()

    async def text(self) -> bytes:
        """In Prometheus' text format; without the Triton server's part while the server is away."""
        own = generate_latest(self._registry)
        if not self._triton_url:
            return own
        try:
            return await asyncio.to_thread(self._fetch) + own
        except (OSError, HTTPException):  # the server may go in the middle of its answer
            return own

    def _fetch(self) -> bytes:
        with _DIRECT.open(self._triton_url, timeout=_SECONDS) as answer:
            return answer.read()


class MetricsMiddleware:
    """ASGI middleware that counts every request, and times it, the reading of its body included."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 499  # stays when nothing is sent, because the client went away

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = self._metrics.begin()
        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", _OTHER)
            self._metrics.end(route, status, began)
