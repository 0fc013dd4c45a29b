"""A Triton server for the CPU, out of PyTriton's wheel, which has its program and Python backend.

    python -m pip download --no-deps --dest WHEELS nvidia-pytriton==0.7.0
    python -m tests.integrations.triton_server WHEELS/nvidia_pytriton-0.7.0*.whl FOLDER
    FEWSTEP_TRITON=FOLDER python -m pytest tests/integrations/test_triton_server.py

That server (2.51) was built for NumPy 1, so it gets an environment of its own, with NumPy 1.26
before all that this one has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "FEWSTEP_TRITON"

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_STARTED_S = 120
_LIBRARIES, _PROGRAM = "nvidia_pytriton.libs", "pytriton/tritonserver/bin/tritonserver"
_BACKEND = "pytriton/tritonserver/backends/python"
_STUB = f"pytriton/tritonserver/python_backend_stubs/{_VERSION}/triton_python_backend_stub"


def prepare(wheel: Path, folder: Path) -> None:
    """Unpack the wheel, and make the environment that the backend runs in."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    shutil.copyfile(folder / _STUB, folder / _BACKEND / Path(_STUB).name)
    for program in (folder / _PROGRAM, folder / _BACKEND / Path(_STUB).name):
        program.chmod(0o755)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    own = folder / "venv" / "lib" / f"python{_VERSION}" / "site-packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-warn-conflicts"]
    subprocess.run([*command, "--target", own, "numpy<2"], check=True)
    paths = [ROOT / "runtime", sysconfig.get_path("purelib")]
    (own / "fewstep-tests.pth").write_text("".join(f"{path}\n" for path in paths))


@contextlib.contextmanager
def serving(folder: Path, repository: Path, log: Path) -> Iterator[str]:
    """Serve a repository on a free port of the loopback; the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    libraries = [str(folder / _LIBRARIES), str(sysconfig.get_config_var("LIBDIR"))]
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join([str(folder / "venv" / "bin"), os.environ["PATH"]]),
    }
    command: list[str | Path] = [folder / _PROGRAM, "--model-repository", repository]
    command += ["--backend-directory", (folder / _BACKEND).parent, "--allow-grpc", "false"]
    command += ["--allow-metrics", "false", "--http-address", "127.0.0.1", "--http-port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            _wait(server, address, log)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + _STARTED_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/v2/health/ready").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')[-4000:]}")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
