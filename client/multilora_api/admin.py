"""The administration of adapters: its actions, and the keys that each takes.

A command is a JSON object for the tensor `admin` of `multilora_llm`; the Triton model `adapters`
has an input for each key instead. docs/adapters.md describes the answers.
"""

from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from multilora_api.tensors import Tensor

# How adapters are merged, as PEFT's `add_weighted_adapter` names it; the first is the default.
MergeStrategy = Literal["linear", "ties", "dare_linear", "dare_ties"]
SignMethod = Literal["total", "frequency"]
STRATEGIES: tuple[str, ...] = get_args(MergeStrategy)
SIGN_METHODS: tuple[str, ...] = get_args(SignMethod)
QUICK_ACTIONS = ("list", "info", "describe")  # the others may wait for a download, or for sequences
ACTIONS = ("list", "info", "load", "unload", "pin", "unpin", "merge", "template", "describe")


class Origin(Enum):
    """Why an adapter may be served."""

    REGISTERED = "registered"  # LORA_ADAPTERS or an administrator named it
    DIRECTORY = "directory"  # it is a folder below --adapters-dir
    ON_DEMAND = "on demand"  # a request named it and --adapter-allow matches
    MERGED = "merged"  # a request asked for a merge of adapters that it may name


class AdminKey(NamedTuple):
    """`actions` are those that take the key."""

    datatype: str
    actions: tuple[str, ...]


KEYS = MappingProxyType(
    {
        "adapter_id": AdminKey("BYTES", ("info", "load", "unload", "pin", "unpin", "template")),
        "source": AdminKey("BYTES", ("load",)),
        "revision": AdminKey("BYTES", ("load",)),
        "cancel": AdminKey("BOOL", ("unload",)),
        "timeout": AdminKey("FP32", ACTIONS),
        "merge": AdminKey("BYTES", ("merge",)),
        "adapter_token": AdminKey("BYTES", ("load", "merge", "template")),
    }
)
# Of the Triton model `adapters`; `action` is required.
ADMIN_INPUTS = (
    Tensor("action", "BYTES"),
    *(Tensor(name, key.datatype) for name, key in KEYS.items()),
)
