"""The files of a PEFT adapter that are brought from elsewhere; a pickle is never one of them."""

from collections.abc import Collection

from multilora.adapter_config import CONFIG_FILE
from multilora.adapter_files import WEIGHTS_FILE
from multilora.errors import ErrorCode, RequestError, invalid

PICKLE_FILE = "adapter_model.bin"
PICKLE_REFUSAL = (
    f"{PICKLE_FILE} is a pickle, which can run code and is never opened; save the adapter "
    "with save_pretrained(..., safe_serialization=True)"
)
NEEDED_FILES = (CONFIG_FILE, WEIGHTS_FILE)
OPTIONAL_FILES = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
)
ADAPTER_FILES = (*OPTIONAL_FILES, *NEEDED_FILES)


def check_present(where: str, names: Collection[str]) -> None:
    """RequestError unless `names`, the files found at `where`, make an adapter."""
    if CONFIG_FILE not in names:
        raise RequestError(
            ErrorCode.NOT_FOUND,
            f"{where} has no {CONFIG_FILE}, so it is no PEFT adapter; check the location",
        )
    if WEIGHTS_FILE in names:
        return
    if PICKLE_FILE in names:
        raise invalid(f"{where}: {PICKLE_REFUSAL}")
    raise RequestError(
        ErrorCode.NOT_FOUND,
        f"{where} has no {WEIGHTS_FILE}; save the adapter there with save_pretrained",
    )
