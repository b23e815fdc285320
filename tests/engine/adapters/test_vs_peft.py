"""A mixed batch of many adapters and base rows equals transformers + PEFT with each one alone."""

import statistics
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.base_model.sites import BaseConfig
from multilora.forward.base_model import BaseModel, KVCache, load_base_model, read_base
from multilora.forward.step_input import build_step_input
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from support.engine.reading import read_adapter
from support.tiny.adapters import ALL, ATTENTION, MLP, make_adapter
from support.tiny.families import FAMILIES, VOCAB, make_model, write_model

CPU = torch.device("cpu")
BLOCK_SIZE, BLOCKS_PER_SEQUENCE, NUM_STEPS = 8, 4, 4

SUBSETS: dict[str, dict[str, Any]] = {
    **{name: {"target_modules": [name]} for name in ALL},
    "qv": {"target_modules": ["q_proj", "v_proj"]},
    "gate+o": {"target_modules": ["gate_proj", "o_proj"], "r": 20},
    "attention": {"target_modules": list(ATTENTION)},
    "mlp": {"target_modules": list(MLP)},
    "layer 1": {"layers_to_transform": [1]},
}
RANKS: dict[str, dict[str, Any]] = {
    **{f"rank {r}": {"r": r, "lora_alpha": r + 3} for r in (1, 15, 16, 17, 128)},
    "rslora": {"r": 24, "use_rslora": True},
    "patterns": {
        "r": 4,
        "rank_pattern": {"v_proj": 40, r"layers\.0\.mlp\.up_proj": 18, "down_proj": 1},
        "alpha_pattern": {"k_proj": 1, r"layers\.1\..*": 40},
    },
}
SOME: dict[str, dict[str, Any]] = {
    "qv": SUBSETS["qv"],
    "rank 17": RANKS["rank 17"],
    "rslora": RANKS["rslora"],
    "patterns": RANKS["patterns"],
}
TABLES: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"], "use_rslora": True},
    "both": {"target_modules": ["embed_tokens", "lm_head"], "r": 17},
    "all": {
        "target_modules": [*ALL, "embed_tokens", "lm_head"],
        "rank_pattern": {"embed_tokens": 40, "lm_head": 3},
        "alpha_pattern": {"embed_tokens": 60},
    },
    "qv": SUBSETS["qv"],
}
TIED: dict[str, dict[str, Any]] = {
    "kept equal": {
        "target_modules": ["embed_tokens", "v_proj"],
        "ensure_weight_tying": True,
        "rank_pattern": {"embed_tokens": 12},
        "alpha_pattern": {"lm_head": 30},
    },
}
FUSED: dict[str, dict[str, Any]] = {
    "qkv": {"target_modules": ["qkv_proj"]},
    "mlp": {"target_modules": ["gate_up_proj", "down_proj"], "r": 20},
    "all": {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], "r": 17},
}
LINEAR: dict[str, dict[str, Any]] = {
    "all linear": {"target_modules": "all-linear"},
    "rank 17": {"target_modules": "all-linear", "r": 17},
}
_BESIDE_EXPERTS = r".*\.(self_attn|shared_expert)\.\w+_proj\w*"
MIXTURE: dict[str, dict[str, Any]] = {
    "beside experts": {"target_modules": _BESIDE_EXPERTS},
    "rank 17": {"target_modules": _BESIDE_EXPERTS, "r": 17},
}
_GATE_UP, _DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def _parameters(router: str) -> dict[str, dict[str, Any]]:
    none: dict[str, Any] = {"target_modules": []}
    return {
        "experts": {**none, "target_parameters": [_GATE_UP, _DOWN]},
        "gate_up": {**none, "target_parameters": ["experts.gate_up_proj"], "r": 17},
        "down": {**none, "target_parameters": [_DOWN], "r": 3, "use_rslora": True},
        "router": {**none, "target_parameters": [router], "r": 2},
        "all": {
            "target_modules": list(ATTENTION),
            "target_parameters": [_DOWN, router, _GATE_UP],
            "rank_pattern": {_GATE_UP: 20, "v_proj": 40, router: 1},
            "alpha_pattern": {r"layers\.0\.mlp\.experts\.down_proj": 40},
        },
        "attention": {"target_modules": list(ATTENTION)},
    }


_BARE = _parameters("")
PARAMETERS = {
    "mixtral": _parameters("mlp.gate.weight"),
    "qwen2_moe": _parameters("mlp.gate.weight"),
    "qwen3_moe": _parameters("mlp.gate.weight"),
    "gpt_oss": _parameters("mlp.router.weight"),
    # Its router is none of the places.
    "deepseek_v3": {name: _BARE[name] for name in ("experts", "gate_up", "down")},
}
MIXES = {
    "llama subsets": ("llama", SUBSETS),
    "llama ranks": ("llama", RANKS),
    "llama-biases": ("llama-biases", SOME),
    "mistral-window": ("mistral-window", SOME),
    "qwen2": ("qwen2", SOME),
    "qwen3": ("qwen3", SOME),
    "llama tables": ("llama", TABLES),
    "llama-tied tables": ("llama-tied", TABLES | TIED),
    "gemma2": ("gemma2", SOME),
    "gemma3 tables": ("gemma3", TABLES),
    "phi3": ("phi3", FUSED),
    **{
        f"{family} linear": (family, MIXTURE if "num_experts_per_tok" in changes else LINEAR)
        for family, changes in FAMILIES.items()
    },
    **{f"{family} parameters": (family, configs) for family, configs in PARAMETERS.items()},
}


class Stream(NamedTuple):
    """One sequence of the mix: its given tokens and how many of them each step computes."""

    adapter: str  # "" = base
    tokens: list[int]
    counts: list[int]


def make_stream(index: int, adapter: str) -> Stream:
    """Whole prefill, chunked prefill or a late start by turns; then decoding."""
    length = 3 + 5 * index % 17
    plans = ([length, 1, 1, 1], [2, length - 2, 1, 1], [0, length, 0, 1])
    counts = plans[index % 3]
    noise = torch.Generator().manual_seed(index)
    tokens = torch.randint(2, VOCAB, (sum(counts),), generator=noise).tolist()
    return Stream(adapter, tokens, counts)


class Mix(NamedTuple):
    model: BaseModel
    dtype: torch.dtype
    device: torch.device
    pool: RankPagePool
    pages: dict[AdapterSet, tuple[int, ...]]
    streams: list[Stream]
    expected: list[torch.Tensor]  # per stream: logits after every token


@pytest.fixture(scope="module", params=MIXES, name="mix")
def float32_mix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mix:
    return make_mix(tmp_path_factory.mktemp("mix"), request.param, torch.float32, CPU)


def make_mix(root: Path, name: str, dtype: torch.dtype, device: torch.device) -> Mix:
    """`dtype` is the engine's; PEFT computes in float32 on weights rounded to it."""
    variant, configs = MIXES[name]
    folder = write_model(make_model(variant), root / "base")
    base = read_base(folder, "auto")
    if configs.keys() >= TABLES.keys():
        base = base.with_places(("lm_head", "embed_tokens"))
    if "parameters" in name:
        base = base.with_places(base.optional)
    names = [*configs, "", *list(configs)[:2], ""]
    streams = [make_stream(index, name) for index, name in enumerate(names)]
    models: dict[str, torch.nn.Module] = {"": make_model(variant)}
    for seed, (adapter, config) in enumerate(configs.items()):
        models[adapter] = make_adapter(root / adapter, variant, seed, **config)
    for model in models.values():
        model.to(dtype).float()
    with torch.no_grad():
        expected = [models[s.adapter](torch.tensor([s.tokens])).logits[0] for s in streams]
    adapters = [
        read_adapter(root / name, name, base.sites, dtype, 128, base_folder=folder)
        for name in configs
    ]
    pool, pages = fill_pool(adapters, base, dtype, device)
    model = load_base_model(folder, base, dtype, device, base.max_position_embeddings)
    return Mix(model, dtype, device, pool, pages, streams, expected)


def fill_pool(
    adapters: list[Adapter], base: BaseConfig, dtype: torch.dtype, device: torch.device
) -> tuple[RankPagePool, dict[AdapterSet, tuple[int, ...]]]:
    """A pool full of stale numbers, with the adapters on pages in no order."""
    num_pages = 3 + sum(adapter.num_pages for adapter in adapters)
    pool = RankPagePool(base.sites, num_pages, dtype, device)
    noise = torch.Generator().manual_seed(0)
    for tensor in (*pool.a.values(), *pool.b.values()):
        tensor.copy_(torch.randn(tensor.shape, generator=noise))
    free = torch.randperm(num_pages, generator=noise).tolist()
    pages = {}
    for adapter in adapters:
        own = pages[AdapterSet.of(adapter.adapter_id)] = tuple(
            free.pop() for _ in range(adapter.num_pages)
        )
        pool.write(own, adapter.weights)
    return pool, pages


def run(mix: Mix, only: set[str] | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(stream, index of its last token, logits after it) of every sampling row of every step."""
    blocks = len(mix.streams) * BLOCKS_PER_SEQUENCE
    kv = KVCache(mix.model.base, blocks, BLOCK_SIZE, mix.dtype, mix.device)
    live = {i: start(i, s) for i, s in enumerate(mix.streams) if only is None or s.adapter in only}
    for step in range(NUM_STEPS):
        items = []
        for i, sequence in live.items():
            if count := mix.streams[i].counts[step]:
                done = sequence.num_computed_tokens + count
                sequence.token_ids = mix.streams[i].tokens[:done]
                items.append(BatchItem.next(sequence, count))
        if not items:
            continue
        batch = make_batch(items, mix.pages)
        sampled = mix.model.base.adapts_sampled
        inputs = build_step_input(batch, BLOCK_SIZE, mix.device, mix.dtype, with_sampled=sampled)
        logits = mix.model.forward(inputs, kv, mix.pool).cpu()
        for row, item in zip(logits, batch.items, strict=True):
            item.sequence.num_computed_tokens = item.end
            yield int(item.sequence.request.request_id), item.end - 1, row


def start(index: int, stream: Stream) -> Sequence:
    table = [index * BLOCKS_PER_SEQUENCE + i for i in range(BLOCKS_PER_SEQUENCE)]
    sequence = Sequence(Request(str(index), tuple(stream.tokens)), arrival=index)
    sequence.adapters = AdapterSet.of(stream.adapter)
    sequence.block_table = array("i", table)
    return sequence


def errors(mix: Mix, only: set[str] | None = None) -> dict[tuple[str, int, int], float]:
    """(adapter, stream, token) → relative error of its logits, for every sampling row."""
    found = {}
    for stream, token, logits in run(mix, only):
        expected = mix.expected[stream][token]
        error = (logits - expected).abs().max() / expected.abs().max()
        found[mix.streams[stream].adapter, stream, token] = float(error)
    return found


def test_every_row_equals_its_adapter_alone(mix: Mix) -> None:
    assert max(errors(mix).values()) <= 1e-5


def test_base_rows_alone_are_the_base_model(mix: Mix) -> None:
    assert max(errors(mix, only={""}).values()) <= 1e-5


def test_one_adapter_beside_base_rows(mix: Mix) -> None:
    assert max(errors(mix, only={"", mix.streams[1].adapter}).values()) <= 1e-5


def test_every_adapter_tells(mix: Mix) -> None:
    """The comparisons above could not pass with an adapter missing."""
    base_only = mix._replace(streams=[s._replace(adapter="") for s in mix.streams])
    for (_, stream, _), error in errors(base_only).items():
        assert (error > 0.05) == bool(mix.streams[stream].adapter)


def assert_close(mix: Mix) -> None:
    """For half precision; a missing adapter makes errors of 0.13 to 1."""
    found = list(errors(mix).values())
    assert max(found) <= 0.12 and statistics.median(found) <= 0.03


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    mix = make_mix(tmp_path, "qwen2", torch.bfloat16, CPU)
    assert_close(mix)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MIXES)
def test_the_gpu_computes_the_same(name: str, tmp_path: Path) -> None:
    mix = make_mix(tmp_path, name, torch.bfloat16, torch.device("cuda"))
    assert_close(mix)
