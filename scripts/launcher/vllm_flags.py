"""Flags of vLLM that have another name here, or none; docs/from-tgi.md lists the same."""

_NOT_NEEDED = "is not needed; see --adapter-memory and --adapter-host-memory"
VLLM_FLAGS = {
    "--lora-modules": "is --lora-adapters here, with commas: sql=/a/sql,json=/a/json",
    "--max-model-len": "is --max-total-tokens here",
    "--max-num-batched-tokens": "is --max-batch-prefill-tokens here",
    "--download-dir": "is --huggingface-hub-cache here",
    "--enable-lora": _NOT_NEEDED,
    "--max-loras": _NOT_NEEDED,
    "--max-cpu-loras": _NOT_NEEDED,
    "--tensor-parallel-size": "is not supported: one GPU serves the base model",
}
