"""The engine: requests in, token ids out, one thread that schedules, runs and postprocesses.

Other threads call `submit`, `abort`, `metrics` and read `outputs`; they meet the engine thread in
two queues and nowhere else. The engine thread never tokenises, sends, downloads or reads a file.
"""

import dataclasses
import logging
import queue
import secrets
import threading

from multilora.config import EngineConfig
from multilora.engine_parts import EngineParts, load_parts
from multilora.errors import ErrorCode, RequestError, invalid
from multilora.metrics import METRICS
from multilora.request import Request, TokenOutput

_LOG = logging.getLogger(__name__)
_IDLE_SECONDS = 1.0  # how long to sleep while every waiting request needs an adapter that loads


class _Wake:
    """Inbox message: look again (an adapter was loaded)."""


class _Close:
    """Inbox message: end the thread."""


@dataclasses.dataclass(frozen=True)
class _Abort:
    request_id: str


class Engine:
    """Loads everything on construction; raises StartupError. `start` begins to serve."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.outputs: queue.SimpleQueue[list[TokenOutput] | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Request | _Abort | _Wake | _Close] = queue.SimpleQueue()
        self._parts: EngineParts = load_parts(config, wake=lambda: self._inbox.put(_Wake()))
        self.base = self._parts.base
        self.model_folder = self._parts.model_folder
        self.max_input_tokens = self._parts.max_input_tokens
        self.max_total_tokens = self._parts.max_total_tokens
        self._live: set[str] = set()
        self._lock = threading.Lock()  # guards _live and _closed
        self._closed = False
        self._stalled = False  # the last pass found nothing that can be computed yet
        self._counts = dict.fromkeys(METRICS, 0.0)
        self._snapshot = dict(self._counts)
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._measure()

    @property
    def adapter_ids(self) -> list[str]:
        return self._parts.store.adapter_ids

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End every request with UNAVAILABLE, stop the threads, put None on `outputs`."""
        with self._lock:
            self._closed = True
        self._inbox.put(_Close())
        if self._thread.is_alive():
            self._thread.join()
        self._parts.store.close()
        self.outputs.put(None)

    def submit(self, request: Request) -> None:
        """Accept a request whose tokens will appear on `outputs`; raises RequestError at once."""
        self._check(request)
        sampling = request.sampling
        if sampling.seed is None and not sampling.greedy:
            sampling = dataclasses.replace(sampling, seed=secrets.randbits(63))
            request = dataclasses.replace(request, sampling=sampling)
        with self._lock:
            if self._closed:
                raise RequestError(ErrorCode.UNAVAILABLE, "the server is shutting down")
            if request.request_id in self._live:
                raise invalid(
                    f"request id {request.request_id!r} is already running; use another id"
                )
            if len(self._live) >= self.config.max_concurrent_requests:
                raise RequestError(
                    ErrorCode.UNAVAILABLE,
                    f"{len(self._live)} requests are running or waiting already, the most that "
                    "--max-concurrent-requests allows; try again later",
                )
            self._live.add(request.request_id)
            self._inbox.put(request)

    def abort(self, request_id: str) -> None:
        """Cancel; the request ends with FinishReason.CANCELLED unless it has ended already."""
        self._inbox.put(_Abort(request_id))

    def metrics(self) -> dict[str, float]:
        """The figures of METRICS after the last step."""
        return self._snapshot

    def step(self) -> None:
        """Schedule, run, postprocess. Engine thread only."""
        parts = self._parts
        parts.store.collect()
        batch = parts.scheduler.schedule()
        sampled = parts.runner.run(batch) if batch else []
        outputs = parts.scheduler.postprocess(batch, sampled)
        self._stalled = not batch
        self._count(batch.num_adapters, bool(batch), outputs)
        self._publish(outputs)

    def _check(self, request: Request) -> None:
        count, sampling = len(request.prompt_token_ids), request.sampling
        if count == 0:
            raise invalid("input_ids is empty; send at least one token")
        if count > self.max_input_tokens:
            raise invalid(
                f"the prompt has {count} tokens but max_input_tokens is {self.max_input_tokens}; "
                "shorten it or raise --max-input-tokens"
            )
        if count + sampling.max_tokens > self.max_total_tokens:
            raise invalid(
                f"prompt ({count} tokens) + max_tokens ({sampling.max_tokens}) exceed "
                f"max_total_tokens {self.max_total_tokens}; lower max_tokens to at most "
                f"{self.max_total_tokens - count} or raise --max-total-tokens"
            )
        low, high = min(request.prompt_token_ids), max(request.prompt_token_ids)
        if low < 0 or high >= self.base.vocab_size:
            raise invalid(
                f"input_ids holds {low if low < 0 else high}; token ids of this base model are "
                f"0 to {self.base.vocab_size - 1}"
            )
        if request.adapter_id and not self._parts.store.knows(request.adapter_id):
            raise RequestError(
                ErrorCode.NOT_FOUND,
                f"adapter {request.adapter_id!r} is not registered; register it with "
                "--lora-adapters, or leave adapter_id empty for the base model",
            )

    def _loop(self) -> None:
        while self._read_inbox():
            try:
                self.step()
            except Exception as error:
                _LOG.exception("a forward pass failed")
                self._fail_running(error)

    def _read_inbox(self) -> bool:
        """Take every message; sleep first when there is nothing to compute. False: close."""
        scheduler = self._parts.scheduler
        timeout = _IDLE_SECONDS if len(scheduler) else None
        block = self._stalled or not len(scheduler)
        while True:
            try:
                message = self._inbox.get(block=block, timeout=timeout)
            except queue.Empty:
                return True
            block = False
            if isinstance(message, Request):
                scheduler.add(message)
                self._counts["multilora_requests_total"] += 1
                self._counts["multilora_prompt_tokens_total"] += len(message.prompt_token_ids)
            elif isinstance(message, _Abort):
                scheduler.abort(message.request_id)
            elif isinstance(message, _Close):
                self._end_all(RequestError(ErrorCode.UNAVAILABLE, "the server is shutting down"))
                return False

    def _fail_running(self, error: Exception) -> None:
        """A pass raised: end what was in it, so that the rest and later requests go on."""
        reason = RequestError(ErrorCode.INTERNAL, f"the forward pass failed: {error!r}")
        for sequence in list(self._parts.scheduler.running):
            self._parts.scheduler.abort(sequence.request.request_id, reason)
        self._publish(self._parts.scheduler.take_outputs())

    def _end_all(self, reason: RequestError) -> None:
        scheduler = self._parts.scheduler
        for sequence in scheduler.running + scheduler.waiting:
            scheduler.abort(sequence.request.request_id, reason)
        self._publish(scheduler.take_outputs())

    def _publish(self, outputs: list[TokenOutput]) -> None:
        self._measure()
        ended = [output.request_id for output in outputs if output.finish_reason]
        with self._lock:
            self._live.difference_update(ended)
        if outputs:
            self.outputs.put(outputs)

    def _count(self, num_adapters: int, ran: bool, outputs: list[TokenOutput]) -> None:
        counts = self._counts
        counts["multilora_steps_total"] += ran
        counts["multilora_generated_tokens_total"] += sum(
            output.token_id is not None for output in outputs
        )
        counts["multilora_adapters_in_batch"] = num_adapters
        most = max(counts["multilora_max_adapters_in_batch"], num_adapters)
        counts["multilora_max_adapters_in_batch"] = most

    def _measure(self) -> None:
        self._counts.update(self._parts.gauges())
        self._snapshot = dict(self._counts)
