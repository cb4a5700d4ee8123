"""What is in the repository: our own text, and nothing that somebody left there."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP = {
    *(".ci", "core", "deploy", "docs", "feedback", "helm", "learning", "serving", "tests"),
    *(".gitignore", "CHANGELOG.md", "Makefile", "README.md", "pyproject.toml"),
}
MOST_BYTES = 600_000


def tracked() -> list[Path]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_the_top_level_has_what_it_should_and_no_more():
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} <= TOP


def test_every_file_is_small_text():
    for path in tracked():
        content = path.read_bytes()
        assert len(content) < MOST_BYTES, path
        content.decode()
        assert b"\0" not in content, path
