"""The launcher's command line: its flags, the environment variables of these, its complaints.

A flag's variable is its name in upper case with underscores (`--model-id` ↔ MODEL_ID); TGI's name
of a flag has a variable too. A flag wins over its variable; a variable wins over the parameter in
config.pbtxt.
"""

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.gateway.flags import add_gateway_flags
from launcher.hub_cache_folder import writable_hub_cache
from launcher.repository import REPOSITORY
from launcher.triton.ports import CLOSED, Ports
from multilora_api.adapter_names import is_folder_path, split_item
from multilora_gateway.settings import port, read_variables

_SIZE = "bytes, or with a unit: 512MB, 2GiB"
_ENGINE_FLAGS: dict[str, tuple[type, str]] = {
    "model-id": (str, "base model: a folder or a Hub id; the embedded demo if not given"),
    "revision": (str, "revision of a base model on the Hub"),
    "generation-config": (
        str,
        "auto, none, or the folder of another generation_config.json: defaults of /v1",
    ),
    "lora-adapters": (
        str,
        "id, id@revision, name=/path or name=org/repo@revision; commas",
    ),
    "dtype": (str, "auto, float32, bfloat16 or float16"),
    "model-impl": (str, "auto, native or transformers: whose class computes the base model"),
    "device": (str, "auto, cpu or cuda"),
    "quantize": (
        str,
        "fp8, int8 or int4: linear layers of the base model are quantised at start; auto (default) "
        "takes a checkpoint as it is; awq, gptq, compressed-tensors only one of that kind",
    ),
    "max-input-tokens": (int, "longest prompt"),
    "max-total-tokens": (int, "longest prompt and answer together"),
    "max-batch-prefill-tokens": (int, "prompt tokens computed in one forward pass"),
    "max-concurrent-requests": (int, "requests running or waiting before others are refused"),
    "max-lora-rank": (int, "largest rank an adapter may have"),
    "lora-target-modules": (
        str,
        "auto, all, or places beside the modules of layers: embed_tokens,lm_head,experts.down_proj",
    ),
    "gpu-memory-utilization": (float, "part of a GPU's memory that may be in use, by others too"),
    "adapter-memory": (str, f"device memory for adapters: auto, or {_SIZE}"),
    "adapter-host-memory": (str, f"host memory for adapters ({_SIZE})"),
    "adapters-dir": (str, "folder whose PEFT folders are adapters by their relative names"),
    "adapter-allow": (
        str,
        "patterns of Hub ids and URLs that requests may load: org/*,s3://bucket/*; commas",
    ),
    "adapter-max-size": (str, f"largest download of one adapter ({_SIZE})"),
    "adapter-download-timeout": (int, "seconds that one download may take"),
    "adapter-timeout": (int, "seconds that a request waits for its adapter"),
    "adapter-loads": (int, "adapters that are downloaded or read at once"),
    "adapter-admin": (str, "on or off: the Triton model adapters may load and unload"),
    "adapter-metrics": (int, "adapters that have figures of their own on /metrics"),
    "kv-cache-memory": (str, f"device memory for keys and values: auto, or {_SIZE}"),
    "cuda-graphs": (str, "off, decode or full: passes that a GPU replays as CUDA graphs"),
    "threads": (int, "CPU threads of PyTorch; 0 lets it choose"),
}
_ALIASES = {  # TGI's names for the same
    "hf-hub-cache": ["--huggingface-hub-cache"],
    "max-input-tokens": ["--max-input-length"],
    "gpu-memory-utilization": ["--cuda-memory-fraction"],
}
_TEXTS = {
    "triton-hostname": "address of Triton's ports (127.0.0.1), which know no API keys",
    "hf-hub-cache": "folder of downloads",
    "model-repository": "default: the one of this project",
}
_PORTS = {"http-port": 8000, "grpc-port": 8001, "metrics-port": 8002}
_NOT_NEEDED = "is not needed; see --adapter-memory and --adapter-host-memory"
VLLM_FLAGS = {  # of another name here, or of none; docs/from-tgi.md lists the same
    "--lora-modules": "is --lora-adapters here, with commas: sql=/a/sql,json=/a/json",
    "--max-model-len": "is --max-total-tokens here",
    "--max-num-batched-tokens": "is --max-batch-prefill-tokens here",
    "--quantization": "is --quantize here",
    "--download-dir": "is --huggingface-hub-cache here",
    "--enable-lora": _NOT_NEEDED,
    "--max-loras": _NOT_NEEDED,
    "--max-cpu-loras": _NOT_NEEDED,
    "--enable-auto-tool-choice": "is not needed; see --tool-call-parser",
    "--tensor-parallel-size": "is not supported: one GPU serves the base model",
}


def parse_flags(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ
) -> argparse.Namespace:
    """Read the command line; None is sys.argv. What neither a flag nor a variable gives is None."""
    parser = argparse.ArgumentParser(
        prog="serve.py",
        usage="%(prog)s [flags]; --help lists them",
        description="Serve one base model and many LoRA adapters on a Triton server.",
        epilog="Each flag but --hostname has an environment variable: --model-id is MODEL_ID, "
        "and so on.",
        allow_abbrev=False,
    )
    actions = _add_flags(parser)
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_complaint(unknown[0], parser))
    read_variables(parser, flags, actions, environ)
    return flags


def _complaint(word: str, parser: argparse.ArgumentParser) -> str:
    """What to say of a word that means nothing here: the flag that was probably meant.

    A flag that is accepted without effect is never proposed.
    """
    flag = word.partition("=")[0].replace("_", "-")
    if not word.startswith("-"):
        hint = "adapters are separated by commas alone: --lora-adapters sql=/a/sql,json=/a/json"
        if flag == word:
            hint = f"a base model is --model-id {word}; {hint}"
    elif flag in VLLM_FLAGS:
        hint = f"{flag} {VLLM_FLAGS[flag]}"
    else:
        actions = [each for each in parser._actions if each.help != argparse.SUPPRESS]
        options = [option for action in actions for option in action.option_strings]
        close = difflib.get_close_matches(flag, options, n=1)
        hint = f"did you mean {close[0]}?" if close else "see --help"
    return f"unknown argument {word}; {hint}"


def _add_flags(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add all flags; returns the actions whose variables are read here."""
    actions = [
        parser.add_argument(f"--{name}", *_ALIASES.get(name, []), type=type_, help=help_)
        for name, (type_, help_) in _ENGINE_FLAGS.items()
    ]
    for name, number in _PORTS.items():
        help_ = f"default {number}; 0 is any free port"
        actions.append(parser.add_argument(f"--{name}", type=port, help=help_))
    for name, help_ in _TEXTS.items():
        names = [f"--{name}", *_ALIASES.get(name, [])]
        actions.append(parser.add_argument(*names, help=help_))
    verbose = parser.add_argument(
        "--log-verbose", action="store_true", default=None, help="show the whole server log"
    )
    apis = parser.add_argument(
        "--triton-open-apis",
        type=_apis,
        help=f"APIs to open on Triton's ports: {', '.join(CLOSED)}; commas",
    )
    no_restart = parser.add_argument(
        "--no-restart",
        action="store_true",
        default=None,
        help="end with the first process that dies, for an orchestrator to start all again",
    )
    return [*actions, verbose, apis, no_restart, *add_gateway_flags(parser)]


def _apis(text: str) -> tuple[str, ...]:
    """The type of --triton-open-apis."""
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in CLOSED]:
        raise argparse.ArgumentTypeError(
            f"knows {', '.join(CLOSED)}, with commas between; got {unknown[0]!r}"
        )
    return names


def engine_environment(
    flags: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The engine's variables. Folders are absolute: the server's working folder is another."""
    given = {name: _value(flags, name) for name in _ENGINE_FLAGS}
    values = {_variable(name): str(value) for name, value in given.items() if value is not None}
    if sizes := re.fullmatch(r"\d+(,\d+)*", values.get("CUDA_GRAPHS", "").replace(" ", "")):
        values["CUDA_GRAPHS"] = "off" if sizes[0] == "0" else "full"  # TGI's list of batch sizes
    if "MODEL_ID" in values:
        values["MODEL_ID"] = _absolute(values["MODEL_ID"])
    if values.get("GENERATION_CONFIG", "auto") not in ("auto", "none"):
        folder = Path(values["GENERATION_CONFIG"]).expanduser().resolve()
        values["GENERATION_CONFIG"] = str(folder)
    if "ADAPTERS_DIR" in values:
        values["ADAPTERS_DIR"] = str(Path(values["ADAPTERS_DIR"]).expanduser().resolve())
    if "LORA_ADAPTERS" in values:
        items = values["LORA_ADAPTERS"].split(",")
        values["LORA_ADAPTERS"] = ",".join(_absolute_item(item.strip()) for item in items)
    if flags.admin_key:
        values["ADMIN_KEY"] = flags.admin_key.strip()
    if flags.hf_hub_cache:
        values["HF_HUB_CACHE"] = str(Path(flags.hf_hub_cache).expanduser().resolve())
    return values | writable_hub_cache({**environ, **values})


def ports(flags: argparse.Namespace) -> Ports:
    given = {name: _value(flags, name) for name in _PORTS}
    return Ports(*(_PORTS[name] if value is None else value for name, value in given.items()))


def open_apis(flags: argparse.Namespace) -> tuple[str, ...]:
    """The APIs that are opened on Triton's ports."""
    return flags.triton_open_apis or ()


def model_repository(flags: argparse.Namespace) -> Path:
    given = flags.model_repository
    return Path(given).expanduser() if given else REPOSITORY / "model_repository"


def _value(flags: argparse.Namespace, name: str) -> Any:
    return getattr(flags, name.replace("-", "_"))


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _absolute(location: str) -> str:
    """A folder as an absolute path; anything else, such as a Hub id, as it is."""
    path = Path(location).expanduser()
    return str(path.resolve()) if is_folder_path(location) or path.is_dir() else location


def _absolute_item(item: str) -> str:
    """The LORA_ADAPTERS item with its folder, if it has one, made absolute."""
    name, location, revision = split_item(item) or ("", "", "")
    if location == name or not is_folder_path(location):
        return item
    return f"{name}={_absolute(location)}{f'@{revision}' if revision else ''}"
