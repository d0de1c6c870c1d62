"""What a path is that no dataparser could read: a line that says so and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".heic", ".bmp", ".dng")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".insv")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def hint(data: Path, parser: str) -> Optional[str]:
    """Why `data` is no dataset for a dataparser, and the remedy; None where there is nothing better to say than the
    dataparser's own words.

    Args:
        data: what the user passed.
        parser: the dataparser's class name.
    """
    if data == Path():  # where --data is left out
        here = Path.cwd()
        what = hint(here, parser) or f"{here} cannot be read as one. Pass the folder of a dataset with --data"
        return f"without --data the working folder is the dataset; {what}"
    if not data.exists():
        near = _nearest(data)
        return f"there is no {data}{f'; {near} exists' if near else ''}. Pass the folder of a dataset with --data"
    if data.is_file():
        return _file_hint(data)
    format_hint = _format_hint(data, parser)
    if format_hint is not None:
        return format_hint
    below = [folder for folder in _folders(data) if _format_hint(folder, "") is not None]
    if below:
        return f"{data} is no dataset itself, but {below[0]} is one. Pass that"
    entries = [path for path in data.iterdir() if not path.name.startswith(".")]
    if not entries:
        return f"{data} is empty. Pass the folder of a dataset with --data"
    photos = sum(path.suffix.lower() in PHOTOS for folder in (data, *_folders(data)) for path in folder.iterdir())
    if photos and not _described(data):
        return (
            f"{data} has photos but no camera poses. COLMAP finds them: `ns-process-data images --data {data} "
            "--output-dir DATASET`, then --data DATASET"
        )
    odd = [path for path in entries if path.suffix.lower() in VIDEOS + ARCHIVES]
    return _file_hint(odd[0]) if odd and not _described(data) else None


def _file_hint(path: Path) -> Optional[str]:
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        return (
            f"{path} is a video. Make a dataset of it: `ns-process-data video --data {path} --output-dir DATASET`, "
            "then --data DATASET"
        )
    if suffix in ARCHIVES:
        return f"{path} is an archive. Unpack it and pass the folder with --data"
    if suffix in PHOTOS:
        return f"{path} is one photo. A scene needs many, with camera poses; pass the folder of a dataset with --data"
    if path.name in ("transforms_train.json", "transforms_val.json", "transforms_test.json"):
        return f"{path} is one split of a dataset in Blender's format. Pass --data {path.parent} and add `blender-data`"
    return None if suffix == ".json" else f"{path} is a file. Pass the folder of a dataset with --data"


def _format_hint(folder: Path, parser: str) -> Optional[str]:
    """Where a folder is in the format of another dataparser."""
    blender = (folder / "transforms_train.json").exists()
    nerfstudio = (folder / "transforms.json").exists()
    sparse = next((path for path in ("colmap/sparse/0", "sparse/0", "sparse") if _is_colmap(folder / path)), None)
    if blender and parser != "Blender" and not nerfstudio:
        return f"{folder} is in Blender's format. Add `blender-data` after the options"
    if nerfstudio and parser not in ("Nerfstudio", "InstantNGP"):
        return f"{folder} has a transforms.json. Name `nerfstudio-data` (or none) after the options"
    if sparse and parser != "ColmapDataParser" and not nerfstudio and not blender:
        return f"{folder} holds a COLMAP model. Add `colmap --colmap-path {sparse}` after the options"
    if sparse and parser == "ColmapDataParser" and sparse != "colmap/sparse/0":
        return f"the COLMAP model is in {folder / sparse}. Add --colmap-path {sparse} after `colmap`"
    return None


def _is_colmap(folder: Path) -> bool:
    return any((folder / f"cameras.{suffix}").exists() for suffix in ("bin", "txt"))


def _described(folder: Path) -> bool:
    """Whether there is any file that could hold cameras."""
    return any(folder.glob("*.json")) or any(folder.glob("*.csv")) or any(folder.glob("*.npy"))


def _folders(data: Path) -> List[Path]:
    return sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))


def _nearest(data: Path) -> Optional[Path]:
    """The deepest folder on the way to a path that exists, if the path is more than a name in the working folder."""
    parents = [path for path in data.parents if path.exists()]
    return parents[0] if parents and parents[0] not in (Path(), Path("/")) else None
