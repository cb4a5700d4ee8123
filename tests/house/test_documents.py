"""What the documents say of the code is what the code says."""

import re
import subprocess
import tomllib

import pytest

from deploy.document import ROOT, documents


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_the_tables_are_those_of_the_code(path):
    assert path.read_text() == documents()[path], "run  python -m deploy.document"


def test_the_readme_says_why_each_direct_dependency_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["cpu"]
    readme = (ROOT / "README.md").read_text()
    for requirement in direct:
        assert f"| {requirement.split('==')[0]} |" in readme, requirement


def test_each_direct_dependency_is_locked_at_its_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "deploy" / "locks" / "runtime-cpu.txt").read_text().lower()
    for requirement in project["dependencies"] + project["optional-dependencies"]["cpu"]:
        assert re.search(rf"^{re.escape(requirement.lower())} \\$", lock, re.MULTILINE), requirement


def test_links_between_the_documents_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_no_key_of_redis_is_spelled_outside_of_its_file():
    but = [":!core/keys.py", ":!core/schema_steps.py", ":!tests"]
    found = subprocess.run(
        ["git", "grep", "-nE", "[\"'](il|\\{+il\\}+):", "--", "*.py", *but],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""


def test_no_path_of_a_machine_and_no_package_index_is_named():
    pattern = r"/work/|/root/|files\.pythonhosted|pypi\.org|download\.pytorch"
    found = subprocess.run(
        ["git", "grep", "-nE", pattern, "--", ".", ":!tests/house"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""
