"""Fixtures of the contract tests: real etcd."""

from tests.support.etcd import *  # noqa: F403
