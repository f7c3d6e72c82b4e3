"""A Modelfile's template writes what the tokenizer's does, and its values are read as meant."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import nbformat
import pytest
from jinja2.exceptions import TemplateError as JinjaError
from tokenizers import processors
from transformers import AutoTokenizer, GenerationConfig

from cookbook.chat import fit_template
from cookbook.offline import offline_path
from cookbook.profiles import ROOT, CookbookError
from cookbook.serving.modelfile import (
    Pieces,
    TemplateError,
    check,
    conversations,
    go_template,
    take_apart,
    write_modelfile,
)
from tests.hub import tokenizing
from tests.unit import templates

pytestmark = pytest.mark.unit

needs_go = pytest.mark.skipif(
    shutil.which("go") is None,
    reason="Go is not on the PATH: apt-get install -y --no-install-recommends golang-go",
)
RULES = {"role": "system", "content": "Rules."}
ASKED = {"role": "user", "content": "Why?"}
SAID = {"role": "assistant", "content": "Because."}
CHATML = templates.KINDS["chatml"]
# A system turn that is no turn of its own, and a header that a model with `<s>` gets each time.
LLAMA_2 = (
    "{% for turn in messages %}{% if turn.role == 'user' %}"
    "{{ bos_token + '[INST] ' }}{% if loop.index0 == 1 and messages[0].role == 'system' %}"
    "{{ '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ turn.content + ' [/INST]' }}{% elif turn.role == 'assistant' %}"
    "{{ ' ' + turn.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# What a template's text may hold that means something in Go or in a Modelfile.
LITERALS = {
    "action": "{{ .Content }}",
    "brace": "a {",
    "quotes": 'a """ b',
    "unseen": "a\u00a0b\u200b\r",
    "escapes": 'a "b" \\n {{- \\',
    "plain": '"}} `b` <c> &amp; \t\\',
}
NUMBERED = CHATML.template.replace("turn.role +", "turn.role + loop.index | string +")
CHANGING = CHATML.template.replace(
    "turn.role +", "turn.role + ('!' if turn.content | length > 9 else '') +"
)


def of_kind(name: str, template: str | None = None) -> Any:
    made = templates.KINDS[name].tokenizer()
    if template is not None:
        made.chat_template = template
    return made


def of_notebooks() -> dict[str, str]:
    """Return the templates that notebooks give models without one."""
    found = {}
    for path in sorted(ROOT.glob("0?-*/*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code" or "chat_template" not in cell.source:
                continue
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                    if "messages" in str(node.value.value):
                        found[path.stem] = str(node.value.value)
    return found


@cache
def tokenizers() -> dict[str, Any]:
    """Return tokenizers by what their templates are."""
    made = {f"kind {name}": kind.tokenizer() for name, kind in templates.KINDS.items()}
    del made["kind in-parts"]
    made |= {f"notebook {name}": of_kind("chatml", text) for name, text in of_notebooks().items()}
    made["llama-2"] = of_kind("mistral", LLAMA_2)
    for name, text in LITERALS.items():
        before = CHATML.template.replace(
            "'\\n' + turn.content", json.dumps(text) + "+ turn.content"
        )
        made[f"literal {name}"] = of_kind("chatml", before)
    made["switch"] = of_kind(
        "chatml", CHATML.template.replace("assistant\\n' -}}", "assistant\\n' -}}{{ '<think>' }}")
    )
    return made


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return tokenizers as those of the loopback Hub, and the real one."""
    qwen, qwen3, gemma = (tmp_path_factory.mktemp(name) for name in ("qwen", "qwen3", "gemma"))
    return {
        "Qwen2.5": tokenizing.qwen_tokenizer(qwen, tokenizing.QWEN2_5_TEMPLATE, ()),
        "Qwen3": tokenizing.qwen_tokenizer(qwen3, tokenizing.QWEN3_TEMPLATE, ("<think>",)),
        "Gemma 3": tokenizing.gemma_tokenizer(gemma),
        "SmolLM2": tokenizing.smollm2_tokenizer(chat_template=tokenizing.SMOLLM2_TEMPLATE),
        "SmolLM2 itself": AutoTokenizer.from_pretrained(offline_path("SmolLM2-135M-Instruct")),
    }


@pytest.fixture(scope="module")
def in_go(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[list[str]]]:
    """Return what real Go makes of pairs of a template and conversations."""
    folder = tmp_path_factory.mktemp("go")
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off"}
    source = Path(__file__).with_name("render.go")
    build = ["go", "build", "-o", str(folder / "render"), str(source)]
    subprocess.run(build, check=True, env=environment)

    def run(*tasks: tuple[str, Sequence[Any]]) -> list[list[str]]:
        given = json.dumps([{"template": one, "conversations": two} for one, two in tasks])
        command = [str(folder / "render")]
        done = subprocess.run(command, input=given, check=True, capture_output=True, text=True)
        return cast("list[list[str]]", json.loads(done.stdout))

    return run


def in_jinja(tokenizer: Any, conversation: Sequence[Any]) -> str:
    """Return what the tokenizer's own template writes, its system turn where it takes one."""
    settings = {"tokenize": False, "add_generation_prompt": True}
    try:
        return str(tokenizer.apply_chat_template(conversation, **settings))
    except JinjaError:
        rules, asked, *rest = conversation
        assert rules["role"] == "system"
        joined = {**asked, "content": f"{rules['content']}\n\n{asked['content']}"}
        return str(tokenizer.apply_chat_template([joined, *rest], **settings))


def adds_bos(tokenizer: Any) -> Any:
    """Return the tokenizer, which now begins each text with its BOS token."""
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def test_there_are_ten_conversations_of_every_kind() -> None:
    made = conversations()
    assert len(made) == 10
    lengths = {len([turn for turn in one if turn["role"] != "system"]) for one in made}
    assert lengths == {1, 3, 5}  # who asks last has asked first
    assert {one[0]["role"] for one in made} == {"system", "user"}
    texts = [turn["content"] for one in made for turn in one]
    assert all(text == text.strip() and "<|im_end|>" not in text for text in texts)
    assert all(any(part in text for text in texts) for part in ("{{", '"""', "`", "\n\n\n", "日"))
    for one in made:
        roles = [turn["role"] for turn in one if turn["role"] != "system"]
        assert roles == [("user", "assistant")[at % 2] for at in range(len(roles))]
        assert roles[-1] == "user"


@pytest.mark.parametrize("name", list(tokenizers()))
def test_pieces_write_what_the_template_writes(name: str) -> None:
    tokenizer = tokenizers()[name]
    pieces = take_apart(tokenizer)
    for conversation in conversations():
        assert pieces.render(conversation) == in_jinja(tokenizer, conversation)


def test_pieces_write_what_models_of_the_hub_write(hub: dict[str, Any]) -> None:
    for name, tokenizer in hub.items():
        pieces = take_apart(tokenizer)
        begin = "<bos>" if name == "Gemma 3" else ""
        for conversation in conversations():
            assert begin + pieces.render(conversation) == in_jinja(tokenizer, conversation)


def test_templates_of_all_notebooks_are_among_them() -> None:
    names = set(of_notebooks())
    assert {"Falcon-7B-LoRA", "Qwen3-Reasoning-Conversational"} < names
    assert len(names) > 5
    assert "### Assistant:" in go_template(tokenizers()["notebook Falcon-7B-LoRA"])


@needs_go
def test_real_go_writes_what_the_templates_write(
    hub: dict[str, Any], in_go: Callable[..., list[list[str]]]
) -> None:
    every = {**tokenizers(), **hub}
    every["llama-2 with BOS"] = adds_bos(of_kind("mistral", LLAMA_2))
    written = in_go(*((go_template(one), conversations()) for one in every.values()))
    for (name, tokenizer), texts in zip(every.items(), written, strict=True):
        begin = {"Gemma 3": "<bos>", "llama-2 with BOS": "<s>"}.get(name, "")
        wanted = [in_jinja(tokenizer, one) for one in conversations()]
        assert [begin + text for text in texts] == wanted, name


@needs_go
def test_real_go_writes_what_pieces_write_of_other_conversations(
    in_go: Callable[..., list[list[str]]],
) -> None:
    called = {"role": "tool", "content": "42"}
    others = [[RULES], [SAID, ASKED], [RULES, SAID, ASKED], [ASKED, SAID], [ASKED, called, SAID]]
    others += [[ASKED, SAID, RULES, ASKED], [ASKED, RULES, ASKED]]
    every = [take_apart(one) for one in tokenizers().values()]
    written = in_go(*((one.in_go(), others) for one in every))
    for pieces, texts in zip(every, written, strict=True):
        assert texts == [pieces.render(one) for one in others]


@needs_go
def test_a_plain_prompt_stays_as_it_is_in_real_go(in_go: Callable[..., list[list[str]]]) -> None:
    assert in_go(("{{ .Prompt }}", [[ASKED]])) == [["Why?"]]


def test_a_system_turn_that_nobody_wrote_is_written(hub: dict[str, Any]) -> None:
    pieces = take_apart(hub["SmolLM2 itself"])
    assert pieces.render([ASKED]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "SmolLM" not in pieces.render([RULES, ASKED])


def test_a_system_turn_opens_the_question_where_the_template_puts_it_there(
    hub: dict[str, Any],
) -> None:
    assert take_apart(hub["Gemma 3"]).render([RULES, ASKED, SAID, ASKED]) == (
        "<start_of_turn>user\nRules.\n\nWhy?<end_of_turn>\n<start_of_turn>model\nBecause."
        "<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_refused_system_turn_goes_where_training_puts_it(name: str) -> None:
    pieces, fitted = take_apart(of_kind(name)), of_kind(name)
    both = [RULES, ASKED, SAID, RULES, ASKED]
    fit_template(fitted, [{"prompt": both, "completion": [SAID]}])
    for conversation in ([RULES, ASKED], both):
        assert pieces.render(conversation) == in_jinja(fitted, conversation)


def test_a_later_system_turn_and_a_greeting_are_written_as_by_the_template() -> None:
    for name in ("chatml", "default-system", "llama-3", "zephyr", "vicuna", "deepseek-r1"):
        tokenizer = of_kind(name)
        for conversation in ([ASKED, SAID, RULES, ASKED], [SAID, ASKED], [RULES, SAID, ASKED]):
            written = take_apart(tokenizer).render(conversation)
            assert written == in_jinja(tokenizer, conversation), name


def test_an_answer_that_has_begun_is_left_open() -> None:
    assert take_apart(of_kind("chatml")).render([ASKED, SAID]).endswith("assistant\nBecause.")


def test_bos_is_left_out_only_where_the_tokenizer_adds_it_too(hub: dict[str, Any]) -> None:
    assert "<bos>" not in go_template(hub["Gemma 3"])
    assert "<bos>" in go_template(of_kind("gemma"))
    assert "<bos>" not in go_template(adds_bos(of_kind("gemma")))
    # Here later questions begin with it, too, and keep it.
    pieces = take_apart(adds_bos(of_kind("mistral", LLAMA_2)))
    written = pieces.render([ASKED, SAID, ASKED])
    assert written == "[INST] Why? [/INST] Because. </s><s>[INST] Why? [/INST]"
    # SmolLM2's BOS token begins each turn; its tokenizer does not add it.
    assert hub["SmolLM2 itself"].bos_token == "<|im_start|>"
    assert "<|im_start|>system" in go_template(hub["SmolLM2 itself"])


def test_a_switch_keeps_its_default(hub: dict[str, Any]) -> None:
    written = take_apart(hub["Qwen3"]).render([ASKED])
    assert written.endswith("<|im_start|>assistant\n") and "<think>" not in written


@pytest.mark.parametrize("template", [NUMBERED, CHANGING], ids=["numbers", "lengths"])
def test_what_cannot_be_said_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match="conversation 3 of 10 it writes .* `make serve`"):
        go_template(of_kind("chatml", template))


def test_what_writes_no_contents_or_refuses_a_chat_is_refused() -> None:
    with pytest.raises(TemplateError, match="does not write the contents"):
        go_template(of_kind("in-parts"))
    with pytest.raises(TemplateError, match="does not write the contents"):
        go_template(of_kind("chatml", "{{ raise_exception('no chat') }}"))
    once = "{% if messages | length == 1 %}{{ raise_exception('short') }}{% endif %}"
    with pytest.raises(TemplateError, match="refuses conversation 1 of 10"):
        go_template(of_kind("chatml", once + CHATML.template))


@pytest.mark.parametrize("name", ["chatml", "default-system", "gemma", "vicuna"])
def test_each_piece_is_checked(name: str) -> None:
    tokenizer = of_kind(name)
    pieces = take_apart(tokenizer)
    check(pieces, tokenizer)
    used = [("", "user"), ("user", "assistant"), ("assistant", "user")]
    for step in [*used, ("", "system"), ("system", "user")]:
        for text in (pieces.before[step] + " ", "!" + pieces.before[step]):
            with pytest.raises(TemplateError, match="where its pieces give"):
                check(replace(pieces, before={**pieces.before, step: text}), tokenizer)
    for text in ("", pieces.ending + "\n"):
        with pytest.raises(TemplateError, match="where its pieces give"):
            check(replace(pieces, ending=text), tokenizer)
    fewer = {step: text for step, text in pieces.before.items() if step[1] != "assistant"}
    with pytest.raises(TemplateError, match="where its pieces give"):
        check(replace(pieces, before=fewer), tokenizer)
    with pytest.raises(TemplateError, match="where its pieces give"):
        check(take_apart(of_kind("zephyr")), tokenizer)


def read(text: str) -> list[tuple[str, str]]:
    """Return a Modelfile's instructions as Ollama reads them.

    A value ends with its line, unless quotes are open; what cannot be seen is dropped.
    """
    found, lines = [], text.split("\n")
    while lines:
        line = lines.pop(0)
        if not line or line.startswith("#"):
            continue
        name, value = line.split(" ", 1)
        if name == "PARAMETER":
            name, value = value.split(" ", 1)
        quotes = next((one for one in ('"""', '"') if value.startswith(one)), "")
        while quotes and (len(value) < 2 * len(quotes) or not value.endswith(quotes)):
            value += "\n" + lines.pop(0)
        value = value[len(quotes) : len(value) - len(quotes)]
        found.append((name, "".join(one for one in value if one in "\n\t" or one.isprintable())))
    return found


def written(folder: Path, tokenizer: Any, **settings: Any) -> list[tuple[str, str]]:
    write_modelfile(folder, "model.gguf", tokenizer, GenerationConfig(**settings))
    return read((folder / "Modelfile").read_text(encoding="utf-8"))


def test_a_modelfile_is_read_as_it_was_meant(tmp_path: Path) -> None:
    tokenizer = of_kind("chatml")
    assert written(tmp_path, tokenizer, eos_token_id=tokenizer.eos_token_id) == [
        ("FROM", "./model.gguf"),
        ("TEMPLATE", go_template(tokenizer)),
        ("stop", "<|im_end|>"),
        ("temperature", "0"),
        ("repeat_penalty", "1.0"),
    ]


def test_what_means_something_in_go_is_a_constant() -> None:
    assert "{{ .Content }}{{ .Content }}" not in go_template(tokenizers()["literal action"])
    assert r"a \U00000022\U00000022\U00000022 b" in go_template(tokenizers()["literal quotes"])
    assert LITERALS["plain"] in go_template(tokenizers()["literal plain"])


def test_every_template_is_read_as_it_was_meant(tmp_path: Path) -> None:
    for tokenizer in tokenizers().values():
        assert dict(written(tmp_path, tokenizer))["TEMPLATE"] == go_template(tokenizer)


def test_an_adapter_is_named_after_the_model(tmp_path: Path) -> None:
    settings = GenerationConfig()
    write_modelfile(tmp_path, "base.gguf", of_kind("chatml"), settings, adapter="my adapter.gguf")
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert read(text)[:2] == [("FROM", "./base.gguf"), ("ADAPTER", "./my adapter.gguf")]
    assert "0.34" in text


def test_every_token_that_ends_an_answer_stops(tmp_path: Path) -> None:
    tokenizer = of_kind("chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": ['say "no"', "<eot>"]})
    names = ["<|im_end|>", 'say "no"', "<eot>", "<eot>"]
    ends = tokenizer.convert_tokens_to_ids(names)
    stops = [value for name, value in written(tmp_path, tokenizer, eos_token_id=ends)[2:5]]
    assert stops == names[:3]
    assert "stop" not in dict(written(tmp_path, tokenizer))


@pytest.mark.parametrize("token", ['<"""end>', "end\u00a0"])
def test_a_token_that_a_modelfile_cannot_hold_is_refused(tmp_path: Path, token: str) -> None:
    tokenizer = of_kind("chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    with pytest.raises(CookbookError, match="cannot hold"):
        written(tmp_path, tokenizer, eos_token_id=tokenizer.convert_tokens_to_ids(token))


def test_a_name_of_two_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CookbookError, match="cannot name"):
        write_modelfile(tmp_path, "a\nSYSTEM b", of_kind("chatml"), GenerationConfig())


def test_sampling_is_that_of_the_settings(tmp_path: Path) -> None:
    tokenizer = of_kind("chatml")
    sampled = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05}
    got = written(tmp_path, tokenizer, do_sample=True, repetition_penalty=1.05, **sampled)
    assert got[2:] == [
        ("temperature", "0.6"),
        ("top_p", "0.95"),
        ("top_k", "20"),
        ("min_p", "0.05"),
        ("repeat_penalty", "1.05"),
    ]
    # What is not set is not written, and greedy is greedy whatever else is set.
    assert dict(written(tmp_path, tokenizer, do_sample=True, top_k=7)[2:]) == {
        "top_k": "7",
        "repeat_penalty": "1.0",
    }
    assert written(tmp_path, tokenizer, repetition_penalty=1.2, top_k=7)[2:] == [
        ("temperature", "0"),
        ("repeat_penalty", "1.2"),
    ]


def test_without_a_chat_template_the_prompt_goes_in_as_it_is(tmp_path: Path) -> None:
    tokenizer = of_kind("chatml")
    tokenizer.chat_template = None
    write_modelfile(tmp_path, "model.gguf", tokenizer, GenerationConfig())
    lines = (tmp_path / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines[1] == 'TEMPLATE """{{ .Prompt }}"""'


def test_a_template_that_writes_the_date_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, of_kind("chatml"))
    assert capsys.readouterr().out == ""
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML.template
    written(tmp_path, of_kind("chatml", dated))
    assert "stays that of today" in capsys.readouterr().out


def test_nothing_is_written_where_the_template_cannot_be_said(tmp_path: Path) -> None:
    with pytest.raises(TemplateError):
        written(tmp_path, of_kind("chatml", NUMBERED))
    assert not (tmp_path / "Modelfile").exists()


def test_pieces_skip_roles_that_the_template_does_not_know() -> None:
    pieces = Pieces({("", "user"): "Q: "}, "\nA:")
    assert pieces.render([RULES, ASKED]) == "Q: Why?\nA:"
