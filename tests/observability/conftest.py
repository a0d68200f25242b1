"""Fixtures of the tests of what is seen."""

from tests.support.etcd import cluster_name, kv, shared_etcd

__all__ = ["cluster_name", "kv", "shared_etcd"]
