"""The scheduler's process: settings, construction, orderly shutdown. Nothing else is constructed anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import sys

import structlog

from cloudclaw import config, logging
from cloudclaw.clock import SystemClock
from cloudclaw.coordination.election import Election
from cloudclaw.coordination.etcd import open_etcd
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.lifecycle import Stack, run_service
from cloudclaw.objects.config import open_objects
from cloudclaw.rpc.auth import Authenticator
from cloudclaw.rpc.metrics_server import serve_metrics
from cloudclaw.rpc.server import RpcServer
from cloudclaw.v1.scheduler_pb2_grpc import add_SchedulerServiceServicer_to_server
from cloudclaw_scheduler.adapters.grpc_relay import GrpcRelay
from cloudclaw_scheduler.app.control import Control
from cloudclaw_scheduler.app.feed import Feed
from cloudclaw_scheduler.app.gauges import Sampler
from cloudclaw_scheduler.app.leader import Leader
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.queries import Queries
from cloudclaw_scheduler.app.results import Results
from cloudclaw_scheduler.app.segments import Segments
from cloudclaw_scheduler.app.specs import Specs
from cloudclaw_scheduler.app.status import Status
from cloudclaw_scheduler.app.submit import Fullness, Submitter
from cloudclaw_scheduler.app.tail import Tails
from cloudclaw_scheduler.app.term import Tools
from cloudclaw_scheduler.config import SchedulerSettings
from cloudclaw_scheduler.server.service import SERVICE, SchedulerServicer
from cloudclaw_scheduler.server.tasks import Services

_log = structlog.get_logger()


async def serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then leave in order: health, intake, leadership, clients."""
    clock = SystemClock()
    metrics = Metrics()
    async with Stack() as stack:
        # Who is believed, and where state and bytes are kept.
        authenticator = Authenticator(settings.auth.keys, issuer=settings.auth.issuer, clock=clock)
        kv = open_etcd(settings.etcd, clock)
        stack.push("etcd", kv.close)
        objects = open_objects(settings.objects)
        stack.push("objects", objects.close)
        stop_metrics = serve_metrics(settings.metrics)
        stack.push("metrics", lambda: asyncio.to_thread(stop_metrics))
        # Passes calls on to the leader while another replica leads.
        relay = GrpcRelay(settings.client_tls)
        stack.push("relay", relay.close)

        # What etcd holds, in memory, and those who follow its changes.
        mirror = Mirror(kv, clock)
        feed = Feed(mirror, kv)
        transactions = Transactions(kv)
        segments, specs, results = Segments(objects), Specs(transactions, objects), Results(objects)

        # The server is bound first: its address is how the election names this replica.
        server = RpcServer(settings.server, authenticator, clock=clock)
        elections: list[Election] = []

        def elected() -> tuple[str, int] | None:
            return elections[0].leader() if elections else None

        def leading_address() -> str:
            return (elected() or ("", 0))[0]

        # What the leader does, while this replica is the leader.
        tools = Tools(
            kv, transactions, mirror, segments, specs, results, clock, metrics, settings.grace, settings.heartbeat
        )
        leader = Leader(tools, leading_address)

        # What every replica answers.
        fullness = Fullness(kv, clock, metrics)
        pools = {pool: frozenset(runtimes.split()) for pool, runtimes in settings.pools.items()}
        services = Services(
            mirror=mirror,
            transactions=transactions,
            submitter=Submitter(mirror, transactions, specs, fullness, clock, metrics, pools),
            queries=Queries(mirror, clock),
            feed=feed,
            tails=Tails(mirror, feed, segments, relay, lambda: leader.hub, leading_address, clock),
            specs=specs,
            results=results,
            status=Status(mirror, leader, elected, fullness, relay, clock, version()),
            metrics=metrics,
        )
        server.add(SERVICE, add_SchedulerServiceServicer_to_server, SchedulerServicer(services, leader))
        bound = await server.start()
        stack.push("server", lambda: server.stop(settings.drain_timeout), timeout=settings.drain_timeout + 5.0)

        address = settings.server.advertise or bound
        election = Election(kv, clock, "scheduler", address, settings.election_ttl)
        elections.append(election)
        control = Control(mirror, election, leader, fullness, Sampler(mirror, leader, metrics, clock))
        work = asyncio.create_task(control.run())
        stack.push("leadership", lambda: _end(work))
        stack.push("health", server.drain)

        loaded = asyncio.create_task(mirror.loaded.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({work, loaded, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loaded.done():
            server.set_serving(SERVICE, serving=True)
            _log.info("serving", address=address)
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        loaded.cancel()
        stopping.cancel()
        if work.done():
            work.result()  # it never ends by itself: this raises what broke it


async def _end(work: asyncio.Task[None]) -> None:
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


def version() -> str:
    """Of this distribution."""
    return importlib.metadata.version("cloudclaw-scheduler")


def main() -> None:
    """Run the service; the exit code is the process's."""
    settings = config.load(SchedulerSettings)
    logging.configure(settings.log, service="scheduler")
    sys.exit(asyncio.run(run_service(lambda stop: serve(settings, stop))))


if __name__ == "__main__":
    main()
