"""The look through data before training says what is so, and shows nobody's secrets."""

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from cookbook import chat, data
from cookbook.commands.doctor import __main__ as check_data
from cookbook.commands.doctor import private
from cookbook.commands.doctor.page import Bars, Block, Examples, Section, Table, as_html
from cookbook.commands.doctor.recipe import Recipe
from cookbook.profiles import ROOT
from tests.unit import tiny

pytestmark = pytest.mark.unit

SENTIMENT = "03-Instruction-Tuning/Financial-Sentiment-OPT.ipynb"
GRPO = "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO.ipynb"
SUMMARIES = "03-Instruction-Tuning/Summarization-FLAN-T5.ipynb"
SCRATCH = "01-Full-Fine-Tuning/GPT-2-From-Scratch.ipynb"
Rows = list[dict[str, Any]]
# Written in parts, so that no scanner takes this file for a leak.
VALUES = {
    "e-mail address": "jane.doe" + "@example.org",
    "phone number": "+49 30 " + "12345678",
    "IBAN": "DE89 3704 0044 " + "0532 0130 00",
    "credit card number": "4111 1111 " + "1111 1111",
    "IP address": "93.184." + "216.34",
    "private key": "-----BEGIN PRIVATE " + "KEY-----\nMIIabc\n-----END PRIVATE " + "KEY-----",
    "AWS key": "AKIA" + "ABCDEFGH12345678",
    "GitHub token": "ghp_" + "a1B2" * 9,
    "Hugging Face token": "hf_" + "aBcD1" * 7,
    "OpenAI key": "sk-" + "proj-" + "abc1" * 6,
    "Slack token": "xoxb-" + "123456789012-abcdefghijkl",
    "JSON web token": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0In0.abcDEF123_-x",
}
HARMLESS = [
    "version 1.2.3.4 of it",
    "127.0.0.1",
    "in 2024-01-15 at 12:30:45",
    "4111 1111 1111 1112",
    "DE88370400440532013000",
    "12345678901234",
    "a @ b and user@localhost",
    "pages 100-200, 1,234,567 rows",
    "3.14159265358979",
    "0000 0000 0000 0000",
    "the risk-based-approach-to-everything-here",
]


def words(number: int, count: int) -> str:
    """Return words of tests.unit.tiny's vocabulary, others for every number."""
    state, said = number * 7919 + 13, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        said.append(tiny.WORDS[state // 65536 % len(tiny.WORDS)])
    return " ".join(said)


def pairs(count: int, begin: int = 0, length: int = 20) -> Rows:
    """Return rows that say something else each."""
    numbers = range(begin, begin + count)
    return [{"prompt": words(n, length), "completion": words(n + 5000, length)} for n in numbers]


def write(path: Path, rows: Rows) -> Path:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


Doctor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doctor]:
    """Look through data with the tiny model: exit status, terminal and page."""
    runs = tmp_path / "the runs"
    monkeypatch.setenv("COOKBOOK_RUNS", str(runs))
    for name in ("COOKBOOK_DATASET", "COOKBOOK_MODEL", "COOKBOOK_MAX_LENGTH"):
        monkeypatch.setenv(name, "")

    def look(path: Path | str, *more: str, plan: bool = False) -> tuple[int, str, str]:
        if not plan:
            monkeypatch.setattr(check_data.Examination, "_planned", lambda *_: None)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = check_data.main([str(path), "--model", str(model), *more])
        page = check_data.page_path(str(path))
        assert page.parent == runs / "check-data"
        return status, said.getvalue(), page.read_text(encoding="utf-8") if page.exists() else ""

    yield look


def section(text: str, title: str) -> str:
    """Return one section of the terminal's text."""
    return text.partition(f"\n{title}\n")[2].partition("\n\n")[0]


# --- The verdict --------------------------------------------------------------------------------


def test_good_data_are_ready_and_the_verdict_stands_first(doctor: Doctor, tmp_path: Path) -> None:
    status, text, page = doctor(write(tmp_path / "good.jsonl", pairs(80)))
    assert status == 0
    assert text.splitlines()[0] == "ready"
    assert page.index("Ready") < page.index("What it is")


def test_a_file_that_cannot_be_read_ends_in_the_sentence_of_a_recipe(
    doctor: Doctor, tmp_path: Path
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(data.DataError) as error:
        data.load_splits(str(path))
    status, text, page = doctor(path)
    assert status == 1
    assert text.splitlines()[0] == f"not usable: {error.value}"
    assert "line 2 is no JSON" in page


def test_data_that_are_not_there_are_not_usable(doctor: Doctor, tmp_path: Path) -> None:
    status, text, _ = doctor(tmp_path / "nothing.jsonl")
    assert status == 1
    assert "does not exist" in text.splitlines()[0]


def test_wrong_usage_ends_with_two(capsys: pytest.CaptureFixture[str], doctor: Doctor) -> None:
    assert check_data.main([]) == 2
    assert "make check-data DATA=my.jsonl" in capsys.readouterr().err
    assert check_data.main(["a.jsonl", "--nb", "no/such.ipynb"]) == 2
    with pytest.raises(SystemExit) as error:
        check_data.main(["a.jsonl", "--no-such-option"])
    assert error.value.code == 2


def test_data_longer_than_the_recipe_takes_are_not_usable(doctor: Doctor, tmp_path: Path) -> None:
    status, text, _ = doctor(write(tmp_path / "long.jsonl", pairs(60, length=150)))
    assert status == 1
    assert "COOKBOOK_MAX_LENGTH=" in text.splitlines()[0]
    assert "What is learned" in text


# --- What it is, and which rows are used --------------------------------------------------------


def test_the_form_and_another_reading_are_named(doctor: Doctor, tmp_path: Path) -> None:
    rows = [row | {"question": "w1 w2", "answer": "w3"} for row in pairs(60)]
    for row in rows:
        del row["completion"]
        row["response"] = row["prompt"][::-1] + " w1"
    _, text, page = doctor(write(tmp_path / "two.jsonl", rows))
    assert "rows of questions and answers" in section(text, "What it is")
    assert "It could be read as prompts and responses" in " ".join(text.split())
    assert "COOKBOOK_COLUMNS" in page


def test_a_folder_is_told_by_split_with_what_is_left_out(doctor: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder / "train.jsonl", pairs(60))
    write(folder / "val.jsonl", pairs(12, 900))
    write(folder / "old.jsonl", pairs(5, 700))
    (folder / "notes.txt").write_text("a note", encoding="utf-8")
    status, text, _ = doctor(folder)
    told = section(text, "What it is")
    assert re.search(r"train +train\.jsonl +60", told)
    assert re.search(r"test +val\.jsonl +12", told)
    assert "left out: notes.txt, old.jsonl" in " ".join(told.split())
    assert (status, text.splitlines()[0]) == (0, "ready, with 1 warning")


def test_dropped_rows_have_reasons_and_the_lines_of_the_file(
    doctor: Doctor, tmp_path: Path
) -> None:
    rows = pairs(60)
    rows[3]["completion"], rows[7]["completion"] = "", None
    path = write(tmp_path / "some.jsonl", rows)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines.insert(5, "")  # an empty line counts as a line, and as no row
    path.write_text("\n".join(lines), encoding="utf-8")
    _, text, _ = doctor(path)
    told = section(text, "Rows")
    assert "58 of 60 rows are used" in told
    assert sorted(re.findall(r"\d+", " ".join(re.findall(r"lines? ([\d, ]+)", told)))) == ["4", "9"]
    assert told.count("an empty turn") >= 1


def test_lines_of_a_csv_count_its_header_and_line_ends_in_quotes(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text('prompt,completion\n"a\nb",c\nd,e\n', encoding="utf-8")
    assert check_data.places_of([path], 2) == ("line", ["2", "4"])


def test_rows_of_several_files_are_named_with_their_file(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", pairs(2)), write(tmp_path / "b.jsonl", pairs(1))
    assert check_data.places_of([one, two], 3)[1] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]


def test_an_array_of_json_and_a_binary_table_are_counted_in_rows(tmp_path: Path) -> None:
    array = tmp_path / "a.json"
    array.write_text(json.dumps(pairs(3)), encoding="utf-8")
    assert check_data.places_of([array], 3) == ("row", ["1", "2", "3"])
    Dataset.from_list(pairs(2)).to_parquet(str(tmp_path / "b.parquet"))
    assert check_data.places_of([tmp_path / "b.parquet"], 2) == ("row", ["1", "2"])


@pytest.mark.parametrize("count", [2, 3, 60])
def test_the_test_split_that_is_cut_is_the_recipe_s(tmp_path: Path, count: int) -> None:
    rows = pairs(count)
    if count > 10:
        rows[9] = {**rows[8], "completion": rows[8]["completion"] + " w1"}
    path = write(tmp_path / "my.jsonl", rows)
    theirs = data.load_splits(str(path))
    parts, _, _ = check_data.read(str(path))
    check_data.cut_test(parts, str(path))
    for name in ("train", "test"):
        assert list(parts[name].rows) == list(theirs[name])
        assert [rows[int(place) - 1] for place in parts[name].places] == list(theirs[name])


# --- Lengths ------------------------------------------------------------------------------------


def test_lengths_are_those_of_the_recipe_and_the_proposal_keeps_98_percent(
    doctor: Doctor, tmp_path: Path, model: Path
) -> None:
    folder = tmp_path / "mine"
    rows = pairs(97, length=20) + pairs(3, 500, length=140)
    write(folder / "train.jsonl", rows)
    write(folder / "test.jsonl", pairs(10, 900))
    _, text, page = doctor(folder)
    told = section(text, "Lengths in tokens")
    # "user", the words, "<end>", "assistant", the words, "<end>"
    assert re.search(r"whole row +44 +44 +44 +284 +284", told)
    assert re.search(r"answers +21 +21 +21 +141 +141", told)
    assert re.search(r"192 \(the recipe\) +3 \(3\.0%\) +0 \(0\.0%\)", told)
    assert re.search(r"\n +512 +0 \(0\.0%\)", told)
    assert "COOKBOOK_MAX_LENGTH=512" in told
    assert "max_length=192 drops 3% of the training rows" in text
    assert page.count("<figure>") == 2


@pytest.mark.parametrize(
    ("lengths", "best"), [([100] * 98 + [300] * 2, 128), ([100] * 97 + [300] * 3, 512)]
)
def test_a_proposal_keeps_98_percent_and_no_more_than_needed(lengths: list[int], best: int) -> None:
    assert check_data.proposal(lengths) == best


def test_beyond_the_usual_lengths_the_proposal_is_what_is_needed() -> None:
    assert check_data.proposal([5000] * 99 + [9000]) == 5000


@pytest.mark.parametrize("lengths", [[7], [3, 3, 3], list(range(1, 500)), [10] * 99 + [100000]])
def test_a_histogram_counts_every_row_once(lengths: list[int]) -> None:
    bars = check_data.histogram(lengths)
    assert sum(count for _, count in bars) == len(lengths)
    assert 1 <= len(bars) <= 13
    first, last = bars[0][0].split(" - ")[0], bars[-1][0].split(" - ")[-1]
    assert int(first.replace(",", "")) <= min(lengths) <= max(lengths) <= int(last.replace(",", ""))


def test_lengths_of_many_rows_at_once_are_those_of_labelled_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check_data, "LABELLED", 10)
    rows = [
        {
            "prompt": [{"role": "user", "content": words(n, 3 + n)}],
            "completion": [{"role": "assistant", "content": words(n + 99, 2 + n % 7)}],
        }
        for n in range(60)
    ]
    train, tokenizer = Dataset.from_list(rows), tiny.tokenizer()
    ends = chat.end_tokens(tokenizer)
    found = check_data.count_tokens({"train": train}, tokenizer, ends, 1000, batch=4)
    labelled = chat.supervise_answers(train, tokenizer, ends)
    assert found.whole["train"] == [len(ids) for ids in labelled["input_ids"]]
    assert (found.counted, found.labelled_from, len(found.answers)) == (60, 10, 10)
    assert max(map(len, found.labelled["input_ids"])) == max(found.whole["train"])


def test_a_sample_is_spread_and_said(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_data, "LABELLED", 20)
    monkeypatch.setattr(check_data, "TOKENIZED", 4000)
    _, text, _ = doctor(write(tmp_path / "my.jsonl", pairs(80)))
    assert re.search(r"Sampled, evenly spread: tokens were counted in \d\d of 72", text)
    assert check_data.spread(10, 5) == [0, 2, 4, 6, 8]
    assert check_data.spread(3, 5) == [0, 1, 2]


# --- Copies -------------------------------------------------------------------------------------


def test_copies_and_leakage_are_shown_by_row(doctor: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    train, test = pairs(60), pairs(12, 900)
    train[20] = train[10]
    train[31] = {**train[30], "completion": train[30]["completion"] + " w1 w2"}
    test[4] = {**train[40], "completion": train[40]["completion"] + " w3"}
    write(folder / "train.jsonl", train)
    write(folder / "test.jsonl", test)
    _, text, _ = doctor(folder)
    told = section(text, "Duplicates and leakage")
    assert "1 exact and 1 near-duplicates among 60 training rows" in told
    assert re.search(r"exact +line 11 +line 21", told)
    assert re.search(r"near +line 31 +line 32", told)
    assert "1 of 12 test rows" in told
    assert re.search(r"\n +line 5 +line 41", told)
    assert "Leakage: 1 of 12" in text.split("\n\n")[0]


def test_no_more_than_five_pairs_are_shown(doctor: Doctor, tmp_path: Path) -> None:
    rows = pairs(60)
    rows[30:40] = rows[:10]
    rows[40:50] = [{**row, "completion": row["completion"] + " w1"} for row in rows[10:20]]
    folder = tmp_path / "mine"
    write(folder / "train.jsonl", rows)
    write(folder / "test.jsonl", pairs(5, 900))
    _, text, _ = doctor(folder)
    told = section(text, "Duplicates and leakage")
    assert "10 exact and 10 near-duplicates" in told
    assert len(re.findall(r"^ +(?:exact|near) +line", told, re.M)) == 5


# --- Secrets and personal data ------------------------------------------------------------------


@pytest.mark.parametrize("kind", VALUES)
def test_each_kind_of_secret_is_found_and_hidden(kind: str) -> None:
    text = f"before {VALUES[kind]} after"
    assert private.kinds_in(text) == {kind: 1}
    assert private.masked(text) == f"before [{kind}] after"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_resembles_a_secret_is_none(text: str) -> None:
    assert private.kinds_in(text) == {}


def test_no_value_reaches_terminal_or_page(doctor: Doctor, tmp_path: Path) -> None:
    rows = pairs(60)
    for row in rows:  # every row has them, so every example too
        row["prompt"] += " " + " ".join(VALUES.values())
        row["completion"] = " ".join([VALUES["e-mail address"], row["completion"][:9]])
        row["note"] = VALUES["AWS key"]
    status, text, page = doctor(write(tmp_path / "my.jsonl", rows))
    assert status == 0
    for kind, value in VALUES.items():
        assert re.search(rf"{kind} +train +\d+ +lines ", text), kind
        for part in {value, value.split()[-1], value.replace(" ", "")}:
            assert len(part) < 5 or (part not in text and part not in page), kind
    assert "values look like secrets or personal data" in text.split("\n\n")[0]


def test_a_label_that_is_an_address_is_hidden(doctor: Doctor, tmp_path: Path) -> None:
    labels = ["w1", VALUES["e-mail address"]]
    rows = [{"text": words(n, 12), "label": labels[n % 2]} for n in range(80)]
    _, text, page = doctor(write(tmp_path / "my.jsonl", rows), "--nb", SENTIMENT)
    assert "[e-mail address]" in section(text, "Classes")
    assert labels[1] not in text + page


# --- What is learned ----------------------------------------------------------------------------


def test_examples_mark_what_is_learned_with_its_share(doctor: Doctor, tmp_path: Path) -> None:
    rows = pairs(80)
    _, text, page = doctor(write(tmp_path / "my.jsonl", rows))
    told = text.partition("What is learned")[2]
    assert re.search(r"\d+ rows, \d+ tokens, \d+ supervised \(48%\)", told)
    assert "The end of turn, <end>, is supervised" in told
    marked = re.findall("\u27e6(.*?)\u27e7", told.replace("\u27e6 and \u27e7", ""))
    assert len(marked) == 2
    assert all(one.endswith("<end>") for one in marked)
    assert {one.removesuffix(" <end>") for one in marked} <= {row["completion"] for row in rows}
    assert page.count("<pre>") == 2
    assert all(f"<mark>{one.replace('<end>', '&lt;end&gt;')}</mark>" in page for one in marked)


def test_what_was_changed_in_the_template_is_said(
    doctor: Doctor, tmp_path: Path, model: Path
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for turn in messages %}{% if turn.role == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ turn.role }} {{ turn.content }} <end> {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [row | {"system": "w9 w8"} for row in pairs(60)]
    _, text, _ = doctor(write(tmp_path / "my.jsonl", rows), "--model", str(folder))
    assert "The chat template takes no system turn" in text


# --- The plan, and every recipe -----------------------------------------------------------------

NOTEBOOKS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("0*/*.ipynb"))


def rows_for(notebook: str) -> Rows:
    """Return rows that a recipe takes."""
    if notebook == SENTIMENT:
        return [{"text": words(n, 12), "label": f"w{n % 3}"} for n in range(80)]
    if notebook == SUMMARIES:
        return [{"document": words(n, 40), "summary": words(n, 5)} for n in range(80)]
    if notebook == SCRATCH:
        return [{"text": words(n, 400)} for n in range(80)]
    rows = pairs(80)
    if notebook == KTO:
        return judged(80)
    if notebook.startswith("06"):
        return [
            {
                "prompt": row["prompt"],
                "chosen": words(n, 3 + n % 4),
                "rejected": words(n + 99, 6 - n % 4),
            }
            for n, row in enumerate(rows)
        ]
    if notebook.startswith("04") or "PEFT-Methods" in notebook:
        for number, row in enumerate(rows):
            row["completion"] += f"\n#### {number}"
    return rows


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_recipe_s_own_cells_plan_its_training(
    doctor: Doctor, tmp_path: Path, notebook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cookbook.planner.matmul_rate", lambda dtype: 1e12)
    path = write(tmp_path / "my.jsonl", rows_for(notebook))
    more = ["--model", "gpt2"] if notebook == SCRATCH else []
    status, text, page = doctor(path, "--nb", notebook, *more, plan=True)
    if "Export-and-Serve" in notebook:  # asks first whether llama.cpp knows the model's tokenizer
        assert status == 1 and "so there is no GGUF" in " ".join(text.split())
        monkeypatch.setattr("cookbook.serving.exporting.gguf_of_base", lambda *given: path)
        status, text, page = doctor(path, "--nb", notebook, plan=True)
    assert (status, text.splitlines()[0]) == (0, "ready")
    told = section(text, "Memory and time")
    assert len(re.findall(r"\d+\.\d GiB +\d+\.\d minutes", told)) == 1 + (notebook == SUMMARIES)
    assert "Memory and time" in page


def test_a_training_that_does_not_fit_is_warned_of(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        total = available = 2**20

    monkeypatch.setattr("cookbook.planner.matmul_rate", lambda dtype: 1e12)
    monkeypatch.setattr("psutil.virtual_memory", Little)
    _, text, _ = doctor(write(tmp_path / "my.jsonl", pairs(80)), plan=True)
    assert "more than the 0.0 GiB here" in " ".join(text.split("\n\n")[0].split())


def test_a_recipe_is_read_off_its_notebook() -> None:
    sentiment, scratch = Recipe(ROOT / SENTIMENT), Recipe(ROOT / SCRATCH)
    assert (sentiment.pairs, sentiment.labels, sentiment.texts) == (("text", "label"), True, False)
    assert sentiment.instruction(["up", "down"]).endswith("one word: up, down.")
    assert (scratch.pairs, scratch.texts) == (None, True)
    assert Recipe(ROOT / check_data.DEFAULT).instruction([]) == ""


# --- Preferences --------------------------------------------------------------------------------

DPO = "06-Preference-Tuning/DPO-Preference-Tuning.ipynb"


def compared(count: int, first: int = 0) -> Rows:
    """Return pairs, none of which says what another says."""
    return [
        {"prompt": words(n, 9), "chosen": words(n + 7, 3 + n % 4), "rejected": words(n, 6 - n % 4)}
        for n in range(first, first + count)
    ]


def test_pairs_that_say_nothing_are_dropped_with_their_lines(
    doctor: Doctor, tmp_path: Path
) -> None:
    rows = compared(60)
    rows[2]["rejected"] = rows[2]["chosen"]
    scores = {"score_chosen": 1, "score_rejected": 5}
    rows = [row | {"score_chosen": 5, "score_rejected": 1} for row in rows]
    rows[4] |= scores
    write(tmp_path / "mine" / "train.jsonl", rows)
    write(tmp_path / "mine" / "test.jsonl", [*compared(9, 500), *compared(1)])
    status, text, _ = doctor(tmp_path / "mine", "--nb", DPO)
    assert status == 0
    told = " ".join(section(text, "Rows").split())
    assert "a tie says nothing line 3" in told and "are the two swapped? line 5" in told
    told = section(text, "Pairs")
    assert "58 training pairs to 58 prompts" in told and "1 test pairs have a prompt" in told
    assert "1 of 10 test pairs have a prompt that is trained on" in " ".join(text.split())
    shown = text.partition("stands between")[2]  # after the legend, which has the marks too
    assert shown.count("\u27e6") == 1 + 2, "both answers of a pair are shown"


def test_pairs_that_teach_length_are_warned_of(doctor: Doctor, tmp_path: Path) -> None:
    rows = [row | {"chosen": row["chosen"] + " " + words(3, 9)} for row in compared(80)]
    _, text, _ = doctor(write(tmp_path / "my.jsonl", rows), "--nb", DPO)
    assert "is the longer one in 100% of the pairs" in " ".join(text.split("\n\n")[0].split())
    _, text, _ = doctor(write(tmp_path / "fair.jsonl", compared(80)), "--nb", DPO)
    assert "may learn length" not in text


def test_ratings_of_a_prompt_stay_together(doctor: Doctor, tmp_path: Path) -> None:
    rows = [
        {"prompt": words(n, 9), "completion": words(1000 * k + n, 6), "rating": (n + k) % 4}
        for n in range(60)
        for k in range(4)
    ]
    status, text, _ = doctor(write(tmp_path / "my.jsonl", rows), "--nb", DPO)
    assert status == 0
    found = re.search(r"\(train (\d+), test (\d+)\)", text)
    assert found and int(found[1]) + int(found[2]) == 60 and 1 <= int(found[2]) <= 15
    assert "0 test pairs have a prompt" in section(text, "Pairs")


def test_problems_are_pairs_that_the_model_makes(doctor: Doctor, tmp_path: Path) -> None:
    rows = [{"prompt": words(n, 12), "answer": str(n)} for n in range(60)]
    status, text, _ = doctor(write(tmp_path / "my.jsonl", rows), "--nb", DPO, plan=True)
    assert status == 0
    assert "the model makes the answers itself" in section(text, "Memory and time")


KTO = "06-Preference-Tuning/KTO-Thumbs-Up-Down.ipynb"


def judged(count: int, first: int = 0, up: int = 3) -> Rows:
    """Return answers of one length, one in so many with a thumb up."""
    return [
        {"prompt": words(n, 9), "completion": words(n + 7, 5), "label": n % up == 0}
        for n in range(first, first + count)
    ]


def test_thumbs_are_counted_and_shown(doctor: Doctor, tmp_path: Path) -> None:
    write(tmp_path / "mine" / "train.jsonl", judged(60))
    write(tmp_path / "mine" / "test.jsonl", [*judged(9, 500), *judged(1)])
    status, text, _ = doctor(tmp_path / "mine", "--nb", KTO)
    assert status == 0
    told = " ".join(section(text, "Thumbs").split())
    assert "61 training answers to 60 prompts. 21 have a thumb up, 40 a thumb down" in told
    assert "0 test answers have a prompt" in told, "an answer to a trained prompt is trained on"
    head = " ".join(text.split("\n\n")[0].split())
    assert "thumbs are of the rarer kind" not in head and "learn length" not in head


def test_thumbs_that_mislead_are_warned_of(doctor: Doctor, tmp_path: Path) -> None:
    rows = judged(200, up=100)
    for row in rows:
        row["completion"] += f" {words(3, 9)}" if row["label"] else ""
    rows[1] |= {"prompt": rows[0]["prompt"], "completion": rows[0]["completion"]}
    _, text, _ = doctor(write(tmp_path / "my.jsonl", rows), "--nb", KTO)
    head = " ".join(text.split("\n\n")[0].split())
    assert "The same answer has thumbs up and down: lines 1, 2" in head
    assert "of the thumbs are of the rarer kind" in head and "may learn length alone" in head
    liked = [row | {"label": True} for row in rows]
    status, text, _ = doctor(write(tmp_path / "liked.jsonl", liked), "--nb", KTO)
    assert status == 1 and "All training answers have a thumb up" in " ".join(text.split())


def test_ratings_become_thumbs_by_the_middle(doctor: Doctor, tmp_path: Path) -> None:
    rows = [
        {"prompt": words(n, 9), "completion": words(n + 7, 5), "stars": n % 5 + 1}
        for n in range(100)
    ]
    status, text, _ = doctor(write(tmp_path / "my.jsonl", rows), "--nb", KTO)
    assert status == 0 and "with one down, rated over or under 3" in " ".join(text.split())
    assert "rated in the middle" in " ".join(section(text, "Rows").split())


def test_another_recipe_names_the_one_for_pairs(doctor: Doctor, tmp_path: Path) -> None:
    _, text, _ = doctor(write(tmp_path / "my.jsonl", compared(60)))
    assert f"NB={DPO} takes them" in " ".join(text.split())
    _, text, _ = doctor(write(tmp_path / "thumbs.jsonl", judged(60)))
    assert f"NB={KTO} takes them" in " ".join(text.split())


# --- Labels and answers -------------------------------------------------------------------------


def test_classes_are_counted_and_unseen_ones_are_named(doctor: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    train = [{"text": words(n, 12), "label": "w1" if n % 10 else "w2"} for n in range(60)]
    test = [{"text": words(n + 900, 12), "label": ["w1", "w2", "w3"][n % 3]} for n in range(9)]
    write(folder / "train.jsonl", train)
    write(folder / "test.jsonl", test)
    _, text, _ = doctor(folder, "--nb", SENTIMENT)
    told = section(text, "Classes")
    assert re.search(r"w1 +\d+ +\d+", told) and re.search(r"w2 +6 +3|w2 +3 +6", told)
    assert "the rarest is 'w2' with 6 training rows" in " ".join(told.split())
    warned = " ".join(text.split("\n\n")[0].split())
    assert "No training row has the test's label w3 (lines 3, 6, 9)" in warned


def test_calls_keep_the_arguments_that_they_have(doctor: Doctor, tmp_path: Path) -> None:
    """Objects of other keys, or of other types, get nothing from each other."""
    given: list[Any] = [{"city": "w1"}, {"days": 3}, {"city": {"name": "w2"}}, {"city": "w3"}]
    rows = []
    for number, row in enumerate(pairs(80)):
        call = {"function": {"name": "f", "arguments": given[number % len(given)]}}
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "w4"},
                    {"role": "assistant", "content": row["completion"]},
                ]
            }
        )
    status, text, _ = doctor(write(tmp_path / "mine.jsonl", rows))
    assert status == 0 and "null" not in section(text, "What is learned").lower()


def test_classes_that_begin_alike_are_refused_as_by_the_recipe(
    doctor: Doctor, tmp_path: Path
) -> None:
    rows = [{"text": words(n, 20), "label": f"w1 {('w2', 'w3')[n % 2]}"} for n in range(80)]
    path = write(tmp_path / "mine.jsonl", rows)
    status, text, _ = doctor(path, "--nb", SENTIMENT)
    assert status == 1 and "Two labels begin with the same token" in text.splitlines()[0]


def test_problems_without_a_result_are_not_ready(doctor: Doctor, tmp_path: Path) -> None:
    long = [row | {"completion": words(n, 60)} for n, row in enumerate(pairs(80))]
    status, text, _ = doctor(write(tmp_path / "mine.jsonl", long), "--nb", GRPO)
    assert status == 1 and "no usable row left" in text.splitlines()[0]
    short = long[:40] + [row | {"completion": "w1 w2\n#### 7"} for row in long[40:]]
    status, text, _ = doctor(write(tmp_path / "half.jsonl", short), "--nb", GRPO)
    assert status == 0 and "no result of one line" in section(text, "Rows")


def test_each_copy_is_shown_with_one_row_that_it_repeats(doctor: Doctor, tmp_path: Path) -> None:
    said = words(1, 60).split()
    alike = [
        {"prompt": " ".join([*said[:n], "w9", *said[n:]]), "completion": "w1"} for n in (5, 6, 7, 8)
    ]
    _, text, _ = doctor(write(tmp_path / "mine.jsonl", [*pairs(120), *alike]))
    shown = [
        line for line in section(text, "Duplicates and leakage").splitlines() if " near " in line
    ]
    firsts = [line.split("line ")[2] for line in shown]
    assert shown and len({*firsts}) == len(firsts)


def test_texts_with_classes_are_sent_to_the_recipe_for_them(doctor: Doctor, tmp_path: Path) -> None:
    rows = [{"text": words(n, 12), "label": f"w{n % 2}"} for n in range(60)]
    status, text, _ = doctor(write(tmp_path / "my.jsonl", rows))
    assert status == 1
    assert f"NB={SENTIMENT}" in text


def test_answers_that_are_all_equal_or_short_are_told(doctor: Doctor, tmp_path: Path) -> None:
    rows = [{"prompt": words(n, 20), "completion": "w1"} for n in range(60)]
    _, text, _ = doctor(write(tmp_path / "my.jsonl", rows))
    told = section(text, "Answers")
    assert "All answers are equal." in told
    assert re.search(r"54 answers have one or two words \(lines ", told)
    assert "All answers are equal" in text.split("\n\n")[0]


# --- The page -----------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_escaped_and_loads_nothing(doctor: Doctor, tmp_path: Path) -> None:
    rows = pairs(60)
    for row in rows:
        row["prompt"] = "<script>w1()</script> & <b>" + row["prompt"]
    _, _, page = doctor(write(tmp_path / "a<b>.jsonl", rows))
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and tags.addresses == []
    assert "<script" not in page and "<b>" not in page
    assert "url(" not in page and "@import" not in page
    assert "width=device-width" in page and "light dark" in page


def test_every_block_of_a_page_is_escaped() -> None:
    evil = "<img src=x>"
    blocks: list[Block] = [
        evil,
        Table([evil], [[evil]]),
        Bars(evil, [(evil, 1)]),
        Examples([[(evil, True), (evil, False)]]),
    ]
    found = check_data.Findings({evil: evil, "data": evil}, [Section(evil, blocks)], [evil], evil)
    assert evil not in as_html(found)


def test_paths_are_those_of_the_shell_that_typed_them(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here" / "my data.jsonl", pairs(60))
    monkeypatch.setenv("COOKBOOK_FROM", str(tmp_path / "here"))
    status, text, _ = doctor("my data.jsonl")
    assert status == 0
    assert "data: my data.jsonl;" in text
    assert (tmp_path / "the runs" / "check-data" / "my-data.jsonl.html").is_file()
