"""The README and the documents are the repository's: the tree, links, names of files, and the pages of `mkdocs.yml`."""

from __future__ import annotations

import re

import yaml
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_tree_is_the_repositorys() -> None:
    """Every name in the tree exists, and every folder of the package and of the repository is in it."""
    block = next(text for text in README.split("```") if "igae_nerfstudio/\n" in text)
    named = set()
    for line in block.strip().splitlines():
        folder = ROOT / "igae_nerfstudio" if line.startswith(" ") else ROOT
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            assert (folder / name).exists(), name
            named.add(str((folder / name).relative_to(ROOT)))
    packages = {f"igae_nerfstudio/{path.parent.name}" for path in (ROOT / "igae_nerfstudio").glob("*/__init__.py")}
    assert packages <= named
    assert {"igae_nerfstudio", "benchmarks", "configs", "demo", "docs", "scripts", "tests"} <= named


def test_links_and_pictures_exist() -> None:
    """Targets of links, and the headings that they point to."""
    for document in DOCUMENTS:
        for target, heading in re.findall(r"\]\(([^)#]*)(#[^)]+)?\)", document.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            path = document.parent / target if target else document
            assert path.exists(), f"{document.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {"#" + re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}
                assert heading in slugs, f"{document.name}: {target}{heading}"


def test_files_that_are_named_exist() -> None:
    for document in DOCUMENTS:
        if document.name == "lab-notebook.md":  # names of their time
            continue
        text = document.read_text(encoding="utf-8").split("## 0.1.0")[0]
        for path in re.findall(r"(?<![\w/])(?:scripts|docs|configs|tests)/[\w./-]+\.(?:py|md|yaml)", text):
            assert (ROOT / path).exists(), f"{document.name}: {path}"


def test_every_document_is_a_page() -> None:
    pages = re.findall(r"[\w-]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
