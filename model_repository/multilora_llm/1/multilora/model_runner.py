"""One forward pass: Batch → tensors → base model with LoRA → sampled tokens on the host."""

import torch

from multilora.adapter_pages import AdapterPages
from multilora.batch import Batch, BatchItem, SampledToken
from multilora.forward_input import build_forward_input
from multilora.kv_cache import KVCache
from multilora.llama import Llama
from multilora.sampler import Sampled, build_sampling_input, sample


class ModelRunner:
    """Holds the device state (weights, KV cache, adapter pool); `run` is its only verb."""

    def __init__(
        self,
        model: Llama,
        kv: KVCache,
        adapters: AdapterPages,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self.kv = kv
        self.adapters = adapters
        self.eos_token_ids = eos_token_ids
        self.device = device
        self.dtype = dtype

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[SampledToken]:
        """One SampledToken per item with `.samples`, in batch order."""
        inputs = build_forward_input(batch, self.kv.block_size, self.device, self.dtype)
        logits = self.model.forward(inputs, self.kv, self.adapters)
        items = [item for item in batch.items if item.samples]
        if not items:
            return []
        sampling = build_sampling_input(items, self.device, logits.shape[-1], self.eos_token_ids)
        return _to_host(sample(logits, sampling), items)


def _to_host(sampled: Sampled, items: list[BatchItem]) -> list[SampledToken]:
    token_ids = sampled.token_ids.tolist()
    if sampled.logprobs is None:
        return [SampledToken(token_id) for token_id in token_ids]
    logprobs = sampled.logprobs.tolist()
    ids = sampled.top_ids.tolist() if sampled.top_ids is not None else None
    values = sampled.top_logprobs.tolist() if sampled.top_logprobs is not None else None
    tokens: list[SampledToken] = []
    for row, item in enumerate(items):
        wanted = item.sequence.request.sampling.logprobs
        top: tuple[tuple[int, float], ...] = ()
        if wanted and ids is not None and values is not None:
            top = tuple(zip(ids[row][:wanted], values[row][:wanted], strict=True))
        logprob = logprobs[row] if wanted is not None else None
        tokens.append(SampledToken(token_ids[row], logprob, top))
    return tokens
