"""What the README says about the repository is so."""

from __future__ import annotations

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_is_the_repositorys() -> None:
    """Every line of the annotated tree exists; all folders and modules of the package and all documents are in it."""
    block = next(text for text in README.split("```") if "igae_nerfstudio/\n" in text)
    named, folder = set(), ""
    for line in block.splitlines():
        match = re.match(r"(  )?([\w./-]+)(\s{2,}|$)", line)
        if not match or not line.strip():
            continue
        name = f"{folder}{match[2]}" if match[1] else match[2]
        folder = folder if match[1] else match[2]
        named.add(name.rstrip("/"))
        assert (ROOT / name).exists(), name
    package = ROOT / "igae_nerfstudio"
    folders = {f"igae_nerfstudio/{path.parent.name}" for path in package.glob("*/__init__.py")}
    assert folders <= named
    modules = {f"igae_nerfstudio/{path.name}" for path in package.glob("*.py") if path.name != "__init__.py"}
    assert modules <= named
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= named
    top = {
        path.name for path in ROOT.iterdir() if path.is_dir() and path.name in ("configs", "demo", "docs", "scripts")
    }
    assert top <= {name.split("/")[0] for name in named}


def test_links_and_pictures_exist() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_scripts_and_documents_that_are_named_exist() -> None:
    for path in re.findall(r"(?:scripts|docs)/[\w.-]+\.(?:py|md)", README):
        assert (ROOT / path).exists(), path
    listed = set(re.findall(r"(\w+\.py)(?=[,\s])", README.split("scripts/ ")[1].split("configs/igae/ ")[0]))
    assert listed == {path.name for path in (ROOT / "scripts").glob("*.py")}
