"""The etcd client with TLS, client certificates and passwords, against real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_links import EtcdError, EtcdOptions, EtcdTls
from controlplane.dev.process import Child, find_binary, free_ports
from controlplane.dev.servers import EtcdCluster, tcp_answers, wait_until
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.ports import Compare, Put
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.etcd import etcdctl

KEY = b"/weir/t/x"


@pytest.fixture
def tls(etcd_scratch: Path) -> EtcdTls:
    """Make an authority with a certificate for the server and one for the client."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(etcd_scratch / "ca.pem"))
    for name, host in (("server", "127.0.0.1"), ("client", "replica")):
        cert = authority.issue_cert(host, common_name=host)
        cert.private_key_pem.write_to_path(str(etcd_scratch / f"{name}.key"))
        cert.cert_chain_pems[0].write_to_path(str(etcd_scratch / f"{name}.pem"))
    return EtcdTls(
        ca=etcd_scratch / "ca.pem",
        certificate=etcd_scratch / "client.pem",
        key=etcd_scratch / "client.key",
    )


@pytest.fixture
def tls_etcd(tls: EtcdTls, etcd_scratch: Path) -> AsyncIterator[str]:
    """One member that speaks TLS only and wants client certificates."""
    client, peer = free_ports(2)
    child = Child(
        "etcd-tls",
        [
            find_binary("etcd"), "--name=m", f"--data-dir={etcd_scratch / 'tls'}",
            f"--listen-client-urls=https://127.0.0.1:{client}",
            f"--advertise-client-urls=https://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=m=http://127.0.0.1:{peer}",
            f"--cert-file={etcd_scratch / 'server.pem'}",
            f"--key-file={etcd_scratch / 'server.key'}",
            f"--trusted-ca-file={tls.ca}", "--client-cert-auth=true", "--log-level=warn",
        ],
        etcd_scratch / "tls.log",
    ).start()  # fmt: skip
    wait_until(lambda: tcp_answers(client), "etcd with TLS")
    yield f"127.0.0.1:{client}"
    child.stop()


async def test_mutual_tls(tls: EtcdTls, tls_etcd: str) -> None:
    """With the authority and a client certificate everything works, watches included; without the
    certificate, or without TLS, nobody answers."""
    good = await EtcdClient.connect([tls_etcd], options=EtcdOptions(tls=tls, call_ms=60_000))
    written = await good.txn((), [Put(key=KEY, value=b"1")])
    watch = good.watch(KEY, written.revision)
    assert (await anext(watch))[0].value == b"1"
    await watch.aclose()
    await good.aclose()
    for wrong in (EtcdTls(ca=tls.ca), None):
        client = await EtcdClient.connect([tls_etcd], options=EtcdOptions(tls=wrong, call_ms=600))
        with pytest.raises(UnavailableError):
            await client.get(KEY)
        await client.aclose()


async def test_half_a_key_pair_is_refused_at_the_start(tls: EtcdTls) -> None:
    """A certificate without its key is a mistake in the configuration, said at once."""
    half = EtcdTls(ca=tls.ca, certificate=tls.certificate)
    with pytest.raises(InvalidInputError, match="belong together"):
        await EtcdClient.connect(["127.0.0.1:1"], options=EtcdOptions(tls=half))


@pytest.fixture
async def guarded(own_etcd: EtcdCluster) -> EtcdCluster:
    """Turn authentication on: user weir may read and write below /weir/."""
    for command in (
        ("user", "add", "root:toor"), ("user", "grant-role", "root", "root"),
        ("role", "add", "weir"),
        ("role", "grant-permission", "weir", "readwrite", "/weir/", "/weir0"),
        ("user", "add", "weir:secret"), ("user", "grant-role", "weir", "weir"),
        ("auth", "enable"),
    ):  # fmt: skip
        etcdctl(own_etcd.endpoints, *command)
    return own_etcd


async def test_password_authentication_survives_lost_tokens(guarded: EtcdCluster) -> None:
    """Logs in by itself, and again when the members forgot the token; the transaction that met the
    stale token is done once; keys outside its role stay closed; the watch follows."""
    options = EtcdOptions(username="weir", password="secret", call_ms=20_000)
    kv = await EtcdClient.connect(guarded.endpoints, options=options)
    watch, seen, revision = kv.watch(KEY, 1), [], 0
    for number in range(4):
        compare = Compare(key=KEY, target="mod", op="==", operand=revision)
        done = await kv.txn([compare], [Put(key=KEY, value=b"%d" % number)])
        assert done.succeeded
        revision = done.revision
        seen += [event.value for event in await anext(watch)]
        for member in guarded.members:  # tokens live in memory
            member.child.kill()
            member.child.start()
        guarded.wait_ready()
    await watch.aclose()
    assert seen == [b"0", b"1", b"2", b"3"]
    assert kv.stats.logins > 1
    found = await kv.get(KEY)
    assert found is not None
    assert found.version == 4
    with pytest.raises(EtcdError, match="permission denied"):
        await kv.get(b"/other")
    assert "secret" not in repr(options)
    await kv.aclose()


async def test_a_wrong_password_is_said_plainly(guarded: EtcdCluster) -> None:
    """Not an outage: etcd's refusal, at once."""
    options = EtcdOptions(username="weir", password="wrong", call_ms=20_000)
    kv = await EtcdClient.connect(guarded.endpoints, options=options)
    with pytest.raises(EtcdError, match="authentication failed"):
        await kv.get(KEY)
    await kv.aclose()
