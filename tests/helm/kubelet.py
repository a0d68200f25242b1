"""A very small kubelet: runs a rendered pod's containers as local processes.

Volumes become folders below one folder per pod, and every mount path in command, arguments,
environment and configuration is replaced by its folder. Field references, Service variables,
probes, preStop hooks and the grace period mean what they mean in a cluster. What it does not have:
images, a read-only root, users, cgroups, networks, scheduling.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.dev.process import Child, find_binary
from controlplane.dev.servers import wait_until
from tests.helm.charts import Json, Release, Workload
from tests.helm.issuer import Issuer

PROBE_S = 60.0
"""Longest wait for a probe to succeed; the rendered budgets are checked for being at least this."""


@dataclass
class LocalPod:
    """One pod of a workload, on this machine."""

    release: Release
    workload: Workload
    root: Path
    name: str
    issuer: Issuer | None = None
    address: str = "127.0.0.1"
    running: dict[str, Child] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mounts = {
            mount["mountPath"] for c in self.workload.ours for mount in c.get("volumeMounts", ())
        }
        ordered = sorted(mounts, key=len, reverse=True)
        self._mounts = re.compile("|".join(rf"{re.escape(m)}(?![-\w])" for m in ordered))
        volumes = {v["name"]: v for v in self.workload.spec.get("volumes", ())}
        for container in self.workload.ours:
            for mount in container.get("volumeMounts", ()):
                folder = Path(self.local(mount["mountPath"]))
                folder.mkdir(parents=True, exist_ok=True)
                self._fill(folder, volumes.get(mount["name"], {}))
        self.cwd = self.root / "cwd"
        self.cwd.mkdir(exist_ok=True)

    def _fill(self, folder: Path, volume: Json) -> None:
        if "configMap" in volume:
            source = self.release.one(
                "ConfigMap", volume["configMap"]["name"], self.workload.namespace
            )
            for key, text in source["data"].items():
                (folder / key).write_text(self.local(text))
        if "secret" in volume and self.issuer is not None:
            wanted = [
                certificate
                for certificate in self.release.of("Certificate")
                if certificate["spec"]["secretName"] == volume["secret"]["secretName"]
            ]
            for key, data in self.issuer.secret(wanted[0]).items():
                (folder / key).write_bytes(data)

    def local(self, text: str) -> str:
        """Return the text with every mount path replaced by its folder, and the address of all
        interfaces by the pod's."""
        text = text.replace("0.0.0.0", self.address)
        if self._mounts.pattern == "":
            return text
        return self._mounts.sub(lambda found: f"{self.root}{found.group(0)}", text)

    def container(self, name: str) -> Json:
        """Return a container by name."""
        return next(c for c in self.workload.containers if c["name"] == name)

    def argv(self, container: Json) -> list[str]:
        """Return its command line, with programs of this environment for those of the image."""
        words = [self.local(w) for w in (*container["command"], *container.get("args", ()))]
        if words[0] == "envoy":
            return [find_binary("envoy"), *words[1:], "--use-dynamic-base-id"]
        if words[0] == "python":
            return [sys.executable, *words[1:]]
        if words[0] == "weir":
            return [str(Path(sys.executable).with_name("weir")), *words[1:]]
        return words

    def environment(self, container: Json) -> dict[str, str]:
        """Return its environment; a Service named weir adds its variables as links would."""
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        found = {"PATH": path, "HOME": str(self.cwd), "WEIR_PORT": "tcp://10.0.0.1:7700"}
        for entry in container.get("env", ()):
            value = self.name if "valueFrom" in entry else entry["value"]
            found[entry["name"]] = self.local(value)
        return found

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run an init or test container to its end."""
        container = self.container(name)
        return subprocess.run(
            self.argv(container),
            env=self.environment(container),
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            check=False,
        )

    def start(self, name: str) -> Child:
        """Start a container and wait for its startup probe."""
        container = self.container(name)
        child = Child(
            name,
            self.argv(container),
            self.root / f"{name}.log",
            env=self.environment(container),
            cwd=self.cwd,
        ).start()
        self.running[name] = child
        if "startupProbe" in container:
            self.wait_for(name, "startupProbe")
        return child

    def probe(self, name: str, kind: str) -> int | None:
        """Ask a probe once; the HTTP status, or None when nobody answers in its time."""
        container = self.container(name)
        get = container[kind]["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        answer = self.get(ports[get["port"]], get["path"], container[kind].get("timeoutSeconds", 1))
        return answer[0] if answer else None

    def get(self, port: int, path: str, timeout_s: float = 2.0) -> tuple[int, bytes] | None:
        """GET from the pod's address; None when nobody answers."""
        link = http.client.HTTPConnection(self.address, port, timeout=timeout_s)
        try:
            link.request("GET", path)
            answer = link.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            link.close()

    def wait_for(self, name: str, kind: str) -> None:
        """Wait until a probe succeeds; the container's output is in the error."""

        def good() -> bool:
            assert self.running[name].alive, self.running[name].tail(40)
            return self.probe(name, kind) == 200

        try:
            wait_until(good, f"{name} {kind}", PROBE_S)
        except Exception as error:
            error.add_note(self.running[name].tail(40))
            raise

    def told(self, name: str, kind: str) -> int:
        """Ask a probe until it is answered and return the HTTP status: a kubelet, too, takes one
        answer that comes late for nothing."""
        found: list[int | None] = []

        def answered() -> bool:
            assert self.running[name].alive, self.running[name].tail(40)
            found.append(self.probe(name, kind))
            return found[-1] is not None

        wait_until(answered, f"{name} {kind}", PROBE_S)
        assert found[-1] is not None
        return found[-1]

    def pre_stop(self, name: str) -> subprocess.Popen[str]:
        """Start a container's preStop hook."""
        command = self.container(name)["lifecycle"]["preStop"]["exec"]["command"]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE)

    def end(self, name: str) -> tuple[int | None, float]:
        """SIGTERM; return exit code and seconds taken."""
        child = self.running.pop(name)
        began = time.perf_counter()
        child.signal(15)
        assert child.process is not None
        code = child.process.wait(self.workload.spec["terminationGracePeriodSeconds"])
        return code, time.perf_counter() - began

    def close(self) -> None:
        """Kill whatever still runs."""
        for child in self.running.values():
            child.kill()

    def strays(self) -> list[Path]:
        """Return files written outside of volumes: a read-only root would have refused them."""
        return [path for path in self.cwd.rglob("*") if path.is_file()]


def pod_of(
    release: Release, workload: str, root: Path, issuer: Issuer | None = None, ordinal: int = 0
) -> LocalPod:
    """Make a pod of a workload; each ordinal has an address of its own."""
    found = next(w for w in release.workloads() if w.name == workload)
    name = f"{workload}-{ordinal}"
    folder = root / name
    folder.mkdir(parents=True)
    return LocalPod(
        release=release,
        workload=found,
        root=folder,
        name=name,
        issuer=issuer,
        address=f"127.0.0.{1 + ordinal}",
    )
