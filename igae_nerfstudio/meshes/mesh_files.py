"""Finding meshes, naming their scenes, and telling two versions of a mesh apart."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Sequence

from igae_nerfstudio.errors import InputError

SUFFIXES = (".glb", ".gltf", ".obj")


def find_meshes(folder: Path) -> dict[str, Path]:
    """All meshes of a folder and its subfolders, sorted by path, under the names of their scenes.

    Hidden files and folders are passed over.

    Raises:
        InputError: there is none.
    """
    relatives = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    shown = [path for path in relatives if not any(part.startswith(".") for part in path.parts)]
    meshes = [path.as_posix() for path in shown if (folder / path).is_file()]
    if not meshes:
        raise InputError(f"there is no GLB, glTF or OBJ file in {folder} or below it; pass a folder with meshes")
    return {name: folder / mesh for name, mesh in zip(scene_names(meshes), meshes)}


def scene_names(relatives: Sequence[str]) -> list[str]:
    """A folder name for each mesh: the file's stem, with more of its path where several have the same.

    The names differ even on file systems that ignore case.
    """
    choices = []
    for relative in relatives:
        stem, _, suffix = relative.rpartition(".")
        folders = stem.replace("/", "-")
        digest = hashlib.sha256(relative.encode()).hexdigest()[:12]
        choices.append((stem.rpartition("/")[2], folders, f"{folders}-{suffix}", f"{folders}-{suffix}-{digest}"))
    names = [choice[0] for choice in choices]
    for level in range(1, 4):
        count = Counter(name.casefold() for name in names)
        names = [choice[level] if count[name.casefold()] > 1 else name for name, choice in zip(names, choices)]
    return names


def mesh_hash(path: Path) -> str:
    """SHA-256 of a mesh and of the files that it refers to: buffers, materials and textures, where they exist.

    Raises:
        OSError: the mesh cannot be read.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    for companion in _companions(path, content):
        if companion.is_file():
            digest.update(hashlib.sha256(companion.read_bytes()).digest())
    return digest.hexdigest()


def _companions(path: Path, content: bytes) -> list[Path]:
    if path.suffix.lower() == ".gltf":
        try:
            document = json.loads(content)
            uris = [entry.get("uri", "data:") for key in ("buffers", "images") for entry in document.get(key, [])]
            return [path.parent / uri for uri in uris if not uri.startswith("data:")]
        except (ValueError, AttributeError, TypeError):
            return []  # Blender will report what is wrong with it
    if path.suffix.lower() == ".obj":
        libraries = [path.parent / name for name in _obj_values(content, "mtllib")]
        found = [library for library in libraries if library.is_file()]
        return libraries + [path.parent / name for file in found for name in _obj_values(file.read_bytes(), "map_")]
    return []


def _obj_values(content: bytes, keyword: str) -> list[str]:
    """The last word of each line of an OBJ or MTL file that begins with `keyword`."""
    lines = (line.split() for line in content.decode("utf-8", "replace").splitlines() if line.startswith(keyword))
    return [words[-1] for words in lines if len(words) > 1]
