"""Use cases: the mirror of etcd, submit, dispatch, recovery, finish, logs."""
