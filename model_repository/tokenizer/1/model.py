"""The Triton model `tokenizer`: text, or a JSON list of chat messages, → ids of the base model.

It shares the engine's settings and chats, in `multilora_llm/1` next door.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

sys.path.append(str(Path(__file__).resolve().parents[2] / "multilora_llm" / "1"))

from multilora.config import EngineConfig
from multilora.errors import RequestError, StartupError, invalid
from multilora.startup.base_folder import base_folder, base_tokenizer
from multilora.wire.chat import encode_chat, parse_messages


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
            code = getattr(pb_utils.TritonError, error.code.value)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.tagged, code))
        return pb_utils.InferenceResponse([pb_utils.Tensor("input_ids", ids)])

    def _encode(self, request: Any) -> list[int]:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if tensors["text_input"].size != 1:
            raise invalid(
                f"text_input has {tensors['text_input'].size} rows; send one prompt per request, "
                "requests that run at the same time are batched by the server"
            )
        try:
            text = tensors["text_input"].item().decode("utf-8")
        except UnicodeDecodeError:
            raise invalid("text_input is not valid UTF-8; encode it so") from None
        if not text:
            raise invalid("text_input is empty; send a prompt")
        if "chat" in tensors and tensors["chat"].any():
            messages = parse_messages(text)
            if "adapter_id" in tensors and tensors["adapter_id"].any():
                return [0]  # multilora_llm renders it: the adapter may have its own template
            return encode_chat(self._tokenizer, messages)
        return self._tokenizer.encode(text)
