"""`make chat` as a person types into it: answers, commands, and what goes wrong."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from cookbook.commands import chat
from cookbook.profiles import CookbookError
from cookbook.serving import runs
from tests.serving import finished
from tests.unit import tiny

pytestmark = pytest.mark.unit

Talk = Callable[..., str]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter changes every answer of its base."""
    root = tmp_path_factory.mktemp("adapted")
    base = finished.write_base("smollm2", root / "base")
    tokenizer = finished.tokenizer_of(base)
    folder = root / "runs" / "02-PEFT" / "Tiny-LoRA" / "cpu"
    return finished.write_run(folder, base, finished.adapted(base, tokenizer), tokenizer)


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of T5 with an adapter; like the real one it has no chat template."""
    root = tmp_path_factory.mktemp("t5")
    base = finished.write_base("t5", root / "base")
    tokenizer = finished.tokenizer_of(base)
    tokenizer.chat_template = None
    model = finished.adapted(base, tokenizer)
    folder = root / "runs" / "03-Instruction-Tuning" / "Tiny-T5" / "cpu"
    return finished.write_run(folder, base, model, tokenizer, kind="lora")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run that trained all weights of a base whose context is 128 tokens."""
    base, tokenizer = tmp_path / "base", tiny.tokenizer()
    tiny.model(seed=0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    folder = tmp_path / "runs" / "01-Full-Fine-Tuning" / "Tiny" / "cpu"
    return finished.write_run(folder, base, tiny.model(seed=1), tokenizer, kind="model")


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Type lines into the command and return what it prints."""

    def typed(run: Path | str, *lines: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()  # of what was loaded before
        assert chat.main([str(run)]) == status
        said = capsys.readouterr()
        return said.out + said.err

    return typed


def answers(said: str) -> list[str]:
    """Return what was printed after the header, without the line end of the input's end."""
    return said.rstrip("\n").split("\n")[1:]


def test_answers_are_those_of_the_model(adapted: Path, talk: Talk) -> None:
    conversation = chat.Conversation(runs.find(str(adapted)))
    text = conversation._prompt([{"role": "user", "content": "What is new?"}])
    given = torch.tensor([text])
    output = conversation.model.generate(input_ids=given, max_new_tokens=512, do_sample=False)
    wanted = str(conversation.tokenizer.decode(output[0, len(text) :], skip_special_tokens=True))
    said = talk(adapted, "What is new?")
    assert said.split("\n", 1)[1].rstrip("\n") == wanted.rstrip("\n")
    assert "its adapter on base" in said


def test_an_answer_is_printed_while_it_is_written(
    adapted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    conversation = chat.Conversation(runs.find(str(adapted)))
    monkeypatch.setattr(sys, "stdout", Terminal())
    conversation.ask("What is new?")
    assert len([text for text in written if text.strip()]) > 3


def test_the_untrained_model_answers_otherwise_and_is_not_remembered(
    adapted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = chat.Conversation(runs.find(str(adapted)))
    monkeypatch.setattr(chat, "LONGEST_ANSWER", 16)
    conversation.ask("What is new?")
    trained = capsys.readouterr().out
    before = [dict(turn) for turn in conversation.turns]
    conversation.ask_base()
    assert capsys.readouterr().out != trained
    assert conversation.turns == before and len(before) == 2
    again = chat.Conversation(runs.find(str(adapted)))
    again.ask("What is new?")
    assert again.turns == before


def test_what_was_said_is_read_again(adapted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = chat.Conversation(runs.find(str(adapted)))
    monkeypatch.setattr(chat, "LONGEST_ANSWER", 4)
    seen: list[int] = []
    generate = conversation.model.generate

    def counted(**given: Any) -> Any:
        seen.append(given["input_ids"].shape[1])
        return generate(**given)

    monkeypatch.setattr(conversation.model, "generate", counted)
    for question in ("One?", "Two?"):
        conversation.ask(question)
    chat._act(conversation, "/reset")
    conversation.ask("One?")
    assert seen[1] > seen[0] == seen[2]
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"]


def test_commands(adapted: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "LONGEST_ANSWER", 4)
    assert "Ask something first" in talk(adapted, "/base")
    assert "Ask something first" in talk(adapted, "/system Be brief.", "/base")
    assert "/system  what comes after" in talk(adapted, "/help")
    assert "/system  what comes after" in talk(adapted, "/nonsense")
    assert "(a new conversation)" in talk(adapted, "/reset")
    assert answers(talk(adapted, "/quit", "What is new?")) == []
    assert answers(talk(adapted, "", "   ")) == []


def test_a_system_turn_is_read(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = chat.Conversation(runs.find(str(adapted)))
    chat._act(conversation, "/system Be brief.")
    assert "Be brief." in conversation._rendered(
        [*conversation.turns, {"role": "user", "content": "?"}]
    )
    chat._act(conversation, "/reset Be long.")
    assert conversation.turns == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}", "refuses"),
        ("{% for t in messages if t.role == 'user' %}{{ t.content }}{% endfor %}", "leaves"),
        (None, "no chat template"),
    ],
)
def test_a_system_turn_that_has_no_place(
    adapted: Path, capsys: pytest.CaptureFixture[str], template: str | None, said: str
) -> None:
    conversation = chat.Conversation(runs.find(str(adapted)))
    conversation.tokenizer.chat_template = template
    try:
        chat._act(conversation, "/system Be brief.")
    except CookbookError as error:
        print(error)
        assert conversation.turns == []
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("command", ["Two?", "/base"])
def test_ctrl_c_during_an_answer(
    adapted: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(chat, "LONGEST_ANSWER", 4)
    kept: list[chat.Conversation] = []
    create = chat.Conversation.__init__

    def created(self: chat.Conversation, run: runs.Run) -> None:
        create(self, run)
        kept.append(self)
        generate, calls = self.model.generate, iter((False, True, False))

        def interrupted(**given: Any) -> Any:
            if next(calls):
                raise KeyboardInterrupt
            return generate(**given)

        monkeypatch.setattr(self.model, "generate", interrupted)

    monkeypatch.setattr(chat.Conversation, "__init__", created)
    said = talk(adapted, "One?", command, "Three?")
    assert "(stopped, and forgotten)" in said
    questions = [turn["content"] for turn in kept[0].turns if turn["role"] == "user"]
    assert questions == ["One?", "Three?"] and len(kept[0].turns) == 4
    # The adapter is on again after an untrained answer that was stopped.
    layers = [one for one in kept[0].model.modules() if isinstance(one, BaseTunerLayer)]
    assert layers and not any(layer.disable_adapters for layer in layers)


def test_a_long_conversation_loses_its_oldest_turns(whole: Path, talk: Talk) -> None:
    words = " ".join(["w1"] * 30)
    said = talk(whole, words, words, words, words)
    assert "the oldest turns are left out" in said


def test_a_question_longer_than_the_context_is_refused_and_nothing_is_lost(
    whole: Path, talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = chat.Conversation(runs.find(str(whole)))
    conversation.ask("w1 w2")
    before = list(conversation.turns)
    with pytest.raises(CookbookError, match="the model takes 128: say it in fewer"):
        conversation.ask(" ".join(["w1"] * 200))
    assert conversation.turns == before
    assert "say it in fewer" in talk(whole, " ".join(["w1"] * 200))


def test_whole_weights_have_a_base_to_ask(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = chat.Conversation(runs.find(str(whole)))
    conversation.ask("w1 w2 w3")
    trained = capsys.readouterr().out
    conversation.ask_base()
    assert capsys.readouterr().out != trained and len(conversation.turns) == 2


def test_a_base_that_is_gone_is_told_and_the_conversation_goes_on(whole: Path, talk: Talk) -> None:
    (whole.parents[3] / "base").rename(whole.parents[3] / "elsewhere")
    said = talk(whole, "w1", "/base", "w2")
    assert "is gone" in said and len(answers(said)) == 3


def test_added_tokens_can_be_said_to_the_base(tmp_path: Path) -> None:
    base, tokenizer = tmp_path / "base", tiny.tokenizer()
    tiny.model(seed=0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    model = tiny.model(seed=1)
    model.resize_token_embeddings(len(tokenizer))
    folder = tmp_path / "runs" / "01-Full-Fine-Tuning" / "Tiny" / "cpu"
    run = finished.write_run(folder, base, model, tokenizer, kind="model")
    conversation = chat.Conversation(runs.find(str(run)))
    conversation.ask("w1 <new>")
    conversation.ask_base()


def test_from_scratch_there_is_no_base_and_no_template(tmp_path: Path, talk: Talk) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    folder = tmp_path / "runs" / "01-Full-Fine-Tuning" / "Tiny-From-Scratch" / "cpu"
    run = finished.write_run(folder, None, tiny.model(), tokenizer, kind="model")
    said = talk(run, "w1 w2", "/base")
    assert "trained from random weights" in said
    assert "what you type is continued as it stands" in said
    assert "there is no untrained one to ask" in said


def test_an_encoder_decoder_answers(encoder_decoder: Path, talk: Talk) -> None:
    said = talk(encoder_decoder, "summarize: What is new?", "/base")
    assert len([line for line in answers(said)[1:] if line]) >= 2


def test_settings_of_the_run_do_not_stop_an_answer(whole: Path) -> None:
    conversation = chat.Conversation(runs.find(str(whole)))
    own = conversation.model.generation_config
    own.max_new_tokens, own.max_length, own.num_beams = 5, 7, 3
    conversation.ask("w1")


def test_no_run(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapted: Path) -> None:
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path / "runs"))
    assert "CookbookError: No run has finished yet." in talk("", status=1)
    unfinished = tmp_path / "runs" / "02-PEFT" / "Falcon-7B-LoRA" / "cpu"
    (unfinished / "checkpoints" / "checkpoint-20").mkdir(parents=True)
    finished.write_json(unfinished / "run.json", {"model": "a", "max_steps": 40})
    said = talk(unfinished, status=1)
    assert "it reached step 20 of 40" in said and "NB=02-PEFT/Falcon-7B-LoRA.ipynb" in said


class Keyboard(io.StringIO):
    """A terminal on which somebody types."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_prompts(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed: Iterator[str | type[BaseException]] = iter(["w1", KeyboardInterrupt, "/base", EOFError])

    def ask(prompt: str) -> str:
        print(prompt, end="")
        given = next(typed)
        if isinstance(given, str):
            print(given)
            return given
        raise given

    monkeypatch.setattr(sys, "stdin", Keyboard())
    monkeypatch.setattr("builtins.input", ask)
    assert chat.main([str(whole)]) == 0
    said = capsys.readouterr().out
    order = (
        "/help\n\nyou> w1\ntrained> ",
        "\n\nyou> \n(/quit",
        "/base\nuntrained> ",
        "\n\nyou> \n",
    )
    places = [said.index(part) for part in order]
    assert places[:3] == sorted(places[:3])
