"""The rooms of the house and what they may import; tests/test_layers.py holds the sources to it."""

from typing import NamedTuple


class Room(NamedTuple):
    """`below` names rooms and modules of the same package that it may import besides its own,
    `packages` what it may import besides the standard library."""

    below: str
    packages: str = ""


TENSORS = "torch numpy multilora_kernels"
# A module belongs to the room with the longest name that its own begins with.
ENGINE = {
    "errors": Room(""),
    "config": Room("errors"),
    "request": Room("errors", "multilora_api"),
    "metrics": Room("", "multilora_api"),
    "json_fields": Room("errors"),
    "base_model.sites": Room(""),
    "base_model.config": Room("errors json_fields base_model.sites"),
    "base_model.checkpoint": Room("errors base_model.config", "torch safetensors"),
    "base_model.quantised": Room("errors json_fields base_model.checkpoint", "torch"),
    "base_model": Room("errors", "torch multilora_kernels transformers"),
    "scheduling": Room("errors request"),
    "lora": Room("base_model.sites", TENSORS),
    "forward": Room(
        "errors request base_model lora scheduling.batch",
        f"{TENSORS} multilora_api transformers",
    ),
    "adapters.background_thread": Room(""),
    "adapters.files": Room("errors adapters.background_thread", "multilora_text"),
    "adapters.naming": Room("errors adapters.files adapters.background_thread", "multilora_api"),
    "adapters.checkpoint": Room(
        "errors json_fields base_model lora adapters.files",
        "torch numpy multilora_text multilora_sandbox",
    ),
    "adapters.memory": Room(
        "errors request metrics lora adapters.background_thread adapters.naming "
        "adapters.checkpoint scheduling.adapter_cache",
        "multilora_api",
    ),
    "adapters.merging": Room(
        "errors json_fields base_model adapters.background_thread adapters.files adapters.naming "
        "adapters.checkpoint adapters.memory",
        "torch safetensors huggingface_hub multilora_api multilora_text",
    ),
    "adapters.admin": Room(
        "errors adapters.naming adapters.checkpoint.text adapters.memory adapters.merging "
        "scheduling.scheduler",
        "multilora_api",
    ),
    "download": Room("errors json_fields adapters.files adapters.naming", "huggingface_hub fsspec"),
    "grammar": Room("errors", "llguidance multilora_api multilora_sandbox"),
    "startup": Room(
        "errors config request base_model scheduling lora forward adapters download grammar",
        "torch multilora_kernels huggingface_hub multilora_api multilora_text",
    ),
    "engine": Room(
        "errors config request metrics scheduling.batch scheduling.sequence forward.runner "
        "adapters.admin.admin adapters.naming.source startup.build startup.device",
        "multilora_api multilora_text",
    ),
    "wire": Room(
        "errors json_fields request metrics engine adapters.admin.command adapters.naming.source "
        "grammar.threads",
        "numpy multilora_api multilora_text",
    ),
}
HTTP = "fastapi starlette pydantic"
API = f"{HTTP} multilora_api multilora_text"
GATEWAY = {
    "errors": Room(""),
    "api_keys": Room(""),
    "json_lines": Room(""),
    "settings": Room("api_keys"),
    "http": Room("errors settings api_keys", f"{HTTP} uvicorn prometheus_client multilora_api"),
    "backend": Room("errors", "grpc tritonclient multilora_client multilora_api multilora_text"),
    "generation": Room(
        "errors settings http backend", "fastapi pydantic multilora_api multilora_text"
    ),
    "openai": Room("errors settings http backend generation", API),
    "tgi": Room("errors settings http backend generation", API),
    "responses": Room("errors http generation openai", "pydantic multilora_api"),
    "anthropic": Room("errors http backend generation openai", "pydantic"),
    "routes": Room(
        "errors settings http backend generation openai tgi responses anthropic",
        "fastapi starlette multilora_api",
    ),
    "app": Room("settings http backend routes", "fastapi starlette multilora_text"),
    "cli": Room("settings http json_lines app", "uvicorn"),
    "__main__": Room("cli"),
}
TOOLS = "torch safetensors multilora multilora_api"
SCRIPTS = {
    "launcher": Room("", "multilora_api multilora_client multilora_gateway"),
    "demo_training": Room("", "torch transformers peft tokenizers tqdm"),
    "benchmarks.common": Room("launcher", "torch"),
    "benchmarks.adapters": Room("launcher benchmarks.common", f"{TOOLS} matplotlib"),
    "benchmarks.gpu": Room(
        "launcher benchmarks.common",
        "torch matplotlib multilora multilora_api multilora_kernels",
    ),
    "benchmarks.cpu": Room("launcher benchmarks.common benchmarks.gpu.shapes", "torch multilora"),
    "benchmarks.host": Room(
        "launcher benchmarks.common",
        "numpy tritonclient multilora multilora_client multilora_gateway multilora_kernels",
    ),
    "benchmarks.gateway": Room("launcher", "tritonclient multilora_client multilora_gateway"),
    "torture": Room(
        "launcher benchmarks.common", "tritonclient grpc multilora_client multilora_api"
    ),
    "generate": Room("", "multilora_api"),
    "serve": Room("launcher"),
    "demo": Room("launcher"),
    "train_demo": Room("demo_training"),
    "bench_adapters": Room("benchmarks.adapters"),
    "bench_cpu": Room("benchmarks.cpu"),
    "bench_gateway": Room("benchmarks.gateway"),
    "bench_gpu": Room("benchmarks.gpu"),
    "bench_host": Room("benchmarks.host"),
}
PACKAGES = {  # the other packages, which have one room each
    "kernels/multilora_kernels": "torch numpy",
    "client/multilora_api": "",
    "client/multilora_client": "grpc tritonclient multilora_api torch safetensors",
    "client/multilora_text": "tokenizers jinja2 multilora_sandbox",
    "client/multilora_sandbox": "",
}
TRITON_MODELS = {"tokenizer", "multilora_llm"}
