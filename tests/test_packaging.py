"""What is left out of the package: nothing that it imports."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

ROOT = Path(__file__).parents[1]
EXCLUDED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["sdist"]["exclude"]


@pytest.mark.parametrize("folder", ["python", "csrc"])
def test_no_file_of_the_package_is_excluded(folder: str) -> None:
    """scikit-build-core reads these patterns as git does, for the source archive, the wheel and an editable install."""
    files = [str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert len(files) > 50
    assert list(GitIgnoreSpec.from_lines(EXCLUDED).match_files(files)) == []


def test_recipes_and_tests_are_excluded() -> None:
    left_out = GitIgnoreSpec.from_lines(EXCLUDED)
    assert left_out.match_file("recipes/parentheses/weights.py")
    assert left_out.match_file("tests/test_packaging.py")
