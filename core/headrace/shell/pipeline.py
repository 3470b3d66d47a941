"""A pipeline that stays: requests go through its stages one after the other, and each stage is at its own request.

::

    submit ──► inbox ── thread of stage 1 ──► inbox ── thread of stage 2 ──► ... ──► the request's future
                   a plain function: one call a request
                   a generator function: iterates over the requests, and yields one answer for each, in their order
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from types import GeneratorType, TracebackType
from typing import Any, Final, NamedTuple

from headrace.errors import StreamError, UserError

KEPT_LATENCIES: Final = 10_000


class Latency(NamedTuple):
    """From :meth:`Pipeline.submit` to the answer, over the last 10,000 requests; seconds."""

    requests: int
    median_s: float
    p99_s: float


class _Request:
    __slots__ = ("future", "since_s", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.future: Future[Any] = Future()
        self.since_s = time.perf_counter()


class Pipeline:
    """What :meth:`headrace.Runtime.stream` returns. Thread-safe; as a context manager it ends when it is left.

    Args:
        stages: plain functions of one request, or generator functions over all of them.
        holder: kept for as long as the pipeline is: the runtime, which would end it.
        name: of its threads.
    """

    def __init__(
        self, stages: tuple[Callable[..., Any], ...], holder: object = None, name: str = "headrace-pipeline"
    ) -> None:
        if not stages or not all(map(callable, stages)) or any(map(_is_async, stages)):
            raise UserError(f"a pipeline needs functions, one or more and none of them async, not {stages!r}")
        self._holder = holder
        self._latencies: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._served = 0
        self._lock = threading.Lock()
        self._closed = False
        self._inboxes: list[SimpleQueue[_Request | None]] = [SimpleQueue() for _ in stages]
        self._threads = []
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            send = self._answer if last else self._inboxes[number + 1].put
            inside = _Generator if _is_generator_function(stage) else _Function
            runner = inside(stage, self._inboxes[number], send, self._fail)
            thread = threading.Thread(target=runner.run, name=f"{name}-{number + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, request: Any) -> Future[Any]:
        """Sends a request through all stages; returns the future of its answer at once.

        A stage that raises fails the request that it was at, and goes on with the next one.

        Raises:
            StreamError: the pipeline has ended.
        """
        with self._lock:
            if self._closed:
                raise StreamError("this pipeline has ended; start a new one with Runtime.stream()")
            one = _Request(request)
            self._inboxes[0].put(one)
        return one.future

    def latency(self) -> Latency:
        """How long requests took, those that failed left out."""
        took = sorted(self._latencies)
        if not took:
            return Latency(0, 0.0, 0.0)
        return Latency(self._served, took[len(took) // 2], took[min(len(took) - 1, len(took) * 99 // 100)])

    def close(self) -> None:
        """Ends it after the requests that were submitted. Blocks until then; may be repeated."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._inboxes[0].put(None)
        for thread, inbox in zip(self._threads, [*self._inboxes[1:], None], strict=True):
            thread.join()
            if inbox is not None:
                inbox.put(None)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, request: _Request) -> None:
        self._latencies.append(time.perf_counter() - request.since_s)
        self._served += 1
        try:
            request.future.set_result(request.value)
        except InvalidStateError:
            pass  # it was cancelled, and has been served for nothing

    def _fail(self, request: _Request, error: BaseException) -> None:
        try:
            request.future.set_exception(error)
        except InvalidStateError:
            pass


class _Function:
    """A stage that is a function of one request."""

    def __init__(
        self,
        stage: Callable[..., Any],
        inbox: SimpleQueue[_Request | None],
        send: Callable[[_Request], object],
        fail: Callable[[_Request, BaseException], object],
    ) -> None:
        self._stage = stage
        self._inbox = inbox
        self._send = send
        self._fail = fail

    def run(self) -> None:
        while (request := self._inbox.get()) is not None:
            try:
                request.value = self._stage(request.value)
                if type(request.value) is GeneratorType and _is_generator_function(inspect.unwrap(self._stage)):
                    raise StreamError(f"the decorator of {self._stage!r} must itself be a generator function")
            except BaseException as error:  # whatever it is, it is the answer to this request
                self._fail(request, error)
            else:
                self._send(request)


class _Generator(_Function):
    """A stage that is a generator function over requests. One that ends or raises is begun anew."""

    def run(self) -> None:
        self._at: deque[_Request] = deque()  # what it was given and has not answered
        self._ended = False
        while not self._ended:
            self._reads = False
            error: BaseException = StreamError(
                f"{self._stage!r} gave no answer to this request, or one too many: it must yield one for each"
            )
            try:
                for value in self._stage(self._requests()):
                    if not self._at:
                        break
                    request = self._at.popleft()
                    request.value = value
                    self._send(request)
            except BaseException as raised:  # likewise
                error = raised
            if not self._reads:
                next(self._requests(), None)  # or it would begin again and again, with nothing to do
            while self._at:
                self._fail(self._at.popleft(), error)

    def _requests(self) -> Iterator[Any]:
        self._reads = True
        while (request := self._inbox.get()) is not None:
            self._at.append(request)
            yield request.value
        self._ended = True


def _is_generator_function(stage: Callable[..., Any]) -> bool:
    """Whether a call makes a generator; of an object that can be called, too."""
    return any(map(inspect.isgeneratorfunction, (stage, type(stage).__call__)))


def _is_async(stage: Callable[..., Any]) -> bool:
    functions = stage, type(stage).__call__
    return any(inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn) for fn in functions)
