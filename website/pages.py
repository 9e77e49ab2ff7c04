"""The sources of the site: pages of the repository, where the navigation has them, and those that are made."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedsim.cli.describe import GROUPS
from fedsim.core.blame import ROOT
from website import api, methods, notebooks, pictures

CONFIG = ROOT / "mkdocs.yml"
STATIC = Path(__file__).parent / "static"
PLACES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/results.md": "results.md",
}
"""Where pages of the repository stand in the site that are not in docs/."""
FENCED = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\[\]]+)\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
PICTURED = frozenset(("strategies", "clients", "estimators", "defences", "attacks", "problems", "selectors"))
"""Groups whose methods have a picture of an experiment that uses them."""
METHODS = "methods"
"""The entry of the navigation that the methods' pages come under."""


class BrokenLinkError(Exception):
    """A page leads to a file that is not there."""


def compose(folder: Path, executed: Path | None = None) -> Path:
    """Write the pages below `folder`, and the configuration of a build into its `site`; returns that file's path.

    executed: where notebooks are that hold what they show; None: they are shown as they are kept, without.
    """
    pages = folder / "pages"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(STATIC, pages)
    for source, place in places().items():
        if source.endswith(".ipynb"):
            shown = ROOT / source if executed is None else executed / Path(source).name
            text = notebooks.markdown(shown, pages / place)
        else:
            text = (ROOT / source).read_text(encoding="utf-8")
        _write(pages / place, relinked(text, ROOT / source, place, pages))
    for group in GROUPS.values():
        _write(pages / METHODS / group / "index.md", "\n".join(methods.index(group)))
    for method in methods.methods():
        figure = _pictured(method, pages, folder.parent / "website_pictures")
        _write(pages / method.path, "\n".join(methods.page(method, figure)))
    for place, text in api.pages().items():
        _write(pages / place, text)
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config |= {"docs_dir": "pages", "site_dir": "site"}
    config["nav"] = [_filled(entry) for entry in config["nav"]]
    made = folder / "mkdocs.yml"
    made.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return made


def _pictured(method: methods.Method, pages: Path, kept: Path) -> tuple[str, str] | None:
    """The address of a method's picture, which is copied below `pages`, and what it shows."""
    files = methods.experiments(method) if method.group in PICTURED else []
    found = pictures.picture(files[0], kept) if files else None
    if found is None:
        return None
    copy = pages / "pictures" / "methods" / f"{files[0].parent.name}-{found.file.name}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found.file, copy)
    return os.path.relpath(copy, (pages / method.path).parent), found.caption


def places() -> Mapping[str, str]:
    """The place in the site of each page of the repository."""
    found = {f"docs/{path.name}": path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    kept = (path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb")))
    return PLACES | found | {f"notebooks/{name}.ipynb": f"notebooks/{name}.md" for name in kept}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def relinked(page: str, source: Path, place: str, pages: Path) -> str:
    """The text of a page that stands in `source`, whose links lead to the same things from `place`.

    Pictures are copied below `pages`. What is neither a page nor a picture is named instead, by its path in the
    repository.
    """

    def lead(match: re.Match[str]) -> str:
        mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target:
            return match[0]
        path = (source.parent / target).resolve()
        if not path.exists():
            if ((pages / place).parent / target).is_file():  # it was made with the page
                return match[0]
            raise BrokenLinkError(f"{source}: {target}")
        known = path.relative_to(ROOT).as_posix()
        if known in places():
            return f"{mark}[{text}]({os.path.relpath(places()[known], Path(place).parent)}{anchor})"
        if path.suffix == ".png":
            copy = pages / known.removeprefix("docs/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            return f"{mark}[{text}]({os.path.relpath(copy, (pages / place).parent)})"
        return text if f"`{known}`" in text else f"{text} (`{known}`)"

    return "".join(part if part.startswith("```") else LINK.sub(lead, part) for part in FENCED.split(page))


def _filled(entry: Any) -> Any:
    """An entry of the navigation; that of the methods, or of the API, with the pages that are made."""
    if not isinstance(entry, dict):
        return entry
    [(title, inside)] = entry.items()
    if inside == METHODS:
        return {title: [{methods.title(group): list(_of_group(group))} for group in GROUPS.values()]}
    if inside == api.API:
        return {title: list(api.pages())}
    return {title: [_filled(one) for one in inside] if isinstance(inside, list) else inside}


def _of_group(group: str) -> Iterator[Any]:
    yield f"{METHODS}/{group}/index.md"
    for method in methods.methods():
        if method.group == group:
            yield {method.kind: method.path}
