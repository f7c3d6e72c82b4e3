"""Executed notebooks as Markdown pages: text, code and outputs as GitHub shows them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import nbformat
import pytest
from datasets import Dataset
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cookbook.chat import SupervisedView
from cookbook.commands import pages, proof, record
from cookbook.report import SideBySide
from tests.pages import png, use, written
from tests.unit import tiny

pytestmark = pytest.mark.unit

FIRST = (
    "# A title\n\nSee [the folder](README.md), [speed](../ARCHITECTURE.md#speed), `[no](link.md)`."
)


def shown(*outputs: NotebookNode, source: str = "show()") -> list[NotebookNode]:
    """A cell of text and one of code with outputs."""
    return [new_markdown_cell(FIRST), new_code_cell(source, outputs=list(outputs))]


def stream(text: str, name: str = "stdout") -> NotebookNode:
    output: NotebookNode = new_output("stream", name=name, text=text)
    return output


def displayed(**data: str) -> NotebookNode:
    """An output with data of several kinds: `text_html` for `text/html`."""
    by_type = {name.replace("_", "/"): text for name, text in data.items()}
    output: NotebookNode = new_output("display_data", data=by_type)
    return output


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one technique."""
    use(tmp_path, monkeypatch)
    return tmp_path


def outputs(root: Path, *found: NotebookNode) -> str:
    """Return what a page shows below a cell with these outputs."""
    text = written(root, shown(*found)).read_text(encoding="utf-8")
    return text.partition("```python\nshow()\n```\n")[2].strip()


def test_a_page_says_what_it_is_and_is_sealed(root: Path) -> None:
    page = written(root, shown(stream("done\n")))
    text = page.read_text(encoding="utf-8")
    assert page == root / "results/recipes/02-PEFT/X/cpu.md"
    name = "cpu-2x-some-cpu-float32-seed0.json"
    run = json.loads((page.parent / name).read_text(encoding="utf-8"))
    head = pages.head_of(page)
    assert (head["record"], head["seal"]) == (name, run["seal"])
    assert head["notebook"] == run["digests"]["notebook"]
    assert head["page"] == pages.seal_of(page)
    assert (
        "> Executed with profile `cpu` on Some CPU, float32, seed 0, 2026-11-29, in 1.5 minutes. "
        f"[The notebook](../../../../02-PEFT/X.ipynb), [the record of this run]({name}).\n"
    ) in text
    page.write_text(text.replace("done", "better"), encoding="utf-8")
    assert pages.head_of(page)["page"] != pages.seal_of(page)


def test_links_are_right_where_the_page_lies(root: Path) -> None:
    text = written(root, shown()).read_text(encoding="utf-8")
    assert "[the folder](../../../../02-PEFT/README.md)" in text
    assert "[speed](../../../../ARCHITECTURE.md#speed)" in text
    assert "`[no](link.md)`" in text


@pytest.mark.parametrize(
    ("markdown", "moved"),
    [
        ("[a](Y.ipynb#top) ![b](b.png)", "[a](../n/Y.ipynb#top) ![b](../n/b.png)"),
        ("[`c`](one.yaml 'title')", "[`c`](../n/one.yaml 'title')"),
        ("[a]: there.md\n<img src='b.png'>", "[a]: ../n/there.md\n<img src='../n/b.png'>"),
        ("[a](https://e.org/x.md) [b](#here) [c](mailto:a@b.c) $x$", None),
        ("```\n[a](b.md)\n```\n``[a](`b`.md)``", None),
    ],
)
def test_relinked(markdown: str, moved: str | None) -> None:
    assert pages.relinked(markdown, Path("/r/n"), Path("/r/p")) == (moved or markdown)


def test_printed_text_is_what_a_terminal_leaves(root: Path) -> None:
    text = outputs(root, stream("\x1b[31mred\x1b[0m\n 10%\r100%\r\n"), stream("next  \n\x07"))
    assert text == "```text\nred\n100%\nnext\n\N{REPLACEMENT CHARACTER}\n```"


def test_a_fence_is_longer_than_those_within(root: Path) -> None:
    assert outputs(root, stream("```\na\n```\n")) == "````text\n```\na\n```\n````"


def test_long_lines_are_broken_between_words(root: Path) -> None:
    lines = outputs(root, stream("word " * 40)).split("\n")[1:-1]
    assert len(lines) == 2 and all(len(line) <= 110 for line in lines)


def test_long_text_is_folded(root: Path) -> None:
    assert "<details>" not in outputs(root, stream("line\n" * 30))
    text = outputs(root, stream("line\n" * 20), stream("line\n" * 11))
    assert text.startswith("<details><summary>31 lines of output</summary>\n\n```text\nline\n")
    assert text.endswith("\n```\n\n</details>")


def test_progress_is_left_out_and_warnings_are_not(root: Path) -> None:
    bar = "Loading weights: 100%|█████| 272/272 [00:00<00:00, 5000.00it/s]\n"
    assert outputs(root, stream(bar + "5it [00:00, 9.1it/s]\n", "stderr")) == ""
    text = outputs(root, stream(bar + "UserWarning: look\n", "stderr"))
    assert text == "```text\nUserWarning: look\n```"
    widget = new_output("display_data", data={pages.WIDGET: "", "text/plain": "0%| "})
    assert outputs(root, stream("a\n"), widget, stream("b\n")) == "```text\na\nb\n```"


def test_folders_of_this_machine_are_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    monkeypatch.setattr(pages, "ROOT", Path("/home/ann/cookbook"))
    text = "/tmp/tmpab1_x/02-PEFT /home/ann/cookbook/a.py:3 /home/ann/.cache /home/annabel"
    assert pages._public(text) == "runs/02-PEFT ./a.py:3 ~/.cache /home/annabel"


def test_an_error_that_was_asked_for_is_shown(root: Path) -> None:
    error = new_output("error", ename="E", evalue="no", traceback=["\x1b[0;31mE\x1b[0m: no"])
    assert outputs(root, error) == "```text\nE: no\n```"


def test_the_supervised_view_shows_what_is_marked(root: Path) -> None:
    words = tiny.tokenizer()
    ids = [words.convert_tokens_to_ids(word) for word in ("user", "w0", "w1", "<end>")]
    rows = Dataset.from_dict({"input_ids": [ids, ids], "labels": [[-100, -100, *ids[2:]]] * 2})
    text = outputs(root, displayed(text_html=SupervisedView(words, rows)._repr_html_()))
    line = "<tr><td><code>user w0<strong><ins>w1 &lt;end&gt;</ins></strong></code></td></tr>"
    assert text == f"<table>\n{line}\n{line}\n</table>"


def test_two_columns_stand_side_by_side(root: Path) -> None:
    table = SideBySide(before=["a | $5\n\n  b <i>"], after=["module.NamedLongAndLonger(x)"])
    assert outputs(root, displayed(text_html=table._repr_html_())) == (
        '<table>\n<tr><th width="50%">before</th><th width="50%">after</th></tr>\n'
        "<tr><td>a | <span>$</span>5<br><br>&nbsp;&nbsp;b &lt;i&gt;</td>"
        "<td>module.&#8203;Named&#8203;Long&#8203;And&#8203;Longer(&#8203;x)</td></tr>\n</table>"
    )


def test_more_columns_of_long_texts_stand_below_each_other(root: Path) -> None:
    long = "words and words and words"
    table = SideBySide(question=["one?", "two?"], before=[long, long], after=[long, long])
    text = outputs(root, displayed(text_html=table._repr_html_()))
    assert text.split("\n")[1:4] == [
        "<tr><th>question</th><td><strong>one?</strong></td></tr>",
        f"<tr><th>before</th><td>{long}</td></tr>",
        f"<tr><th>after</th><td>{long}</td></tr>",
    ]
    short = SideBySide(answer=["1", "2"], reward=["0.1", "1.1"], advantage=["-1", "1"])
    text = outputs(root, displayed(text_html=short._repr_html_()))
    assert "<tr><td>1</td><td>0.1</td><td>-1</td></tr>" in text


@pytest.mark.parametrize("steps", [3, 40])
def test_the_trainers_table_has_no_bar_and_is_folded_if_it_is_long(steps: int, root: Path) -> None:
    rows = "".join(f"<tr>\n <td>{step}</td>\n <td>2.5</td>\n</tr>" for step in range(steps))
    html = (
        "\n<div>\n <progress value='4' max='4' style='x'></progress>\n [4/4 00:59, Epoch 0/1]\n"
        '</div>\n<table border="1">\n<thead>\n <tr style="text-align: left;">\n <th>Step</th>\n'
        f" <th>Training Loss</th>\n</tr>\n</thead>\n<tbody>\n{rows}</tbody>\n</table><p>"
    )
    text = outputs(root, displayed(text_html=html, text_plain="<HTML object>"))
    table = "<table>\n<tr><th>Step</th><th>Training Loss</th></tr>\n<tr><td>0</td><td>2.5</td></tr>"
    assert "\n\n</" not in text.replace("\n\n</details>", "") and "style" not in text
    assert "Epoch" not in text and "object" not in text
    if steps == 40:
        assert text.startswith(
            f"<details><summary>40 rows: Step, Training Loss</summary>\n\n{table}"
        )
    else:
        assert text.startswith(table)


def test_pictures_lie_beside_the_page(root: Path) -> None:
    picture = displayed(image_png=png(), text_plain="<Figure>")
    source = 'report.plot_training(\n    trainer,\n    run,\n    keys=("loss",)\n)'
    page = written(root, shown(picture, picture, source=source))
    text = page.read_text(encoding="utf-8")
    assert "![A title: picture made by report.plot_training](cpu-1.png)" in text
    names = [path.name for path in pages.pictures(page.parent, "cpu")]
    assert names == ["cpu-1.png", "cpu-1b.png"] and "(cpu-1b.png)" in text
    small = (page.parent / "cpu-1.png").read_bytes()
    assert small.startswith(b"\x89PNG") and len(small) < 0.6 * len(base64.b64decode(png()))
    (page.parent / "cpu-1.png").write_bytes(b"another")
    assert pages.head_of(page)["page"] != pages.seal_of(page)
    (page.parent / "cpu-training.png").write_bytes(small)
    written(root, shown())
    assert [path.name for path in page.parent.glob("*.png")] == ["cpu-training.png"]


def test_without_pillow_pictures_are_written_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    assert pages._small(b"png") == b"png"


def woven(root: Path, page: Path, *cells: NotebookNode) -> str | None:
    """Return the page with the text of a notebook of these cells."""
    return pages.rewoven(page, new_notebook(cells=list(cells)))


def test_text_and_comments_are_rewoven_and_outputs_stay(root: Path) -> None:
    page = written(root, shown(stream("```\nout\n```\n"), displayed(image_png=png())))
    before = page.read_text(encoding="utf-8")
    assert woven(root, page, *shown()) == before
    text, code = shown(source="show()  # now with a comment")
    text.source = "# Another title\n\n[Here](Z.ipynb)"
    after = woven(root, page, text, new_markdown_cell("More."), code)
    assert after is not None
    page.write_text(after, encoding="utf-8")
    assert pages.seal_of(page) == pages.head_of(page)["page"]
    assert "# Another title\n\n[Here](../../../../02-PEFT/Z.ipynb)" in after
    assert "More.\n\n<!-- cell 2: code -->\n\n```python\nshow()  # now with a comment\n" in after
    kept = before.partition("```python\nshow()\n```\n")[2]
    assert kept in after and "(cpu-1.png)" in kept and "> Executed with profile" in after


def test_another_code_is_not_rewoven(root: Path) -> None:
    page = written(root, [*shown(), new_code_cell("a = 1\nb = 2")])
    text, code = shown()
    assert woven(root, page, text, code, new_code_cell("a = 1\nb = 3")) is None
    assert woven(root, page, text, code, new_code_cell("a = 1"), new_code_cell("b = 2")) is None
    moved = new_code_cell("show()\na = 1"), new_code_cell("b = 2")
    assert woven(root, page, text, *moved) is None


def test_an_edited_page_is_not_rewoven(root: Path) -> None:
    page = written(root, shown(stream("poor\n")))
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("poor", "good"), encoding="utf-8")
    assert woven(root, page, *shown()) is None


def test_what_only_a_gpu_runs_is_text(root: Path) -> None:
    table = 'SETTINGS = {{"model": ("small", "{}", "big")}}\nconfig = choose_profile(SETTINGS)'
    then = 'print(config.model)\nif config.profile != "cpu":\n    {}'
    cells = [new_code_cell(table.format("a")), new_code_cell(then.format("compile()"))]
    on_cpu = proof.digest(proof.code_of(proof.code_for_cpu(new_notebook(cells=cells))))
    page = written(root, cells, digests={"notebook": on_cpu})
    changed = [new_code_cell(table.format("b")), new_code_cell(then.format("other()"))]
    after = woven(root, page, *changed)
    assert after is not None and '"b"' in after and "other()" in after
    changed[0].source = changed[0].source.replace("small", "smaller")
    assert woven(root, page, *changed) is None


def test_the_command_rewrites_pages(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "rewrite_tables", lambda: None)
    page = written(root, shown(stream("out\n")))
    path = root / "02-PEFT" / "X.ipynb"
    text, code = shown()
    text.source = "# New text"
    nbformat.write(new_notebook(cells=[text, code]), path)
    assert record.main(["--pages"]) == 0
    assert "# New text" in page.read_text(encoding="utf-8")
    code.source = "show(2)"
    nbformat.write(new_notebook(cells=[text, code]), path)
    assert record.main(["--pages", str(path)]) == 1
    assert "02-PEFT/X: the page is of other code" in capsys.readouterr().err
    assert "show()" in page.read_text(encoding="utf-8")
