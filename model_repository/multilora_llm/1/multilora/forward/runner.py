"""One forward pass: Batch → tensors → base model with LoRA → sampled tokens on the host."""

from collections.abc import Callable

import torch

from multilora.forward.decoder import Llama
from multilora.forward.graphs import DecodeGraphs
from multilora.forward.kv_cache import KVCache
from multilora.forward.sampler import Sampled, sample
from multilora.forward.sampling_input import add_sampling_input
from multilora.forward.staging import Upload
from multilora.forward.step_input import ForwardArrays, add_forward_input, forward_arrays
from multilora.lora.adapter_pages import AdapterPages
from multilora.scheduling.batch import Batch, BatchItem, SampledToken


class ModelRunner:
    """Holds the device state (weights, KV cache, adapter pool); `run` is its only verb.

    A pass makes one copy to the device and waits for it once, to read the sampled tokens.
    """

    def __init__(
        self,
        model: Llama,
        kv: KVCache,
        adapters: AdapterPages,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self.model = model
        self.kv = kv
        self.adapters = adapters
        self.eos_token_ids = eos_token_ids
        self.device = device
        self.dtype = dtype
        self.graphs = graphs

    @torch.inference_mode()
    def run(self, batch: Batch, replay: bool = True) -> list[SampledToken]:
        """One SampledToken per item with `.samples`, in batch order. `replay` False: launch by
        launch, also where a captured pass would do."""
        arrays = forward_arrays(batch, self.kv.block_size)
        captured = self.graphs.find(arrays) if self.graphs and replay else None
        upload, forward = captured.prepare(arrays) if captured else self._prepare(arrays)
        items = [item for item in batch.items if item.samples]
        vocab_size = self.model.base.vocab_size
        sampling = add_sampling_input(items, upload, vocab_size, self.eos_token_ids)
        upload.send()
        logits = forward()
        return _to_host(sample(logits, sampling()), items) if items else []

    def _prepare(self, arrays: ForwardArrays) -> tuple[Upload, Callable[[], torch.Tensor]]:
        """As CapturedPass.prepare, for any batch."""
        upload = Upload(self.device)
        inputs = add_forward_input(arrays, upload, self.device, self.dtype)
        return upload, lambda: self.model.forward(inputs(), self.kv, self.adapters)


def _to_host(sampled: Sampled, items: list[BatchItem]) -> list[SampledToken]:
    fields = (sampled.token_ids, sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
    token_ids, logprobs, ids, values = _lists(fields)
    if logprobs is None:
        return [SampledToken(token_id) for token_id in token_ids]
    tokens: list[SampledToken] = []
    for row, item in enumerate(items):
        wanted = item.sequence.request.sampling.logprobs
        top: tuple[tuple[int, float], ...] = ()
        if wanted and ids is not None and values is not None:
            top = tuple(zip(ids[row][:wanted], values[row][:wanted], strict=True))
        logprob = logprobs[row] if wanted is not None else None
        tokens.append(SampledToken(token_ids[row], logprob, top))
    return tokens


def _lists(tensors: tuple[torch.Tensor | None, ...]) -> list:
    """What the tensors hold; the copies from the device are waited for once."""
    on_gpu = [tensor for tensor in tensors if tensor is not None and tensor.is_cuda]
    host = [None if tensor is None else tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if on_gpu:
        torch.cuda.current_stream(on_gpu[0].device).synchronize()
    return [None if tensor is None else tensor.tolist() for tensor in host]
