"""The administration of adapters: its actions, and the keys that each takes.

The Triton model `adapters` has an input for the action and one for each key, and passes them on to
`multilora_llm`. Law: only the standard library is imported. docs/adapters.md describes the answers.
"""

from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

# How adapters are merged, as PEFT's `add_weighted_adapter` names it; the first is the default.
MergeStrategy = Literal["linear", "ties", "dare_linear", "dare_ties"]
SignMethod = Literal["total", "frequency"]
STRATEGIES: tuple[str, ...] = get_args(MergeStrategy)
SIGN_METHODS: tuple[str, ...] = get_args(SignMethod)
CHANGES = ("load", "unload", "pin", "unpin")  # where there is an admin key, they need it
MOST_LISTED = 1000  # adapters of the directory in one answer to `list`
ACTIONS = ("list", "info", "load", "unload", "pin", "unpin", "merge", "template", "describe")


class Origin(Enum):
    """Why an adapter may be served."""

    REGISTERED = "registered"  # LORA_ADAPTERS or an administrator named it
    DIRECTORY = "directory"  # it is a folder below --adapters-dir
    ON_DEMAND = "on demand"  # a request named it and --adapter-allow matches
    MERGED = "merged"  # a request asked for a merge of adapters that it may name


class AdminKey(NamedTuple):
    """`actions` are those that take the key, `tensor` is the input of `multilora_llm` for it, ""
    the one of the key's name."""

    datatype: str
    actions: tuple[str, ...]
    tensor: str = ""


KEYS = MappingProxyType(
    {
        "adapter_id": AdminKey("BYTES", ("info", *CHANGES, "template")),
        "after": AdminKey("BYTES", ("list",)),
        "source": AdminKey("BYTES", ("load",)),
        "revision": AdminKey("BYTES", ("load",)),
        "cancel": AdminKey("BOOL", ("unload",)),
        "timeout": AdminKey("FP32", ACTIONS, "adapter_timeout"),
        "merge": AdminKey("BYTES", ("merge",)),
        "adapter_token": AdminKey("BYTES", ("load", "merge", "template")),
        "admin_key": AdminKey("BYTES", ACTIONS),
    }
)
