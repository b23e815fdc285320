"""Whether what is found at a location is an adapter; a pickle never is."""

from collections.abc import Collection

from multilora.adapters.files import CONFIG_FILE, PICKLE_FILE, PICKLE_REFUSAL, WEIGHTS_FILE
from multilora.errors import ErrorCode, RequestError, invalid


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
