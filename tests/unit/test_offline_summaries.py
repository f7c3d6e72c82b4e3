"""Documents and summaries are cut out of docstrings that have that shape, and of no others."""

from pathlib import Path

import pytest

from cookbook.offline import documentation, summaries

pytestmark = pytest.mark.unit

SUMMARY = "Read the whole file at once."
DOCUMENT = (
    "This is what the summary sums up, in more words than a summary may have, so that a model has "
    "something to leave out."
)


def words(count: int) -> str:
    """Return a sentence of that many words."""
    return "Here " + "and " * (count - 2) + "there."


@pytest.mark.parametrize(
    "docstring",
    [
        f"{SUMMARY}\n\n{DOCUMENT}",
        f"\n    Read the whole\n    file at once.\n\n    {DOCUMENT}\n    ",
        f"{SUMMARY}\n\n{DOCUMENT[:50]}\n{DOCUMENT[50:]}",
        f"{SUMMARY}\n\n{DOCUMENT}\n\nArgs:\n    path: the file.",
        f"{SUMMARY}\n\n{DOCUMENT}\n\nParameters\n----------\npath : str",
        f"{SUMMARY}\n\n{DOCUMENT}\n\nNote:\n    More about it.\n\nMore about it.",
        f"{SUMMARY}\n\n{DOCUMENT}\n\nSee Also\nwrite and others.",
        f"{SUMMARY}\n\n{DOCUMENT}\n\n>>> read(path)\n\nMore about it.",
        f"{SUMMARY}\n\n{DOCUMENT}\n\n- a list\n- of things\n\nMore about it.",
        f"{SUMMARY}\n\n{DOCUMENT}\n\n    indented()\n\nMore about it.",
    ],
)
def test_the_opening_sums_up_the_paragraphs_after_it(docstring: str) -> None:
    pair = summaries.split_docstring(docstring)
    assert pair is not None
    assert pair["summary"] == SUMMARY
    assert pair["document"].replace(" ", "") == DOCUMENT.replace(" ", "")


def test_paragraphs_are_joined_without_markup() -> None:
    pair = summaries.split_docstring(
        f"Read a :class:`~files.File` at ``once``.\n\nA first paragraph.\n\n{DOCUMENT}"
    )
    assert pair == {
        "document": f"A first paragraph. {DOCUMENT}",
        "summary": "Read a `files.File` at `once`.",
    }


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "\n \n",
        SUMMARY,
        f"{SUMMARY}\n{DOCUMENT}",
        f"{SUMMARY}\n\nToo short to leave anything out.",
        f"read(path) -> str\n\n{SUMMARY}\n\n{DOCUMENT}",
        f"read(path)\n{SUMMARY}\n\n{DOCUMENT}",
        f"Args:\n    path: the file.\n\n{SUMMARY}\n\n{DOCUMENT}",
        f"{SUMMARY}\n\nArgs:\n    path: the file.\n\n{DOCUMENT}",
        f"{SUMMARY}\n\n>>> read(path)\n\n{DOCUMENT}",
        f"{SUMMARY[:-1]}\n\n{DOCUMENT}",
        f"{SUMMARY} Close it then.\n\n{DOCUMENT}",
        f"{SUMMARY.lower()}\n\n{DOCUMENT}",
        f"{SUMMARY}\n\n{DOCUMENT.lower()}",
        f"{SUMMARY}\n\n{DOCUMENT} As in",
        f"{SUMMARY}\n\n{DOCUMENT} For example text = read(path) does.",
        f"{SUMMARY}\n\n{DOCUMENT}\n```python\nread(path)\n```",
        f"{SUMMARY}\n\n{DOCUMENT} See https://docs.python.org for more.",
        f"{SUMMARY}\n\n{DOCUMENT} It costs $x$ steps.",
        f"{SUMMARY}\n\n{DOCUMENT} It reads na\u00efvely.",
        f"Read the file \u2013 at once.\n\n{DOCUMENT}",
    ],
)
def test_docstrings_of_another_shape_give_nothing(docstring: str) -> None:
    assert summaries.split_docstring(docstring) is None


@pytest.mark.parametrize(
    ("summary", "document", "fits"),
    [
        (4, 20, True),
        (25, 80, True),
        (3, 40, False),
        (26, 40, False),
        (10, 19, False),
        (10, 81, False),
    ],
)
def test_lengths_are_limited(summary: int, document: int, fits: bool) -> None:
    found = summaries.split_docstring(f"{words(summary)}\n\n{words(document)}")
    assert found == ({"document": words(document), "summary": words(summary)} if fits else None)


def source(name: str) -> str:
    """Return code with one docstring that is used, and that says where it stands."""
    return f'def f():\n    """Read the {name} at once.\n\n    {DOCUMENT}\n    """\n'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # Beside a folder's name only its place inside the package counts.
    root = tmp_path / "tests" / "cookbook_tiny_package"
    files = {
        "__init__.py": f'"""Read the opening at once.\n\n{DOCUMENT}\n"""\n\nraise SystemExit\n',
        "a.py": source("function").replace("def", "async def") + "\n" + source("next function"),
        "b.py": "class C:\n    " + source("method").replace("\n", "\n    "),
        "part/inner.py": source("inner function"),
        "part/latest.py": source("latest function"),
        "notes.txt": source("text"),
        "test/test_a.py": source("test"),
        "tests/test_b.py": source("test"),
        "part/tests/test_c.py": source("test"),
        "testing/tools.py": source("test"),
        "models/one/model.py": source("model"),
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(root.parent))
    return root.name


def test_a_package_is_read_in_order_without_its_tests_and_never_imported(package: str) -> None:
    read = summaries.of_package(package)
    places = ["opening", "function", "next function", "method", "inner function", "latest function"]
    assert [pair["summary"] for pair in read] == [f"Read the {one} at once." for one in places]
    assert {pair["document"] for pair in read} == {DOCUMENT}


@pytest.mark.parametrize("name", ["no_such_package_anywhere", "keyword"])
def test_what_is_no_installed_package_is_named(name: str) -> None:
    with pytest.raises(LookupError, match=f"{name} is not installed as a package"):
        summaries.of_package(name)


def test_the_standard_library_is_read_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "b.py", tmp_path / "a.py"]
    for path in files:
        path.write_text(source(path.stem), encoding="utf-8")
    monkeypatch.setattr(documentation, "standard_library_files", lambda: files)
    found = [pair["summary"] for pair in summaries.of_standard_library()]
    assert found == ["Read the b at once.", "Read the a at once."]
