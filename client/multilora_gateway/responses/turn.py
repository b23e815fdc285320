"""The answer of POST /v1/responses: items, and the events that tell how they grow."""

from typing import Any

from multilora_gateway.errors import GatewayError
from multilora_gateway.openai.job import CompletionJob, unix_seconds
from multilora_gateway.openai.turn import Block, Event, Turn
from multilora_gateway.responses.body import ResponsesBody

_ITEM_PREFIX = {"text": "msg", "reasoning": "rs", "call": "fc"}
_PART_OF = {"text": "output_text", "reasoning": "reasoning_text"}


class ResponseTurn(Turn):
    """Nothing of it is stored."""

    def __init__(self, body: ResponsesBody, job: CompletionJob) -> None:
        super().__init__(job, "resp")
        self._body = body
        self._created = unix_seconds()
        self._events = 0
        self._error: dict[str, Any] | None = None

    def opening(self) -> list[Event]:
        response = self.whole()
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def begun(self, block: Block) -> list[Event]:
        events = [
            self._event(
                "response.output_item.added",
                output_index=block.number,
                item=self._item(block, "in_progress"),
            )
        ]
        if part := _part(block):
            events.append(self._of("response.content_part.added", block, part=part))
        return events

    def grown(self, block: Block, text: str, logprobs: list[dict[str, Any]]) -> list[Event]:
        if block.kind == "call":
            return [self._of("response.function_call_arguments.delta", block, delta=text)]
        own = {"logprobs": logprobs} if block.kind == "text" else {}
        return [self._of(f"response.{_PART_OF[block.kind]}.delta", block, delta=text, **own)]

    def ended(self, block: Block) -> list[Event]:
        if block.kind == "call":
            name = "response.function_call_arguments.done"
            events = [self._of(name, block, arguments=block.text)]
        else:
            own = {"logprobs": block.logprobs} if block.kind == "text" else {}
            name = f"response.{_PART_OF[block.kind]}.done"
            events = [
                self._of(name, block, text=block.text, **own),
                self._of("response.content_part.done", block, part=_part(block)),
            ]
        item = self._item(block, self._status_of(block))
        done = self._event("response.output_item.done", output_index=block.number, item=item)
        return [*events, done]

    def closing(self) -> list[Event]:
        return [self._event(f"response.{self._status}", response=self.whole())]

    def failed(self, error: GatewayError) -> list[Event]:
        self._error = {"code": "server_error", "message": error.message}
        return self.closing()

    def whole(self) -> dict[str, Any]:
        body, status = self._body, self._status
        sampling = self.job.requests[0].sampling
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": unix_seconds() if status == "completed" else None,
            "status": status,
            "background": False,
            "error": self._error,
            "incomplete_details": reason,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.job.model.name,
            "output": [self._item(block, self._status_of(block)) for block in self.blocks],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {
                "effort": body.reasoning.effort if body.reasoning else None,
                "summary": None,
            },
            "store": False,
            "temperature": sampling.get("temperature"),
            "text": _given(body.text) or {"format": {"type": "text"}},
            "tool_choice": _given(body.tool_choice) or "auto",
            "tools": [_given(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": sampling.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            "user": body.user,
        }

    @property
    def _status(self) -> str:
        if self._error is not None:
            return "failed"
        if self.reason is None:
            return "in_progress"
        return "incomplete" if self.reason == "length" else "completed"

    def _status_of(self, block: Block) -> str:
        is_last = block.number == len(self.blocks) - 1
        return "incomplete" if is_last and self._status in ("incomplete", "failed") else "completed"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": _item_id(block), "status": status}
        if block.kind == "call":
            call = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
            return {**item, "type": "function_call", **call}
        content = [] if status == "in_progress" else [_part(block)]
        if block.kind == "reasoning":
            return {**item, "type": "reasoning", "summary": [], "content": content}
        return {**item, "type": "message", "role": "assistant", "content": content}

    def _usage(self) -> dict[str, Any]:
        usage = self.job.usage(self.output_tokens)
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }

    def _of(self, name: str, block: Block, **values: Any) -> Event:
        """An event of a block, or of its only part."""
        place = {} if block.kind == "call" else {"content_index": 0}
        own = {"item_id": _item_id(block), "output_index": block.number}
        return self._event(name, **own, **place, **values)

    def _event(self, name: str, **values: Any) -> Event:
        self._events += 1
        return {"type": name, "sequence_number": self._events - 1, **values}


def _item_id(block: Block) -> str:
    return f"{_ITEM_PREFIX[block.kind]}_{block.id}"


def _part(block: Block) -> dict[str, Any] | None:
    if block.kind == "call":
        return None
    part: dict[str, Any] = {"type": _PART_OF[block.kind], "text": block.text}
    return (
        part | {"annotations": [], "logprobs": [*block.logprobs]} if block.kind == "text" else part
    )


def _given(value: Any) -> Any:
    """What a client sent, as JSON."""
    if value is None or isinstance(value, str):
        return value
    return value.model_dump(by_alias=True, exclude_unset=True)
