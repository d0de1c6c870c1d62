"""What a folder is, where the chosen dataparser finds no dataset in it: another format, a raw export, or photos."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any, Iterator

from igae_nerfstudio.data.colmap_model import colmap_models, described, in_order, option
from igae_nerfstudio.data.transforms_file import INTRINSICS
from igae_nerfstudio.images import HEIF, RAW

PHOTOS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", *HEIF, *RAW)
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm")


def what_it_is(data: Path) -> str | None:
    """What a dataset certainly is and what to do with it, as the end of a message; None where nobody can tell.

    Args:
        data: the folder or file given to `--data`.
    """
    if data.is_file():
        return _file(data)
    known = _known(data)
    if known is not None:
        return known
    for folder in _folders(data):
        if _known(folder) is not None:
            return f"there is one in {folder}: pass that to --data"
    photos = _photo_folder(data)
    if photos is None:
        return None
    return f"it has photos but no camera poses, which COLMAP finds: {_converted('images', data, photos)}"


def _known(data: Path) -> str | None:
    """The same of a folder with poses in it."""
    if (data / "transforms_train.json").is_file():
        return "it is in Blender's format: add `blender-data` after the options"
    if (data / "transforms.json").is_file():
        return f"it has a transforms.json: add `{_reader_of(data / 'transforms.json')}` after the options"
    models = colmap_models(data)
    if models:
        return f"it has {described(models)}: add {option(models[0][0])} after the options"
    return _raw_export(data)


def _reader_of(path: Path) -> str:
    """The dataparser that reads a transforms.json."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        entries = {*meta, *meta["frames"][0]}
    except (OSError, ValueError, LookupError, TypeError):
        return "nerfstudio-data"
    return "nerfstudio-data" if entries.issuperset(INTRINSICS) else "instant-ngp-data"


def _converted(tool: str, data: Path, photos: Path, *more: str) -> str:
    """A command that makes a dataset of Nerfstudio's beside the one given, and what to do next."""
    target = data.absolute().parent / f"{data.absolute().name}-nerfstudio"
    words = ["ns-process-data", tool, "--data", str(photos), *more, "--output-dir", str(target)]
    return f"run `{shlex.join(words)}` and pass {target} to --data"


def _file(data: Path) -> str | None:
    if data.suffix.lower() in VIDEOS:
        return f"it is a video: {_converted('video', data.with_suffix(''), data)}"
    if data.suffix.lower() == ".r3d":
        return "it is a scan of Record3D: export it there as EXR + RGB, unpack that, and pass the folder to --data"
    if zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            names = archive.namelist()
        if any("keyframes/" in name for name in names):
            return f"it is a raw export of Polycam: {_converted('polycam', data.with_suffix(''), data)}"
        return "it is an archive: unpack it and pass the folder to --data"
    return None


def _raw_export(data: Path) -> str | None:
    """The converter of what Polycam, Record3D, Metashape, RealityCapture or OpenDroneMap has written."""
    if any((data / "keyframes" / name).is_dir() for name in ("corrected_images", "images")):
        command = _converted("polycam", data, data)
        lacks = (
            "" if (data / "keyframes" / "depth").is_dir() else "; it wants a folder keyframes/depth, even an empty one"
        )
        return f"it is a raw export of Polycam: {command}{lacks}"
    for folder in (data, data / "EXR_RGBD"):
        if (folder / "rgb").is_dir() and {"poses", "K"} <= set(_json(folder / "metadata.json")):
            return f"it is a raw export of Record3D: {_converted('record3d', data, folder)}"
    if (data / "odm_report" / "shots.geojson").is_file() and (data / "opensfm").is_dir():
        return f"it is a project of OpenDroneMap: {_converted('odm', data, data)}"
    photos = _photo_folder(data)
    if photos is None:
        return None
    for path in sorted(data.glob("*.xml")):
        if re.search(r"<document\b", path.read_text(encoding="utf-8", errors="replace")[:2000]):
            return f"it has cameras of Metashape: {_converted('metashape', data, photos, '--xml', str(path))}"
    for path in sorted(data.glob("*.csv")):
        with path.open(encoding="utf-8", errors="replace") as lines:
            columns = next(lines, "").strip().split(",")
        if {"#name", "x", "y", "alt", "heading", "pitch", "roll"} <= set(columns):
            return f"it has cameras of RealityCapture: {_converted('realitycapture', data, photos, '--csv', str(path))}"
    return None


def _folders(data: Path) -> list[Path]:
    return in_order(path for path in data.iterdir() if path.is_dir())


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _photo_folder(data: Path) -> Path | None:
    """Where a dataset's photos are: in itself, in `images` or `input`, or in its only other folder with photos."""
    folders = [data / "images", data / "input", data, *_folders(data)]
    return next((folder for folder in folders if folder.is_dir() and any(_photos(folder))), None)


def _photos(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in PHOTOS)
