"""The ASGI application: routes, middleware, error answers, and the state that routes share."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from multilora_gateway.backend.client import Backend
from multilora_gateway.http.access import Access
from multilora_gateway.http.answer_headers import IGNORED_FIELDS, REQUEST_ID, AnswerHeaders
from multilora_gateway.http.body_limit import BodyLimit
from multilora_gateway.http.error_answers import add_handlers
from multilora_gateway.http.host_check import HostCheck
from multilora_gateway.http.json_bodies import JsonBodies
from multilora_gateway.http.last_answers import LastAnswers
from multilora_gateway.http.metrics import GatewayMetrics, MetricsMiddleware
from multilora_gateway.http.turns import Turns
from multilora_gateway.routes.adapters import router as adapter_routes
from multilora_gateway.routes.anthropic import router as anthropic_routes
from multilora_gateway.routes.health import page_files
from multilora_gateway.routes.health import router as health_routes
from multilora_gateway.routes.invocations import router as sagemaker_routes
from multilora_gateway.routes.openai import router as openai_routes
from multilora_gateway.routes.responses import router as responses_routes
from multilora_gateway.routes.tgi import router as tgi_routes
from multilora_gateway.routes.tokens import router as token_routes
from multilora_gateway.settings import Settings
from multilora_text.renderer import TemplateRenderer


class Gateway:
    """What routes share, at `request.app.state.gateway`. Make a Gateway inside the event loop."""

    def __init__(self, settings: Settings, access: Access, metrics: GatewayMetrics) -> None:
        self.settings = settings
        self.access = access
        self.metrics = metrics
        self.backend = Backend(settings.triton_url, settings.admin_key)
        self.renderer = TemplateRenderer()

    async def close(self) -> None:
        await self.backend.close()
        await asyncio.to_thread(self.renderer.close)


def create_app(
    settings: Settings, allowed_hosts: Sequence[str], metrics: GatewayMetrics
) -> FastAPI:
    """The application, which connects to the Triton server when it starts. `allowed_hosts` holds
    patterns of names by which requests may call it."""
    access = Access(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.gateway = Gateway(settings, access, metrics)
        yield
        await app.state.gateway.close()

    app = FastAPI(title="Multi-LoRA gateway", lifespan=lifespan, docs_url=None, redoc_url=None)
    add_handlers(app)
    for router in (
        tgi_routes, sagemaker_routes, openai_routes, responses_routes, anthropic_routes,
        token_routes, adapter_routes, health_routes,
    ):  # fmt: skip
        app.include_router(router)
    app.mount("/page", page_files())
    app.add_middleware(JsonBodies)
    app.add_middleware(HostCheck, allowed=allowed_hosts, refused=metrics.refuse)
    app.add_middleware(BodyLimit, most=settings.payload_limit)
    if settings.cors_allow_origin:
        origins = list(settings.cors_allow_origin)
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=[REQUEST_ID, IGNORED_FIELDS],
        )  # fmt: skip
    app.add_middleware(Turns)
    app.add_middleware(LastAnswers)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_middleware(AnswerHeaders, strict=settings.strict_fields)
    return app
