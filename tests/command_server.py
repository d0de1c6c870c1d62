"""Console scripts that start in a moment, so that tests can run many of them as processes of their own.

Importing Nerfstudio takes most of the time of a short command. A server process imports it once for all workers of
pytest and forks a child for each command; the child runs the script's own entry point with the caller's arguments,
folder, environment and streams. The server ends when pytest has.

    python tests/command_server.py SOCKET PID        the server, which ends with that process
    command_scripts(folder)                          starts it if need be, and puts scripts into the folder that ask it
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Dict, Sequence

ENTRY_POINTS = {
    "ns-train": "nerfstudio.scripts.train:entrypoint",
    "ns-eval": "nerfstudio.scripts.eval:entrypoint",
    "ns-render": "nerfstudio.scripts.render:entrypoint",
    "ns-viewer": "nerfstudio.scripts.viewer.run_viewer:entrypoint",
    "igae": "igae_nerfstudio.cli:main",
    "igae-scenes": "igae_nerfstudio.joint.scenes_command:main",
    "igae-train": "igae_nerfstudio.joint.command:main",
    "igae-compare": "igae_nerfstudio.compare:main",
}

IMPORTED = (
    "nerfstudio.scripts.train",
    "nerfstudio.scripts.eval",
    "nerfstudio.scripts.render",
    "nerfstudio.scripts.viewer.run_viewer",
    "diffusers.models.autoencoders",
    "matplotlib.pyplot",
    "torch.utils.tensorboard",
    "torchmetrics.image.lpip",
)
"""What takes seconds."""


def command_scripts(folder: Path, inserted: Dict[str, Sequence[str]] | None = None) -> Path:
    """Scripts named as the commands, which ask the server.

    Args:
        folder: to write; it goes first on a command's PATH.
        inserted: further arguments, by script, put behind the first one.
    """
    address = server_folder() / "socket"
    folder.mkdir(parents=True)
    for name in ENTRY_POINTS:
        more = list((inserted or {}).get(name, ()))
        script = folder / name
        script.write_text(
            f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"from command_server import ask\n"
            f"words = sys.argv[1:2] + {more!r} + sys.argv[2:]\n"
            f"sys.exit(ask({str(address)!r}, {name!r}, words))\n"
        )
        script.chmod(0o755)
    return folder


def server_folder() -> Path:
    """Of the running server, which the first worker that asks starts; it goes with the server."""
    from filelock import FileLock

    pytest_process = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir()) / f"igae-commands-{pytest_process}"
    folder.mkdir(exist_ok=True)
    address, log = folder / "socket", folder / "server.log"
    with FileLock(folder / "lock"):
        if not address.exists():
            words = [sys.executable, "-W", "ignore", __file__, str(address), str(pytest_process)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
            with log.open("w") as file:
                server = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            deadline = time.monotonic() + 800
            while not address.exists():
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
    return folder


def ask(address: str, name: str, arguments: Sequence[str]) -> int:
    """Run a command in a child of the server; returns its exit status. SIGINT and SIGTERM are passed on to it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = {"name": name, "arguments": list(arguments), "cwd": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        answers = connection.makefile("r")
        child = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: os.kill(child, number))
        status = answers.readline()
        return int(status) if status else 70


def serve(address: Path, pytest_process: int) -> None:
    """Import what commands do, then fork a child for each connection."""
    for name in IMPORTED:
        importlib.import_module(name)
    import lpips
    import psutil

    lpips.LPIPS = without_weights
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        listener.settimeout(1)
        os.rename(f"{address}.new", address)
        while psutil.pid_exists(pytest_process):
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
            connection.close()
    shutil.rmtree(address.parent)


def without_weights(*arguments: object, **settings: object) -> None:
    """In the place of `lpips.LPIPS`, whose weights are not part of the repository: no test fetches them."""
    raise OSError("its weights are not here")


def _answer(connection: socket.socket) -> None:
    data, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 16)
    request = json.loads(data)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["name"], *request["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    connection.sendall(f"{os.getpid()}\n".encode())
    connection.sendall(f"{_status_of(ENTRY_POINTS[request['name']])}\n".encode())
    os._exit(0)


def _status_of(entry_point: str) -> int:
    """What the interpreter would make of the entry point's end."""
    module, _, function = entry_point.partition(":")
    status: object = 0
    try:
        __import__(module)
        getattr(sys.modules[module], function)()
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
