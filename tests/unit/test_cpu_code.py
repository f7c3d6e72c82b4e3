"""What counts as run by the profile `cpu`, and what does not."""

from __future__ import annotations

import ast

import pytest

from cookbook.commands.cpu_code import code_for_cpu
from cookbook.commands.proof import code_of

pytestmark = pytest.mark.unit

DOOR = "config = f()\n"
TABLE = 'SETTINGS = {{"steps": (1, 2, 2){}}}\n'


def reduced(code: str, package: str = "") -> str:
    """Return what counts of some lines behind the door."""
    door = "" if "choose_profile" in code else DOOR
    found = code_for_cpu(door + code, package)
    ast.parse(found)
    return code_of(found.removeprefix(door))


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("a = 1\nif config.profile != 'cpu':\n    a = 2\n", "a = 1\n"),
        ("f(a, **({'b': c} if config.profile != 'cpu' else {}))", "f(a, )"),
        (
            "f(\n    a,\n    **({'b': c} if config.profile != 'cpu' else {}),  # why\n    d=1,\n)",
            "f(a, d=1,)",
        ),
        ("def f():\n    if config.profile != 'cpu':\n        return 1\n", "def f():\n    pass\n"),
        ("if config.profile != 'cpu':\n    a = 'ä'\nb = 'ü'", "b = 'ü'"),
        ("if config.profile == 'cpu':\n    a()\n    if b:\n        c()\n", "a()\nif b:\n    c()\n"),
        (
            "def f():\n    if config.profile == 'cpu':\n        a()\n        b()",
            "def f():\n    a()\n    b()",
        ),
        ("if config.profile == 'cpu' and b:\n    c()\n", "if b:\n    c()\n"),
        ("if config.profile != 'cpu' or a or b:\n    c()\n", "if a or b:\n    c()\n"),
        ("a = b if config.profile != 'cpu' else 2 * c", "a = 2 * c"),
        ("f(**(a | b if config.profile != 'cpu' else a), c=1)", "f(**a, c=1)"),
        (
            "f(\n    **(\n        a | b if config.profile != 'cpu' else a\n    ),\n)",
            "f(\n    **a,\n)",
        ),
        ("if config.profile != 'cpu':\n    a()\nb()", "b()"),
        ("if config.profile == 'cpu' and a:\n    b()", "if a:\n    b()"),
        ("a = (b if config.profile != 'cpu' else 2 + c) * d", "a = (2 + c) * d"),
    ],
)
def test_what_a_gpu_alone_runs_is_as_if_it_were_not_there(code: str, counts: str) -> None:
    assert reduced(code) == code_of(counts)


@pytest.mark.parametrize(
    ("code", "for_a_gpu", "for_both"),
    [
        ("a = 1 if config.profile != 'cpu' else 2", ("1 if", "3 if"), ("else 2", "else 3")),
        ("if config.profile != 'cpu':\n    a()\nelse:\n    b()", ("a()", "c()"), ("b()", "c()")),
        ("if config.profile == 'cpu':\n    b()\nelse:\n    a()", ("a()", "c()"), ("b()", "c()")),
        (
            "if config.profile != 'cpu' and x:\n    a()\nelif y:\n    b()",
            ("a()", "c()"),
            ("y:", "z:"),
        ),
        ("if config.profile == 'cpu' or x:\n    b()", ("x:", "z:"), ("b()", "c()")),
        ("if config.profile != 'cpu' or x:\n    b()", ("", ""), ("x:", "z:")),
        ("a = x or config.profile != 'cpu'", ("", ""), ("config.profile != 'cpu'", "y")),
        ("a = 1 if config.profile == 'gpu16' else 2", ("", ""), ("1", "3")),
        ("a = 1 if config.profile != 'cpu' else 2", ("1", "3"), ("2", "3")),
    ],
)
def test_of_a_branch_only_what_is_taken_counts(
    code: str, for_a_gpu: tuple[str, str], for_both: tuple[str, str]
) -> None:
    before = reduced(code)
    assert reduced(code.replace(*for_a_gpu)) == before
    assert reduced(code.replace(*for_both)) != before


@pytest.mark.parametrize(
    "door",
    [
        DOOR + "config.profile = 'gpu16'\n",
        DOOR + "config = replace(config, profile='gpu16')\n",
        *(DOOR + "def f(config):\n    pass\n", DOOR + "import a as config\n"),
        *(DOOR + "for config in a:\n    pass\n", DOOR + "globals()['config'] = True\n"),
        DOOR + "try:\n    pass\nexcept E as config:\n    pass\n",
    ],
)
def test_another_door_hides_nothing(door: str) -> None:
    asked = "if config.profile != 'cpu':\n    a({})\n"
    first, second = (code_for_cpu(door + asked.format(one)) for one in (1, 2))
    assert first != second


def test_other_columns_do_not_count() -> None:
    use = "config = choose_profile(SETTINGS)\nf(config.steps, config.rate)\n"
    before = reduced(TABLE.format(', "rate": (3, 4, 4)') + use)
    assert reduced(TABLE.format(', "rate": (3, 5, 4)') + use) == before
    assert reduced(TABLE.format(', "rate": (5, 4, 4)') + use) != before


def test_a_row_counts_where_something_that_runs_names_it() -> None:
    plain, more = TABLE.format(""), TABLE.format(', "fused": (False, True, True)')
    use = "config = choose_profile(SETTINGS)\nf(config.steps)\n"
    for_gpu = use + "if config.profile != 'cpu':\n    g(config.fused)\n"
    assert reduced(more + for_gpu) == reduced(plain + use)
    assert reduced(more + use, package="return settings.fused") != reduced(plain + use)
    assert reduced(more + use + "g(config.fused)") != reduced(plain + use + "g(config.fused)")


@pytest.mark.parametrize(
    "use", ["f(SETTINGS['steps'])", "f(**vars(config))", "f(len(SETTINGS), SETTINGS)"]
)
def test_a_table_that_is_read_as_a_whole_counts_as_a_whole(use: str) -> None:
    use = f"config = choose_profile(SETTINGS)\n{use}\n" if "vars" in use else f"{use}\n"
    before = reduced(TABLE.format(', "rate": (3, 4, 4)') + use)
    assert reduced(TABLE.format(', "rate": (3, 5, 4)') + use) != before
    assert reduced(TABLE.format(', "rate": (5, 4, 4)') + use) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "if y:\n    a()\nelif config.profile != 'cpu':\n    b()\nelse:\n    c()",
            "if y:\n    a()\nc()",
        ),
        ("if y:\n    a()\nelif config.profile == 'cpu':\n    c()", "if y:\n    a()\nc()"),
        (
            "if y:\n    a()\nelif config.profile != 'cpu':\n    b()\nelif z:\n    c()",
            "if y:\n    a()\nif z:\n    c()",
        ),
        (
            "if config.profile == 'cpu':\n    x = '''\n    hi'''",
            "if config.profile == 'cpu':\n    x = '''\nhi'''",
        ),
    ],
)
def test_what_computes_something_else_counts_as_something_else(one: str, other: str) -> None:
    assert reduced(one) != reduced(other)


def test_brackets_in_a_condition_are_no_obstacle() -> None:
    assert reduced("if config.profile == 'cpu' and (a or b) and c:\n    d()") == code_of(
        "if (a or b) and c:\n    d()"
    )
