"""A real Prometheus and a real Alertmanager on the production files, a webhook and a time server."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import socketserver
import struct
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from controlplane.clock import SystemClock
from controlplane.dev.process import Child, find_binary, free_ports
from tests.observability.promtool import PROMETHEUS, RULE_FILES

_HINT = "apt-get install prometheus prometheus-alertmanager"
_NTP_EPOCH_S = 2_208_988_800


def now_s() -> float:
    """Unix time in s, as Prometheus counts."""
    return SystemClock().wall_ms() / 1000


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert as the pager got it, and when."""

    receiver: str
    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    at_s: float
    ended_s: float
    """When it ended, as Prometheus says, and with it what it inhibits; the pager hears of it later.
    Of one that fires: in the future, or long ago."""


class Webhook:
    """Receives what Alertmanager sends; the path names the receiver."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        received = self.deliveries

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in body["alerts"]:
                    received.append(
                        Delivery(
                            self.path.strip("/"), alert["status"], alert["labels"],
                            alert["annotations"], now_s(),
                            dt.datetime.fromisoformat(alert["endsAt"]).timestamp(),
                        )
                    )  # fmt: skip
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def got(self, alert: str, status: str, **labels: str) -> Delivery | None:
        """Return the first delivery of an alert with these labels, None when there is none."""
        for delivery in list(self.deliveries):
            if (
                delivery.status == status
                and delivery.labels["alertname"] == alert
                and labels.items() <= delivery.labels.items()
            ):
                return delivery
        return None

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class _Ntp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        """Answer with the right time (RFC 4330)."""
        request, sock = self.request
        now = now_s() + _NTP_EPOCH_S
        stamp = struct.pack(">II", int(now), int(now % 1 * 2**32))
        head = struct.pack(">BBbbIII", 0x24, 1, 0, -20, 0, 0, 0)
        sock.sendto(head + stamp + request[40:48] + stamp + stamp, self.client_address)


@contextlib.contextmanager
def time_server() -> Iterator[str]:
    """Run a right clock that agents can measure theirs against; yields its address."""
    with socketserver.UDPServer(("127.0.0.1", 0), _Ntp) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@dataclass(slots=True)
class Monitoring:
    """Prometheus at `url`, its Alertmanager, and what the pager received."""

    url: str
    webhook: Webhook
    children: list[Child]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        return self._get("query", query=expr)

    def value(self, expr: str) -> float | None:
        """Return the only value of an instant query, None when there is none."""
        result = self.query(expr)
        return float(result[0]["value"][1]) if result else None

    def has_data(self, expr: str, start_s: float, end_s: float) -> bool:
        """Whether a range query has at least one sample that is a number (infinite counts). One of
        its steps is the end itself, so that what appeared last is seen."""
        step_s = 5.0
        start_s = end_s - step_s * math.ceil((end_s - start_s) / step_s)
        # of both ends Prometheus keeps milliseconds, so they are given in whole ones
        ends = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}"}
        result = self._get("query_range", query=expr, step=step_s, **ends)
        return any(
            not math.isnan(float(value)) for series in result for _, value in series["values"]
        )

    def _get(self, what: str, **args: Any) -> list[dict[str, Any]]:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(args)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        result: list[dict[str, Any]] = body["data"]["result"]
        return result


def _alertmanager_config(webhook: str) -> dict[str, Any]:
    """Return the example with its receivers on the webhook: waits and inhibitions untouched."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "alertmanager.yaml").read_text())
    for receiver in config["receivers"]:
        for hook in receiver["webhook_configs"]:
            hook["url"] = f"{webhook}/{receiver['name']}"
    return config


def _alertmanager(folder: Path, webhook: str, port: int) -> Child:
    """Return Alertmanager, not yet started."""
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(_alertmanager_config(webhook)))
    return Child(
        name="alertmanager",
        argv=[
            find_binary("prometheus-alertmanager", hint=_HINT),
            f"--config.file={folder / 'alertmanager.yaml'}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ],
        log=folder / "alertmanager.log",
    )


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """An Alertmanager that is given alerts by hand."""

    url: str

    def fire(self, alerts: Sequence[Mapping[str, str]]) -> bool:
        """Give it alerts that fire; whether it took them."""
        body = json.dumps([{"labels": labels} for labels in alerts]).encode()
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/v2/alerts", body, head)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            return bool(answer.status == HTTPStatus.OK)
        return False

    def silenced(self, **labels: str) -> dict[str, bool]:
        """Return the alerts with these labels, by name, and whether another one inhibits them."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=60) as answer:
            told = json.load(answer)
        return {
            alert["labels"]["alertname"]: bool(alert["status"]["inhibitedBy"])
            for alert in told
            if labels.items() <= alert["labels"].items()
        }


@contextlib.contextmanager
def alertmanager(folder: Path) -> Iterator[Alertmanager]:
    """Run Alertmanager alone on the production file until the block ends."""
    (port,) = free_ports(1)
    webhook = Webhook()
    child = _alertmanager(folder, webhook.url, port)
    try:
        child.start()
        yield Alertmanager(f"http://127.0.0.1:{port}")
    finally:
        child.stop()
        webhook.close()


def _prometheus_config(topology: Mapping[str, Any], alertmanager: int) -> dict[str, Any]:
    """Return the example with the topology's addresses: intervals and labels untouched."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    config["rule_files"] = [str(path) for path in RULE_FILES]
    managers = config["alerting"]["alertmanagers"][0]["static_configs"][0]
    managers["targets"] = [f"127.0.0.1:{alertmanager}"]
    processes: Sequence[Mapping[str, str]] = [*topology["replicas"], *topology["agents"]]
    config["scrape_configs"][0]["static_configs"] = [
        {
            "targets": [p["http"] for p in processes if p["region"] == region],
            "labels": {"weir_cluster": "weir", "weir_region": region},
        }
        for region in sorted(topology["regions"])
    ]
    return config


@contextlib.contextmanager
def monitoring(folder: Path, topology: Mapping[str, Any]) -> Iterator[Monitoring]:
    """Run Prometheus and Alertmanager on the production files until the block ends."""
    web, manager = free_ports(2)
    webhook = Webhook()
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(_prometheus_config(topology, manager)))
    children = [
        _alertmanager(folder, webhook.url, manager),
        Child(
            name="prometheus",
            argv=[
                find_binary("prometheus", hint=_HINT),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{web}",
            ],
            log=folder / "prometheus.log",
        ),
    ]
    try:
        for child in children:
            child.start()
        yield Monitoring(f"http://127.0.0.1:{web}", webhook, children)
    finally:
        for child in reversed(children):
            child.stop()
        webhook.close()
