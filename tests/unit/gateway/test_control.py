"""Who is obeyed, what is pushed when, and what is forgotten."""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

import pytest

from cloudclaw.errors import FencedError, InvalidArgumentError
from cloudclaw_gateway.app.account import Account
from cloudclaw_gateway.app.attempts import Attempts, Credentials
from cloudclaw_gateway.app.control import Control
from cloudclaw_gateway.app.pushes import PAUSE, Pushes
from cloudclaw_gateway.app.relay import Relay
from cloudclaw_gateway.domain.prices import Price
from cloudclaw_gateway.domain.refusal import Refusal
from cloudclaw_gateway.domain.use import LimitKind, Limits, Tokens, Use
from cloudclaw_gateway.ports.doors import Handler


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._tick = asyncio.Semaphore(0)

    def wall(self) -> float:
        return 0.0

    def boottime(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._tick.acquire()

    async def pass_by(self) -> None:
        """Let the one that sleeps go on, and run what follows."""
        self._tick.release()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Door:
    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.closed = False

    async def drain(self) -> None: ...

    async def close(self) -> None:
        self.closed = True


class Doors:
    """Doors that lead nowhere."""

    def __init__(self) -> None:
        self.opened: list[Door] = []

    def open(self, listener: int, handler: Handler) -> Door:
        inode = os.fstat(listener).st_ino
        os.close(listener)
        if inode == os.stat("/dev/null").st_ino:
            raise InvalidArgumentError("no socket", field="listener")
        self.opened.append(Door(inode))
        return self.opened[-1]


class Manager:
    def __init__(self) -> None:
        self.pushed: list[dict[str, Any]] = []
        self.fenced = False

    def push(self, message: dict[str, Any]) -> None:
        self.pushed.append(message)

    def fence(self) -> None:
        self.fenced = True


class Node:
    """A gateway without sockets."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.doors = Doors()
        self.pushes = Pushes(self.clock)
        self.attempts = Attempts(self.doors, cast(Relay, None), self.pushes)
        self.control = Control(self.attempts, self.pushes, self.clock, unclaimed=600.0)

    def attach(self, manager: Manager, uid: str, used: Use | None = None, pipe: int = 0) -> None:
        if not pipe:
            reader, pipe = os.pipe()
            os.close(reader)
        self.control.attach(manager, Credentials(uid, "acme", "t", 1), Limits(), used or Use(), pipe)


@pytest.fixture
async def node() -> Node:
    return Node()


async def test_the_highest_incarnation_is_obeyed(node: Node) -> None:
    first, second, late = Manager(), Manager(), Manager()
    node.control.hello(first, 3)
    node.attach(first, "a")
    assert node.control.hello(second, 4) == ["a"]
    assert first.fenced
    assert not second.fenced
    with pytest.raises(FencedError):
        node.attach(first, "b")
    with pytest.raises(FencedError):
        node.control.sync(first, ())
    with pytest.raises(FencedError, match="incarnation 4"):
        node.control.hello(late, 3)
    # Neither the refused one nor the fenced one takes anything with it when it goes.
    node.control.gone(late)
    node.control.gone(first)
    assert node.attempts.uids == ["a"]
    assert not node.clock.slept


async def test_of_one_incarnation_the_newest_connection_is_obeyed(node: Node) -> None:
    first, again = Manager(), Manager()
    node.control.hello(first, 3)
    node.control.hello(again, 3)
    assert first.fenced
    node.attach(again, "a")


async def test_who_said_no_hello_is_not_obeyed(node: Node) -> None:
    with pytest.raises(FencedError):
        node.control.use(Manager(), "a")


async def test_attempts_are_forgotten_when_no_manager_comes_and_only_then(node: Node) -> None:
    manager = Manager()
    node.control.hello(manager, 1)
    node.attach(manager, "a")
    node.control.gone(manager)
    await settle()
    assert node.clock.slept == [600.0]
    again = Manager()
    assert node.control.hello(again, 1) == ["a"]
    await settle()
    node.control.gone(again)
    await settle()
    await node.clock.pass_by()
    await settle()
    assert node.attempts.uids == []
    assert node.doors.opened[0].closed


async def test_the_same_listener_again_keeps_its_door_and_its_use(node: Node) -> None:
    manager = Manager()
    node.control.hello(manager, 1)
    reader, writer = os.pipe()
    node.attach(manager, "a", used=Use(requests=5), pipe=os.dup(writer))
    node.attach(manager, "a", used=Use(requests=2, output_tokens=7), pipe=os.dup(writer))
    assert len(node.doors.opened) == 1
    assert node.control.use(manager, "a") == Use(requests=5, output_tokens=7)
    # Another sandbox of the attempt gets another door, and the count goes on.
    node.attach(manager, "a")
    await settle()
    assert [door.closed for door in node.doors.opened] == [True, False]
    assert node.control.detach(manager, "a") == Use(requests=5, output_tokens=7)
    os.close(reader)
    os.close(writer)


async def test_a_listener_that_is_refused_leaves_what_was_there(node: Node) -> None:
    manager = Manager()
    node.control.hello(manager, 1)
    node.attach(manager, "a")
    with pytest.raises(InvalidArgumentError):
        node.attach(manager, "a", pipe=os.open("/dev/null", os.O_RDONLY))
    assert node.attempts.uids == ["a"]
    assert not node.doors.opened[0].closed


async def test_uses_are_gathered_for_half_a_second(node: Node) -> None:
    manager = Manager()
    node.control.hello(manager, 1)
    reads: list[str] = []

    def read(uid: str) -> Use:
        reads.append(uid)
        return Use(requests=len(reads))

    running = asyncio.create_task(node.pushes.run(read))
    for uid in ("a", "b", "a", "a"):
        node.pushes.use(uid)
    await settle()
    assert [m["use"]["uid"] for m in manager.pushed] == ["a", "b"]
    for _ in range(10):
        node.pushes.use("a")
    await settle()
    assert node.clock.slept == [PAUSE]
    assert len(manager.pushed) == 2
    await node.clock.pass_by()
    assert [m["use"]["uid"] for m in manager.pushed] == ["a", "b", "a"]
    running.cancel()


def _account(limits: Limits) -> tuple[Account, list[LimitKind]]:
    reached: list[LimitKind] = []
    return Account(limits, Use(), changed=lambda: None, reached=lambda kind, _: reached.append(kind)), reached


async def test_a_charge_replaces_what_it_said_before_and_can_be_taken_back() -> None:
    account, _ = _account(Limits())
    charge = await account.begin()
    charge.settle(Tokens(10, 1), Price(1, 1, 1, 1))
    charge.settle(Tokens(10, 5), Price(1, 1, 1, 1))
    assert (account.use.requests, account.use.input_tokens, account.use.output_tokens) == (1, 10, 5)
    assert account.use.spend_usd == pytest.approx(15e-6)
    other = await account.begin()
    assert account.use.requests == 2
    other.undo()
    other.undo()
    assert account.use.requests == 1


async def test_a_limit_is_told_once_and_again_only_when_it_is_set_again() -> None:
    account, reached = _account(Limits(requests=1))
    await account.begin()
    for _ in range(3):
        with pytest.raises(Refusal):
            await account.begin()
    assert reached == [LimitKind.REQUESTS]
    account.renew(Limits(requests=1), Use())
    assert reached == [LimitKind.REQUESTS] * 2
    account.renew(Limits(requests=5), Use())
    assert len(reached) == 2
    await account.begin()
