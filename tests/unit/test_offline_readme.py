"""The README's tables are those of the manifest, and the manifest says whose everything is."""

import re
import sys

import pytest

from cookbook.offline import __main__, table
from cookbook.offline.manifest import PRODUCTS
from cookbook.offline.sources import Source

pytestmark = pytest.mark.unit

SOURCES = list(dict.fromkeys(source for product in PRODUCTS for source in product.sources))
by_package = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.package)


def test_the_tables_are_current() -> None:
    readme = table.README.read_text(encoding="utf-8")
    assert table.with_tables(readme) == readme, "run `python -m cookbook.offline --readme`"


def test_an_old_table_is_rewritten(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = table.README.read_text(encoding="utf-8")
    copy = tmp_path_factory.mktemp("readme") / "README.md"
    copy.write_text(current.replace("CC-BY-SA-3.0", "MIT"), encoding="utf-8")
    monkeypatch.setattr(__main__, "README", copy)
    monkeypatch.setattr(sys, "argv", ["offline", "--readme"])
    assert __main__.main() == 0
    assert copy.read_text(encoding="utf-8") == current


def test_missing_markers_are_named() -> None:
    with pytest.raises(ValueError, match="generated: manifest"):
        table.with_tables("# A README without tables\n")


@by_package
def test_every_source_has_licences_and_attribution(source: Source) -> None:
    for text in (source.package_licence, source.data_licence, source.attribution):
        assert text.strip()
    assert re.search(r"\b(NC|ND)\b", source.data_licence) is None, "no restricted data by default"
    assert source.homepage.startswith("https://")


@by_package
def test_every_archive_is_pinned(source: Source) -> None:
    if source.filename:
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert source.size > 0
        assert source.version in source.filename
        assert source.members and all(member.size > 0 for member in source.members)


def test_product_names_are_folder_names_of_their_own() -> None:
    names = [product.name for product in PRODUCTS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][\w-]*", name) for name in names)
    assert "archives" not in names


def test_a_product_s_readme_names_its_terms() -> None:
    for product in PRODUCTS:
        text = table.product_readme(product)
        for source in product.sources:
            assert source.data_licence in text and source.attribution in text
