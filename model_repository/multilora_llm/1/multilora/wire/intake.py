"""Intake: what happens to a Triton request before its first token is computed.

A request is parsed, its chat is rendered, its grammar is compiled, and the engine gets it. A
command for the adapters is carried out, a stop is passed on. What takes time happens on other
threads, so that neither the Triton thread nor the engine thread waits.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from multilora.adapters.admin.command import AdminCommand
from multilora.errors import RequestError, cancelled, internal, invalid
from multilora.grammar.threads import GrammarThreads
from multilora.wire.prompt import banned_tokens, chat_error, encode_text
from multilora.wire.responder import Responder
from multilora.wire.response import json_response, stopped_response
from multilora.wire.stream import Client, JointClient
from multilora.wire.triton_request import (
    Tensors,
    TritonRequest,
    admin_command,
    is_admin,
    is_stop,
    opens_shared_stream,
    parse_request,
)
from multilora_text.chat_template import NO_TEMPLATES, ChatTemplates
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer, read_text_files

if TYPE_CHECKING:  # torch: the stub that completes the configuration must not load it
    from multilora.engine import Engine

DEMO_NAME = "multilora-demo"
_LOG = logging.getLogger("multilora.model")


class Intake:
    """Used by the Triton thread. Whatever goes wrong with a request is its client's answer."""

    def __init__(self, engine: "Engine", tokenizer: Tokenizer, responder: Responder) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._responder = responder
        self._timeout = engine.config.adapter_timeout
        self._numbers = itertools.count(1)
        self._early_stops = EarlyStops()
        self._helpers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="multilora")
        self._grammar_threads = GrammarThreads(engine.config.max_concurrent_requests)

    def accept(
        self, client: Client, read: Callable[[], tuple[str, Tensors, Mapping[str, Any]]]
    ) -> None:
        """Begin with a request. `read` gives what its client called it, maybe nothing, its tensors
        and its parameters."""
        self._guard(client, self._accept, client, read)

    def close(self) -> None:
        """Let what has begun end."""
        self._helpers.shutdown()
        self._grammar_threads.close()

    def _accept(
        self, client: Client, read: Callable[[], tuple[str, Tensors, Mapping[str, Any]]]
    ) -> None:
        client_id, tensors, parameters = read()
        if is_stop(tensors):
            return self._stop(client, client_id)
        if is_admin(tensors):
            command = admin_command(tensors, parameters)
            self._helpers.submit(self._guard, client, self._administer, command, client)
            return
        if opens_shared_stream(tensors):
            return self._responder.shared.open(client_id, client)
        request_id = f"{client_id}#{next(self._numbers)}"
        parsed = parse_request(
            tensors, parameters, client_id, request_id, self._engine.limits, self._timeout
        )
        if parsed.shared_stream:
            client = self._responder.shared.join(parsed.shared_stream, client_id, client)
        self._guard(client, self._prepare, parsed, client)

    def _prepare(self, parsed: TritonRequest, client: Client) -> None:
        """Make token ids of what was sent, wherever that takes time; then go on."""
        client.outputs = parsed.outputs
        most = self._engine.config.max_concurrent_requests
        if parsed.num_answers > most:
            raise invalid(
                f"n is {parsed.num_answers}, but at most {most} answers are made at a time "
                "(--max-concurrent-requests); ask for fewer"
            )
        self._early_stops.begin(client, parsed.client_id)
        if parsed.text is not None:  # a long one takes time that others need
            self._helpers.submit(self._guard, client, self._encode, parsed, client)
            return
        if parsed.messages is None:
            return self._begin(parsed, client)
        request = parsed.request
        if not request.adapter_id:
            return self._render(parsed, NO_TEMPLATES, client)
        text = self._engine.admin.text(
            request.adapter_id, request.adapter_timeout, request.adapter_token
        )
        self._when_done(text, client, lambda own: self._render(parsed, own.templates, client))

    def _encode(self, parsed: TritonRequest, client: Client) -> None:
        encoded = parsed.with_prompt(encode_text(self._tokenizer, parsed.text or ""))
        if parsed.from_vllm:
            encoded = replace(encoded, request=self._engine.limits.granted(encoded.request))
        self._begin(encoded, client)

    def _stop(self, client: Client, client_id: str) -> None:
        if not client_id:
            raise invalid("stop needs the id of the request to cancel as its own request id")
        self._early_stops.stop(client_id)
        self._responder.stop(client_id)
        client.send(stopped_response())

    def _administer(self, command: AdminCommand, client: Client) -> None:
        """On a thread of its own: to list the adapters may take a look at thousands of folders."""
        if command.action == "describe":
            return client.send(json_response(describe(self._engine)))
        answer = self._engine.admin.execute(command, self._timeout)
        self._when_done(answer, client, lambda result: client.send(json_response(result)))

    def _render(self, parsed: TritonRequest, own: ChatTemplates, client: Client) -> None:
        """In a process of its own; then go on with the ids of what has come out."""
        template, tokenizer = self._tokenizer.template(own), self._tokenizer
        rendered = self._engine.renderer.render(template, parsed.messages or [])
        self._when_done(
            rendered,
            client,
            lambda text: self._begin(parsed.with_prompt(tokenizer.encode_rendered(text)), client),
        )

    def _begin(self, parsed: TritonRequest, client: Client) -> None:
        if words := parsed.request.sampling.bad_words:
            banned = banned_tokens(self._tokenizer, words)
            parsed = replace(parsed, request=replace(parsed.request, banned=banned))
        if parsed.request.sampling.grammar:  # compiling it takes time that others need
            self._grammar_threads.submit(lambda: self._guard(client, self._compile, parsed, client))
        else:
            self._submit(parsed, client)

    def _compile(self, parsed: TritonRequest, client: Client) -> None:
        """Before the responder knows the client, because it must not poll one that was refused."""
        if client.is_cancelled() or self._early_stops.is_stopped(client):
            raise cancelled()
        if grammar := parsed.request.sampling.grammar:
            self._engine.compile(grammar)
        self._submit(parsed, client)

    def _submit(self, parsed: TritonRequest, client: Client) -> None:
        answers, ways = parsed.answers(), [client]
        if len(answers) > 1:
            ways = list[Client](JointClient(client, len(answers), parsed.stream).parts)
        for answer, way in zip(answers, ways, strict=True):
            self._responder.add(answer, way)
            try:
                self._engine.submit(answer.request)
            except RequestError as error:
                self._responder.discard(answer.request.request_id)
                self._early_stops.end(client)
                return way.fail(error)
        if self._early_stops.end(client):
            for answer in answers:
                self._engine.abort(answer.request.request_id)

    def _when_done(
        self, future: "Future[Any]", client: Client, go_on: Callable[[Any], None]
    ) -> None:
        """Go on with the result: at once if it is there, else later on another thread."""
        if future.done():
            go_on(future.result())
        else:
            future.add_done_callback(
                lambda done: self._helpers.submit(self._guard, client, lambda: go_on(done.result()))
            )

    def _guard(self, client: Client, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except RequestError as error:
            self._fail(client, error)
        except TextError as error:
            self._fail(client, chat_error(error))
        except Exception as error:
            _LOG.exception("a request could not be read")
            self._fail(client, internal(f"internal error: {error!r}"))

    def _fail(self, client: Client, error: RequestError) -> None:
        self._early_stops.end(client)
        client.fail(error)


class EarlyStops:
    """`stop` for requests that have not reached the engine yet. Any thread.

    Law: a request that is stopped between `begin` and `end` hears of it from `end`; after that the
    engine can be told. `key` is whatever stands for one request while its chat is rendered or its
    grammar compiled.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._client_ids: dict[object, str] = {}
        self._stopped: set[object] = set()

    def begin(self, key: object, client_id: str) -> None:
        with self._lock:
            self._client_ids[key] = client_id

    def stop(self, client_id: str) -> None:
        """Remember the stop for all requests of that name that are on their way."""
        with self._lock:
            named = (key for key, name in self._client_ids.items() if name == client_id)
            self._stopped.update(named)

    def is_stopped(self, key: object) -> bool:
        """Whether the request need not go on."""
        with self._lock:
            return key in self._stopped

    def end(self, key: object) -> bool:
        """The request has arrived, or never will: whether it was stopped. Asked twice: False."""
        with self._lock:
            self._client_ids.pop(key, None)
            stopped = key in self._stopped
            self._stopped.discard(key)
            return stopped


def describe(engine: "Engine") -> dict[str, Any]:
    """What a gateway has to know of the base model: the answer to the action `describe`.

    Lengths are in tokens. `tokenizer` holds the texts of the tokenizer's files by name; `model_sha`
    is the commit of a model from the Hub, else None.
    """
    config, base, folder = engine.config, engine.base, engine.model_folder
    return {
        "model_id": config.model_id or DEMO_NAME,
        "model_sha": folder.name if folder.parent.name == "snapshots" else None,
        "dtype": engine.dtype,
        "device": engine.device,
        "max_input_tokens": engine.max_input_tokens,
        "max_total_tokens": engine.max_total_tokens,
        "max_batch_prefill_tokens": config.max_batch_prefill_tokens,
        "max_concurrent_requests": config.max_concurrent_requests,
        "max_lora_rank": config.max_lora_rank,
        "vocab_size": base.vocab_size,
        "sampling_defaults": dict(engine.sampling_defaults),
        "tokenizer": read_text_files(folder),
    }
