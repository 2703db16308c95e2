"""What a release consists of agrees: versions, requirements, READMEs on the package index, CI and hooks."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "packages"))

from assemble import LINK, ROOT, SOURCES, assemble, index_readme, project_folder, version_of

NAMES = tuple(SOURCES)
URL = "https://example.org/owner/layerstream"


def project(name: str) -> dict[str, Any]:
    text = (project_folder(name) / "pyproject.toml").read_text(encoding="utf-8")
    metadata: dict[str, Any] = tomllib.loads(text)["project"]
    return metadata


def yaml_of(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def pinned_version(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, f"constraints.txt does not pin {name}"
    return found[1]


def test_the_three_packages_and_the_citation_have_one_version() -> None:
    assert {version_of(name) for name in NAMES} == {str(yaml_of("CITATION.cff")["version"])}


@pytest.mark.parametrize("name", NAMES)
def test_a_package_requires_this_version_of_the_others_and_not_the_next_that_may_break(name: str) -> None:
    requirements = [Requirement(line) for line in project(name)["dependencies"]]
    of_ours = {each.name: each.specifier for each in requirements if each.name in NAMES}
    assert set(of_ours) == set(NAMES[: NAMES.index(name)])
    for other, allowed in of_ours.items():
        version = Version(version_of(other))
        assert version in allowed
        assert f"{version.major}.{version.minor + 1}.0" not in allowed


@pytest.mark.parametrize("name", [name for name in NAMES if "all" in project(name)["optional-dependencies"]])
def test_the_extra_all_is_every_other_extra(name: str) -> None:
    extras = project(name)["optional-dependencies"]
    (everything,) = (Requirement(line) for line in extras.pop("all"))
    assert everything.name == name
    assert everything.extras == set(extras)


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_on_the_package_index_has_no_link_that_leads_nowhere(name: str) -> None:
    folder = project_folder(name)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert LINK.findall(index_readme(text, folder=folder, files_url="")) == []
    linked = index_readme(text, folder=folder, files_url=f"{URL}/blob/v1")
    paths = re.findall(rf"\]\({URL}/blob/v1/([^)#]*)", linked)
    assert len(paths) == len(LINK.findall(text))
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_on_the_package_index_installs_from_it(name: str) -> None:
    text = index_readme(
        (project_folder(name) / "README.md").read_text(encoding="utf-8"),
        folder=project_folder(name),
        files_url="",
    )
    assert text.startswith("# ")
    assert re.search(rf"^pip install .*\b{name}\b", text, re.MULTILINE)
    assert " -e " not in text
    assert "constraints.txt" not in text


def test_an_assembled_folder_has_the_license_the_documents_and_the_project_urls(tmp_path: Path) -> None:
    assemble("layerstream-space", tmp_path / "space", url=URL)
    metadata = tomllib.loads((tmp_path / "space" / "pyproject.toml").read_text())
    assert metadata["project"]["urls"]["Repository"] == URL
    assert (tmp_path / "space" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    documents = tmp_path / "space" / "layerstream_space" / "documents"
    assert (documents / "measuring.md").read_bytes() == (ROOT / "docs" / "measuring.md").read_bytes()


def test_a_folder_without_the_repositorys_address_has_no_project_urls(tmp_path: Path) -> None:
    assemble("layerstream", tmp_path / "sdk", url="")
    assert "urls" not in tomllib.loads((tmp_path / "sdk" / "pyproject.toml").read_text())["project"]


def test_the_workflow_runs_what_ci_runs_and_may_only_read() -> None:
    workflow = yaml_of(".github/workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert [action for action in actions if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")))
def test_an_issue_form_has_what_the_platform_requires(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert asked
    assert len({field["id"] for field in asked}) == len(asked)
    assert [field for field in asked if not field["attributes"]["label"]] == []


def test_commits_are_checked_by_the_ruff_that_is_pinned() -> None:
    (repository,) = yaml_of(".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    fast = [hook for hook in hooks.values() if hook["stages"] == ["pre-commit"]]
    assert {hook["additional_dependencies"][0] for hook in fast} == {f"ruff=={pinned_version('ruff')}"}
    assert hooks["check"]["stages"] == ["pre-push"]


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    defined = {
        name
        for folder in ("packages", "apps")
        for path in (ROOT / folder).rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named
    assert named - defined == set()


@pytest.mark.parametrize("module", ["layerstream", "layerstream_compare", "layerstream_space"])
def test_python_m_says_the_version_that_the_package_has(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name = module.replace("_", "-")
    assert done.stdout == f"{name} {version_of(name)}\n"
