"""What a request for generation is served with."""

import time
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.http.access import Caller, inference
from multilora_gateway.settings import Settings
from multilora_text.renderer import TemplateRenderer


@dataclass(frozen=True)
class RequestContext:
    """Where a request arrived, and who sent it.

    `arrived` is of time.perf_counter() and taken once, when the body has been read: the times that
    answers report leave out how long a client takes to send its request.
    """

    backend: Backend
    renderer: TemplateRenderer
    settings: Settings
    caller: Caller
    arrived: float = field(default_factory=time.perf_counter)

    async def admitted(self) -> ServedModel:
        """The base model. GatewayError 429 where the engine would refuse one request more, which
        costs nothing when it is known before the prompt is rendered and encoded."""
        base = await self.backend.base()
        if self.backend.generating >= base.max_concurrent_requests:
            raise self.backend.refusal()
        return base


async def _request_context(
    request: Request, caller: Annotated[Caller, Depends(inference)]
) -> RequestContext:
    gateway: Any = request.app.state.gateway
    return RequestContext(gateway.backend, gateway.renderer, gateway.settings, caller)


Context = Annotated[RequestContext, Depends(_request_context)]
