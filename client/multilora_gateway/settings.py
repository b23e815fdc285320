"""What the gateway is told at its start."""

from dataclasses import dataclass

TOOL_PARSERS = ("auto", "hermes", "llama3")


@dataclass(frozen=True)
class Settings:
    """Sizes are in bytes. Checked by the command line (see cli).

    `api_keys` are KEY or KEY:pattern,pattern; none: everybody may generate. Without `admin_key`
    nobody may change adapters. `triton_metrics_url` is where the Triton server shows its metrics.
    """

    hostname: str = "127.0.0.1"
    port: int = 8080
    triton_url: str = "localhost:8001"
    triton_metrics_url: str = ""
    served_model_name: str = ""
    api_keys: tuple[str, ...] = ()
    admin_key: str = ""
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    payload_limit: int = 2_000_000
    cors_allow_origin: tuple[str, ...] = ()
    tool_call_parser: str = "auto"
    json_output: bool = False
