"""Every notebook on its GPU profiles, unmodified, for two steps against the loopback Hub.

Ids, client calls, tokenizers, templates, quantization, target modules and arguments are those of
the headline run; the models are tiny and random, so nothing is said about learning. Then on hardly
any rows, and on data without the column that it needs. A record holds the runs of a recipe while
nothing that they depend on changed: see `tests.proofs`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from pyarrow import parquet  # type: ignore[import-untyped]

from cookbook.profiles import ROOT
from tests.hub.notebooks import (
    DISTRIBUTED,
    NOTEBOOKS,
    PROFILES,
    as_if_launched,
    complaint,
    deprecations,
    execute,
    name_of,
    printed,
    settings_of,
    with_changes,
)
from tests.hub.repositories import REPOSITORIES
from tests.hub.server import LoopbackHub
from tests.proofs import against_the_hub
from tests.reliability import files
from tests.reliability.loading import COLUMNS, FEWEST

pytestmark = pytest.mark.hub

RECIPES = [
    pytest.param(path, id=name_of(path), marks=pytest.mark.held(against_the_hub(name_of(path))))
    for path in NOTEBOOKS
]
# What the profiles do not take and other machines do: a recipe, a change of its code, and what the
# notebook then says. A smaller card takes 4 bits; where flash-attn is, GRPO samples by continuous
# batching, and the notebook asserts that its adapters stay in float32.
OTHER_WAYS = [
    (
        "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational",
        {"(False,  False,  False),  # 16 bits fit": "(False,  True,  False),  # 4 bits"},
        f"{REPOSITORIES['models/Qwen/Qwen3-1.7B'].linear_layers} linear layers in 4 bits",
    ),
    (
        "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO",
        {"set_seed(config.seed)\n": "gpu.is_flash_attn_2_available = lambda: True\n"},
        "sampling by use_transformers_continuous_batching",
    ),
]
# The column that each recipe cannot do without.
NEEDED = {
    "timdettmers/openassistant-guanaco": "text",
    "knkarthick/dialogsum": "summary",
    "FinGPT/fingpt-sentiment-train": "output",
    "Skylion007/openwebtext": "text",
    "TheFinAI/Fino1_Reasoning_Path_FinQA": "Ground-True Answer",
    "openai/gsm8k": "answer",
    "unsloth/OpenMathReasoning-mini": "generated_solution",
    "trl-lib/ultrafeedback_binarized": "chosen",
    "trl-lib/kto-mix-14k": "label",
}
# A column of whole conversations is one form of them, so that any is said to be missing.
ANY_FORM = {"timdettmers/openassistant-guanaco": "`prompt` and `completion`, or `messages`"}
TOKEN = "hf_" + "0123456789" * 4  # of nobody


def _fetched(hub: LoopbackHub, repository: str) -> set[str]:
    """Return the files of a repository that were downloaded."""
    start = f"/{repository}/resolve/"
    paths = [path for method, path in hub.requests if method == "GET" and path.startswith(start)]
    return {path.removeprefix(start).partition("/")[2] for path in paths}


def _wanted(hub: LoopbackHub, model: str) -> set[str]:
    """Return the weights of a model, or its configuration where it is trained from none."""
    weights = {path.name for path in (hub.root / "models" / model).glob("*.safetensors")}
    return weights or {"config.json"}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", RECIPES)
def test_the_notebook_runs_against_the_hub(
    path: Path,
    profile: str,
    hub: LoopbackHub,
    lead_to: Callable[[LoopbackHub, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = lead_to(hub, profile)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if (name_of(path), profile) == (DISTRIBUTED, "gpu16"):
        as_if_launched(monkeypatch)  # with the other profile it starts processes itself
    settings = settings_of(path, profile)
    result = execute(path)
    runs.mkdir(exist_ok=True)
    nbformat.write(result.nb, runs / path.name)  # to be read in pytest's temporary folder
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    assert not deprecations(result.nb)

    metrics = runs / name_of(path) / profile / "metrics.json"
    content = json.loads(metrics.read_text(encoding="utf-8"))
    assert content["train"]["steps"] == 2
    # The profile's own names, so nothing was replaced on the way.
    assert content["model"] == settings["model"]
    assert content["dataset"] == settings["dataset"]

    # The weights came through the client and not from somewhere on this machine.
    assert _wanted(hub, settings["model"]) <= _fetched(hub, settings["model"])
    assert _fetched(hub, f"datasets/{settings['dataset']}")
    assert not hub.unknown

    written = [file for file in runs.rglob("*") if file.is_file()]
    assert metrics in written and runs / path.name in written
    assert [file for file in written if TOKEN.encode() in file.read_bytes()] == []

    four_bits = any("BitsAndBytesConfig" in cell.source for cell in result.nb.cells)
    if four_bits and settings.get("load_in_4bit", True):
        layers = REPOSITORIES[f"models/{settings['model']}"].linear_layers
        assert f"{layers} linear layers in 4 bits" in printed(result.nb)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        pytest.param(*one, marks=pytest.mark.held(against_the_hub(one[0])), id=one[2])
        for one in OTHER_WAYS
    ],
)
def test_another_way_than_the_profile_s(
    name: str,
    change: dict[str, str],
    said: str,
    hub: LoopbackHub,
    lead_to: Callable[[LoopbackHub, str], Path],
    tmp_path: Path,
) -> None:
    runs = lead_to(hub, "gpu16")
    result = execute(with_changes(ROOT / f"{name}.ipynb", tmp_path, change))
    assert complaint(result.nb) == ""
    assert said in printed(result.nb)
    assert list(runs.rglob("metrics.json"))


@pytest.mark.parametrize("path", RECIPES)
def test_the_fewest_rows_suffice_to_the_end(
    path: Path,
    hub: LoopbackHub,
    lead_to: Callable[[LoopbackHub, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Own data of hardly any rows: what reads three rows may find one."""
    runs = lead_to(hub, "gpu16")
    mine = files.folder(tmp_path / "mine", COLUMNS[path.stem], FEWEST.get(path.stem, 1))
    monkeypatch.setenv("COOKBOOK_DATASET", str(mine))
    assert complaint(execute(path).nb) == ""
    assert (runs / name_of(path) / "gpu16-own" / "metrics.json").is_file()


def _rename_column(folder: Path, old: str, new: str) -> None:
    """Rename a column in all files of a data set, and in its card."""
    for path in filter(Path.is_file, folder.rglob("*")):
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
            names = [new if name == old else name for name in table.column_names]
            # The metadata describe the columns once more, as `datasets` wrote them.
            table = table.rename_columns(names).replace_schema_metadata(None)
            parquet.write_table(table, path)
        elif path.suffix == ".csv":
            header, _, rest = path.read_text(encoding="utf-8").partition("\n")
            path.write_text(f"{header.replace(old, new)}\n{rest}", encoding="utf-8")
        else:  # names are quoted in JSONL and in the card
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(json.dumps(old), json.dumps(new)), encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES)
def test_a_missing_column_is_named(
    path: Path, own_hub: LoopbackHub, lead_to: Callable[[LoopbackHub, str], Path]
) -> None:
    # As after an update of the data set on the Hub.
    dataset = settings_of(path, "gpu16")["dataset"]
    _rename_column(own_hub.root / "datasets" / dataset, NEEDED[dataset], "renamed")
    runs = lead_to(own_hub, "gpu16")
    said = complaint(execute(path).nb)
    assert not list(runs.rglob("metrics.json")), "a failed run left a result"
    missing = ANY_FORM.get(dataset, NEEDED[dataset])
    assert missing in said and "renamed" in said, "which is missing, and which are there"
