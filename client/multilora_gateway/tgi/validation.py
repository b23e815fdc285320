"""TGI's checks of parameters and prompt, with its messages word for word."""

from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.errors import invalid
from multilora_gateway.settings import Settings
from multilora_gateway.tgi.parameters import Parameters

_SEEDS = 1 << 64


def check_parameters(given: Parameters, settings: Settings, streaming: bool) -> None:
    """Raises GatewayError for the first thing that TGI, or this server, does not do."""
    _check_support(given, streaming)
    _check_best_of(given, settings, streaming)
    _check_ranges(given)
    stop, top = given.stop or [], given.top_n_tokens
    if len(stop) > settings.max_stop_sequences:
        raise invalid(
            f"`stop` supports up to {settings.max_stop_sequences} stop sequences. "
            f"Given: {len(stop)}"
        )
    if not all(stop):
        raise invalid("`stop` must not hold an empty string")
    if top is not None and not 0 <= top <= settings.max_top_n_tokens:
        raise invalid(
            f"`top_n_tokens` must be >= 0 and <= {settings.max_top_n_tokens}. Given: {top}"
        )
    _check_lorax(given, settings)


def check_inputs(inputs: str, given: Parameters, base: BaseModel) -> None:
    """What can be said before the prompt is tokens."""
    if not inputs:
        raise invalid("`inputs` cannot be empty")
    most = base.max_concurrent_requests
    if (given.best_of or 1) > most:
        raise invalid(
            f"`best_of` must be <= {most}, for the server runs no more at once. "
            f"Given: {given.best_of}"
        )
    truncate = given.truncate
    if truncate is not None and not 0 < truncate <= base.max_input_tokens:
        raise invalid(
            f"`truncate` must be strictly positive and less than {base.max_input_tokens}. "
            f"Given: {truncate}"
        )


def max_new_tokens(given: Parameters, input_tokens: int, base: BaseModel) -> int:
    """How many tokens to generate; raises GatewayError when that or the prompt is too much."""
    asked = given.max_new_tokens
    if asked is not None and input_tokens + asked > base.max_total_tokens:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {base.max_total_tokens}. "
            f"Given: {input_tokens} `inputs` tokens and {asked} `max_new_tokens`"
        )
    if input_tokens > base.max_input_tokens:
        raise invalid(
            f"`inputs` must have less than {base.max_input_tokens} tokens. Given: {input_tokens}"
        )
    return base.max_total_tokens - input_tokens if asked is None else asked


def _check_support(given: Parameters, streaming: bool) -> None:
    if given.watermark:
        raise invalid("`watermark` == true is not supported; leave it out")
    if given.decoder_input_details:
        raise invalid(
            "`decoder_input_details` == true is not supported when streaming tokens"
            if streaming
            else "`decoder_input_details` == true is not supported: logprobs of the prompt are "
            "not computed; leave it out"
        )


def _check_best_of(given: Parameters, settings: Settings, streaming: bool) -> None:
    best_of = given.best_of
    if best_of is None:
        return
    if streaming and best_of != 1:
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if not 0 < best_of <= settings.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {settings.max_best_of}. Given: {best_of}")
    if best_of > 1 and not given.sampling:
        raise invalid("you must use sampling when `best_of` is > 1")
    if best_of > 1 and given.seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")


def _check_ranges(given: Parameters) -> None:
    for name in ("temperature", "repetition_penalty", "top_k", "max_new_tokens"):
        value = getattr(given, name)
        greedy = name == "temperature" and value == 0 and given.of_lorax
        if value is not None and value <= 0 and not greedy:
            raise invalid(f"`{name}` must be strictly positive", name)
    for name in ("top_p", "typical_p"):
        value = getattr(given, name)
        if value is not None and not 0 < value < 1:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0", name)
    penalty = given.frequency_penalty
    if penalty is not None and not -2 <= penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if given.seed is not None and not 0 <= given.seed < _SEEDS:
        raise invalid("`seed` must be >= 0 and < 2**64")


def _check_lorax(given: Parameters, settings: Settings) -> None:
    given.wish.check()
    if given.grammar is not None and given.response_format is not None:
        raise invalid("you must specify at most one of `grammar` or `response_format`")
    alternatives = given.return_k_alternatives
    if alternatives is not None and not 0 < alternatives <= settings.max_top_n_tokens:
        raise invalid(
            f"`return_k_alternatives` must be > 0 and <= {settings.max_top_n_tokens}. "
            f"Given: {alternatives}"
        )
