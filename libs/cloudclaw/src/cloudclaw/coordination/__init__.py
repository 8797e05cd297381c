"""Coordination over etcd: the store's port and adapters, the records, the guarded transactions, leases, election."""
