"""Small data sets for the loopback Hub: columns, splits and file layout of the real ones."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset

from tests.hub import texts

Row = dict[str, Any]

SEED = 0


def guanaco_rows(count: int, seed: str = "train") -> Iterator[Row]:
    random = Random(f"guanaco {seed}")
    for _ in range(count):
        yield {"text": texts.guanaco_text(random)}


def openassistant_guanaco(folder: Path) -> None:
    """Write conversations in one string; file names tell the splits, as there."""
    for split, name, count in (("train", "train", 90), ("test", "eval", 30)):
        lines = [json.dumps(row) for row in guanaco_rows(count, split)]
        path = folder / f"openassistant_best_replies_{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def dialogsum_rows(count: int, split: str, summaries: int) -> Iterator[Row]:
    random = Random(f"dialogsum {split}")
    for number in range(count):
        talk = texts.dialogue(random, summaries)
        for way, summary in enumerate(talk["ways"], start=1):
            yield {
                "id": f"{split}_{number}" + (f"_{way}" if summaries > 1 else ""),
                "dialogue": str(talk["dialogue"]),
                "summary": summary,
                "topic": str(talk["topic"]),
            }


def dialogsum(folder: Path) -> None:
    """Write dialogues and summaries; the test split has each dialogue three times, as there."""
    for split, count, summaries in (("train", 80, 1), ("validation", 24, 1), ("test", 12, 3)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "dialogue", "summary", "topic"])
            writer.writeheader()
            writer.writerows(dialogsum_rows(count, split, summaries))


THREE_CLASSES = ("negative", "neutral", "positive")
SEVEN_CLASSES = (
    *("strong negative", "moderately negative", "mildly negative"),
    "neutral",
    *("mildly positive", "moderately positive", "strong positive"),
)


def sentiment_rows(count: int) -> Iterator[Row]:
    random = Random("sentiment")
    for number in range(count):
        # Of three rows one has seven classes.
        classes = SEVEN_CLASSES if number % 3 == 0 else THREE_CLASSES
        label = random.choice(classes)
        yield {
            "input": texts.news(random, label),
            "output": label,
            "instruction": "What is the sentiment of this news? Please choose an answer from "
            f"{{{'/'.join(classes)}}}.",
        }


def fingpt_sentiment_train(folder: Path) -> None:
    """Write news and their sentiment: one split, and many rows more than once, as there.

    The real set repeats three of its four sources 2, 6 and 21 times. A test split cut from it
    without looking would mostly hold training rows.
    """
    rows = list(sentiment_rows(330))
    rows += 2 * rows[:40]
    Random(SEED).shuffle(rows)
    _parquet(folder / "data" / "train-00000-of-00001-dabab110260ac909.parquet", rows)
    columns = [{"name": name, "dtype": "string"} for name in rows[0]]
    split = {"name": "train", "num_examples": len(rows)}
    _card(folder, {"dataset_info": {"features": columns, "splits": [split]}})


def openwebtext(folder: Path) -> None:
    """Write documents in two Parquet files, under the only configuration.

    The GPT-2 recipe holds the first 500 back, so that there must be more.
    """
    random = Random("openwebtext")
    rows = [
        {"text": "\n\n".join(texts.paragraph(random, 3) for _ in range(random.randint(1, 4)))}
        for _ in range(800)
    ]
    for number in range(2):
        path = folder / "plain_text" / f"train-{number:05}-of-00002.parquet"
        _parquet(path, rows[400 * number : 400 * (number + 1)])
    files = [{"split": "train", "path": "plain_text/train-*"}]
    configuration = {"config_name": "plain_text", "data_files": files, "default": True}
    _card(folder, {"configs": [configuration]})


def gsm8k_rows(count: int, split: str, socratic: bool = False) -> Iterator[Row]:
    random = Random(f"gsm8k {split}")
    for _ in range(count):
        question, steps = texts.word_problem(random)
        lines = [
            (f"{ask} ** " if socratic else "")
            + f"That is {work} = <<{work.replace(' ', '')}={value}>>{value}."
            for ask, work, value in steps
        ]
        result = int(steps[-1][-1])
        final = random.choice([f"{result:,}", f"{result}"])  # 1,200 or 1200, as there
        yield {"question": question, "answer": "\n".join([*lines, f"#### {final}"])}


def gsm8k(folder: Path) -> None:
    """Write word problems with worked answers, in two configurations; neither is the default."""
    configurations = []
    for name in ("main", "socratic"):
        for split, count in (("train", 260), ("test", 36)):
            rows = list(gsm8k_rows(count, split, socratic=name == "socratic"))
            _parquet(folder / name / f"{split}-00000-of-00001.parquet", rows)
        files = [{"split": split, "path": f"{name}/{split}-*"} for split in ("train", "test")]
        configurations.append({"config_name": name, "data_files": files})
    _card(folder, {"configs": configurations})


def finqa_rows(count: int) -> Iterator[Row]:
    random = Random("finqa")
    columns = ("Open-ended Verifiable Question", "Ground-True Answer", "Complex_CoT", "Response")
    for _ in range(count):
        yield dict(zip(columns, texts.finance_problem(random), strict=True))


def fino1_reasoning_path_finqa(folder: Path) -> None:
    """Write questions about a table inside a text, with reasoning and an answer in prose."""
    _parquet(folder / "data" / "train.parquet", list(finqa_rows(260)))


def openmath_rows(count: int) -> Iterator[Row]:
    random = Random("openmath")
    for number in range(count):
        problem, steps = texts.word_problem(random, whole=number % 3 > 0)
        top, bottom = steps[-1][-1].as_integer_ratio()
        answer = str(top) if bottom == 1 else f"\\frac{{{top}}}{{{bottom}}}"
        work = " ".join(f"{ask} That is ${work}={value}$." for ask, work, value in steps)
        thought = f"Okay. {texts.sentence(random)} {work}\n\nWait, once more. {work} Yes."
        yield {
            "expected_answer": answer,
            "problem_type": "has_answer_extracted",
            "problem_source": "aops_c4_high_school_math",
            "generation_model": "DeepSeek-R1",
            "pass_rate_72b_tir": random.choice(["0.96875", "0.53125", "n/a"]),
            "problem": problem,
            "generated_solution": f"<think>\n{thought}\n</think>{work} So $\\boxed{{{answer}}}$.",
            "inference_mode": "cot",
        }


def openmathreasoning_mini(folder: Path) -> None:
    """Write problems and solutions with the reasoning before them; the only split is `cot`."""
    _single(folder, "cot", list(openmath_rows(260)))


def finetome_rows(count: int) -> Iterator[Row]:
    random = Random("finetome")
    for _ in range(count):
        turns = []
        if random.random() < 0.2:
            turns.append({"from": "system", "value": texts.sentence(random)})
        for _ in range(random.randint(1, 3)):
            asked = f"{texts.sentence(random)} {texts.question(random)}"
            turns.append({"from": "human", "value": asked})
            turns.append({"from": "gpt", "value": texts.answer(random)})
        source = random.choice(["infini-instruct-top-500k", "WebInstructSub_axolotl"])
        score = round(random.uniform(2.5, 5.3), 6)
        yield {"conversations": turns, "source": source, "score": score}


def ultrafeedback_rows(count: int, split: str) -> Iterator[Row]:
    """Two conversations that differ in the answer; a few answers got the same score."""
    random = Random(f"ultrafeedback {split}")
    for _ in range(count):
        asked = f"{texts.sentence(random)} {texts.question(random)}"
        row: Row = {}
        for name in ("chosen", "rejected"):
            turns = [("user", asked), ("assistant", texts.answer(random))]
            row[name] = [{"content": said, "role": who} for who, said in turns]
        worse = random.choice([1.0, 5.5, 7.0])
        better = worse if random.random() < 0.1 else random.choice([7.5, 8.0, 9.0])
        yield row | {"score_chosen": better, "score_rejected": worse}


def ultrafeedback_binarized(folder: Path) -> None:
    """Write pairs without a prompt of their own: both conversations begin with it."""
    for split, count in (("train", 220), ("test", 40)):
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        _parquet(path, list(ultrafeedback_rows(count, split)))
    files = [{"split": split, "path": f"data/{split}-*"} for split in ("train", "test")]
    _card(folder, {"configs": [{"config_name": "default", "data_files": files}]})


def kto_mix_rows(count: int, split: str) -> Iterator[Row]:
    """Answers after one or two turns, half of them with a thumb up; the prompt is messages."""
    random = Random(f"kto mix {split}")
    for number in range(count):
        asked = f"{texts.sentence(random)} {texts.question(random)}"
        prompt = [{"content": asked, "role": "user"}]
        if random.random() < 0.2:
            prompt.append({"content": texts.answer(random), "role": "assistant"})
            prompt.append({"content": texts.question(random), "role": "user"})
        said = [{"content": texts.answer(random), "role": "assistant"}]
        yield {"prompt": prompt, "completion": said, "label": number % 2 == 0}


def kto_mix_14k(folder: Path) -> None:
    """Write single answers with `label`, true for a thumb up."""
    for split, count in (("train", 220), ("test", 40)):
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        _parquet(path, list(kto_mix_rows(count, split)))
    files = [{"split": split, "path": f"data/{split}-*"} for split in ("train", "test")]
    _card(folder, {"configs": [{"config_name": "default", "data_files": files}]})


def finetome_100k(folder: Path) -> None:
    """Write conversations of `human` and `gpt`, some after a `system` turn."""
    _single(folder, "train", list(finetome_rows(260)))


def _single(folder: Path, split: str, rows: list[Row]) -> None:
    """Write the only split of a data set; the card tells its name."""
    _parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    files = [{"split": split, "path": f"data/{split}-*"}]
    _card(folder, {"configs": [{"config_name": "default", "data_files": files}]})


def _parquet(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Dataset.from_list(rows).to_parquet(file)


def _card(folder: Path, settings: dict[str, Any]) -> None:
    """Write a data set card. JSON is YAML too."""
    (folder / "README.md").write_text(f"---\n{json.dumps(settings)}\n---\n", encoding="utf-8")
