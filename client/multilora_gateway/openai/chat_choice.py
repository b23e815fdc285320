"""One choice of a chat completion, whole or in chunks."""

import uuid
from collections.abc import Sequence
from typing import Any

from multilora_gateway.generation.job import Answer, Piece, Token
from multilora_gateway.openai.logprobs import chat_logprobs
from multilora_gateway.openai.tools.call_reader import MoreArguments, ToolCall
from multilora_gateway.openai.tools.parser import Part, ToolParser
from multilora_text.tokenizer import Tokenizer


class ChatChoice:
    """See Choice of openai_job. Without a parser all text is content."""

    def __init__(self, tokenizer: Tokenizer, logprobs: bool, parser: ToolParser | None) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = logprobs
        self._parser = parser
        self._calls = 0

    def opening(self) -> list[dict[str, Any]]:
        return [_chunk({"role": "assistant", "content": ""}, None)]

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        deltas = [self._delta(part) for part in self._parts(piece.text, bool(piece.finish_reason))]
        logprobs = self._logprobs(piece.tokens)
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        # the tokens are told once, beside the first thing they bring
        chunks = [
            _chunk(delta, None if number else logprobs) for number, delta in enumerate(deltas)
        ]
        if piece.finish_reason:
            chunks.append(_chunk({}, None, self._reason(piece.finish_reason)))
        return chunks

    def whole(self, answer: Answer) -> dict[str, Any]:
        parts = self._parts(answer.text, True)
        text = "".join(part for part in parts if isinstance(part, str))
        calls: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, ToolCall):
                calls.append(_tool_call(part))
            elif isinstance(part, MoreArguments):
                calls[-1]["function"]["arguments"] += part.text
        self._calls += len(calls)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not text else text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "message": message,
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": self._reason(answer.finish_reason),
        }

    def _parts(self, text: str, last: bool) -> list[Part]:
        if self._parser is None:
            return [text] if text else []
        return self._parser.push(text) + (self._parser.finish() if last else [])

    def _delta(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"content": part}
        if isinstance(part, MoreArguments):
            more = {"index": self._calls - 1, "function": {"arguments": part.text}}
            return {"tool_calls": [more]}
        self._calls += 1
        return {"tool_calls": [{"index": self._calls - 1, **_tool_call(part)}]}

    def _reason(self, reason: str) -> str:
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        return chat_logprobs(tokens, self._tokenizer) if self._wants_logprobs and tokens else None


def _chunk(
    delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None = None
) -> dict[str, Any]:
    return {"delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
