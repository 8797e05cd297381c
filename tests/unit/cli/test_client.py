"""The Python client, with and without asyncio, against services in memory."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest

from cloudclaw.client import AsyncClient, Client
from cloudclaw.client.client import neighbour
from cloudclaw.errors import NotFoundError, OutOfRangeError, UnavailableError
from cloudclaw.rpc.auth import Minter
from cloudclaw.v1 import scheduler_pb2, task_pb2
from tests.unit.cli.fakes import Services

SUCCEEDED = task_pb2.TASK_STATE_SUCCEEDED


@pytest.fixture
def token(services: Services) -> str:
    return Minter(services.key).mint("acme", ["user", "operator"])


@pytest.fixture
def client(services: Services, token: str) -> Iterator[Client]:
    with Client(services.address, token, workspace_endpoint=services.address, patience=5.0) as client:
        yield client


@pytest.fixture
async def aclient(services: Services, token: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(services.address, token, workspace_endpoint=services.address, patience=5.0) as client:
        yield client


def test_a_program_without_asyncio_does_it_all(client: Client, services: Services) -> None:
    task = client.submit(["echo", "hi"], labels={"a": "b"}, env={"X": "y"})
    assert b"".join(piece.chunk.data for piece in client.tail(task.task_id)) == b"echo hi\n"
    assert client.wait(task.task_id).state == SUCCEEDED
    assert client.result(task.task_id).exit_code == 0
    assert [found.task_id for found in client.list(labels={"a": "b"})] == [task.task_id]
    assert client.explain(task.task_id).reasons
    assert client.status().term == 7
    node = services.address.replace("127.0.0.1", "localhost")  # another connection than the scheduler's
    assert len(list(client.slots(node))) == 2
    assert client.drain(node) == 1
    client.undrain(node)
    client.workspaces.create("w")
    assert [found.name for found in client.workspaces.list()] == ["w"]
    with pytest.raises(NotFoundError):
        client.get("task-none")
    with pytest.raises(NotFoundError):
        client.workspaces.read_file("w", "none")
    with pytest.raises(OutOfRangeError):
        list(client.tail(task.task_id, offset=10_000))


def test_leaving_an_iteration_early_is_no_trouble(client: Client) -> None:
    task = client.submit(["echo", "a long enough line"])
    for _ in range(3):
        for piece in client.tail(task.task_id):
            assert piece.chunk.data
            break
    assert client.get(task.task_id).state == SUCCEEDED


def test_closing_the_client_ends_its_thread(services: Services, token: str) -> None:
    before = {thread.ident for thread in threading.enumerate() if thread.name == "cloudclaw-client"}
    client = Client(services.address, token)
    client.close()
    after = {thread.ident for thread in threading.enumerate() if thread.name == "cloudclaw-client"}
    assert after <= before


async def test_waiting_follows_the_task_to_its_end(aclient: AsyncClient, services: Services) -> None:
    task = (await aclient.submit(["x"])).task
    services.scheduler.tasks[task.task_id].state = task_pb2.TASK_STATE_QUEUED
    for revision, state in ((8, task_pb2.TASK_STATE_RUNNING), (9, SUCCEEDED)):
        services.scheduler.changes.append(task_pb2.Task(task_id=task.task_id, state=state, revision=revision))
    services.scheduler.breaks = 1
    assert (await aclient.wait(task.task_id)).state == SUCCEEDED
    assert [watch.after_revision for watch in services.scheduler.watches] == [1, 8]


async def test_patience_ends(aclient: AsyncClient, services: Services, token: str) -> None:
    services.scheduler.unavailable = 3
    assert (await aclient.status()).term == 7
    await aclient.submit(["x"])
    services.scheduler.unavailable = 1_000_000
    async with AsyncClient(services.address, token, patience=0.0) as hasty:
        with pytest.raises(UnavailableError):
            await hasty.get("task-0000000000000000")
    services.scheduler.unavailable = 0


async def test_each_submission_has_a_request_id_of_its_own(aclient: AsyncClient, services: Services) -> None:
    first = await aclient.submit(["x"])
    second = await aclient.submit(["x"])
    assert first.task.task_id != second.task.task_id
    again = await aclient.submit(["x"], request_id=services.scheduler.submitted[0].request_id)
    assert (again.task.task_id, again.created) == (first.task.task_id, False)


async def test_arguments_are_laid_over_a_copy_of_the_spec(aclient: AsyncClient, services: Services) -> None:
    spec = task_pb2.TaskSpec(argv=["sh"], priority=3, env={"A": "1"})
    await aclient.submit(spec=spec, env={"B": "2"}, workspace="w", pool="p")
    sent = services.scheduler.submitted[0].spec
    assert (sent.priority, dict(sent.env), sent.workspace.name, sent.pool) == (3, {"A": "1", "B": "2"}, "w", "p")
    assert not spec.workspace.name


async def test_a_token_may_be_asked_for_anew_each_time(services: Services) -> None:
    tokens = iter([Minter(services.key).mint("a-tenant"), Minter(services.key).mint("b-tenant")])
    async with AsyncClient(services.address, lambda: next(tokens)) as client:
        first, second = await client.submit(["x"]), await client.submit(["x"])
    assert (first.task.tenant, second.task.tenant) == ("a-tenant", "b-tenant")


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [("127.0.0.1:7401", "127.0.0.1:7403"), ("https://host:1", "https://host:3"), ("unix:/s", "unix:/s")],
)
def test_the_workspace_service_is_two_ports_further(endpoint: str, expected: str) -> None:
    assert neighbour(endpoint, 2) == expected


def test_a_broken_watch_of_events_goes_on_where_it_was(client: Client, services: Services) -> None:
    task = client.submit(["x"], runtime="claude-code")
    texts = [f"message {number}" for number in range(1, 6)]
    for text in texts:
        message = scheduler_pb2.RunMessage(role="assistant", text=text)
        services.scheduler.play(task.task_id, scheduler_pb2.RunEvent(message=message))
    services.scheduler.event_breaks = 3
    events = list(client.watch_events(task.task_id))
    assert [event.message.text for event in events] == texts
    assert [watch.from_sequence for watch in services.scheduler.event_watches] == [1, 2, 3, 4]
    assert [e.sequence for e in client.watch_events(task.task_id, from_sequence=4, follow=False)] == [4, 5]


def test_a_program_talks_with_an_agent(client: Client, services: Services) -> None:
    spec = task_pb2.TaskSpec(conversation=task_pb2.Conversation())
    task = client.submit(runtime="claude-code", prompt="hello", spec=spec)
    first = client.send_input(task.task_id, "and now?", message_id="m1")
    again = client.send_input(task.task_id, "and now?", message_id="m1")
    assert (first.accepted, first.number, again.accepted, again.number) == (True, 1, False, 1)
    client.send_input(task.task_id, "later", delay=timedelta(minutes=10))
    client.send_input(task.task_id, end=True)
    _, later, end = services.scheduler.inputs
    assert later.delay.seconds == 600
    assert (end.text, end.end) == ("", True)
    assert len({given.message_id for given in services.scheduler.inputs}) == 3


def test_a_tenants_keys_are_set_listed_and_deleted(client: Client, services: Services) -> None:
    client.set_model_key("anthropic", "sk-a-long-enough-key")
    assert services.scheduler.keys["acme", "anthropic"] == "sk-a-long-enough-key"
    assert [(key.upstream, key.hint) for key in client.list_model_keys()] == [("anthropic", "-key")]
    client.delete_model_key("anthropic")
    with pytest.raises(NotFoundError):
        client.delete_model_key("anthropic")
