"""Every notebook keeps the contract, and every rule of the contract can be broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.contract import notebook_rules as rules
from tests.contract.repository import (
    FOLDER_GROUPS,
    ROOT,
    core_requirements,
    group_requirements,
    names,
    notebooks,
)

pytestmark = pytest.mark.contract

Rule = Callable[[NotebookNode], list[str]]
Change = Callable[[NotebookNode], None]
SINGLE_RULES: list[Rule] = [
    rules.sections,
    rules.first_cell,
    rules.parameters,
    rules.short_cells,
    rules.scored_before,
    rules.one_door,
    rules.lesson,
    rules.stripped,
    rules.plain_python,
    rules.installs_nothing,
    rules.no_remote_code,
    rules.no_login,
    rules.swallows_nothing,
    rules.scored_by_one_process,
]


def read(path: Path) -> NotebookNode:
    """A notebook, checked against the notebook format."""
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def allowed_distributions(folder: str) -> set[str]:
    """What a notebook of the folder may import: core and the folder's own group."""
    return names(core_requirements()) | names(group_requirements(FOLDER_GROUPS[folder]))


def notebook_name(value: object) -> str:
    """Test id."""
    return value.stem if isinstance(value, Path) else getattr(value, "__name__", str(value))


def test_there_are_notebooks() -> None:
    assert notebooks(), "no notebook in " + ", ".join(FOLDER_GROUPS)


@pytest.mark.parametrize("rule", SINGLE_RULES, ids=notebook_name)
@pytest.mark.parametrize("path", notebooks(), ids=notebook_name)
def test_rule(path: Path, rule: Rule) -> None:
    assert rule(read(path)) == []


@pytest.mark.parametrize("path", notebooks(), ids=notebook_name)
def test_imports(path: Path) -> None:
    assert rules.imports(read(path), allowed_distributions(rules.folder_of(path))) == []


def test_nothing_is_copied_between_notebooks() -> None:
    by_name = {str(path.relative_to(ROOT)): read(path) for path in notebooks()}
    assert rules.copies(by_name) == []


# --- Each rule is broken once, and must say so ----------------------------------------------

TITLE = """# Falcon with LoRA

You will learn how an adapter is trained.

| profile | time | memory |
| --- | --- | --- |
| `cpu` | 5 min | 3 GB |
| `gpu16` | 2 h | 12 GB |
| `gpu80` | 20 min | 40 GB |

Licences: Apache-2.0."""
SETTINGS = 'SETTINGS = {"steps": (1, 2, 3)}'
LESSON = {"tags": ["lesson"]}


def good_notebook(code: str = "total = 1 + 1") -> NotebookNode:
    """A notebook that keeps every rule, with `code` in its last cell."""
    cells = [new_markdown_cell(TITLE)]
    for section in rules.SECTIONS:
        cells.append(new_markdown_cell(f"## {section}\n\n```sh\n# a comment, no heading\n```"))
    cells[5].source += "\n\n### Before training"
    cells.insert(2, new_code_cell(SETTINGS, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell("import torch", metadata=dict(LESSON)) for _ in range(3)]
    notebook: NotebookNode = new_notebook(cells=[*cells, new_code_cell(code)])
    return notebook


@pytest.mark.parametrize("rule", SINGLE_RULES, ids=notebook_name)
def test_a_good_notebook_breaks_no_rule(rule: Rule) -> None:
    notebook = good_notebook()
    nbformat.validate(notebook)
    assert rule(notebook) == []


def replaced(index: int, old: str, new: str) -> Change:
    """A change of one cell's text."""

    def change(notebook: NotebookNode) -> None:
        assert old in notebook.cells[index].source
        notebook.cells[index].source = notebook.cells[index].source.replace(old, new)

    return change


def code(text: str) -> Change:
    """A change that sets the last cell's code."""

    def change(notebook: NotebookNode) -> None:
        notebook.cells[-1].source = text

    return change


def swap_sections(notebook: NotebookNode) -> None:
    """Training before Model Configuration."""
    cells = notebook.cells
    cells[5], cells[6] = cells[6], cells[5]


def drop_title(notebook: NotebookNode) -> None:
    """No first cell."""
    del notebook.cells[0]


def drop_tag(notebook: NotebookNode) -> None:
    """No cell tagged parameters."""
    notebook.cells[2].metadata = {}


def second_tag(notebook: NotebookNode) -> None:
    """Two cells tagged parameters."""
    notebook.cells.append(new_code_cell(SETTINGS, metadata={"tags": ["parameters"]}))


def untag(notebook: NotebookNode) -> None:
    """One cell is no lesson any more."""
    notebook.cells[10].metadata = {}


def add_output(notebook: NotebookNode) -> None:
    """An output is left in."""
    notebook.cells[-1].outputs = [new_output("stream", text="2")]


def add_count(notebook: NotebookNode) -> None:
    """An execution count is left in."""
    notebook.cells[-1].execution_count = 7


def score_in_all(notebook: NotebookNode) -> None:
    """Nothing ends the other processes before the evaluation."""
    (at,) = [at for at, one in enumerate(notebook.cells) if one.source.startswith("## Evaluation")]
    notebook.cells.insert(at + 1, new_code_cell("loss = 1.0"))


BROKEN: list[tuple[Rule, Change, str]] = [
    (rules.sections, swap_sections, "the sections"),
    (rules.sections, replaced(4, "## Data", "### Data"), "the sections"),
    (rules.sections, replaced(4, "Data Loading", "Data loading"), "the sections"),
    (rules.sections, drop_title, "the title"),
    (rules.sections, replaced(1, "## Setup", "# Setup"), "exactly one title"),
    (rules.first_cell, drop_title, "you will learn"),
    (rules.first_cell, replaced(0, "You will learn", "You see"), "you will learn"),
    (rules.first_cell, replaced(0, "Licences: Apache-2.0", ""), "no licence"),
    (rules.first_cell, replaced(0, "2 h", "long"), "profile gpu16"),
    (rules.first_cell, replaced(0, "3 GB", "little"), "profile cpu"),
    (rules.parameters, drop_tag, "0 cells tagged"),
    (rules.parameters, second_tag, "2 cells tagged"),
    (rules.parameters, replaced(2, "SETTINGS =", "TABLE ="), "no SETTINGS"),
    (rules.parameters, replaced(2, ", 3)", ")"), "cpu, gpu16, gpu80 in steps"),
    (rules.parameters, replaced(2, "(1, 2, 3)", "3"), "cpu, gpu16, gpu80 in steps"),
    (rules.parameters, replaced(2, SETTINGS, "SETTINGS = dict(cpu=1)"), "no dict literal"),
    (rules.parameters, replaced(2, "(1, 2, 3)", "(1, 2, x)"), "no dict literal"),
    (rules.short_cells, code("a = 1\n" * 26), "has 26 lines"),
    (rules.scored_before, replaced(6, "### Before", "#### Before"), "Before training"),
    (rules.one_door, code("f(use_cpu=True)"), "use_cpu"),
    (rules.one_door, code("memory.keep_freed_memory()"), "keep_freed_memory"),
    (rules.one_door, code('f(**{"attn_implementation": "eager"})'), "attn_implementation"),
    (rules.one_door, code("on_gpu = True"), "on_gpu"),
    (rules.lesson, untag, "fewer than three"),
    (rules.lesson, replaced(10, "import torch", "from cookbook import data"), "imports cookbook"),
    (rules.stripped, add_output, "outputs"),
    (rules.stripped, add_count, "execution counts"),
    (rules.plain_python, code("!ls"), "!ls"),
    (rules.plain_python, code("%matplotlib inline"), "%matplotlib"),
    (rules.installs_nothing, code("!pip install peft"), "!"),
    (rules.installs_nothing, code("%pip install peft"), "%"),
    (rules.installs_nothing, code("%%bash\nls"), "%"),
    (rules.installs_nothing, code('run(["pip", "install", "peft"])'), "pip"),
    (rules.installs_nothing, code('os.system("ls")'), "os.system"),
    (rules.no_remote_code, code("load(trust_remote_code=True)"), "trust_remote_code"),
    (rules.no_login, code("login()"), "login()"),
    (rules.no_login, code("huggingface_hub.notebook_login()"), "notebook_login()"),
    (rules.no_login, code('load("x", token="abc")'), "token="),
    (rules.no_login, code('OpenAI(api_key="abc")'), "api_key="),
    (rules.no_login, code('os.environ["HF_TOKEN"]'), "token"),
    (rules.swallows_nothing, code("try:\n    f()\nexcept ValueError:\n    pass"), "drops it"),
    (rules.swallows_nothing, code("try:\n    f()\nexcept ValueError:\n    ..."), "drops it"),
    (rules.swallows_nothing, code("with suppress(OSError):\n    f()"), "suppress"),
    (rules.scored_by_one_process, score_in_all, "first_process_goes_on"),
]


@pytest.mark.parametrize(("rule", "change", "complaint"), BROKEN)
def test_a_bad_notebook_breaks_its_rule(rule: Rule, change: Change, complaint: str) -> None:
    notebook = good_notebook()
    change(notebook)
    assert complaint in " | ".join(rule(notebook))


def test_every_rule_is_seen_to_fail() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(SINGLE_RULES)


@pytest.mark.parametrize(
    ("folder", "line", "is_allowed"),
    [
        ("02-PEFT", "import json, os.path", True),
        ("02-PEFT", "from cookbook.profiles import choose_profile", True),
        ("02-PEFT", "from torch import nn", True),
        ("02-PEFT", "from peft import LoraConfig", True),
        ("02-PEFT", "import deeplake", False),
        ("02-PEFT", "def f():\n    import deeplake", False),
        ("01-Full-Fine-Tuning", "from peft import LoraConfig", False),
        ("02-PEFT", "import pytest", False),
        ("02-PEFT", "import no_such_package", False),
    ],
)
def test_import_rule(folder: str, line: str, is_allowed: bool) -> None:
    complaints = rules.imports(good_notebook(line), allowed_distributions(folder))
    assert (complaints == []) is is_allowed


FUNCTION = "def add(a, b):\n    c = a\n    d = b\n    e = c + d\n    return e\n"


TRAINING = """with training.guarded(trainer) as checkpoint:
    trainer.train(resume_from_checkpoint=checkpoint)
planned = plan.compared(trainer, checkpoint)"""


@pytest.mark.parametrize(
    ("first", "second", "copied"),
    [
        (FUNCTION, "x = 1\n" + FUNCTION.replace("    ", "  ") + "\n\n# another cell", True),
        ("a = 1\nb = 2\nc = 3\nd = 4", "a=1\n\nb=2  # same\nc = 3\nd = 4", True),
        ("a = 1\nb = 2\nc = 3\nd = 4", "a = 1\nb = 2\nc = 3\nd = 5", False),
        ("a = 1\nb = 2\nc = 3", "a = 1\nb = 2\nc = 3", False),
        ("import a\nimport b\nimport c\nimport d",) * 2 + (False,),
        (TRAINING, TRAINING, False),
        (TRAINING + "\nprint(1)", TRAINING + "\nprint(1)", True),
        ("config = choose_profile(SETTINGS)\na = 1\nb = 2\nc = 3",) * 2 + (False,),
    ],
)
def test_copy_rule(first: str, second: str, copied: bool) -> None:
    found = rules.copies({"one": good_notebook(first), "two": good_notebook(second)})
    assert bool(found) is copied
