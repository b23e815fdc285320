"""Norms and heads of ours in a class of transformers: where they stand, and what they compute.

That whole models compute the same is for test_transformers_decoder.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from multilora.forward import transformers_modules
from multilora.forward.transformers_modules import HeadModule, NormModule, use_own_modules
from support.tiny.families import FAMILIES, make_model

OTHERS = {"cohere2", "nemotron", "stablelm", "starcoder2"}  # their norms take off the mean


def norms(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


@pytest.mark.parametrize("family", ["llama-biases", "qwen3", *FAMILIES])
def test_every_rms_norm_of_the_families_is_ours(family: str) -> None:
    model = make_model(family)
    before = norms(model)
    assert bool(before) == (family not in OTHERS)
    use_own_modules(model)
    assert not norms(model)
    assert sum(isinstance(module, NormModule) for module in model.modules()) == len(before)


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_that_of_the_class(family: str, dtype: torch.dtype) -> None:
    """Of heads that are columns of a wider tensor, too."""
    model = make_model("llama-biases" if family == "llama" else family)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    theirs = copy.deepcopy(norms(model)[0])
    name = next(name for name, module in model.named_modules() if module is norms(model)[0])
    use_own_modules(model)
    width = next(theirs.parameters()).numel()
    x = torch.randn(1, 3, 4, 2 * width).to(dtype)[..., width:]
    with torch.inference_mode():
        y = model.get_submodule(name)(x)
        exact = copy.deepcopy(theirs).float()(x.float())
    assert y.dtype == dtype and y.shape == x.shape
    torch.testing.assert_close(
        y, exact.to(dtype), rtol=2e-6 if dtype == torch.float32 else 0, atol=0
    )


class RMSNorm(nn.Module):
    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))
        self.variance_epsilon = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight
        )


class CenteredRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class WeightlessRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / self.weight


class RootRMSNorm(RMSNorm):
    """Adds eps to the root, not to the square."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon) * self.weight


class GatedRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x if gate is None else x * gate)


class BiasedRMSNorm(RMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.bias


class FailingRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.ndim == 3 else torch.mm(x, x)


def test_a_norm_that_computes_something_else_stays() -> None:
    model = make_model("llama-biases")
    others = [
        CenteredRMSNorm(), WeightlessRMSNorm(), RootRMSNorm(1e-2), GatedRMSNorm(), BiasedRMSNorm(),
        FailingRMSNorm(),
    ]  # fmt: skip
    for index, norm in enumerate(others):
        model.add_module(f"other{index}", norm)
    for index, eps in enumerate((1e-6, 1e-2)):  # the same class with another eps
        model.add_module(f"plain{index}", RMSNorm(eps))
    use_own_modules(model)
    assert [model.get_submodule(f"other{index}") for index in range(len(others))] == others
    x = torch.randn(1, 3, 64) / 100
    for index, eps in enumerate((1e-6, 1e-2)):
        ours = model.get_submodule(f"plain{index}")
        assert isinstance(ours, NormModule)
        torch.testing.assert_close(ours(x), RMSNorm(eps)(x))


def test_a_head_on_a_cpu_is_packed_and_its_embedding_is_left_alone() -> None:
    model = make_model("gemma3")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, nn.Linear) and head.weight is embedding.weight
    assert isinstance(embedding, nn.Embedding)
    before = embedding.weight.clone()
    use_own_modules(model)
    ours = model.get_submodule("lm_head")
    assert isinstance(ours, HeadModule)
    assert ours.weight.dtype == torch.float32, "classes look at it"
    x = torch.randn(1, 5, head.in_features)
    with torch.inference_mode():
        y, expected = ours(x), head(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert model.get_input_embeddings() is embedding and torch.equal(embedding.weight, before)


def test_a_norm_takes_rows_whose_numbers_lie_apart() -> None:
    """The kernel reads adjacent ones."""
    norm = NormModule(torch.ones(8), 0.0, 1e-6)
    x = torch.randn(1, 8, 4).transpose(1, 2)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        real = transformers_modules.rms_norm
        patch.setattr(
            transformers_modules,
            "rms_norm",
            lambda rows, *rest: seen.append(rows.stride(-1)) or real(rows, *rest),
        )
        y = norm(x)
    assert seen == [1]
    torch.testing.assert_close(y, x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
