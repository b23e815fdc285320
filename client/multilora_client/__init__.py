"""Python client for many LoRA adapters on one base model behind a Triton server (gRPC).

with MultiLoRAClient("localhost:8001") as client:
    for piece in client.stream("list all users", adapter_id="sql", max_tokens=64):
        print(piece, end="", flush=True)
"""

from multilora_client.adapters.client import Adapters, AsyncAdapters
from multilora_client.adapters.messages import AdapterInfo, AdapterMemory, Unloaded
from multilora_client.aio import AsyncMultiLoRAClient, AsyncTextStream
from multilora_client.client import MultiLoRAClient, TextStream
from multilora_client.errors import (
    Cancelled,
    InvalidRequest,
    MultiLoRAError,
    NotFound,
    TimedOut,
    Unavailable,
)
from multilora_client.protocol import Generation, Message
from multilora_client.sampling import Sampling

__all__ = [
    "AdapterInfo",
    "AdapterMemory",
    "Adapters",
    "AsyncAdapters",
    "AsyncMultiLoRAClient",
    "AsyncTextStream",
    "Cancelled",
    "Generation",
    "InvalidRequest",
    "Message",
    "MultiLoRAClient",
    "MultiLoRAError",
    "NotFound",
    "Sampling",
    "TextStream",
    "TimedOut",
    "Unavailable",
    "Unloaded",
]
