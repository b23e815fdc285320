"""GET /info: what this server is."""

from typing import Any

from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.settings import Settings

VERSION = "3.3.6"  # of TGI, whose API this is: clients look at it
VALIDATION_WORKERS = 1


def info(base: BaseModel, settings: Settings) -> dict[str, Any]:
    """TGI's object."""
    return {
        "model_id": settings.served_model_name or base.model_id,
        "model_sha": base.model_sha,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": base.max_concurrent_requests,
        "max_best_of": settings.max_best_of,
        "max_stop_sequences": settings.max_stop_sequences,
        "max_input_tokens": base.max_input_tokens,
        "max_total_tokens": base.max_total_tokens,
        "validation_workers": VALIDATION_WORKERS,
        "max_client_batch_size": base.max_concurrent_requests,
        "router": "multilora-gateway",
        "version": VERSION,
        "sha": None,
        "docker_label": None,
    }
