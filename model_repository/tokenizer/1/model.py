"""The Triton model `tokenizer`: text → ids of the base model.

It shares the engine's settings, in `multilora_llm/1` next door. A list of chat messages becomes
a placeholder.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

sys.path.append(str(Path(__file__).resolve().parents[2] / "multilora_llm" / "1"))

from multilora.config import EngineConfig
from multilora.errors import RequestError, StartupError, internal, invalid
from multilora.startup.base_folder import base_folder, base_tokenizer
from multilora.wire.prompt import encode_text, parse_messages
from multilora.wire.triton_request import read_request, scalar

_LOG = logging.getLogger("multilora.tokenizer")


class TritonPythonModel:
    """The names and signatures of the methods are the Python backend's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the base model's tokenizer. TritonModelException: cannot start, and why."""
        model_config = json.loads(args["model_config"])
        parameters = {
            name: value["string_value"] for name, value in model_config["parameters"].items()
        }
        try:
            config = EngineConfig.from_settings(parameters, os.environ)
            self._tokenizer = base_tokenizer(base_folder(config))
        except StartupError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            ids = np.array([self._encode(request)], dtype=np.int32)
        except RequestError as error:
            return _failure(error)
        except Exception as error:  # one that leaves `execute` fails the others of its batch
            _LOG.exception("a request could not be read")
            return _failure(internal(f"internal error: {error!r}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor("input_ids", ids)])

    def _encode(self, request: Any) -> list[int]:
        _, tensors, _ = read_request(request)
        if "text_input" not in tensors:
            raise invalid("text_input is missing; send a prompt")
        text = scalar(tensors, "text_input", "")
        if not scalar(tensors, "chat", False):
            return encode_text(self._tokenizer, text)
        parse_messages(text)
        return [0]  # multilora_llm renders it


def _failure(error: RequestError) -> Any:
    code = getattr(pb_utils.TritonError, error.code.value)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.tagged, code))
