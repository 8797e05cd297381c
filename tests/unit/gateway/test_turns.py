"""Requests near a limit go one after the other, so that a task passes it by what its last one uses at most."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cloudclaw.clock import SystemClock
from cloudclaw_gateway.app.account import Account
from cloudclaw_gateway.app.metrics import GatewayMetrics
from cloudclaw_gateway.app.relay import Patience, Relay
from cloudclaw_gateway.domain.prices import Price, PriceList
from cloudclaw_gateway.domain.refusal import Kind, Mark, Refusal
from cloudclaw_gateway.domain.upstream import Upstream
from cloudclaw_gateway.domain.use import LimitKind, Limits, Use
from cloudclaw_gateway.ports import upstreams
from cloudclaw_gateway.ports.upstreams import Body, Question, UpstreamError

INPUT, OUTPUT = 10, 90


class Sent:
    """A body that counts how much of it was read."""

    def __init__(self, data: bytes) -> None:
        self.length: int | None = len(data)
        self.read = 0
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.read = len(self._data)
        yield self._data


class Exchange:
    """One request, and what it was answered."""

    def __init__(self, document: dict[str, Any], path: str = "messages", **headers: str) -> None:
        self.method = "POST"
        self.target = f"/u/{path}"
        self.headers: Sequence[tuple[str, str]] = list(headers.items())
        self.sent = Sent(json.dumps(document).encode())
        self.body: Body | None = self.sent
        self.begun = False
        self.refused: Refusal | None = None
        self.whole = False
        self.leaves = False

    async def begin(self, status: int, reason: str, headers: Sequence[tuple[str, str]], length: int | None) -> None:
        self.begun = True

    async def write(self, piece: bytes) -> None:
        if self.leaves:
            raise ConnectionResetError

    async def end(self) -> None:
        self.whole = True

    async def refuse(self, refusal: Refusal, kind: Kind) -> None:
        self.refused = refusal

    def abort(self) -> None: ...


class Answer:
    def __init__(self, usage: dict[str, int]) -> None:
        self.status = 200
        self.reason = "OK"
        self.length: int | None = None
        self.headers: Sequence[tuple[str, str]] = [("Content-Type", "application/json")]
        self._usage = usage

    async def pieces(self) -> AsyncIterator[bytes]:
        yield json.dumps({"model": "m", "usage": self._usage}).encode()


class Ways:
    """Upstreams that answer when a test says so; `asked` are the requests' own numbers, in order."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answers: dict[int, asyncio.Future[dict[str, int]]] = {}

    @asynccontextmanager
    async def ask(self, question: Question) -> AsyncIterator[upstreams.Answer]:
        assert question.body is not None
        data = b"".join([piece async for piece in question.body])
        number = json.loads(data)["number"]
        self.asked.append(number)
        answer = self.answers[number] = asyncio.get_running_loop().create_future()
        yield Answer(await answer)

    def answer(self, number: int, output: int = OUTPUT) -> None:
        self.answers[number].set_result({"input_tokens": INPUT, "output_tokens": output})

    async def close(self) -> None: ...


class Keys:
    def open(self, tenant: str, upstream: str, sealed: str) -> str:
        raise AssertionError


class Task:
    """One task's requests."""

    def __init__(self, limits: Limits, turn: float = 60.0) -> None:
        self.ways = Ways()
        self.reached: list[LimitKind] = []
        self.account = Account(limits, Use(), changed=lambda: None, reached=lambda kind, _: self.reached.append(kind))
        upstream = Upstream(
            "u", Kind.ANTHROPIC, "http://u", anonymous=True, prices=PriceList({"m": Price(1e6, 1e6, 1e6, 1e6)}),
            paths=("POST messages", "POST embeddings"),
        )  # fmt: skip
        metrics = GatewayMetrics(CollectorRegistry())
        patience = Patience(turn=turn, unnamed_output=1000)
        self._relay = Relay({"u": upstream}, self.ways, Keys(), metrics, SystemClock(), patience)
        self._numbers = 0

    async def ask(self, path: str = "messages", headers: dict[str, str] | None = None, **fields: Any) -> Request:
        """Ask, and let everything that can go on go on."""
        self._numbers += 1
        document = {"number": self._numbers, "model": "m", "max_tokens": OUTPUT, **fields}
        exchange = Exchange(document, path, **(headers or {}))
        done = asyncio.create_task(self._relay.serve(exchange, "acme", {}, self.account))
        await settle()
        return Request(exchange, done)

    async def answer(self, number: int, output: int = OUTPUT) -> None:
        self.ways.answer(number, output)
        await settle()


class Request:
    def __init__(self, exchange: Exchange, done: asyncio.Task[None]) -> None:
        self.exchange = exchange
        self.done = done

    async def leave(self) -> None:
        """Hang up."""
        self.done.cancel()
        await settle()
        assert self.done.cancelled()


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def most(**fields: Any) -> int:
    """Tokens that a request may use."""
    return len(json.dumps({"number": 1, "model": "m", "max_tokens": OUTPUT, **fields})) + OUTPUT


async def test_far_from_the_limit_nobody_waits() -> None:
    task = Task(Limits(tokens=100_000))
    for _ in range(5):
        await task.ask()
    assert task.ways.asked == [1, 2, 3, 4, 5]


async def test_what_might_pass_the_limit_together_waits_in_order() -> None:
    task = Task(Limits(tokens=2 * most() + 40))
    asked = [await task.ask() for _ in range(5)]
    assert task.ways.asked == [1, 2]
    # Who waits for its turn is not even read, but for the first of them.
    assert [request.exchange.sent.read > 0 for request in asked] == [True, True, True, False, False]
    await task.answer(2, output=1)
    assert task.ways.asked == [1, 2, 3]
    await task.answer(1, output=1)
    await task.answer(3, output=1)
    assert task.ways.asked == [1, 2, 3, 4, 5]


async def test_a_limit_is_passed_by_what_the_last_request_uses_at_most() -> None:
    """However many ask at once, and though each uses all that it may."""
    limit = 5 * most() // 2
    task = Task(Limits(tokens=limit))
    asked = [await task.ask() for _ in range(40)]
    answered = 0
    while answered < len(task.ways.asked):
        await task.answer(task.ways.asked[answered])
        answered += 1
    assert limit <= task.account.use.tokens < limit + INPUT + OUTPUT
    assert task.account.use.requests == answered
    refused = [request.exchange.refused for request in asked if request.exchange.refused]
    assert len(refused) == 40 - answered
    assert {refusal.mark for refusal in refused} == {Mark.LIMIT}
    assert task.reached == [LimitKind.TOKENS]


async def test_the_same_holds_for_spend() -> None:
    task = Task(Limits(spend_usd=2.0 * most() + 120))
    for _ in range(3):
        await task.ask()
    assert task.ways.asked == [1, 2]
    await task.answer(1)
    assert task.account.use.spend_usd == INPUT + OUTPUT
    assert task.ways.asked == [1, 2, 3]


async def test_a_single_request_goes_whatever_it_may_use() -> None:
    task = Task(Limits(tokens=10))
    await task.ask(max_tokens=1_000_000)
    assert task.ways.asked == [1]


@pytest.mark.parametrize(
    "unforeseen",
    [{"previous_response_id": "r"}, {"conversation": "c"}, {"headers": {"Content-Encoding": "zstd"}}],
)
async def test_what_cannot_be_foreseen_goes_alone(unforeseen: dict[str, Any]) -> None:
    task = Task(Limits(tokens=10_000_000))
    await task.ask()
    await task.ask(**unforeseen)
    await task.ask()
    assert task.ways.asked == [1]
    await task.answer(1)
    assert task.ways.asked == [1, 2]
    await task.answer(2)
    assert task.ways.asked == [1, 2, 3]


async def test_who_hangs_up_while_it_waits_is_passed_over_and_never_asks() -> None:
    task = Task(Limits(tokens=most()))
    await task.ask()
    waiting, next_one, last = await task.ask(), await task.ask(), await task.ask()
    await waiting.leave()
    await last.leave()
    await task.answer(1, output=0)
    assert task.ways.asked == [1, 3]
    assert task.account.use.requests == 2
    await task.answer(3, output=0)
    assert next_one.exchange.whole


async def test_who_hangs_up_under_way_makes_room() -> None:
    task = Task(Limits(tokens=3 * most() // 2))
    first = await task.ask()
    await task.ask()
    assert task.ways.asked == [1]
    await first.leave()
    assert task.ways.asked == [1, 2]
    # What it may have read is counted.
    assert task.account.use.input_tokens == first.exchange.sent.read // 4


async def test_who_hangs_up_at_the_last_piece_has_used_what_it_tells() -> None:
    task = Task(Limits(tokens=3 * most() // 2))
    first = await task.ask()
    first.exchange.leaves = True
    await task.answer(1)
    assert isinstance(first.done.exception(), ConnectionResetError)
    assert (task.account.use.requests, task.account.use.tokens) == (1, INPUT + OUTPUT)


async def test_waiting_ends_in_time_and_may_be_tried_again() -> None:
    task = Task(Limits(tokens=most()), turn=0.01)
    await task.ask()
    late = [await task.ask(), await task.ask()]
    async with asyncio.timeout(30):
        await asyncio.gather(*(request.done for request in late))
    for request in late:
        assert request.exchange.refused is not None
        assert (request.exchange.refused.status, request.exchange.refused.mark) == (429, Mark.TURN)
        assert request.exchange.refused.retry
    assert task.account.use.requests == 1
    await task.answer(1, output=0)
    await task.ask()
    assert task.ways.asked == [1, 4]


async def test_when_the_limit_is_reached_all_that_wait_are_refused() -> None:
    task = Task(Limits(tokens=INPUT + OUTPUT))
    await task.ask()
    waiting = [await task.ask() for _ in range(3)]
    await task.answer(1)
    assert [r.exchange.refused.mark for r in waiting if r.exchange.refused] == [Mark.LIMIT] * 3
    assert task.ways.asked == [1]


async def test_requests_are_counted_exactly_also_when_they_wait() -> None:
    task = Task(Limits(requests=3, tokens=most()))
    asked = [await task.ask() for _ in range(6)]
    for number in (1, 2, 3):
        await task.answer(number, output=0)
    assert task.ways.asked == [1, 2, 3]
    assert [bool(request.exchange.refused) for request in asked] == [False] * 3 + [True] * 3
    assert task.reached == [LimitKind.REQUESTS]


async def test_an_upstream_that_was_never_asked_makes_room_and_counts_nothing() -> None:
    task = Task(Limits(tokens=most(), requests=2))
    await task.ask()
    await task.ask()
    task.ways.answers[1].set_exception(UpstreamError("refused", asked=False))
    await settle()
    assert task.ways.asked == [1, 2]
    assert task.account.use.requests == 1


async def test_an_upstream_that_failed_makes_room_and_counts_the_request() -> None:
    task = Task(Limits(tokens=most()))
    await task.ask()
    await task.ask()
    task.ways.answers[1].set_exception(UpstreamError("broken"))
    await settle()
    assert task.ways.asked == [1, 2]
    assert (task.account.use.requests, task.account.use.tokens) == (2, 0)


async def test_a_closed_account_counts_what_is_under_way_and_lets_nothing_begin() -> None:
    task = Task(Limits(tokens=most()))
    first, waiting = await task.ask(), await task.ask()
    task.account.close()
    used = task.account.use
    assert used.input_tokens == first.exchange.sent.read // 4
    await settle()
    assert isinstance(waiting.done.exception(), ConnectionAbortedError)
    assert task.ways.asked == [1]
    # What comes later changes nothing more.
    await task.answer(1)
    assert task.account.use == used


async def test_an_upstream_that_turns_out_to_be_away_after_that_changes_nothing_either() -> None:
    task = Task(Limits(tokens=most()))
    await task.ask()
    task.account.close()
    used = task.account.use
    task.ways.answers[1].set_exception(UpstreamError("refused", asked=False))
    await settle()
    assert task.account.use == used


async def test_embedding_writes_nothing() -> None:
    task = Task(Limits(tokens=300))
    await task.ask("embeddings")
    await task.ask("embeddings")
    assert task.ways.asked == [1, 2]
