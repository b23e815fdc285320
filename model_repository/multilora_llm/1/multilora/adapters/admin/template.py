"""The answer to the action `template`: how a chat with an adapter is rendered."""

from concurrent.futures import Future
from typing import Any


def template_answer(adapter_id: str, found: "Future[Any]") -> "Future[dict[str, Any]]":
    """Once `found` knows the adapter's own ChatTemplate, or None: the base model's is used."""
    answer: Future[dict[str, Any]] = Future()

    def show(done: "Future[Any]") -> None:
        if error := done.exception():
            return answer.set_exception(error)
        own = done.result()
        source, tokens = (own.source, dict(own.special_tokens)) if own else (None, {})
        answer.set_result({"id": adapter_id, "chat_template": source, "special_tokens": tokens})

    found.add_done_callback(show)
    return answer
