"""The answer of POST /v1/messages: blocks of content, and the events that tell how they grow."""

import json
from typing import Any

from multilora_gateway.backend.messages import Delta
from multilora_gateway.errors import GatewayError, anthropic_body
from multilora_gateway.openai.job import CompletionJob
from multilora_gateway.openai.turn import Block, Event, Turn

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageTurn(Turn):
    def __init__(self, job: CompletionJob) -> None:
        super().__init__(job, "msg")
        self._text = ""  # as generated, with what becomes reasoning and calls
        self._token_ids: list[int] = []

    def opening(self) -> list[Event]:
        return [{"type": "message_start", "message": self.whole()}, {"type": "ping"}]

    def push(self, delta: Delta) -> list[Event]:
        self._text += delta.text
        self._token_ids += (token.id for token in delta.tokens)
        return super().push(delta)

    def begun(self, block: Block) -> list[Event]:
        content = _content(block)
        return [{"type": "content_block_start", "index": block.number, "content_block": content}]

    def grown(self, block: Block, text: str, logprobs: list[dict[str, Any]]) -> list[Event]:
        kind, field = _DELTAS[block.kind]
        delta = {"type": kind, field: text}
        return [{"type": "content_block_delta", "index": block.number, "delta": delta}]

    def ended(self, block: Block) -> list[Event]:
        return [{"type": "content_block_stop", "index": block.number}]

    def closing(self) -> list[Event]:
        delta = self._stopped()
        return [
            {"type": "message_delta", "delta": delta, "usage": self._usage()},
            {"type": "message_stop"},
        ]

    def failed(self, error: GatewayError) -> list[Event]:
        return [anthropic_body(error)]

    def whole(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.job.model.name,
            "content": [_content(block) for block in self.blocks],
            **self._stopped(),
            "usage": self._usage(),
        }

    def _stopped(self) -> dict[str, str | None]:
        if self.reason is None:
            return {"stop_reason": None, "stop_sequence": None}
        stop = self._stop_sequence() if self.reason == "stop" else None
        reason = _STOP_REASONS[self.reason] if stop is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": stop}

    def _stop_sequence(self) -> str | None:
        """The one that ended the answer: it follows the text in what was generated."""
        sampling = self.job.requests[0].sampling
        stops = sampling.get("stop") or ()
        if not stops:
            return None
        if sampling.get("include_stop_str_in_output"):
            return max(filter(self._text.endswith, stops), key=len, default=None)
        skip = sampling.get("skip_special_tokens", True)
        generated = self.job.base.tokenizer.decode(self._token_ids, skip)
        rest = generated[len(self._text) :]
        return min(filter(rest.startswith, stops), key=len, default=None)

    def _usage(self) -> dict[str, int]:
        return {
            "input_tokens": self.job.prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": self.output_tokens,
        }


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    called = {"id": block.call_id, "name": block.name, "input": _input(block.text)}
    return {"type": "tool_use", **called}


def _input(text: str) -> dict[str, Any]:
    """The object that the text of arguments is; an empty one of what the model did not finish."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
