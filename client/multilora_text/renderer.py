"""TemplateRenderer: renders chats in processes of their own, so that a template harms nobody else.

Laws: what breaks a limit fails its own chat and is not tried again for a while. Templates take
turns. All that are new, or were slow, leave one process to those that were always quick, so a chat
with a usual template is answered whatever other templates do.
"""

import json
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from multilora_sandbox.pool import Broken, Ending, PoolClosed, ProcessPool
from multilora_text.chat_template import ChatTemplate
from multilora_text.errors import RenderingBusy, TextError

_LOG = logging.getLogger(__name__)
_PROGRAM = "multilora_text.template_process"
_WALL_SECONDS = 20.0  # enough on a busy machine for the processor time that the process allows
_QUICK_SECONDS = 0.25  # of processor time; a usual chat takes a thousandth
_WAIT_SECONDS = 10.0
_REMEMBERED_SECONDS = 60.0
_MOST_REMEMBERED = 4096
_CLOSE_SECONDS = 5.0
_TRIAL = ({"role": "user", "content": "Hello"},)
_BROKEN = {
    Ending.TIME: "takes more time than the server allows",
    Ending.MEMORY: "takes more memory than the server allows",
    Ending.CRASH: "ends the process that runs it",
    Ending.OUTSIDE: "ends the process that runs it",
}


class _Refusal(TextError):
    """The template is sound, and does not take these messages."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the chat template refuses these messages ({reason}); change them, or send the "
            "prompt as a text, without chat"
        )


class _Defect(TextError):
    """`what` the template does that it must not."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the chat template {what}; send fewer or shorter messages, repair the template, or "
            "send the prompt as a text, without chat"
        )
        self.what = what


@dataclass(frozen=True)
class _Chat:
    """One piece of work. `source` is the hash of the template's."""

    template: ChatTemplate
    names: Mapping[str, Any]
    source: int
    future: "Future[Any]" = field(default_factory=Future)
    until: float = field(default_factory=lambda: time.monotonic() + _WAIT_SECONDS)


class TemplateRenderer:
    """Any thread. At most `processes` run at a time; the first one starts with the first chat."""

    def __init__(self, processes: int = 2) -> None:
        self._processes = processes
        self._pool = ProcessPool(_PROGRAM)
        self._history = _History()
        self._threads: list[threading.Thread] = []
        self._condition = threading.Condition()  # guards what follows
        self._waiting: OrderedDict[int, deque[_Chat]] = OrderedDict()  # whose turn is next: first
        self._slow = 0  # how many are being rendered that may take long
        self._closed = False

    def render(
        self, template: ChatTemplate, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> "Future[str]":
        """The prompt text of a conversation that the assistant continues.

        `variables` are more names that the template may know; `tools` and `documents` are None
        unless given. They and the messages must be values of JSON. The future ends with a TextError
        when the template refuses the messages or breaks a limit, and with RenderingBusy.
        """
        return self._submit(template, messages, **variables)

    def check(self, template: ChatTemplate) -> None:
        """Raises ValueError, which says what the template does: it does not compile, or breaks a
        limit with one short message. Raises RenderingBusy too."""
        if self._history.has_ended_well(hash(template.source)):
            return
        try:
            self._submit(template, _TRIAL).result()
        except _Defect as error:
            raise ValueError(error.what) from None
        except _Refusal:  # it may want other messages
            pass

    def close(self) -> None:
        """Kill the processes; nothing is rendered any more."""
        with self._condition:
            self._closed = True
            waiting = [chat for chats in self._waiting.values() for chat in chats]
            self._waiting.clear()
            self._condition.notify_all()
        for chat in waiting:
            _fail(chat, _closing())
        self._pool.close()
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)

    def _submit(
        self, template: ChatTemplate, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> "Future[Any]":
        names = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **template.special_tokens,
            **variables,
            "messages": messages,
        }
        chat = _Chat(template, names, hash(template.source))
        if defect := self._history.defect(chat.source):
            chat.future.set_exception(_Defect(defect))
            return chat.future
        with self._condition:
            if self._closed:
                chat.future.set_exception(_closing())
                return chat.future
            self._waiting.setdefault(chat.source, deque()).append(chat)
            if len(self._threads) < self._processes:
                name = f"templates-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
            self._condition.notify()
        return chat.future

    def _work(self) -> None:
        while taken := self._next():
            chat, slow = taken
            try:
                chat.future.set_result(self._rendered(chat))
            except Exception as error:
                chat.future.set_exception(error)
            with self._condition:
                self._slow -= slow
                self._condition.notify_all()

    def _next(self) -> tuple[_Chat, bool] | None:
        """A chat whose turn it is, and whether it may take long; None: close."""
        with self._condition:
            while not self._closed:
                self._end_late()
                for source, chats in self._waiting.items():
                    slow = not self._history.is_quick(source)
                    if slow and self._slow >= max(1, self._processes - 1):
                        continue
                    chat = chats.popleft()
                    del self._waiting[source]
                    if chats:
                        self._waiting[source] = chats  # at the end
                    if not chat.future.set_running_or_notify_cancel():
                        break  # its client has left
                    self._slow += slow
                    return chat, slow
                else:
                    self._condition.wait()
        return None

    def _end_late(self) -> None:
        now = time.monotonic()
        for source, chats in list(self._waiting.items()):
            while chats and chats[0].until < now:
                _fail(chats.popleft(), _busy())
            if not chats:
                del self._waiting[source]

    def _rendered(self, chat: _Chat) -> str:
        """Raises TextError."""
        try:
            question = json.dumps([chat.template.source, chat.names]).encode()
        except (RecursionError, ValueError) as error:
            raise _Refusal(str(error)) from None
        for name in (chat.source, hash(question)):
            if defect := self._history.defect(name):
                raise _Defect(defect)
        try:
            answer = self._pool.ask(question, _WALL_SECONDS)
        except PoolClosed:
            raise _closing() from None
        except OSError as error:
            _LOG.exception("%s does not start", _PROGRAM)
            raise RenderingBusy(f"no chat can be rendered ({error}); try again later") from None
        except Broken as error:
            raise self._broken(chat, question, _BROKEN[error.ending]) from None
        if "broken" in answer:
            raise _Defect(f"does not compile ({answer['broken']})")
        if "longer" in answer:
            what = f"makes more than {answer['longer']} characters of these messages"
            raise self._broken(chat, question, what)
        self._history.ended_well(chat.source, answer["seconds"])
        if "refused" in answer:
            raise _Refusal(answer["refused"])
        return answer["text"]

    def _broken(self, chat: _Chat, question: bytes, what: str) -> _Defect:
        self._history.broken(chat.source, question, what)
        return _Defect(what)


class _History:
    """What is known of templates, each named by the hash of its source. Any thread.

    What breaks a limit is remembered as the template's fault when it has never ended well, else as
    that of one question, so that nobody's odd messages take a template from everybody else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._slow_until: OrderedDict[int, float] = OrderedDict()  # of what has ended well
        self._defects: OrderedDict[int, tuple[float, str]] = OrderedDict()  # until then

    def has_ended_well(self, source: int) -> bool:
        with self._lock:
            return source in self._slow_until

    def is_quick(self, source: int) -> bool:
        with self._lock:
            return self._slow_until.get(source, math.inf) < time.monotonic()

    def ended_well(self, source: int, seconds: float) -> None:
        with self._lock:
            slow_until = self._slow_until.pop(source, 0.0)
            if seconds > _QUICK_SECONDS:
                slow_until = time.monotonic() + _REMEMBERED_SECONDS
            _keep(self._slow_until, source, slow_until)

    def broken(self, source: int, question: bytes, what: str) -> None:
        until = time.monotonic() + _REMEMBERED_SECONDS
        with self._lock:
            if source in self._slow_until:
                self._slow_until[source] = until
                source = hash(question)
            _keep(self._defects, source, (until, what))

    def defect(self, name: int) -> str | None:
        """What the template, or the question, of this hash has done not long ago."""
        with self._lock:
            until, what = self._defects.get(name, (0.0, ""))
            return what if until > time.monotonic() else None


_T = TypeVar("_T")


def _keep(kept: OrderedDict[int, _T], name: int, value: _T) -> None:
    kept[name] = value
    while len(kept) > _MOST_REMEMBERED:
        kept.popitem(last=False)


def _fail(chat: _Chat, error: TextError) -> None:
    if chat.future.set_running_or_notify_cancel():
        chat.future.set_exception(error)


def _busy() -> RenderingBusy:
    return RenderingBusy(
        f"the chat waited {_WAIT_SECONDS:.0f} s for other chat templates; try again later"
    )


def _closing() -> RenderingBusy:
    return RenderingBusy("the server is shutting down; try again later")
