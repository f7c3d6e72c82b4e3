"""The images: who runs in them, what lies in them, and what a change rebuilds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.poetry import ask_pip
from tests.containers.__main__ import PACKAGES, RESULT
from tests.containers.engine import Build, Project

pytestmark = [pytest.mark.containers, pytest.mark.held("containers")]


def dependency_steps(build: Build) -> dict[str, bool]:
    """Return the steps that install packages, and whether each was cached."""
    found = {name: cached for name, cached in build.steps().items() if PACKAGES in name}
    assert found, f"no step installs anything:\n{build.output[-3000:]}"
    return found


def test_the_user_is_the_owner_of_the_tree(first_build: Build, project: Project) -> None:
    image = f"{project.name}:dev"
    assert project.in_image(image, "id", "-u", "-n").strip() == "cookbook"
    assert project.in_image(image, "id", "-u").strip() == str(project.uid) != "0"
    assert project.in_image(image, "id", "-g").strip() == str(project.gid)
    foreign = f"find /workspace /home/cookbook ! -uid {project.uid} -o ! -gid {project.gid}"
    assert project.in_image(image, "sh", "-c", foreign) == ""


def test_history_caches_and_the_embedded_default_stay_out(
    first_build: Build, project: Project
) -> None:
    names = set(project.in_image(f"{project.name}:dev", "ls", "-A", "/workspace").split())
    assert {"Makefile", "cookbook", "02-PEFT", "tests"} <= names
    assert not names & {".git", ".venv", ".poetry", ".offline", ".bench", "runs", ".env"}


def test_a_password_of_the_index_is_in_no_layer(project: Project, tmp_path: Path) -> None:
    index = ask_pip(os.environ, [sys.executable]).index_url
    secret = tmp_path / "pip.conf"
    secret.write_text(f"[global]\nindex-url = {index.replace('//', '//someone:hunter2@')}\n")
    # The first stage installs Poetry with it; without the cache, so that it is really used.
    image = f"{project.name}:base"
    settings = {"COOKBOOK_IMAGE": image, "TARGET": "base", "PIP_CONF": str(secret)}
    build = project.with_settings(**settings).build("BUILD_OPTIONS=--no-cache")
    assert "Installing Poetry" in build.output
    described = json.dumps(project.inspect(image))
    assert "hunter2" not in described + project.run("docker", "history", "--no-trunc", image)
    everywhere = "grep --recursive --files-with-matches --exclude-dir=proc --exclude-dir=sys"
    assert project.in_image(image, "sh", "-c", f"{everywhere} hunter2 / 2>&1 || true") == ""


def test_a_certificate_is_trusted_even_after_a_build_without(
    first_build: Build, project: Project, tmp_path: Path
) -> None:
    certificate = tmp_path / "ca.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", os.devnull]
    command += ["-out", str(certificate), "-days", "1", "-subj", "/CN=cookbook-test-proxy"]
    subprocess.run(command, check=True, capture_output=True)
    # Only the first stage, since all others would be built on the certificate again.
    image = f"{project.name}:ca"
    settings = {"COOKBOOK_IMAGE": image, "TARGET": "base", "EXTRA_CA": str(certificate)}
    project.with_settings(**settings).build()
    trusted = project.in_image(image, "cat", "/etc/ssl/certs/ca-certificates.crt")
    assert certificate.read_text().strip() in trusted


def test_an_image_weighs_what_is_recorded(first_build: Build, project: Project) -> None:
    """A tenth more, and someone has to look at the layers and record them again."""
    recorded = json.loads(RESULT.read_text(encoding="utf-8"))["images"]["dev"]
    layers = project.layers(f"{project.name}:dev")
    total = sum(layer.bytes for layer in layers)
    assert total < 1.1 * recorded["bytes"], [(one.bytes, one.instruction[:90]) for one in layers]
    packages = sum(layer.bytes for layer in layers if PACKAGES in layer.instruction)
    assert packages > 0.8 * total, "what is not a package should be little"


def test_an_unchanged_tree_rebuilds_nothing(first_build: Build, project: Project) -> None:
    again = project.build()
    anew = [step for step, cached in again.steps().items() if not cached]
    assert [step for step in anew if ": FROM " not in step] == []


def test_a_change_of_code_rebuilds_no_dependency(first_build: Build, project: Project) -> None:
    module = project.tree / "cookbook" / "__init__.py"
    before = module.read_text(encoding="utf-8")
    module.write_text(before + "\n# Changed.\n", encoding="utf-8")
    try:
        build = project.build()
    finally:
        module.write_text(before, encoding="utf-8")
    assert all(dependency_steps(build).values())
    assert not all(build.steps().values()), "the code was copied anew"


def test_another_user_rebuilds_no_dependency(first_build: Build, project: Project) -> None:
    build = project.build("USER_UID=1234", "USER_GID=1235")
    assert all(dependency_steps(build).values())
    assert project.in_image(f"{project.name}:dev", "id", "-u").strip() == "1234"
    project.build()


def test_root_is_refused(first_build: Build, project: Project) -> None:
    output = project.run("make", "docker-build", "USER_UID=0", check=False)
    assert "did not complete successfully" in output


def test_dev_has_a_compiler_and_every_group(first_build: Build, project: Project) -> None:
    image = f"{project.name}:dev"
    project.in_image(image, "gcc", "--version")
    code = (
        "import bitsandbytes, deeplake, peft, sklearn, trl, pytest, sysconfig, pathlib; "
        "assert (pathlib.Path(sysconfig.get_paths()['include']) / 'Python.h').is_file()"
    )
    project.in_image(image, "python", "-c", code)


def test_nothing_is_left_to_install(first_build: Build, project: Project) -> None:
    said = project.in_image(
        f"{project.name}:dev", "make", "--dry-run", "install-all", "install-peft"
    )
    assert "scripts/poetry.py" not in said


def test_the_image_is_the_lock_and_the_user_can_mend_it(
    first_build: Build, project: Project
) -> None:
    """Without a network: Poetry compares, the user removes a package, Poetry would add it."""
    compare = "python3 scripts/poetry.py install --no-root --dry-run --all-groups"
    script = f"{compare} && pip uninstall --yes nbmake && {compare}"
    said = project.in_image(f"{project.name}:dev", "sh", "-c", script)
    assert re.findall(r"operations: (\d+) installs?, (\d+) updates?, (\d+) removals?", said) == [
        ("0", "0", "0"),
        ("1", "0", "0"),
    ]


@pytest.mark.parametrize(
    ("group", "there", "absent"), [("", "torch", "peft"), ("peft", "trl", "pytest")]
)
def test_prod_holds_one_group_and_no_compiler(
    group: str, there: str, absent: str, first_build: Build, project: Project
) -> None:
    prod = project.with_settings(
        COOKBOOK_IMAGE=f"{project.name}:prod{group}", TARGET="prod", GROUP=group
    )
    image = prod.settings["COOKBOOK_IMAGE"]
    prod.build()
    prod.in_image(image, "python", "-c", f"import cookbook, {there}")
    assert "No module named" in prod.in_image(
        image, "python", "-c", f"import {absent}", check=False
    )
    for command in ("gcc", "cc", "git"):
        assert prod.in_image(image, "sh", "-c", f"command -v {command} || true") == ""
    assert prod.in_image(image, "id", "-u").strip() == str(project.uid)
