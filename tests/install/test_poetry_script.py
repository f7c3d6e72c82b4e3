"""scripts/poetry.py: which Poetry it takes, where that installs, and what it says on failure."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import venv
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scripts import poetry as script

pytestmark = pytest.mark.unit

MakeTool = Callable[..., Path]
INDEX = "https://index.example/simple"


@pytest.fixture
def make_tool(tmp_path: Path) -> MakeTool:
    """Make an executable shell script `folder/name` that runs `body`."""

    def make(name: str, body: str, folder: str = "tools") -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty repository with a `.venv` that is already there."""
    folder = tmp_path / "repository"
    bin_folder = folder / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys.executable)
    return folder


def version_body(version: str) -> str:
    """Shell that answers --version as Poetry does."""
    return f'echo "Poetry (version {version})"'


# --- Which Poetry ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.2.0", "2.5.1", "3.0.0"])
def test_a_new_enough_poetry_on_the_path_is_used(make_tool: MakeTool, version: str) -> None:
    tool = make_tool("poetry", version_body(version))
    assert script.users_poetry({"PATH": str(tool.parent)}) == script.Poetry(str(tool), False)


@pytest.mark.parametrize("body", [version_body("1.8.5"), version_body("2.1.4"), "exit 1", "echo"])
def test_an_old_or_broken_poetry_on_the_path_is_passed_over(make_tool: MakeTool, body: str) -> None:
    tool = make_tool("poetry", body)
    assert script.users_poetry({"PATH": str(tool.parent)}) is None


def test_no_poetry_on_the_path(tmp_path: Path) -> None:
    assert script.users_poetry({"PATH": str(tmp_path)}) is None


def test_bootstrap_can_be_forced(make_tool: MakeTool) -> None:
    tool = make_tool("poetry", version_body("2.5.1"))
    assert script.users_poetry({"PATH": str(tool.parent), "POETRY": "bootstrap"}) is None


def test_the_named_poetry_comes_first(make_tool: MakeTool) -> None:
    on_path = make_tool("poetry", version_body("2.5.1"))
    named = make_tool("poetry", version_body("2.3.0"), folder="other")
    chosen = script.users_poetry({"PATH": str(on_path.parent), "POETRY": str(named)})
    assert chosen == script.Poetry(str(named), False)


def test_a_named_poetry_that_is_missing_or_old_is_an_error(make_tool: MakeTool) -> None:
    with pytest.raises(script.SetupError, match="no working Poetry.*POETRY=bootstrap"):
        script.users_poetry({"PATH": "", "POETRY": "/nowhere/poetry"})
    old = make_tool("poetry", version_body("1.8.5"))
    with pytest.raises(script.SetupError, match="needs 2.2 or newer"):
        script.users_poetry({"PATH": "", "POETRY": str(old)})


# --- Which Python ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_fitting_pythons(version: tuple[int, int]) -> None:
    script.check_python(version)


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (4, 0)])
def test_unfit_pythons_are_named_with_a_cure(
    version: tuple[int, int], make_tool: MakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(script.SetupError, match=r"needs 3\.11, 3\.12 or 3\.13.*PYTHON=python3"):
        script.check_python(version)
    other = make_tool("python3.13", "exit 0")
    monkeypatch.setenv("PATH", str(other.parent))
    with pytest.raises(script.SetupError, match=r"PYTHON=python3\.13, which is installed here"):
        script.check_python(version)


# --- Which index ----------------------------------------------------------------------------


def test_pip_settings_have_pips_precedence() -> None:
    listing = (
        "global.index-url='https://global.example/simple'\n"
        "global.cert='/ca.pem'\n"
        "download.index-url='https://download.example/simple'\n"
        ":env:.index-url='https://env.example/simple'\n"
        "install.index-url='https://install.example/simple'\n"
    )
    settings = script.parse_pip_config(listing)
    assert settings == {"index-url": "https://env.example/simple", "cert": "/ca.pem"}
    without_environment = listing.replace(":env:", "search")
    assert script.parse_pip_config(without_environment)["index-url"] == (
        "https://install.example/simple"
    )


def asked(**environment: str) -> script.PipSettings:
    """What this Python's real pip answers with nothing but `environment` configured."""
    clean = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, **environment}
    return script.ask_pip(clean, [sys.executable])


def test_pip_is_asked_for_its_index(tmp_path: Path) -> None:
    assert asked(PIP_INDEX_URL=INDEX) == script.PipSettings(INDEX, None)
    # pragma: allowlist nextline secret
    with_password = "https://me:secret@index.example/simple"
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = {with_password}\ncert = /ca.pem\n")
    assert asked(PIP_CONFIG_FILE=str(config)) == script.PipSettings(with_password, "/ca.pem")


def test_pips_own_index_is_the_default() -> None:
    assert urlsplit(asked().index_url).scheme == "https"


def test_a_python_without_pip_is_passed_over(make_tool: MakeTool) -> None:
    without = make_tool("python", "exit 1")
    clean = {"PIP_INDEX_URL": INDEX, "PIP_CONFIG_FILE": os.devnull}
    assert script.ask_pip(clean, [str(without), sys.executable]).index_url == INDEX
    with pytest.raises(script.SetupError, match="No pip was found"):
        script.ask_pip(clean, [str(without)])


def test_redact() -> None:
    # pragma: allowlist nextline secret
    assert script.redact("https://me:se@cret@index.example:8/a?b=c") == (
        "https://index.example:8/a?b=c"
    )
    assert script.redact(INDEX) == INDEX


# --- Where it installs ----------------------------------------------------------------------


def test_an_active_environment_is_not_installed_into(tmp_path: Path) -> None:
    active = {
        "VIRTUAL_ENV": "/elsewhere",
        "CONDA_PREFIX": "/conda",
        "CONDA_DEFAULT_ENV": "mine",
        "POETRY_VIRTUALENVS_CREATE": "false",
        "PATH": "/bin",
    }
    child = script.poetry_environment(script.Poetry("poetry", False), tmp_path, tmp_path, active)
    assert child == {
        "POETRY_VIRTUALENVS_CREATE": "true",
        "POETRY_VIRTUALENVS_IN_PROJECT": "true",
        "PATH": "/bin",
        "PIP_USER": "0",
    }


# --- What is set for installing elsewhere ---------------------------------------------------

ELSEWHERE = {
    **{"PIP_USER": "1", "PIP_TARGET": "/t", "PIP_PREFIX": "/p", "PIP_ROOT": "/r"},
    **{"PIP_REQUIRE_VIRTUALENV": "1", "PIP_PYTHON": "/nowhere/python", "PIP_CONSTRAINT": "/c"},
    **{"PYTHONPATH": "/x", "PYTHONHOME": "/nowhere", "PYTHONUSERBASE": "/u"},
}
KEPT = {"PIP_INDEX_URL": INDEX, "PIP_CONFIG_FILE": os.devnull, "HTTPS_PROXY": "http://proxy"}
SHOW = 'env | grep -E "^(PIP_|PYTHON|HTTPS)" | sort > "$0.seen"; '


def test_pip_is_asked_past_settings_for_elsewhere() -> None:
    assert asked(**KEPT, **ELSEWHERE) == script.PipSettings(INDEX, None)


def test_a_virtual_environments_pip_installs_into_it(
    tmp_path: Path, make_tool: MakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pip that would install Poetry tells what it was given."""
    (tmp_path / ".poetry").mkdir()
    pip = make_tool("python", f'{SHOW}touch "${{0%/*}}/poetry"')
    monkeypatch.setattr(script, "ask_pip", lambda *_: script.PipSettings(INDEX, None))

    def venv(folder: Path, *_: str) -> None:
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_bytes(pip.read_bytes())
        (folder / "bin" / "python").chmod(0o755)

    monkeypatch.setattr(script, "make_venv", venv)
    script.bootstrap(tmp_path, {"PATH": os.environ["PATH"], **KEPT, **ELSEWHERE})
    seen = (tmp_path / ".poetry" / "bin" / "python.seen").read_text(encoding="utf-8")
    wanted = {**KEPT, "PIP_USER": "0"}
    assert dict(line.split("=", 1) for line in seen.splitlines()) == wanted


def test_a_pip_that_installs_elsewhere_all_the_same_is_told(
    tmp_path: Path, make_tool: MakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".poetry").mkdir()
    pip = make_tool("python", "exit 0")
    monkeypatch.setattr(script, "ask_pip", lambda *_: script.PipSettings(INDEX, None))
    monkeypatch.setattr(script, "bundled_poetry", lambda folder: folder / ".poetry" / "poetry")

    def venv(folder: Path, *_: str) -> None:
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(pip)

    monkeypatch.setattr(script, "make_venv", venv)
    with pytest.raises(script.SetupError, match="pip.conf names a `target`.*PIP_CONFIG_FILE"):
        script.bootstrap(tmp_path, {"PATH": os.environ["PATH"]})


def test_poetry_is_called_past_settings_for_elsewhere(
    tmp_path: Path, make_tool: MakeTool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f'{SHOW}test "$1" = --version && {{ {version_body("2.4.0")}; exit; }}; exit 0'
    tool = make_tool("poetry", body)
    # Its --version is asked in the environment of this process.
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    environment = {"PATH": f"{tool.parent}:/bin:/usr/bin", **KEPT, **ELSEWHERE}
    assert script.run(["install"], root, environment) == 0
    seen = Path(f"{tool}.seen").read_text(encoding="utf-8")
    assert dict(line.split("=", 1) for line in seen.splitlines()) == {**KEPT, "PIP_USER": "0"}


def test_the_real_pip_of_a_virtual_environment_takes_no_user_installation(tmp_path: Path) -> None:
    venv.create(tmp_path / "v", with_pip=True)
    (tmp_path / "package").mkdir()
    call = [
        str(tmp_path / "v" / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--no-index",
        "--dry-run",
    ]
    call += ["--no-build-isolation", str(tmp_path / "package")]
    config = tmp_path / "pip.conf"
    config.write_text("[install]\nuser = true\n", encoding="utf-8")
    given = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": str(config), **ELSEWHERE}
    said = [
        subprocess.run(call, env=environment, capture_output=True, encoding="utf-8").stderr
        for environment in (
            {**given, "PYTHONHOME": "", "PIP_PYTHON": ""},
            script.for_this_venv(given),
        )
    ]
    assert "user" in said[0].lower() and "user" not in said[1].lower()
    assert "Neither 'setup.py' nor 'pyproject.toml'" in said[1], "it came as far as the package"


def test_an_image_installs_outside_the_mounted_tree(tmp_path: Path, make_tool: MakeTool) -> None:
    root, folder = tmp_path / "tree", tmp_path / "opt"
    root.mkdir()
    folder.mkdir()
    tool = make_tool("poetry", f'{version_body("2.4.0")}; echo "$VIRTUAL_ENV" > {tmp_path}/seen')
    environment = {
        "PATH": f"{tool.parent}:/bin:/usr/bin",
        "COOKBOOK_INSTALL": str(folder),
    }
    assert script.run(["install"], root, environment) == 0
    assert (tmp_path / "seen").read_text().strip() == str(folder / ".venv")
    assert (folder / ".venv" / "bin" / "python").exists()
    assert list(root.iterdir()) == [], "a host's own .venv or .poetry is not touched"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(script.SetupError, match=r"cannot be written.*COOKBOOK_INSTALL"):
        script.run(["install"], tmp_path, {"PATH": "/bin:/usr/bin"})


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    environment = {"PATH": "/bin:/usr/bin", "COOKBOOK_INSTALL": str(tmp_path / "none")}
    with pytest.raises(script.SetupError, match=r"none/.poetry cannot be written"):
        script.run(["install"], tmp_path, environment)


def test_only_the_pinned_poetry_gets_pips_index(tmp_path: Path) -> None:
    environment = {"PIP_INDEX_URL": INDEX, "PIP_CERT": "/ca.pem", "PIP_CONFIG_FILE": os.devnull}
    pinned = script.Poetry("poetry", True)
    child = script.poetry_environment(pinned, tmp_path, tmp_path, environment)
    assert child[script.MIRROR_VARIABLE] == INDEX
    assert child["REQUESTS_CA_BUNDLE"] == child["SSL_CERT_FILE"] == "/ca.pem"
    chosen = {**environment, script.MIRROR_VARIABLE: "https://mine.example/simple"}
    child = script.poetry_environment(pinned, tmp_path, tmp_path, chosen)
    assert child[script.MIRROR_VARIABLE] == "https://mine.example/simple"


def test_the_venv_is_made_once_and_completed(
    tmp_path: Path, make_tool: MakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / ".venv" / "bin" / "python"
    kept = tmp_path / ".venv" / "kept"
    (tmp_path / ".poetry").mkdir()
    with monkeypatch.context() as patch:
        # Killed half-way: a Python is there already, the rest is not.
        dying = make_tool(
            "python3", f"mkdir -p {python.parent}; ln -s {sys.executable} {python}; kill -9 $$"
        )
        patch.setattr(sys, "executable", str(dying))
        with pytest.raises(script.SetupError):
            script.ensure_project_venv(tmp_path)
    assert python.exists()
    script.ensure_project_venv(tmp_path)
    assert (python.parent / "pip").exists(), "the second call completed it"
    kept.touch()
    script.ensure_project_venv(tmp_path)
    assert kept.exists(), "a whole one is left alone"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    script.ensure_project_venv(tmp_path)
    assert python.exists() and not kept.exists(), "its Python was gone"


def test_python_without_the_venv_module(
    tmp_path: Path, make_tool: MakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".poetry").mkdir()
    monkeypatch.setattr(sys, "executable", str(make_tool("python3", "exit 1")))
    with pytest.raises(script.SetupError, match=r"apt-get install python3\.\d+-venv"):
        script.ensure_project_venv(tmp_path)


# --- The pinned Poetry ----------------------------------------------------------------------


def fake_install(root: Path, complete: bool = True) -> None:
    """What `bootstrap` leaves behind, without installing."""
    bin_folder = root / ".poetry" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys.executable)
    (bin_folder / "poetry").touch()
    if complete:
        (root / ".poetry" / "complete").write_text(
            f"poetry {script.POETRY_VERSION}, "
            f"poetry-plugin-pypi-mirror {script.PLUGIN_VERSION}\n"
        )


def test_a_whole_pinned_poetry_is_used_as_it_is(tmp_path: Path) -> None:
    fake_install(tmp_path)
    poetry = script.bootstrap(tmp_path, {})
    assert poetry == script.Poetry(str(tmp_path / ".poetry" / "bin" / "poetry"), True)


def test_an_interrupted_bootstrap_starts_over_and_says_what_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_install(tmp_path, complete=False)
    leftover = tmp_path / ".poetry" / "lib" / "half-written"
    leftover.parent.mkdir()
    leftover.touch()
    # pragma: allowlist nextline secret
    nowhere = "http://me:secret@127.0.0.1:9/simple"
    environment = {
        **{"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"},
        "PIP_INDEX_URL": nowhere,
    }
    with pytest.raises(script.SetupError) as failure:
        script.bootstrap(tmp_path, environment)
    assert "could not be installed from http://127.0.0.1:9/simple" in str(failure.value)
    assert "pip config list" in str(failure.value)
    assert "secret" not in str(failure.value) + "".join(capfd.readouterr())
    assert not leftover.exists()
    assert not script.bundled_is_whole(tmp_path), "the next call must try again"


@pytest.mark.parametrize("damage", ["complete", "bin/poetry", "bin/python"])
def test_a_damaged_bootstrap_is_noticed(tmp_path: Path, damage: str) -> None:
    fake_install(tmp_path)
    assert script.bundled_is_whole(tmp_path)
    (tmp_path / ".poetry" / damage).unlink()
    assert not script.bundled_is_whole(tmp_path)


# --- A whole call ---------------------------------------------------------------------------


def test_arguments_folder_and_status_are_passed_on(
    make_tool: MakeTool, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tool = make_tool(
        "poetry",
        f'test "$1" = --version && {{ {version_body("2.4.0")}; exit; }}\n'
        'echo "$@ in $PWD, active: ${VIRTUAL_ENV:-none}"; exit 7',
    )
    environment = {"PATH": f"{tool.parent}:/bin:/usr/bin", "VIRTUAL_ENV": "/elsewhere"}
    assert script.run(["install", "--with", "peft"], root, environment) == 7
    out, err = capfd.readouterr()
    assert out == f"install --with peft in {root}, active: none\n"
    assert "make POETRY=bootstrap" in err


def test_an_error_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise script.SetupError("mend this")

    monkeypatch.setattr(script, "run", refuse)
    assert script.main() == 2
    assert capsys.readouterr().err == "error: mend this\n"


def test_two_calls_take_turns(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    entered = threading.Event()

    def second() -> None:
        with script.held_lock(root):
            entered.set()

    with script.held_lock(root):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(10)
    assert entered.is_set()
    assert "Waiting for another make" in capfd.readouterr().err


def test_the_lock_stays_while_poetry_runs_on(make_tool: MakeTool, root: Path) -> None:
    """Killing this script does not let a second Poetry into the same `.venv`."""
    started = root / "started"
    tool = make_tool(
        "poetry",
        f'test "$1" = --version && {{ {version_body("2.4.0")}; exit; }}\n'
        f"echo $$ > {started}.new; mv {started}.new {started}; exec sleep 30",
    )
    runner = (
        "import sys; from pathlib import Path; from scripts import poetry; "
        f"poetry.run(['x'], Path({str(root)!r}), {{'PATH': '{tool.parent}:/bin:/usr/bin'}})"
    )
    process = subprocess.Popen([sys.executable, "-c", runner], cwd=script.ROOT)
    poll = threading.Event()
    while not started.exists() and process.poll() is None:
        poll.wait(0.05)
    process.kill()
    process.wait()
    poetry_pid = int(started.read_text())
    try:
        with open(root / ".poetry" / "lock", "a", encoding="utf-8") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.kill(poetry_pid, 9)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:
        os.kill(poetry_pid, 9)
        raise
