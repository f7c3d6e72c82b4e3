"""The manifest as tables: for the terminal, for the README here, and for one product."""

from collections.abc import Sequence
from pathlib import Path

from cookbook.offline.manifest import PRODUCTS
from cookbook.offline.sources import Product, Source
from cookbook.offline.state import state_of

README = Path(__file__).with_name("README.md")
_BEGIN, _END = "<!-- generated: manifest -->", "<!-- end of generated -->"


def megabytes(size: int) -> str:
    """Return a number of bytes for a reader: `92.9 MB`, and `0.1 MB` for anything small."""
    return f"{max(size / 1e6, 0.1):.1f} MB"


def listing(root: Path, products: Sequence[Product] = PRODUCTS) -> str:
    """Return one line per product and source, with the state of each product in `root`."""
    rows = [("product", "from", "version", "licence", "download", "on disk", "state")]
    for product in products:
        state: str = state_of(product, root)
        for source in product.sources:
            download = megabytes(source.size) if source.size else "none"
            size = megabytes(product.size)
            licence = source.data_licence
            row = (product.name, source.package, source.version, licence, download, size, state)
            rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def readme_tables(products: Sequence[Product] = PRODUCTS) -> str:
    """Return the Markdown tables of products and of their sources."""
    made = ["| product | what it is | from | on disk |", "| --- | --- | --- | --- |"]
    for product in products:
        packages = ", ".join(source.package for source in product.sources)
        cells = (f"`{product.name}`", product.becomes, packages, megabytes(product.size))
        made.append(_row(*cells))
    heads = ("source", "download", "licence of the package", "licence of the data", "attribution")
    used = [_row(*heads), _row(*("---" for _ in heads))]
    for source in dict.fromkeys(source for product in products for source in product.sources):
        used.append(_source_row(source))
    notes = [f"- `{product.name}`: {product.note}" for product in products if product.note]
    return "\n".join([*made, "", *used, "", *notes])


def with_tables(readme: str) -> str:
    """Return the README's text with the tables between its markers written anew.

    Raises ValueError where the markers are missing.
    """
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"README.md needs the lines {_BEGIN} and {_END}.")
    return f"{before}{begin}\n\n{readme_tables()}\n\n{end}{after}"


def product_readme(product: Product) -> str:
    """Return the README that lies in the product's folder: what it is, whose, on what terms."""
    licences = dict.fromkeys(source.data_licence.lower() for source in product.sources)
    lines = ["---", f"license: {' AND '.join(licences)}", "---", ""]
    lines += [f"# {product.name}", "", f"Built by `make offline`: {product.becomes}."]
    if product.note:
        lines += ["", product.note]
    for source in product.sources:
        lines += ["", f"## From {source.package} {source.version}", ""]
        lines += [f"- {source.attribution}", f"- Licence of the data: {source.data_licence}"]
        lines += [f"- Licence of the package: {source.package_licence} ({source.homepage})"]
        lines += [f"- SHA-256 of {source.filename}: {source.sha256}"] if source.filename else []
        lines += [f"- Member: {member.path}" for member in source.members]
    return "\n".join(lines) + "\n"


def _source_row(source: Source) -> str:
    name = f"[{source.package}]({source.homepage}) {source.version}"
    download = megabytes(source.size) if source.size else "none"
    return _row(name, download, source.package_licence, source.data_licence, source.attribution)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
