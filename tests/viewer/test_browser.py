"""The viewer as a person meets it: Chromium on the page of `ns-train` and of `ns-viewer`.

Set IGAE_SCREENSHOTS to a folder to keep the screenshots.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pytest
from conftest import write_blender_scene
from PIL import Image
from test_commands import offline

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (apt install chromium)"),
    pytest.mark.timeout(1800),
]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install '.[browser]')")

PHASE_LINES = r"Phase: ([\w ]+), step ([\d,]+) of ([\d,]+)\s+Run: step ([\d,]+) of ([\d,]+)"

WAIT = 400.0
"""Seconds for anything to happen; machines with other work on them take long to import Nerfstudio."""
TRAIN = """
--machine.device-type cpu --pipeline.latent-supervision-steps 150 --pipeline.rgb-alignment-steps 100000
--pipeline.latent-supervision-lr-factor 1 --pipeline.rgb-alignment-lr-factor 1
--pipeline.datamanager.images-per-batch 2 --steps-per-save 50 --steps-per-eval-batch 100000
--steps-per-eval-image 100000
--pipeline.model.num-uniform-samples 24 --pipeline.model.num-samples 12
--pipeline.model.init-resolution 32 --pipeline.model.final-resolution 32
"""


class Page:
    """A page of the viewer, with the frames that it gets and the cameras that it sends."""

    def __init__(self, page: Any, shots: Path) -> None:
        self.page, self.shots = page, shots
        self.frames: list[Image.Image] = []
        self.cameras: list[dict[str, Any]] = []
        self.camera_of_frame: list[int] = []
        page.on("websocket", self._listen)

    def _listen(self, websocket: Any) -> None:
        websocket.on("framereceived", self._read)
        websocket.on("framesent", self._read)

    def _read(self, data: Any) -> None:
        import msgspec

        if isinstance(data, bytes):
            self._note(msgspec.msgpack.decode(data))

    def _note(self, message: Any) -> None:
        if isinstance(message, (list, tuple)):
            for part in message:
                self._note(part)
        elif isinstance(message, dict) and message.get("type") == "BackgroundImageMessage":
            self.frames.append(Image.open(io.BytesIO(message["rgb_bytes"])).convert("RGB"))
            self.camera_of_frame.append(len(self.cameras))
        elif isinstance(message, dict) and message.get("type") == "ViewerCameraMessage":
            self.cameras.append(message)

    def wait(self, until: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + WAIT
        while not until():
            assert time.monotonic() < end, f"no {what}"
            self.page.wait_for_timeout(100)

    def sharp(self) -> bool:
        """Whether the last frame is a large one of the last camera."""
        return bool(self.frames) and max(self.frames[-1].size) == 512 and self.camera_of_frame[-1] == len(self.cameras)

    def next_sharp(self, action: Callable[[], Any], what: str) -> np.ndarray:
        """The sharp frame (H, W, 3) in [0, 1] that follows an action."""
        seen = len(self.frames)
        action()
        self.wait(lambda: len(self.frames) > seen and self.sharp(), what)
        return as_array(self.frames[-1])

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label, exact=True).click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def drag(self, dx: int, dy: int) -> None:
        mouse = self.page.mouse
        mouse.move(300, 350)
        mouse.down()
        mouse.move(300 + dx, 350 + dy, steps=6)
        mouse.up()

    def screenshot(self, name: str) -> None:
        self.page.screenshot(path=str(self.shots / f"{name}.png"))


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(np.float64) / 255


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(max(np.mean((a - b) ** 2), 1e-10)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewer")
    write_blender_scene(folder / "scene", size=(64, 64), counts=(8, 1, 1))
    return folder


@pytest.fixture(scope="module")
def shots(folder: Path) -> Path:
    shots = Path(os.environ.get("IGAE_SCREENSHOTS", folder / "screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    return shots


@contextmanager
def served(folder: Path, name: str, *words: str | Path, dataparser: tuple[str, ...] = ()) -> Iterator[str]:
    """A command that serves a viewer, until it is no longer needed; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(sys.executable).parent / name
    viewer = ["--viewer.websocket-host", "127.0.0.1", "--viewer.websocket-port", str(port)]
    log = folder / f"{name}.log"
    with log.open("w") as file:
        command = [str(script), *map(str, words), *viewer, *dataparser]
        process = subprocess.Popen(command, cwd=folder, env=offline(folder), stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + WAIT
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None, log.read_text()[-3000:]
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()


@contextmanager
def opened(browser: Any, address: str, shots: Path) -> Iterator[Page]:
    page = Page(browser.new_page(viewport={"width": 1000, "height": 760}), shots)
    page.page.set_default_timeout(1000 * WAIT)
    try:
        page.page.goto(address)
        page.page.get_by_text("Connected", exact=True).wait_for()
        yield page
    finally:
        page.page.close()


@pytest.fixture(scope="module")
def run(folder: Path, browser: Any, shots: Path) -> dict[str, Any]:
    """A training with its live viewer, looked at, and stopped once it has a checkpoint of the second phase."""
    where = ["--output-dir", folder / "outputs", "--experiment-name", "seen", "--timestamp", "run"]
    words = ["igae-tensorf", "--vis", "viewer+tensorboard", "--data", folder / "scene", *TRAIN.split(), *where]
    base = folder / "outputs" / "seen" / "igae-tensorf" / "run"
    found: dict[str, Any] = {"config": base / "config.yml", "height": 64}
    with (
        served(folder, "ns-train", *words, dataparser=("blender-data",)) as address,
        opened(browser, address, shots) as page,
    ):
        page.wait(lambda: len(page.frames) > 0, "frame of the training")
        found["first"] = as_array(page.frames[-1])
        panel = page.page.get_by_text("Phase:")
        found["lines"] = [panel.inner_text()]
        page.screenshot("training")
        page.wait(lambda: any(int(p.stem[5:]) >= 200 for p in base.glob("*/step-*.ckpt")), "checkpoint")
        page.wait(lambda: "RGB alignment" in panel.inner_text(), "second phase")
        found["lines"].append(panel.inner_text())
        seen = len(page.frames)
        page.wait(lambda: len(page.frames) > seen, "frame of the second phase")
        found["last"] = as_array(page.frames[-1])
        page.screenshot("training-later")
    return found


def test_the_live_viewer_follows_the_training(run: dict[str, Any]) -> None:
    steps = []
    for line in run["lines"]:  # the page may have come after the first phase of 150 steps
        phase, step, of_phase, of_run, total = re.fullmatch(PHASE_LINES, line).groups()
        step, of_phase, of_run = (int(number.replace(",", "")) for number in (step, of_phase, of_run))
        assert (phase, step, of_phase) == (
            ("latent supervision", of_run, 150) if of_run <= 150 else ("RGB alignment", of_run - 150, 100_000)
        )
        assert total == "100,150"
        steps.append(of_run)
    assert 150 < steps[1] > steps[0] >= 0
    assert run["last"].std() > 0.02  # something is there


def test_ns_viewer_in_a_browser(
    run: dict[str, Any], folder: Path, browser: Any, shots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder, "ns-viewer", "--load-config", run["config"]) as address,
        opened(browser, address, shots) as page,
    ):
        page.wait(page.sharp, "first sharp frame")  # before, Nerfstudio may not have the cameras that it hides
        page.page.get_by_role("button", name="Hide Train Cams").click()
        page.screenshot("rgb")
        first = as_array(page.frames[-1])

        # The camera moves: smaller frames, of the size at which they are decoded, then a sharp one.
        seen = len(page.frames)
        rgb = page.next_sharp(lambda: page.drag(30, 8), "frame after the camera moved")
        assert page.cameras[-1]["position"] != page.cameras[0]["position"]
        assert psnr(rgb, first) < 40 if rgb.shape == first.shape else True
        moving = [frame.size for frame in page.frames[seen:] if max(frame.size) < 512]
        assert moving and all(height == run["height"] for _, height in moving)  # as the photos
        small = page.frames[seen + max(i for i, f in enumerate(page.frames[seen:]) if max(f.size) < 512)]
        enlarged = small.resize(rgb.shape[1::-1], Image.Resampling.BICUBIC)
        assert psnr(as_array(enlarged), rgb) > 22  # one picture, blurred
        page.screenshot("moved")

        # What the page shows is what it got. (The first canvas is for Gaussian splats.)
        canvas = Image.open(io.BytesIO(page.page.locator("canvas").last.screenshot()))
        shown = as_array(canvas.resize(rgb.shape[1::-1], Image.Resampling.BICUBIC))
        assert psnr(shown[10:-80, 10:-10], rgb[10:-80, 10:-10]) > 22  # the axes are drawn in a lower corner

        # The output menu.
        frames = {"rgb": rgb}
        for output in ("latent", "depth", "accumulation"):
            frames[output] = page.next_sharp(lambda name=output: page.choose("Output type", name), f"frame of {output}")
            page.screenshot(output)
            assert frames[output].std() > 0.02, output
        names = list(frames)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                assert psnr(frames[one], frames[other]) < 25, f"{one} and {other} are one picture"
        camera, size = page.cameras[-1], page.frames[-1].size

        # The panel.
        assert "Phase: RGB alignment, step " in page.page.get_by_text("Phase:").inner_text()
        channel = page.next_sharp(
            lambda: (page.choose("Output type", "latent"), page.choose("Latent", "channel 2")), "a latent channel"
        )
        page.wait(lambda: page.sharp() and psnr(as_array(page.frames[-1]), frames["latent"]) < 30, "grey channel")
        channel = as_array(page.frames[-1])
        assert float(np.abs(channel - channel.mean(axis=-1, keepdims=True)).max()) < 0.1
        page.screenshot("channel")
        page.choose("Latent", "preview")
        page.choose("Output type", "rgb")
        page.choose("Decoder", "original")
        page.wait(lambda: page.sharp() and page.frames[-1].size == size, "frame of the original decoder")
        page.page.wait_for_timeout(1000)
        page.screenshot("original-decoder")
        page.choose("Decoder", "fine-tuned")
        page.page.get_by_role("button", name="To the nearest training camera").click()
        page.page.wait_for_timeout(500)
        page.wait(page.sharp, "frame of the nearest training camera")
        page.screenshot("nearest-camera")
        place = np.array(page.cameras[-1]["position"]) / 10

    # The same cameras from ns-render.
    sides = ns_render(run["config"], folder, camera, size, ["rgb", "latent"], monkeypatch)
    for name, picture in zip(("rgb", "latent"), np.split(sides, 2, axis=1)):
        assert psnr(frames[name], picture) > 25, name
    frames_of_scene = json.loads((folder / "scene" / "transforms_train.json").read_text())["frames"]
    places = np.array([frame["transform_matrix"] for frame in frames_of_scene])[:, :3, 3]
    assert np.linalg.norm(places - place, axis=-1).min() < 1e-3


def ns_render(
    config: Path,
    folder: Path,
    camera: dict[str, Any],
    size: tuple[int, int],
    outputs: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> np.ndarray:
    """`ns-render camera-path` of a page's camera: its outputs beside each other."""
    import viser.transforms as vtf
    from nerfstudio.scripts.render import RenderCameraPath

    pose = np.eye(4)
    pose[:3, :3] = (vtf.SO3(np.array(camera["wxyz"])) @ vtf.SO3.from_x_radians(np.pi)).as_matrix()
    pose[:3, 3] = np.array(camera["position"]) / 10
    one = {"camera_to_world": pose.flatten().tolist(), "fov": float(np.degrees(camera["fov"])), "aspect": 1.0}
    path = {"render_height": size[1], "render_width": size[0], "seconds": 1, "camera_path": [one]}
    (folder / "path.json").write_text(json.dumps(path))
    monkeypatch.setenv("PATH", offline(folder)["PATH"])  # ns-render looks for ffmpeg
    out = folder / "-".join(["rendered", *outputs])
    RenderCameraPath(
        load_config=config,
        output_path=out,
        camera_path_filename=folder / "path.json",
        rendered_output_names=outputs,
        output_format="images",
        image_format="png",
    ).main()
    return as_array(Image.open(next(out.glob("*.png"))))
