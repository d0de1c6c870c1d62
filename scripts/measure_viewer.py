"""Pictures per second of the viewer in a browser while its camera moves, and how soon the sharp one follows.

    python scripts/measure_viewer.py outputs/demo/lighthouse/igae-tensorf/run/config.yml

To be run in the folder in which the run was trained. Opens `ns-viewer` in Chromium without a window (pip install
'.[browser]', apt install chromium), drags the camera around with the mouse, and counts the pictures that the page gets.
Browser and viewer share the machine.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, List, Tuple

import psutil
from PIL import Image

WAIT = 300.0
"""Seconds for the viewer to come up, and for any picture."""
SHARP = 512
"""The longer side of the picture that comes when the camera has stopped: the viewer's Max res."""
RADIUS, TURN_SECONDS = 100, 4.0
"""The mouse goes around a circle of so many pixels in so many seconds."""


class Pictures:
    """What a page of the viewer gets: the time of each picture, and its size (width, height)."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.seen: List[Tuple[float, Tuple[int, int]]] = []
        page.on("websocket", lambda socket: socket.on("framereceived", self._read))

    def _read(self, data: Any) -> None:
        import msgspec

        now = time.monotonic()
        if isinstance(data, bytes):
            self._note(now, msgspec.msgpack.decode(data))

    def _note(self, now: float, message: Any) -> None:
        if isinstance(message, (list, tuple)):
            for part in message:
                self._note(now, part)
        elif isinstance(message, dict) and message.get("type") == "BackgroundImageMessage":
            self.seen.append((now, Image.open(io.BytesIO(message["rgb_bytes"])).size))

    def sharp_after(self, moment: float) -> float:
        """When the first sharp picture came that is later than a moment."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            self.page.wait_for_timeout(10)
            for when, size in self.seen:
                if when > moment and max(size) >= SHARP:
                    return when
        raise SystemExit(f"no sharp picture in {WAIT:.0f} s")


def main() -> None:
    """Serve, open, drag, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="config.yml of a finished run")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each drag; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="drags; default: %(default)s")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--viewer.websocket-host", "127.0.0.1", "--viewer.websocket-port", str(port)]
    viewer = [str(Path(sys.executable).parent / "ns-viewer"), "--load-config", str(arguments.config), *where]
    process = subprocess.Popen(viewer, stdout=subprocess.DEVNULL)
    try:
        wait_for(process, port)
        with sync_playwright() as driver:
            flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
            program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
            page = driver.chromium.launch(executable_path=program, args=flags).new_page()
            measure(page, f"http://127.0.0.1:{port}", psutil.Process(process.pid), arguments)
    finally:
        process.kill()
        process.wait()


def wait_for(process: subprocess.Popen, port: int) -> None:
    """Return once something listens at the port."""
    end = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("ns-viewer has ended, or does not listen")


def measure(page: Any, address: str, viewer: psutil.Process, arguments: argparse.Namespace) -> None:
    """Drag the camera, wait for the sharp picture, and again; print the medians."""
    page.set_default_timeout(1000 * WAIT)
    pictures = Pictures(page)
    page.goto(address)
    page.get_by_text("Connected", exact=True).wait_for()
    pictures.sharp_after(0.0)
    page.get_by_role("button", name="Hide Train Cams").click()
    page.wait_for_timeout(3000)
    rates, delays, costs, sizes = [], [], [], set()
    for _ in range(arguments.rounds):
        before = cpu_seconds(viewer)
        first, last = drag(page, arguments.seconds)
        spent = cpu_seconds(viewer) - before
        delays.append(pictures.sharp_after(last) - last)
        moving = [size for when, size in pictures.seen if first <= when <= last]
        rates.append(len(moving) / (last - first))
        costs.append(1000 * spent / max(len(moving), 1))
        sizes.update(moving)
    shown = " and ".join(f"{width} x {height}" for width, height in sorted(sizes))
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(
        f"{median(rates):.1f} pictures a second ({min(rates):.1f} to {max(rates):.1f}) of {shown} while the mouse moves"
    )
    print(f"{median(costs):.0f} ms ({min(costs):.0f} to {max(costs):.0f}) of the viewer's CPU time for each of them")
    print(f"{median(delays):.2f} s ({min(delays):.2f} to {max(delays):.2f}) from there to the one of {SHARP}")
    print(f"{arguments.rounds} drags of {arguments.seconds:g} s; load {load:.1f} on {cores} cores")


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process so far."""
    times = process.cpu_times()
    return times.user + times.system


def drag(page: Any, seconds: float) -> Tuple[float, float]:
    """Move the camera with the mouse; the times of the first and the last movement."""
    box = page.locator("canvas").last.bounding_box()
    x, y = box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"]
    page.mouse.move(x + RADIUS, y)
    page.mouse.down()
    first = last = time.monotonic()
    while last - first < seconds:
        angle = 2 * math.pi * (last - first) / TURN_SECONDS
        page.mouse.move(x + RADIUS * math.cos(angle), y + 0.3 * RADIUS * math.sin(angle))
        page.wait_for_timeout(15)
        last = time.monotonic()
    page.mouse.up()
    return first, last


if __name__ == "__main__":
    main()
