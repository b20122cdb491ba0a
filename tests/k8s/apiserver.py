"""A stand-in for a Kubernetes cluster on loopback: what the executor plug-in asks of the API, and nothing else.

A Job that is submitted is held against Kubernetes' own schema; its container's command then runs as a process of this
machine, in a fresh folder as `emptyDir`, with the environment that the manifest gives it and the image would. There
is no image and no isolation: a claim has to be mounted where it is a folder of this machine. As a namespace with Pod
Security's level `restricted` does, it refuses pods that could gain rights.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import kubernetes_validate
import yaml

SCHEMA = "1.32"
# how a Role names a call, with an object's name and without
VERBS = {("POST", False): "create", ("GET", True): "get", ("GET", False): "list", ("DELETE", True): "delete"}


def restricted(spec: dict) -> list[str]:
    """What Pod Security's level `restricted` forbids in a pod's spec, one line each; of Kubernetes 1.32, for Linux.

    A container's own security context goes before the pod's, where both may say a thing.
    """
    volumes = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    pod, refused = spec.get("securityContext") or {}, []

    def refuse(name: str, wrong: bool, what: str) -> None:
        if wrong:
            refused.append(f"{name}: {what}")

    for key in ("hostNetwork", "hostPID", "hostIPC"):
        refuse("pod", bool(spec.get(key)), key)
    for volume in spec.get("volumes") or []:
        refuse(f"volume {volume['name']}", not set(volume) - {"name"} <= volumes, "type")
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        name, own = container["name"], container.get("securityContext") or {}
        capabilities = own.get("capabilities") or {}
        both = pod | {key: value for key, value in own.items() if value is not None}
        refuse(name, bool(own.get("privileged")), "privileged")
        refuse(name, own.get("allowPrivilegeEscalation") is not False, "allowPrivilegeEscalation")
        refuse(name, "ALL" not in (capabilities.get("drop") or []), "capabilities.drop")
        refuse(name, not set(capabilities.get("add") or []) <= {"NET_BIND_SERVICE"}, "capabilities.add")
        refuse(name, both.get("runAsNonRoot") is not True, "runAsNonRoot")
        refuse(name, both.get("runAsUser") == 0, "runAsUser")
        profile = (both.get("seccompProfile") or {}).get("type")
        refuse(name, profile not in ("RuntimeDefault", "Localhost"), "seccompProfile")
        refuse(name, both.get("procMount") not in (None, "Default"), "procMount")
        refuse(name, any(port.get("hostPort") for port in container.get("ports") or []), "hostPort")
    return refused


class Pod:
    """The one container of a Job."""

    def __init__(self, manifest: dict, secrets: dict, image: dict[str, str]):
        self.manifest, self.name, self.gone = manifest, manifest["metadata"]["name"], False
        self.deleted = False
        spec = manifest["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        self.command = container["args"][-1]
        self.workdir = tempfile.TemporaryDirectory()
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in container["volumeMounts"]:
            if "emptyDir" in volumes[mount["name"]]:
                assert mount["mountPath"] == container["workingDir"]
            else:
                assert Path(mount["mountPath"]).is_dir(), mount
        environment = image | {"HOSTNAME": self.name}
        for variable in container.get("env", []):
            reference = variable["valueFrom"]["secretKeyRef"]
            environment[variable["name"]] = base64.b64decode(
                secrets[reference["name"]]["data"][reference["key"]]
            ).decode()
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*container["command"], *container["args"]],
            cwd=self.workdir.name,
            env=environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def lose(self) -> None:
        """Take it away, as an eviction or a lost node does: the Pod is gone, its Job has failed."""
        self.gone = True
        self.kill()

    def kill(self) -> None:
        """End its container, as running out of memory does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def remove(self) -> None:
        """End it, and with it what it has in its own folders."""
        self.kill()
        self.workdir.cleanup()
        shutil.rmtree(f"/tmp/snakemake-{self.name}", ignore_errors=True)  # as the profile names it

    def job(self) -> dict:
        """The Job's status."""
        code = self.process.poll()
        status = {"active": 1} if code is None else {"succeeded": 1} if code == 0 else {"failed": 1}
        return self.manifest | {"status": status}

    def pod(self) -> dict:
        """The Pod's status."""
        code = self.process.poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code if code >= 0 else 128 - code}}
        container = {"name": "snakemake", "state": state, "image": "", "imageID": "", "ready": False, "restartCount": 0}
        return {"metadata": {"name": f"{self.name}-pod"}, "status": {"containerStatuses": [container]}}

    def log(self) -> str:
        """What it has printed."""
        self.output.seek(0)
        return self.output.read().decode(errors="replace")


class Cluster(ThreadingHTTPServer):
    """The API server. `pods` holds every pod ever started, in order; `started` is called with each one that is new."""

    daemon_threads = True

    def __init__(self, image: dict[str, str], started=lambda pod: None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.image, self.started, self.secrets, self.pods = image, started, {}, []
        self.namespaces, self.calls = set(), set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End every pod and the server."""
        for pod in self.pods:
            pod.remove()
        self.shutdown()
        self.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """Write the client's settings."""
        settings = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "here",
        }
        path.write_text(yaml.safe_dump(settings))
        return path

    def answer(self, method: str, kind: str, name: str, part: str, query: str, body: dict) -> tuple[int, dict | str]:
        """Status and body for a call on an object."""
        self.calls.add((VERBS[method, bool(name)], f"{kind}/{part}".rstrip("/")))
        pods = {pod.name: pod for pod in self.pods}
        match method, kind, part:
            case "POST", "secrets", "":
                self.secrets[body["metadata"]["name"]] = body
                return 201, body
            case "DELETE", "secrets", "":
                return 200, {"status": "Success"} if self.secrets.pop(name, None) else {}
            case "POST", "jobs", "":
                kubernetes_validate.validate({"apiVersion": "batch/v1", "kind": "Job"} | body, SCHEMA, strict=True)
                if refused := restricted(body["spec"]["template"]["spec"]):
                    return 403, {
                        "kind": "Status",
                        "message": f"violates PodSecurity restricted: {refused}",
                        "code": 403,
                    }
                pod = Pod(body, self.secrets, self.image)
                self.pods.append(pod)
                threading.Thread(target=self.started, args=[pod], daemon=True).start()
                return 201, body
            case "GET", "jobs", "status":
                return 200, pods[name].job()
            case "GET", "jobs", "":
                return 200, {"kind": "JobList", "items": [pod.job() for pod in self.pods if not pod.deleted]}
            case "DELETE", "jobs", "":
                pods[name].deleted = True
                pods[name].kill()
                return 200, {"status": "Success"}
            case "GET", "pods", "":
                wanted = re.search(r"job-name=([^&]+)", unquote(query))[1]
                return 200, {"kind": "PodList", "items": [pods[wanted].pod()] * (not pods[wanted].gone)}
            case "GET", "pods", "log" if "previous=True" in query:
                # of the run before a restart, which there is none of where restartPolicy is Never
                return 400, {"kind": "Status", "message": f"previous terminated container in pod {name} not found"}
            case "GET", "pods", "log":
                return 200, pods[name.removesuffix("-pod")].log()
            case "DELETE", "pods", "":
                return 200, {"metadata": {"name": name}}
        return 404, {"kind": "Status", "reason": "NotFound", "code": 404}


class Handler(BaseHTTPRequestHandler):
    """HTTP to `Cluster.answer`."""

    protocol_version = "HTTP/1.1"
    PLACE = re.compile(r"/apis?/(?:batch/)?v1/namespaces/([\w-]+)/(\w+)(?:/([\w.-]+))?(?:/(\w+))?")

    def _any(self) -> None:
        url = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        found = self.PLACE.fullmatch(url.path)
        try:
            namespace, *parts = (part or "" for part in found.groups())
            self.server.namespaces.add(namespace)
            status, reply = self.server.answer(self.command, *parts, url.query, body)
        except Exception as error:  # the client shall see it
            status, reply = 422, {"kind": "Status", "message": f"{type(error).__name__}: {error}", "code": 422}
        content = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(reply, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _any  # noqa: N815

    def log_message(self, *_) -> None:
        """Say nothing."""
