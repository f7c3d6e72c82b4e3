"""The Modelfile beside a GGUF file: how Ollama writes a conversation, stops and samples.

Ollama writes conversations by a template in Go's language, and not by the tokenizer's own in Jinja
(from version 0.30 on it runs the latter where a Modelfile has no `TEMPLATE`). A wrong template is
the commonest reason for a model that talks gibberish after its conversion. So this one is not
written by hand: it is read off what the tokenizer's template makes of probes, and refused unless
it writes ten conversations letter by letter as the tokenizer's template does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path

from jinja2.exceptions import TemplateError as JinjaError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from cookbook.chat import render
from cookbook.profiles import CookbookError

# A base model continues a text: Ollama hands over the last question alone.
_PLAIN = "{{ .Prompt }}"
_START = ""  # what stands before the first turn in place of a role
_ASKED = ("user", "assistant", "user", "assistant", "user")
# What not every template takes: a system turn at the beginning or later on (`/set system` in
# `ollama run`), an assistant that speaks first.
_MORE = (
    ("system", "user"),
    ("user", "assistant", "system", "user"),
    ("assistant", "user"),
    ("system", "assistant", "user"),
)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")  # both name them so
_MEND = "Serve the model with llama.cpp's server, which runs the template itself: `make serve`."


class TemplateError(CookbookError):
    """A chat template that cannot be said in the language of Ollama's templates."""


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes between the contents of a conversation.

    `before` holds, for two roles that follow each other, all that stands between their contents:
    the end of the one turn and the header of the next. The first role of a conversation follows
    on `""`; what stands there may be a whole system turn that nobody wrote, as with SmolLM2. Where
    a template puts the system turn into the first question, as Gemma's does, there is but a blank
    line between the two. A turn of a role for which there is nothing is left out. `ending` follows
    the last content: the end of its turn and the generation prompt.
    """

    before: Mapping[tuple[str, str], str]
    ending: str

    def render(self, conversation: Sequence[Mapping[str, str]]) -> str:
        """Return what the Go template writes."""
        last, written = _START, ""
        for turn in conversation:
            step = (last, turn["role"])
            if step in self.before:
                written += self.before[step] + turn["content"]
                last = turn["role"]
        # An answer that is last is one that has begun: Ollama's own templates leave it open, too.
        return written if last == "assistant" else written + self.ending

    def in_go(self) -> str:
        """Return the same as a template in Go's language, over Ollama's `.Messages`."""
        steps = [
            f'if and (eq $last "{last}") (eq .Role "{role}") }}}}{_in_go(text)}'
            f'{{{{ .Content }}}}{{{{ $last = "{role}" }}}}'
            for (last, role), text in self.before.items()
        ]
        chain = "{{ else ".join(steps)
        ending = _in_go(self.ending)
        return (
            '{{ $last := "" }}{{ range .Messages }}{{ ' + chain + "{{ end }}{{ end }}"
            '{{ if not (eq $last "assistant") }}' + ending + "{{ end }}"
        )


def go_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's chat template in the language of Ollama's templates.

    It says what the tokenizer's template says with its defaults (a switch such as
    `enable_thinking` is left alone), but for the beginning-of-sequence token where llama.cpp adds
    that by itself. Tools and images are left out. Thoughts stay in earlier answers if the caller
    sends them, while some templates (Qwen3's) drop them there: Go's language cannot cut texts.
    Raises `TemplateError` where the result would differ from the tokenizer's template.
    """
    pieces = take_apart(tokenizer)
    check(pieces, tokenizer)
    return pieces.in_go()


def take_apart(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """Return the pieces of the tokenizer's chat template, by what it makes of probes.

    Raises `TemplateError` where it does not write out a plain conversation.
    """
    found = _probe(tokenizer, _ASKED)
    if found is None:
        raise TemplateError(
            "The chat template does not write the contents of a conversation one after the other, "
            f"so Ollama cannot be told what stands between them. {_MEND}"
        )
    before = dict(zip(pairwise((_START, *_ASKED)), found))
    for roles in _MORE:
        steps = dict(zip(pairwise((_START, *roles)), _probe(tokenizer, roles) or ()))
        if all(before.get(step, text) == text for step, text in steps.items()):
            before |= steps
    # Where a system turn is refused, its text opens the question, as `chat.fit_template` has it.
    for last, roles in ((_START, _MORE[0]), ("assistant", _MORE[1])):
        refused = _written(tokenizer, _conversation(roles)) is None
        if (last, "system") not in before and refused:
            before[last, "system"] = before[last, "user"]
            before.setdefault(("system", "user"), "\n\n")
    return Pieces(before, found[-1])


def check(pieces: Pieces, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `TemplateError` unless the pieces write what the tokenizer's template writes.

    A system turn that the template refuses is compared as the beginning of the question.
    """
    for number, conversation in enumerate(conversations(), start=1):
        wanted = _written(tokenizer, conversation)
        if wanted is None and conversation[0]["role"] == "system":
            wanted = _written(tokenizer, _with_rules_in_question(conversation))
        if wanted is None:
            raise TemplateError(
                f"The chat template refuses conversation {number} of {len(conversations())}, in "
                f"which user and assistant take turns, so nothing can be compared. {_MEND}"
            )
        got = pieces.render(conversation)
        if got != wanted:
            at = len(commonprefix([got, wanted]))
            raise TemplateError(
                "The chat template cannot be said in Ollama's language: in conversation "
                f"{number} of {len(conversations())} it writes {_shortened(wanted, at)} where its "
                f"pieces give {_shortened(got, at)}. {_MEND}"
            )


def conversations() -> list[list[dict[str, str]]]:
    """Return the ten conversations that a Go template is compared on.

    Each ends with a question, so that the generation prompt follows. Contents have no blanks at
    their ends: many templates trim those, which Go's language cannot. They hold no thoughts.
    """
    rules = "You are a careful assistant.\n\nAnswer in one sentence."
    code = 'def f(x):\n\treturn {"a": [x, {}], \'b\': f"{x!r}"}\n\n\n# `f` takes "x" \\ \'y\'\\n'
    go = '{{ .Content }} {{- if eq 1 1 -}} {% raw %} {# no #} }} { { """three""" `ticks`'
    page = "<b>x < y && y > z</b> &amp; <|user|> [INST] </s> <<SYS>> ### User: #"
    letters = "Żółć, ¿qué?, 日本語, مرحبا, \U0001f469\u200d\U0001f680, "
    letters += "e\u0301 and é, no-break\u00a0blank, zero\u200bwidth"
    return [
        _turns(["What is the capital of France?"]),
        _turns([letters], "Réponds en français — s'il te plaît."),
        _turns(["?", "!", "1"]),
        _turns(["0", "None", "false"], "-"),
        _turns([code, code, "And in Go?"], rules),
        _turns([go, go, go]),
        _turns([page, page, page], page),
        _turns(["One", "Two", "Three\n\n\nfour", "Five", "Six"]),
        _turns(["Hi", "Hello.", letters, code, go], rules),
        _turns(["A long question. " * 60 + "End.", "Yes, " * 200 + "no.", "Why?"], go),
    ]


def write_modelfile(
    folder: Path,
    gguf: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerationConfig,
    *,
    adapter: str | None = None,
) -> None:
    """Write `folder/Modelfile`, from which `ollama create` makes a model.

    `gguf` and `adapter` name files in the folder; Ollama takes no adapter from 0.34.1 on. The
    `settings` say which tokens end an answer and how it is sampled. Raises `TemplateError` where
    the tokenizer's chat template cannot be said, `CookbookError` for what a Modelfile cannot hold.
    Without a chat template, as after training from scratch, a prompt goes to the model as it is.
    The context's length is left to Ollama, which knows the machine's memory. Prints one line where
    a template writes the date.
    """
    lines = [f"FROM ./{_name(gguf)}"]
    if adapter is not None:
        lines += ["# Ollama refuses adapters from 0.34.1 on: merge this one into the model there."]
        lines += [f"ADAPTER ./{_name(adapter)}"]
    template = go_template(tokenizer) if tokenizer.chat_template else _PLAIN
    if "strftime_now" in str(tokenizer.chat_template):
        print("The chat template writes the date: in the Modelfile it stays that of today.")
    lines += ["TEMPLATE " + _quoted(template, '"""')]
    lines += [f"PARAMETER stop {_quoted(text)}" for text in _stops(tokenizer, settings)]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(settings).items()]
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _turns(contents: Sequence[str], system: str | None = None) -> list[dict[str, str]]:
    turns = [] if system is None else [{"role": "system", "content": system}]
    return turns + [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(contents)
    ]


def _conversation(roles: Sequence[str]) -> list[dict[str, str]]:
    """Return a conversation whose contents are found again in what a template writes."""
    return [{"role": role, "content": f"probe {at} of texts"} for at, role in enumerate(roles)]


def _with_rules_in_question(conversation: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    system, asked, *rest = conversation
    return [{**asked, "content": f"{system['content']}\n\n{asked['content']}"}, *rest]


def _probe(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> list[str] | None:
    """Return what stands before, between and after contents; None unless all stand there."""
    conversation = _conversation(roles)
    rest = _written(tokenizer, conversation) or ""
    found = []
    for turn in conversation:
        text, content, rest = rest.partition(turn["content"])
        if not content:
            return None
        found.append(text)
    return [*found, rest]


def rendered(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[dict[str, str]]
) -> str | None:
    """Return what the chat template writes, and asks for an answer; None where it refuses."""
    try:
        return render(tokenizer, conversation, add_generation_prompt=True)
    except (JinjaError, ValueError):
        return None


def _written(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[dict[str, str]]
) -> str | None:
    """Return what Ollama has to give llama.cpp for a conversation; None where it is refused.

    llama.cpp puts the beginning-of-sequence token before a text if the GGUF file has
    `add_bos_token`, which the converter copies from the tokenizer. A template that writes it, too,
    would give two, which hurts. So it is left out where the tokenizer, called on a text, adds it.
    """
    text = rendered(tokenizer, conversation)
    bos = tokenizer.bos_token
    if text and bos and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        return text.removeprefix(str(bos))
    return text


def _shortened(text: str, at: int) -> str:
    return repr(text[at : at + 40]) + ("..." if len(text) > at + 40 else "")


def _in_go(text: str) -> str:
    """Return a text as a Go template writes it: as it stands, or as a constant where it must be.

    An action would begin at `{{`, triple quotes would end the template in the Modelfile, and that
    one's reader drops letters that cannot be seen, such as a no-break blank.
    """
    seen = text.replace("\n", "").replace("\t", "").isprintable()
    if seen and "{{" not in text and not text.endswith("{") and '"""' not in text:
        return text
    return '{{ "' + "".join(map(_letter_in_go, text)) + '" }}' if text else ""


def _letter_in_go(letter: str) -> str:
    if letter in '"\\' or not letter.isprintable():
        return f"\\U{ord(letter):08x}"
    return letter


def _name(name: str) -> str:
    if not name.isprintable():
        raise CookbookError(
            f"A Modelfile cannot name the file {name!r}: give it a name of visible letters."
        )
    return name


def _quoted(text: str, quotes: str = '"') -> str:
    """Return a text between quotes that a Modelfile's reader takes off again, three if need be.

    It knows no escapes: inside three quotes all stands for itself, but three more and what cannot
    be seen.
    """
    seen = text.replace("\n", "").replace("\t", "").isprintable()
    if '"""' in text or not seen:
        raise CookbookError(
            f"A Modelfile cannot hold {_shortened(text, 0)}: three quotes end a value, and what "
            f"cannot be seen is dropped. {_MEND}"
        )
    quotes = '"""' if '"' in text or "\n" in text else quotes
    return f"{quotes}{text}{quotes}"


def ends_of(settings: GenerationConfig) -> list[int]:
    """Return the token ids that end an answer."""
    own = settings.eos_token_id
    return [own] if isinstance(own, int) else list(own or ())


def _stops(tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig) -> list[str]:
    """Return the texts of the tokens that end an answer."""
    numbers = ends_of(settings)
    texts = [str(tokenizer.decode([number], skip_special_tokens=False)) for number in numbers]
    return list(dict.fromkeys(text for text in texts if text))


def _parameters(settings: GenerationConfig) -> dict[str, object]:
    """Return how an answer is sampled, by Ollama's names."""
    # Ollama penalizes repetitions by 1.1 unless told otherwise; transformers by nothing. With it
    # a model that has to repeat the digits of a question answers otherwise than when it was tested.
    penalty = settings.repetition_penalty
    said: dict[str, object] = {"repeat_penalty": 1.0 if penalty is None else penalty}
    if not settings.do_sample:
        return {"temperature": 0, **said}
    named = {name: getattr(settings, name) for name in _SAMPLING}
    return {name: value for name, value in named.items() if value is not None} | said
