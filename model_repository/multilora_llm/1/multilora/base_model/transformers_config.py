"""TransformersConfig: a base model that a class of the transformers library computes.

What the engine has to know of it no config.json says in one way for all classes. So its class is
built without weights, and computes one pass of a few rows: the trace.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from multilora.base_model.config import DTYPES, config_json
from multilora.base_model.sites import BaseConfig, LoRASite, short_names
from multilora.base_model.transformers_rope import longest_sequence, rope_problem
from multilora.base_model.transformers_trace import AttentionShape, Trace, config_error
from multilora.errors import first_line

_LAYER_TYPES = {"full_attention", "sliding_attention"}
# With tied embeddings such a checkpoint would load as a model that generates text.
_OTHER_HEAD = re.compile("For(Sequence|Token)Classification$|ForQuestionAnswering$|RewardModel$")
_MORE_OUTPUTS = ("output_router_logits", "output_hidden_states", "output_attentions")


@dataclass(frozen=True)
class TransformersConfig(BaseConfig):
    """Filled by from_folder. `library` is the library's own config object, its RoPE as the
    checkpoint has it (see transformers_decoder)."""

    library: PretrainedConfig
    attention: tuple[AttentionShape, ...]  # in the order of the forward pass
    linears: tuple[LoRASite, ...]
    parameters: tuple[LoRASite, ...]  # of experts and routers
    tables: tuple[str, ...]  # those of TABLES that it has

    @property
    def value_dim(self) -> int:
        return self.attention[0].value_dim

    @property
    def optional(self) -> tuple[str, ...]:
        return (*self.tables, *short_names(self.parameters))

    @property
    def parameter_sites(self) -> tuple[LoRASite, ...]:
        return tuple(s for s in self.parameters if s.slices[0].short_name in self.adapted)

    def _sites_of_layers(self) -> Iterator[LoRASite]:
        yield from self.linears

    @staticmethod
    def from_folder(path: str | Path) -> "TransformersConfig":
        """StartupError names what of the model cannot be computed."""
        folder = Path(path)
        library = _library_config(folder)
        trace = Trace(folder)
        trace.run(library)
        first = trace.attention[0]
        return TransformersConfig(
            architecture=trace.architecture,
            vocab_size=library.vocab_size,
            hidden_size=getattr(library, "hidden_size", 0),
            num_layers=len(trace.attention),
            num_heads=first.num_heads,
            num_kv_heads=first.num_kv_heads,
            head_dim=first.head_dim,
            max_position_embeddings=_max_positions(folder, library),
            tie_word_embeddings=bool(getattr(library, "tie_word_embeddings", False)),
            dtype=_dtype(folder, library),
            library=library,
            attention=tuple(trace.attention),
            linears=tuple(trace.sites()),
            parameters=tuple(trace.parameters()),
            tables=trace.tables(),
        )


def _max_positions(folder: Path, library: PretrainedConfig) -> int:
    """The longest sequence that the RoPE, or the table of positions, is meant for."""
    known = getattr(library, "max_position_embeddings", None)
    if not isinstance(known, int) or known < 1:
        raise config_error(
            folder, f"max_position_embeddings is {known}; set it to the longest sequence"
        )
    return longest_sequence(library, known)


def _library_config(folder: Path) -> PretrainedConfig:
    """Of a decoder, or of the one that a model for images or sounds has for text; StartupError for
    anything else."""
    has_code = "auto_map" in config_json(folder)
    try:
        whole = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        library = whole.get_text_config()
    except Exception as error:
        what = f"transformers does not take it ({first_line(error)}); correct it, or serve an"
        if has_code:
            what = "its class is code of its own (auto_map), which is never run here; serve an"
        raise config_error(
            folder, f"{what} architecture that the installed transformers has"
        ) from None
    if reason := _refusal(whole) or _refusal(library):
        raise config_error(folder, reason)
    if library is not whole:
        library.quantization_config = getattr(whole, "quantization_config", None)
        library.dtype = library.dtype or whole.dtype
        library.tie_word_embeddings = bool(getattr(whole, "tie_word_embeddings", False))
    for name in _MORE_OUTPUTS:
        setattr(library, name, False)
    library.return_dict = True
    return library


def _refusal(library: PretrainedConfig) -> str | None:
    """What the config alone says that cannot be computed."""
    if getattr(library, "is_encoder_decoder", False):
        return "an encoder with a decoder is not supported; serve a model that only decodes"
    if other := next(filter(_OTHER_HEAD.search, library.architectures or ()), None):
        return f"{other} has no head that gives tokens; serve a model that generates text"
    others = set(getattr(library, "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        return f"layers of type {', '.join(sorted(others))} are not supported"
    return rope_problem(library)


def _dtype(folder: Path, library: PretrainedConfig) -> str:
    name = str(library.dtype or "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise config_error(
            folder, f"dtype {name!r} is not supported; supported: {', '.join(DTYPES)}"
        )
    return name
