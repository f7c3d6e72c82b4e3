"""Every example of OWN-DATA.md, read as it stands there."""

import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from cookbook import chat, files, forms, preferences
from cookbook.profiles import ROOT
from tests.hub.tokenizing import smollm2_tokenizer

pytestmark = pytest.mark.unit

PAGE = (ROOT / "OWN-DATA.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(
    r"<!-- file: (?P<name>\S+)(?: (?P<setting>\S+))? -->\n```\w+\n(?P<content>.*?)```\n"
    r"(?:(?!<!--).)*?\n(?P<said>(?:>[^\n]*\n)+)",
    re.DOTALL,
)
EXAMPLES = {one["name"]: one for one in EXAMPLE.finditer(PAGE)}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    words = smollm2_tokenizer()
    words.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return words


def _lines(said: str) -> list[str]:
    return [line.lstrip("> ") for line in said.splitlines() if line.lstrip("> ")]


def test_no_example_is_passed_over() -> None:
    assert len(EXAMPLES) == PAGE.count("<!-- file:") >= 10


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_as_it_says(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = EXAMPLES[name]
    (tmp_path / name).write_text(example["content"], encoding="utf-8")
    variable, _, value = (example["setting"] or "").partition("=")
    if variable.startswith("COOKBOOK_"):
        monkeypatch.setenv(variable, value)
    rows = files.renamed(files.read(tmp_path / name), files.renaming("COLUMNS"))["train"]
    said, *learned = _lines(example["said"])
    if variable == "RECIPE":
        columns = ", ".join(f"`{column}`" for column in rows.column_names)
        assert said in f"columns {columns}\n{capsys.readouterr().out}"
        return
    if preferences.form_of(rows) in ("pairs", "ratings", "thumbs"):
        pairs, _ = preferences.read(rows, "train split")
        assert said in (printed := capsys.readouterr().out) and "Dropped" not in printed
        both = {"better": pairs["chosen"], "worse": pairs["rejected"]}
        told = {one: " | ".join(a[0]["content"] for a in found) for one, found in both.items()}
        assert learned == [f"{one}: {texts}" for one, texts in told.items()]
        return
    rows = forms.as_conversations(rows, "train split")
    printed = capsys.readouterr().out
    assert said in printed and "Dropped" not in printed
    chat.fit_template(tokenizer, rows)
    ends = chat.end_tokens(tokenizer)
    supervised = chat.supervise_answers(rows, tokenizer, ends)
    chat.check_supervision(supervised, tokenizer, ends)
    marked = re.findall(r"⟦(.*?)⟧", str(chat.SupervisedView(tokenizer, supervised, 9)), re.DOTALL)
    assert all(one.endswith("<|im_end|>") for one in marked)
    answers = [one.removesuffix("<|im_end|>").replace("\n", "⏎") for one in marked]
    assert learned == [f"learned: {' | '.join(answers)}"]
