"""What counts as run by the profile `cpu`, and what does not."""

from __future__ import annotations

import ast

import pytest

from cookbook.processor import code_for_cpu
from cookbook.proof import code_of

pytestmark = pytest.mark.unit

DOOR = "on_gpu = torch.cuda.is_available()\n"
TABLE = 'PROFILES = {{"cpu": {{"steps": 1, {}}}, "gpu16": {{"steps": 2, {}}}}}\n'


def reduced(code: str, package: str = "") -> str:
    """Return what counts of some lines behind the door."""
    found = code_for_cpu(DOOR + code, package)
    ast.parse(found)
    return code_of(found.removeprefix(DOOR))


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("a = 1\nif on_gpu:\n    a = 2\n", "a = 1\n"),
        ("f(a, **({'b': c} if on_gpu else {}))", "f(a, )"),
        ("f(\n    a,\n    **({'b': c} if on_gpu else {}),  # why\n    d=1,\n)", "f(a, d=1,)"),
        ("def f():\n    if on_gpu:\n        return 1\n", "def f():\n    pass\n"),
        ("if on_gpu:\n    a = 'ä'\nb = 'ü'", "b = 'ü'"),
        ("if not on_gpu:\n    a()\n    if b:\n        c()\n", "a()\nif b:\n    c()\n"),
        ("def f():\n    if not on_gpu:\n        a()\n        b()", "def f():\n    a()\n    b()"),
        ("if not on_gpu and b:\n    c()\n", "if b:\n    c()\n"),
        ("if on_gpu or a or b:\n    c()\n", "if a or b:\n    c()\n"),
        ("a = b if on_gpu else 2 * c", "a = 2 * c"),
        ("f(**(a | b if on_gpu else a), c=1)", "f(**a, c=1)"),
        ("f(\n    **(\n        a | b if on_gpu else a\n    ),\n)", "f(\n    **a,\n)"),
        ("if config.profile != 'cpu':\n    a()\nb()", "b()"),
        ("if config.profile == 'cpu' and a:\n    b()", "if a:\n    b()"),
        ("a = (b if on_gpu else 2 + c) * d", "a = (2 + c) * d"),
    ],
)
def test_what_a_gpu_alone_runs_is_as_if_it_were_not_there(code: str, counts: str) -> None:
    assert reduced(code) == code_of(counts)


@pytest.mark.parametrize(
    ("code", "for_a_gpu", "for_both"),
    [
        ("a = 1 if on_gpu else 2", ("1 if", "3 if"), ("else 2", "else 3")),
        ("if on_gpu:\n    a()\nelse:\n    b()", ("a()", "c()"), ("b()", "c()")),
        ("if not on_gpu:\n    b()\nelse:\n    a()", ("a()", "c()"), ("b()", "c()")),
        ("if on_gpu and x:\n    a()\nelif y:\n    b()", ("a()", "c()"), ("y:", "z:")),
        ("if not on_gpu or x:\n    b()", ("x:", "z:"), ("b()", "c()")),
        ("if on_gpu or x:\n    b()", ("", ""), ("x:", "z:")),
        ("a = x or on_gpu", ("", ""), ("on_gpu", "y")),
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
        *("on_gpu = True\n", DOOR + "on_gpu = x\n", DOOR + DOOR, ""),
        *(DOOR + "def f(on_gpu):\n    pass\n", DOOR + "import a as on_gpu\n"),
        *(DOOR + "for on_gpu in a:\n    pass\n", DOOR + "config.profile = 'gpu16'\n"),
        *(DOOR + "globals()['on_gpu'] = True\n", DOOR + "torch.cuda.is_available = f\n"),
        DOOR + "config = choose_profile(PROFILES)\nconfig = replace(config, profile='gpu16')\n",
        DOOR + "try:\n    pass\nexcept E as on_gpu:\n    pass\n",
    ],
)
def test_another_door_hides_nothing(door: str) -> None:
    first, second = (code_for_cpu(f"{door}if on_gpu:\n    a({one})\n") for one in (1, 2))
    assert first != second


def test_other_columns_do_not_count() -> None:
    use = "config = choose_profile(PROFILES)\nf(config.steps, config.rate)\n"
    before = reduced(TABLE.format('"rate": 3', '"rate": 4') + use)
    assert reduced(TABLE.format('"rate": 3', '"rate": 5') + use) == before
    assert reduced(TABLE.format('"rate": 5', '"rate": 4') + use) != before


def test_a_row_counts_where_something_that_runs_names_it() -> None:
    plain, more = TABLE.format("", ""), TABLE.format('"fused": False', '"fused": True')
    use = "config = choose_profile(PROFILES)\nf(config.steps)\n"
    for_gpu = use + "if on_gpu:\n    g(config.fused)\n"
    assert reduced(more + for_gpu) == reduced(plain + use)
    assert reduced(more + use, package="return settings.fused") != reduced(plain + use)
    assert reduced(more + use + "g(config.fused)") != reduced(plain + use + "g(config.fused)")


@pytest.mark.parametrize(
    "use", ["f(PROFILES['gpu16'])", "f(**vars(config))", "f(len(PROFILES), PROFILES)"]
)
def test_a_table_that_is_read_as_a_whole_counts_as_a_whole(use: str) -> None:
    use = f"config = choose_profile(PROFILES)\n{use}\n" if "vars" in use else f"{use}\n"
    before = reduced(TABLE.format('"rate": 3', '"rate": 4') + use)
    assert reduced(TABLE.format('"rate": 3', '"rate": 5') + use) != before
    assert reduced(TABLE.format('"rate": 5', '"rate": 4') + use) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "if y:\n    a()\nelif on_gpu:\n    b()\nelse:\n    c()",
            "if y:\n    a()\nc()",
        ),
        ("if y:\n    a()\nelif not on_gpu:\n    c()", "if y:\n    a()\nc()"),
        (
            "if y:\n    a()\nelif on_gpu:\n    b()\nelif z:\n    c()",
            "if y:\n    a()\nif z:\n    c()",
        ),
        (
            'if not on_gpu:\n    x = """\n    hi"""',
            'if not on_gpu:\n    x = """\nhi"""',
        ),
    ],
)
def test_what_computes_something_else_counts_as_something_else(one: str, other: str) -> None:
    assert reduced(one) != reduced(other)


def test_brackets_in_a_condition_are_no_obstacle() -> None:
    assert reduced("if not on_gpu and (a or b) and c:\n    d()") == code_of(
        "if (a or b) and c:\n    d()"
    )
