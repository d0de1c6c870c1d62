"""Console scripts that start in a moment, so that tests can run many of them as processes of their own.

Importing Nerfstudio takes most of the time of a short command. A server process imports it once and forks a child for
each command; the child runs the script's own entry point with the caller's arguments, folder, environment and streams.

    python tests/command_server.py SOCKET        the server
    CommandServer(folder)                        starts it, and puts scripts into folder/bin that ask it
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
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


class CommandServer:
    """A running server.

    Args:
        folder: for its socket, its log and `bin`, which goes first on a command's PATH.
        environment: of the server and its children, unless a caller's own says otherwise.
        inserted: further arguments, by script, put behind the first one.
    """

    def __init__(self, folder: Path, environment: Dict[str, str], inserted: Dict[str, Sequence[str]] | None = None):
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        address = folder / "socket"
        for name in ENTRY_POINTS:
            more = list((inserted or {}).get(name, ()))
            script = self.bin / name
            script.write_text(
                f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
                f"from command_server import ask\n"
                f"words = sys.argv[1:2] + {more!r} + sys.argv[2:]\n"
                f"sys.exit(ask({str(address)!r}, {name!r}, words))\n"
            )
            script.chmod(0o755)
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(address)], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 800
        while not address.exists():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


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


def serve(address: str) -> None:
    """Import everything, then fork a child for each connection."""
    import nerfstudio.scripts.eval
    import nerfstudio.scripts.render
    import nerfstudio.scripts.train
    import nerfstudio.scripts.viewer.run_viewer  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        os.rename(f"{address}.new", address)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
            connection.close()


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
    serve(sys.argv[1])
