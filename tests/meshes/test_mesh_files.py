"""Which files are meshes, how their scenes are called, and what counts as another version of a mesh."""

from __future__ import annotations

import json
from pathlib import Path

from igae_nerfstudio.meshes.render_objects import find_meshes, mesh_hash, scene_names


def test_meshes_are_found_in_subfolders(tmp_path: Path) -> None:
    for name in ("b.GLB", "x/y/a.obj", "x/b.gltf", "notes.txt", ".hidden.glb", ".trash/d.glb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.glb").mkdir()
    found = find_meshes(tmp_path)
    assert list(found.items()) == [
        ("b", tmp_path / "b.GLB"),
        ("x-b", tmp_path / "x/b.gltf"),
        ("a", tmp_path / "x/y/a.obj"),
    ]


def test_scene_names_differ_and_stay_short() -> None:
    assert scene_names(["a/chair.glb", "b/table.glb"]) == ["chair", "table"]
    assert scene_names(["a/chair.glb", "b/Chair.glb", "b/table.glb"]) == ["a-chair", "b-Chair", "table"]
    assert scene_names(["chair.glb", "chair.obj"]) == ["chair-glb", "chair-obj"]
    tricky = ["a/b-c.glb", "a-b/c.glb", "x/c.glb", "x/b-c.glb", "a-b-c.glb"]
    names = scene_names(tricky)
    assert len({name.casefold() for name in names}) == len(tricky)
    assert scene_names(tricky[::-1]) == names[::-1]


def test_a_meshs_hash_covers_the_files_it_names(tmp_path: Path) -> None:
    obj = tmp_path / "a.obj"
    obj.write_text("mtllib a.mtl\nv 0 0 0\n")
    gltf = tmp_path / "b.gltf"
    gltf.write_text(json.dumps({"buffers": [{"uri": "b.bin"}], "images": [{"uri": "data:,x"}, {"bufferView": 0}]}))
    before = mesh_hash(obj), mesh_hash(gltf)
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
    (tmp_path / "b.bin").write_bytes(b"1")
    between = mesh_hash(obj), mesh_hash(gltf)
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "b.bin").write_bytes(b"2")
    after = mesh_hash(obj), mesh_hash(gltf)
    assert all(len({a, b, c}) == 3 for a, b, c in zip(before, between, after))
    gltf.write_text("[no glTF")
    assert mesh_hash(gltf)
