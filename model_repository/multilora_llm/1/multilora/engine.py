"""The engine: requests in, token ids out, one thread that schedules, runs and postprocesses.

Other threads call `submit`, `abort`, `metrics` and read `outputs`; they meet the engine thread in
two queues and nowhere else. The engine thread never tokenises, sends, downloads or reads a file.
On a GPU it is a pass ahead: it schedules and launches one while the device runs the one before.
"""

import dataclasses
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable

from multilora.adapters.admin.admin import AdapterAdmin
from multilora.adapters.naming.source import AdapterSource
from multilora.config import EngineConfig
from multilora.errors import RequestError, internal, invalid, shutting_down, too_many
from multilora.forward.runner import InFlight
from multilora.metrics import AdapterFigures, EngineMetrics
from multilora.request import Request, RequestLimits, TokenOutput
from multilora.scheduling.batch import Batch
from multilora.scheduling.sequence import TokenMatcher
from multilora.startup.build import EngineParts, load_parts
from multilora.startup.device import compute_alone, num_threads
from multilora_api.sampling import Grammar
from multilora_text.renderer import TemplateRenderer

_LOG = logging.getLogger(__name__)
_IDLE_SECONDS = 1.0  # how long to sleep while all that waits needs an adapter that loads
_LONGEST_SLEEP = 3600.0  # seconds; a queue takes no number that a client may think of


class Engine:
    """Loads everything on construction; raises StartupError. `start` begins to serve."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.outputs: queue.SimpleQueue[list[TokenOutput] | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.renderer = TemplateRenderer()
        self._num_threads = num_threads(config.threads)  # before loading changes it
        try:
            self._parts: EngineParts = load_parts(config, self._inbox.put, self.renderer)
        except BaseException:
            self.renderer.close()
            raise
        self.base = self._parts.base
        self.model_folder = self._parts.model_folder
        self.tokenizer = self._parts.text.tokenizer
        self.sampling_defaults = self._parts.text.sampling_defaults
        self.max_input_tokens = self._parts.max_input_tokens
        self.max_total_tokens = self._parts.max_total_tokens
        self.dtype = str(self._parts.runner.dtype).removeprefix("torch.")
        self.device = self._parts.runner.device.type
        self.limits = RequestLimits(
            self.max_input_tokens, self.max_total_tokens, self.base.vocab_size
        )
        adapters = self._parts.adapters
        self._metrics = EngineMetrics(
            config.adapter_metrics,
            min(config.max_running_requests, adapters.device.allocator.num_pages),
            adapters.states.usage,
        )
        self._in_flight: deque[tuple[Batch, InFlight]] = deque()  # oldest first
        self._live: dict[str, str] = {}  # request id → adapter id
        self._lock = threading.Lock()  # guards _live and _closed
        self._closed = False
        self._stalled = False  # the last pass found nothing that can be computed yet
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._measure()

    @property
    def admin(self) -> AdapterAdmin:
        return self._parts.admin

    def start(self) -> None:
        self._thread.start()
        if self._parts.watch:
            self._parts.watch.start()

    def close(self) -> None:
        """End every request with UNAVAILABLE, stop the threads, put None on `outputs`."""
        if self._parts.watch:
            self._parts.watch.close()
        with self._lock:
            self._closed = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._parts.grammars.close()
        self.renderer.close()
        self._parts.admin.close()  # also when the thread was never started
        self._parts.adapters.close()
        self.outputs.put(None)

    def submit(self, request: Request) -> None:
        """Accept a request whose tokens will appear on `outputs`; raises RequestError at once."""
        self.limits.check(request)
        source = None
        if request.adapter_id:
            source = self._parts.catalog.resolve(request.adapter_id, request.adapter_token)
        sampling = request.sampling
        matcher = self._parts.grammars.matcher(sampling.grammar) if sampling.grammar else None
        if sampling.seed is None and not sampling.greedy:
            sampling = dataclasses.replace(sampling, seed=secrets.randbits(63))
            request = dataclasses.replace(request, sampling=sampling)
        _ = request.allowed_bits  # they stay; the engine thread has no time to make many
        with self._lock:
            if self._closed:
                raise shutting_down()
            if request.request_id in self._live:
                raise invalid(
                    f"request id {request.request_id!r} is already running; use another id"
                )
            if len(self._live) >= self.config.max_concurrent_requests:
                raise too_many(f"{len(self._live)} requests are running or waiting already")
            self._live[request.request_id] = request.adapter_id
            self._inbox.put(lambda: self._add(request, source, matcher))

    def compile(self, grammar: Grammar) -> None:
        """So that `submit` finds it compiled; raises RequestError."""
        if self._closed:
            raise shutting_down()
        self._parts.grammars.matcher(grammar)

    def abort(self, request_id: str) -> None:
        """Cancel; the request ends with FinishReason.CANCELLED unless it has ended already."""
        self._inbox.put(lambda: self._parts.scheduler.abort(request_id))

    def metrics(self) -> dict[str, float]:
        """The figures of METRICS after the last step."""
        return self._metrics.snapshot

    def adapter_figures(self) -> AdapterFigures:
        """What single adapters do, after the last step."""
        return self._metrics.figures

    def step(self) -> None:
        """Schedule, launch, postprocess the oldest pass in flight. Engine thread only."""
        parts = self._parts
        parts.adapters.poll()
        parts.admin.pending.tick()
        batch = parts.scheduler.schedule()
        self._stalled = not batch and not self._in_flight
        if batch:
            self._launch(batch)
        if not batch or len(self._in_flight) >= parts.runner.depth:
            self._postprocess()
        self._metrics.step(batch.num_adapters, bool(batch))
        self._publish(parts.scheduler.take_outputs())

    def _launch(self, batch: Batch) -> None:
        try:
            self._in_flight.append((batch, self._parts.runner.launch(batch)))
        except Exception as error:
            self._fail([batch], error)

    def _postprocess(self) -> None:
        """Wait for the oldest pass in flight, if there is one; those behind it stand on it."""
        if not self._in_flight:
            return
        batch, in_flight = self._in_flight.popleft()
        try:
            tokens, prompts = in_flight.tokens(), in_flight.prompts()
        except Exception as error:
            self._fail([batch, *self._forget_passes()], error)
        else:
            self._parts.scheduler.postprocess(batch, tokens, prompts)

    def _forget_passes(self) -> list[Batch]:
        """What was in flight, and is not waited for any more."""
        batches = [batch for batch, _ in self._in_flight]
        self._in_flight.clear()
        return batches

    def _fail(self, batches: list[Batch], error: Exception) -> None:
        """Passes cannot be computed: end what was in them, so that the rest goes on."""
        _LOG.error("a forward pass failed", exc_info=error)
        for batch in batches:
            self._parts.scheduler.fail(batch, _pass_failed(error))

    def _add(
        self,
        request: Request,
        source: AdapterSource | None,
        matcher: TokenMatcher | None,
    ) -> None:
        scheduler, adapters = self._parts.scheduler, self._parts.adapters
        if source:
            adapters.forget_unused(scheduler.counts)
            adapters.prefetch(source)
        scheduler.add(request, matcher)
        self._metrics.request(request.adapter_id, len(request.prompt_token_ids))

    def _loop(self) -> None:
        if self.device == "cpu":
            compute_alone(self._num_threads)
        while self._read_inbox():
            try:
                self.step()
            except Exception as error:
                self._fail_all(error)

    def _read_inbox(self) -> bool:
        """Run every message; sleep first when there is nothing to compute. False: close."""
        parts = self._parts
        live = len(parts.scheduler)
        block = self._stalled or not (live or self._in_flight)
        timeout = None
        if block:
            self._metrics.describe(parts.scheduler.counts())
            timeout = self._idle_seconds()
        while True:
            try:
                message = self._inbox.get(block=block, timeout=timeout)
            except queue.Empty:
                return True
            block = False
            if message is None:
                self._end_all(shutting_down())
                return False
            try:
                message()
            except Exception:  # a defect in one command must not end all requests
                _LOG.exception("a message to the engine failed")

    def _idle_seconds(self) -> float | None:
        """How long to sleep when no message comes: until somebody has waited for too long."""
        left = [end - time.monotonic() for end in self._parts.deadlines()]
        left += [_IDLE_SECONDS] if len(self._parts.scheduler) else []
        return max(0.0, min(*left, _LONGEST_SLEEP)) if left else None

    def _fail_all(self, error: Exception) -> None:
        """A step raised outside of a pass: end what runs, so that later requests go on.

        If nothing does, it would raise again and again: end what waits.
        """
        scheduler = self._parts.scheduler
        ending = list(scheduler.running) or scheduler.waiting
        self._fail(self._forget_passes(), error)
        for sequence in ending:
            scheduler.abort(sequence.request.request_id, _pass_failed(error))
        self._publish(scheduler.take_outputs())

    def _end_all(self, reason: RequestError) -> None:
        self._in_flight.clear()
        scheduler = self._parts.scheduler
        for sequence in scheduler.running + scheduler.waiting:
            scheduler.abort(sequence.request.request_id, reason)
        self._publish(scheduler.take_outputs())

    def _publish(self, outputs: list[TokenOutput]) -> None:
        with self._lock:
            for output in outputs:
                if output.token_id is not None:
                    self._metrics.token(self._live[output.request_id])
                if output.finish_reason:
                    del self._live[output.request_id]
        self._measure()
        if outputs:
            self.outputs.put(outputs)

    def _measure(self) -> None:
        self._metrics.publish(self._parts.gauges())
        if self._metrics.is_description_old:
            self._metrics.describe(self._parts.scheduler.counts())


def _pass_failed(error: Exception) -> RequestError:
    return internal(f"the forward pass failed: {error!r}")
