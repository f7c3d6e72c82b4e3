"""The machine picks a profile, the environment overrides it, and nonsense stops early."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cookbook import profiles
from cookbook.profiles import CookbookError, check_environment, choose_profile

pytestmark = pytest.mark.unit

TABLE = {
    "model": ("cpu-model", "gpu16-model", "gpu80-model"),
    "dataset": ("cpu-data", "gpu16-data", "gpu80-data"),
    "max_steps": (7, 7, 7),
    "torch_compile": (None, False, True),
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PROFILE",
        "MODEL",
        "DATASET",
        "MAX_STEPS",
        "SEED",
        "ALLOW_CPU",
        "PRECISION",
        "ANY_VERSION",
    ):
        monkeypatch.delenv(f"COOKBOOK_{name}", raising=False)


class Card:
    def __init__(self, gigabytes: int) -> None:
        self.total_memory = gigabytes * 2**30


@pytest.mark.parametrize(("gigabytes", "expected"), [(16, "gpu16"), (24, "gpu16"), (80, "gpu80")])
def test_the_card_picks_the_profile(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card(gigabytes))
    assert choose_profile(TABLE).profile == expected


def test_no_cuda_means_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = choose_profile(TABLE)
    assert (config.profile, config.own, config.seed) == ("cpu", False, 0)


def test_unknown_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "tpu")
    with pytest.raises(CookbookError, match="'tpu'.*cpu, gpu16, gpu80.*unset COOKBOOK_PROFILE"):
        choose_profile(TABLE)


def test_gpu_profile_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COOKBOOK_PROFILE", "gpu16")
    with pytest.raises(CookbookError, match="needs a CUDA GPU.*COOKBOOK_ALLOW_CPU=1"):
        choose_profile(TABLE)
    monkeypatch.setenv("COOKBOOK_ALLOW_CPU", "0")
    with pytest.raises(CookbookError):
        choose_profile(TABLE)
    monkeypatch.setenv("COOKBOOK_ALLOW_CPU", "1")
    assert choose_profile(TABLE).profile == "gpu16"


def test_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    monkeypatch.setenv("COOKBOOK_MODEL", "mine")
    monkeypatch.setenv("COOKBOOK_MAX_STEPS", "2")
    monkeypatch.setenv("COOKBOOK_SEED", "3")
    config = choose_profile(TABLE)
    assert (config.model, config.dataset, config.own) == ("mine", "cpu-data", True)
    assert (config.max_steps, config.seed) == (2, 3)


def test_a_setting_that_a_profile_has_not_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    assert not hasattr(choose_profile(TABLE), "torch_compile")
    assert profiles.columns(TABLE)["gpu16"]["torch_compile"] is False


@pytest.mark.parametrize("row", [7, (7, 7), [7, 7, 7]])
def test_a_row_that_lacks_a_profile_is_refused(monkeypatch: pytest.MonkeyPatch, row: Any) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    with pytest.raises(CookbookError, match="'max_steps' of SETTINGS needs a value for each of"):
        choose_profile(TABLE | {"max_steps": row})


def test_the_machines_own_column_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    monkeypatch.setenv("COOKBOOK_SEED", "3")
    lines = profiles.settings_text(choose_profile(TABLE)).splitlines()
    assert [line.split() for line in lines] == [
        ["profile", "cpu"],
        ["seed", "3"],
        ["model", "cpu-model"],
        ["dataset", "cpu-data"],
        ["max_steps", "7"],
    ]


@pytest.mark.parametrize("text", ["-1", "two", "1.5", "٣", "0"])
def test_steps_that_are_no_count(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    monkeypatch.setenv("COOKBOOK_MAX_STEPS", text)
    with pytest.raises(CookbookError, match="COOKBOOK_MAX_STEPS"):
        choose_profile(TABLE)


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_precision_follows_the_card(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert profiles.compute_dtype() == dtype


@pytest.mark.parametrize(
    ("features", "dtype"),
    [({"avx512_f": True}, torch.float32), ({"amx_bf16": True}, torch.bfloat16)],
)
def test_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert profiles.compute_dtype() == dtype


@pytest.mark.parametrize(
    ("on_gpu", "name"), [(False, "float32"), (False, "bfloat16"), (True, "float16")]
)
def test_precision_can_be_forced(monkeypatch: pytest.MonkeyPatch, on_gpu: bool, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setenv("COOKBOOK_PRECISION", name)
    assert str(profiles.compute_dtype()) == f"torch.{name}"


@pytest.mark.parametrize("name", ["float16", "bf16", "float64"])
def test_a_precision_that_a_cpu_cannot_train_in_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COOKBOOK_PRECISION", name)
    with pytest.raises(CookbookError, match="float32 or bfloat16.*unset COOKBOOK_PRECISION"):
        profiles.compute_dtype()


def test_environment_is_complete_here() -> None:
    table = check_environment("peft")
    assert "bitsandbytes" in table and "device" in table


def _project(folder: Path, requirement: str) -> Path:
    core = '[project]\ndependencies = ["torch", "transformers"]\n'
    text = f'{core}[dependency-groups]\npeft = ["{requirement}"]\n'
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def _with_any_version(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    if text is not None:
        monkeypatch.setenv("COOKBOOK_ANY_VERSION", text)


@pytest.mark.parametrize("any_version", [None, "1"])
def test_a_missing_group_names_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_version: str | None
) -> None:
    _with_any_version(monkeypatch, any_version)
    with pytest.raises(CookbookError, match="no-such-package is not installed.*install-peft"):
        check_environment("peft", _project(tmp_path, "no-such-package"))


@pytest.mark.parametrize("any_version", [None, "", "0"])
def test_a_wrong_version_names_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_version: str | None
) -> None:
    _with_any_version(monkeypatch, any_version)
    with pytest.raises(CookbookError, match=r"peft .*needs >=99.*make install-peft"):
        check_environment("peft", _project(tmp_path, "peft (>=99)"))


def test_any_version_names_the_wrong_ones_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_ANY_VERSION", "1")
    table = check_environment("peft", _project(tmp_path, "peft (>=99)"))
    assert re.search(r"^other versions  peft \S+ \(needs >=99\)$", table, re.MULTILINE)
    assert "other versions" not in check_environment("peft", _project(tmp_path, "peft"))


def test_an_unknown_group_lists_the_groups(tmp_path: Path) -> None:
    with pytest.raises(CookbookError, match="no group 'lora'"):
        check_environment("lora", _project(tmp_path, "peft"))
