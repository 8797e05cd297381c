"""The scheduler's process: settings, construction, orderly shutdown. Adapters are constructed nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import sys

import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from cloudclaw import config, logging
from cloudclaw.clock import Clock, SystemClock
from cloudclaw.coordination.election import Election
from cloudclaw.coordination.etcd import open_etcd
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.history.store import BundleStore
from cloudclaw.lifecycle import Stack, run_service
from cloudclaw.objects.config import open_objects
from cloudclaw.objects.port import ObjectStore
from cloudclaw.rpc.auth import Authenticator
from cloudclaw.rpc.metrics_server import serve_metrics
from cloudclaw.rpc.server import RpcServer
from cloudclaw.sealing import Sealer
from cloudclaw.v1.scheduler_pb2_grpc import add_SchedulerServiceServicer_to_server
from cloudclaw_scheduler.adapters.grpc_relay import GrpcRelay
from cloudclaw_scheduler.app.archiver import Archiver, Rules
from cloudclaw_scheduler.app.consumers import Consumers
from cloudclaw_scheduler.app.control import Control
from cloudclaw_scheduler.app.events import Events
from cloudclaw_scheduler.app.feed import Feed
from cloudclaw_scheduler.app.gauges import Sampler
from cloudclaw_scheduler.app.history import History
from cloudclaw_scheduler.app.inbox import Inbox
from cloudclaw_scheduler.app.leader import Leader
from cloudclaw_scheduler.app.listing import Listing
from cloudclaw_scheduler.app.lookup import Lookup
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.model_keys import ModelKeys
from cloudclaw_scheduler.app.on_demand import OnDemand
from cloudclaw_scheduler.app.queries import Queries
from cloudclaw_scheduler.app.results import Results
from cloudclaw_scheduler.app.segments import Segments
from cloudclaw_scheduler.app.send_input import Sender
from cloudclaw_scheduler.app.specs import Specs
from cloudclaw_scheduler.app.status import Status
from cloudclaw_scheduler.app.submit import Fullness, Submitter
from cloudclaw_scheduler.app.tail import Tails
from cloudclaw_scheduler.app.term import Tools
from cloudclaw_scheduler.config import SchedulerSettings
from cloudclaw_scheduler.server.service import SERVICE, SchedulerServicer
from cloudclaw_scheduler.server.tasks import Services

_log = structlog.get_logger()


class Scheduler:
    """One replica, constructed: what `serve` runs."""

    def __init__(
        self,
        settings: SchedulerSettings,
        kv: KeyValue,
        objects: ObjectStore,
        clock: Clock,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._settings = settings
        self._kv = kv
        self._clock = clock
        self._election: Election | None = None
        self.metrics = metrics = Metrics(registry)
        # Who is believed.
        authenticator = Authenticator(settings.auth.keys, issuer=settings.auth.issuer, clock=clock)
        # Passes calls on to the leader while another replica leads.
        self.relay = GrpcRelay(settings.client_tls)
        # What etcd holds, in memory, and those who follow its changes.
        self.mirror = Mirror(kv, clock)
        self.feed = feed = Feed(self.mirror, kv)
        transactions = Transactions(kv)
        segments, specs, results = Segments(objects), Specs(transactions, objects), Results(objects)
        inbox = Inbox(self.mirror, transactions, objects)
        # Tasks that have left etcd.
        bundles = BundleStore(objects)
        history = History(bundles, self.mirror, clock)
        # Results for those who consume them; the same on every replica.
        kept = settings.history
        self.consumers = Consumers(kv, self.mirror, transactions, results, clock, metrics, kept.consumer_hold)
        # What the leader does, while this replica is the leader.
        rules = Rules(kept.retention, kept.batch_window, kept.request_retention)
        archiver = Archiver(kv, self.mirror, transactions, bundles, clock, metrics, rules, self.consumers.held)
        tools = Tools(
            kv,
            transactions,
            self.mirror,
            segments,
            specs,
            inbox,
            results,
            clock,
            metrics,
            settings.grace,
            settings.heartbeat,
            archiver,
            settings.log_limit,
        )
        self.leader = Leader(tools, self._leading_address)
        self._sampler = Sampler(self.mirror, self.leader, metrics, clock)
        # What every replica answers.
        self.fullness = Fullness(kv, clock, metrics)
        pools = {pool: frozenset(runtimes.split()) for pool, runtimes in settings.pools.items()}
        self.submitter = Submitter(kv, self.mirror, transactions, specs, self.fullness, clock, metrics, pools, history)
        lookup = Lookup(self.mirror, transactions, specs, history)
        tails = Tails(
            self.mirror, feed, segments, self.relay, lambda: self.leader.hub, self._leading_address, clock, history
        )
        services = Services(
            mirror=self.mirror,
            submitter=self.submitter,
            queries=Queries(self.mirror, clock),
            lookup=lookup,
            listing=Listing(self.mirror, history),
            feed=feed,
            tails=tails,
            events=Events(self.mirror, lookup, tails, clock),
            results=results,
            status=Status(self.mirror, self.leader, self.elected, self.fullness, self.relay, clock, version()),
            metrics=metrics,
            sender=Sender(self.mirror, transactions, lookup, inbox, self.fullness, clock),
            on_demand=OnDemand(self.mirror, feed, transactions, lookup, clock),
        )
        # Keys for models, which only the nodes' gateways open again.
        sealer = Sealer(settings.sealing.keys) if settings.sealing.keys else None
        model_keys = ModelKeys(self.mirror, transactions, sealer, clock)
        self.server = RpcServer(settings.server, authenticator, clock=clock)
        servicer = SchedulerServicer(services, self.consumers, model_keys, self.leader)
        self.server.add(SERVICE, add_SchedulerServiceServicer_to_server, servicer)

    def elected(self) -> tuple[str, int] | None:
        """Address and term of the leader as last seen."""
        return self._election.leader() if self._election else None

    def _leading_address(self) -> str:
        return (self.elected() or ("", 0))[0]

    def control(self, address: str) -> Control:
        """The work beside the calls, of a replica that others reach at `address`."""
        self._election = Election(self._kv, self._clock, "scheduler", address, self._settings.election_ttl)
        return Control(self.mirror, self._election, self.leader, self.fullness, self._sampler)


async def serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then leave in order: health, intake, leadership, calls, clients."""
    clock = SystemClock()
    async with Stack() as stack:
        kv = open_etcd(settings.etcd, clock)
        stack.push("etcd", kv.close)
        objects = open_objects(settings.objects)
        stack.push("objects", objects.close)
        stop_metrics = serve_metrics(settings.metrics)
        stack.push("metrics", lambda: asyncio.to_thread(stop_metrics))
        await run(Scheduler(settings, kv, objects, clock), settings, stop, stack)


async def run(scheduler: Scheduler, settings: SchedulerSettings, stop: asyncio.Event, stack: Stack) -> None:
    """Start a constructed scheduler and wait for `stop`; what ends it goes on `stack`."""
    stack.push("relay", scheduler.relay.close)
    # The server is bound first: its address is how the election names this replica.
    server = scheduler.server
    bound = await server.start()
    stack.push("server", lambda: server.stop(settings.drain_timeout), timeout=settings.drain_timeout + 5.0)
    address = settings.server.advertise or bound
    work = asyncio.create_task(scheduler.control(address).run())
    stack.push("leadership", lambda: _end(work))
    stack.push("followers", scheduler.feed.stop)
    stack.push("consumers", scheduler.consumers.stop)
    stack.push("intake", scheduler.submitter.stop)
    stack.push("health", server.drain)
    waits = [asyncio.create_task(scheduler.mirror.loaded.wait()), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait({work, *waits}, return_when=asyncio.FIRST_COMPLETED)
        if scheduler.mirror.loaded.is_set():
            server.set_serving(SERVICE, serving=True)
            _log.info("serving", address=address)
        await asyncio.wait({work, waits[1]}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if work.done():
        await work  # it never ends by itself: this raises what broke it


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
    # A long queue is a great many records without cycles: walking all of them often would show in the tail of submits.
    gc.set_threshold(50_000, 20, 100)
    sys.exit(asyncio.run(run_service(lambda stop: serve(settings, stop))))


if __name__ == "__main__":
    main()
