"""What was written as GGUF, loaded by llama.cpp and compared with the model it was made from."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from os.path import commonprefix
from pathlib import Path
from typing import Any

import httpx2
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cookbook.chat import render
from cookbook.profiles import CookbookError
from cookbook.serving import merging
from cookbook.serving.engine import MOST_CONTEXT, Engine, Settings
from cookbook.serving.modelfile import conversations, ends_of, rendered

# Nats a token by which an answer may be less likely than to the model itself. On the quickstart's
# run 32 and 16 bits differed by 0.000, 8 bits by up to 0.023, 4 bits by up to 0.059; tests put in a
# wrong order of heads, a wrong scale and more, and see each of them found.
CLOSE = {"f32": 0.01, "bf16": 0.1, "q8_0": 0.1, "q4_k_m": 0.7}
ANY = -1  # slot: the one whose last prompt begins most alike, or the one longest idle
_ALL = 2**30  # tokens of which probabilities are told: as many as there are
_BIAS = 1e5  # to a token's logit: it is chosen, while its probability is told without


class NotEqual(CookbookError):
    """What llama.cpp reads from a file is not what was written."""


@contextmanager
def opened(
    gguf: Path, adapter: Path | None = None, parallel: int = 1, context: int = MOST_CONTEXT
) -> Iterator["Llama"]:
    """Yield a GGUF model loaded by llama.cpp, alone, with its adapter applied.

    It answers `parallel` requests at once, each in a slot of `context` tokens.
    """
    engine = Engine(Settings(gguf, (adapter,) if adapter else (), context, parallel))
    engine.start()
    try:
        yield Llama(engine)
    finally:
        engine.stop()


class Llama:
    """Questions to an engine, by the endpoints of llama.cpp's own server."""

    def __init__(self, engine: Engine) -> None:
        self._adapters = [{"id": n, "scale": 1.0} for n in range(len(engine.settings.adapters))]
        # A connection for each request: on a kept one every answer waits 40 ms, as the server
        # writes it in two parts, the second of which waits for the client's delayed receipt.
        self._client = httpx2.Client(
            base_url=engine.address,
            headers=engine.headers(),
            timeout=600,
            trust_env=False,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def _ask(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        answer = self._client.post(path, json=content)
        if answer.status_code != 200:
            raise NotEqual(f"llama.cpp refuses {path}: {answer.text[:200]}")
        return dict(answer.json())

    def tokens(self, text: str, special: bool) -> list[int]:
        """Return a text's token ids, with what begins every text where `special`."""
        content = {"content": text, "add_special": special, "parse_special": True}
        return [int(token) for token in self._ask("/tokenize", content)["tokens"]]

    def rendered(self, turns: Sequence[dict[str, str]]) -> str:
        """Return what the chat template makes of a conversation, run by llama.cpp."""
        return str(self._ask("/apply-template", {"messages": list(turns)})["prompt"])

    def prompt_tokens(self, question: str) -> int:
        """Return how many tokens llama.cpp makes of a conversation with one question."""
        given = {"messages": [{"role": "user", "content": question}], "max_tokens": 1}
        return int(self._ask("/v1/chat/completions", given)["usage"]["prompt_tokens"])

    def log_probabilities(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Return the log-probability in nats of each token of an answer after a prompt.

        As far as llama.cpp would have chosen the same tokens one request tells all of theirs. A
        token that it would not have chosen is asked for alone.
        """
        found: list[float] = []
        while len(found) < len(answer):
            before, rest = [*prompt, *answer[: len(found)]], answer[len(found) :]
            said = self._said(before, len(rest))
            alike = takewhile(lambda one: one[0]["id"] == one[1], zip(said, rest))
            found += [float(one["logprob"]) for one, _ in alike]
            if len(found) < len(answer):
                before = [*prompt, *answer[: len(found)]]
                found.append(self.log_probability(before, answer[len(found)]))
        return found

    def log_probability(self, prompt: list[int], token: int, slot: int = ANY) -> float:
        """Return how likely a token is, chosen or not; `slot` is the one that knows the prompt."""
        said = self._said(prompt, 1, token, slot=slot)
        if not said:  # bytes within a letter: llama.cpp waits for its others before it tells them
            letter, *_ = self.tokens("a", special=False)
            (one,) = self._said(prompt, 1, letter, probabilities=_ALL, slot=slot)
            said = [other for other in one["top_logprobs"] if other["id"] == token]
        if [one["id"] for one in said] != [token]:
            raise NotEqual(f"llama.cpp gives {said} where token {token} was forced.")
        return float(said[0]["logprob"])

    def _said(
        self,
        prompt: list[int],
        most: int,
        forced: int | None = None,
        probabilities: int = 1,
        slot: int = ANY,
    ) -> list[dict[str, Any]]:
        given = {"prompt": prompt, "n_predict": most, "temperature": 0, "n_probs": probabilities}
        bias = {"logit_bias": [[forced, _BIAS]] if forced is not None else []}
        where = {"lora": self._adapters, "id_slot": slot}
        made = self._ask("/completion", {**given, **bias, **where})
        return list(made.get("completion_probabilities", []))

    def stops_at(self, prompt: Sequence[int], token: int) -> bool:
        """Tell whether an answer ends with this token."""
        bias = {"logit_bias": [[token, _BIAS]], "lora": self._adapters}
        made = self._ask("/completion", {"prompt": list(prompt), "n_predict": 2, **bias})
        return bool(made["stop_type"] == "eos")


@dataclass(frozen=True)
class Wanted:
    """What a model itself says: the tokens that end an answer, and its greedy answers.

    `answers` are (prompt, answer, log-probability in nats of each of the answer's tokens).
    """

    ends: list[int]
    answers: list[tuple[list[int], list[int], list[float]]]


def wanted_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Wanted:
    """Ask a model what files made of it are compared with; once for all of one precision."""
    answers = []
    for prompt in merging.prompts(tokenizer):
        answer = merging.greedy(model, tokenizer, prompt)
        answers.append((prompt, answer, merging.log_probability(model, prompt, answer)))
    settings: Any = model.generation_config
    return Wanted(ends_of(settings), answers)


def check_gguf(
    gguf: Path, wanted: Wanted, tokenizer: PreTrainedTokenizerBase, name: str
) -> list[str]:
    """Load a GGUF file by llama.cpp and compare it with its model; return what was found equal.

    Compared are the token ids of texts and conversations, the chat template's text, every token
    that ends an answer, and how likely the model's own greedy answers are. Raises `NotEqual`.
    """
    with opened(gguf) as llama:
        return _checked(llama, wanted, tokenizer, name)


def check_adapter_gguf(
    base: Path, adapter: Path, wanted: Wanted, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Load an adapter on its base by llama.cpp; both together have to be as PEFT has them."""
    with opened(base, adapter) as llama:
        return _checked(llama, wanted, tokenizer, "bf16")


def _checked(
    llama: Llama, wanted: Wanted, tokenizer: PreTrainedTokenizerBase, name: str
) -> list[str]:
    return [
        _tokens(llama, tokenizer),
        *_template(llama, tokenizer),
        *_prompts(llama, tokenizer),
        _ends(llama, wanted, tokenizer),
        _likely(llama, wanted, name),
    ]


def _tokens(llama: Llama, tokenizer: PreTrainedTokenizerBase) -> str:
    texts = [turn["content"] for turns in conversations() for turn in turns]
    texts += [_whole(tokenizer, turns) for turns in conversations()]
    # llama.cpp does not compose letters from their parts, as Qwen's tokenizer does first.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if composes := "NFC" in str(getattr(backend, "normalizer", "")):
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    for text in texts:
        for special in (False,) if merging.bos_left_out(tokenizer) else (True, False):
            ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
            got = llama.tokens(text, special)
            if got != ids:
                at = len(commonprefix([got, ids]))
                shown = [tokenizer.convert_ids_to_tokens(one[at : at + 3]) for one in (got, ids)]
                raise NotEqual(
                    f"llama.cpp cuts {text[:40]!r} into other tokens than the tokenizer does: "
                    f"{shown[0]} for {shown[1]}, from token {at} on. The GGUF file was not kept; "
                    "export FORMAT=safetensors."
                )
    return f"{len(texts)} texts: the same token ids" + (", letters composed" if composes else "")


def _whole(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """Return a conversation in one text, without a system turn where the template refuses it."""
    if tokenizer.chat_template is None:
        return "\n".join(turn["content"] for turn in turns)
    without = [turn for turn in turns if turn["role"] != "system"]
    return rendered(tokenizer, turns) or render(tokenizer, without, add_generation_prompt=True)


def _template(llama: Llama, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if tokenizer.chat_template is None:
        return []
    compared, bos = 0, str(tokenizer.bos_token or "")
    for turns in conversations():
        if (text := rendered(tokenizer, turns)) is None:  # a system turn that it refuses
            continue
        got, text = llama.rendered(turns).removeprefix(bos), text.removeprefix(bos)
        if got != text:
            at = len(commonprefix([got, text]))
            raise NotEqual(
                f"llama.cpp runs the chat template otherwise: {got[at:at + 40]!r} for "
                f"{text[at:at + 40]!r}. The GGUF file was not kept."
            )
        compared += 1
    return [f"{compared} conversations: the chat template writes the same"]


def _prompts(llama: Llama, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Compare the length of whole prompts: a first token too many or too few shows there."""
    if tokenizer.chat_template is None:
        return []
    for question, prompt in zip(merging.QUESTIONS, merging.prompts(tokenizer), strict=True):
        got = llama.prompt_tokens(question)
        if got != len(prompt):
            raise NotEqual(
                f"llama.cpp makes {got} tokens of a prompt that had {len(prompt)} in training: the "
                "token that begins a text is there twice, or not at all. It was not kept."
            )
    return [f"{len(merging.QUESTIONS)} prompts: as many tokens as in training"]


def _ends(llama: Llama, wanted: Wanted, tokenizer: PreTrainedTokenizerBase) -> str:
    prompt, *_ = wanted.answers[0]
    names = [str(tokenizer.convert_ids_to_tokens(end)) for end in wanted.ends]
    for end, name in zip(wanted.ends, names, strict=True):
        if not llama.stops_at(prompt, end):
            raise NotEqual(f"llama.cpp does not end an answer at {name}: it was not kept.")
    return f"answers end at {', '.join(names)}"


def _likely(llama: Llama, wanted: Wanted, name: str) -> str:
    ours, theirs = list[float](), list[float]()
    for prompt, answer, likely in wanted.answers:
        ours += likely
        theirs += llama.log_probabilities(prompt, answer)
    loss = (sum(ours) - sum(theirs)) / len(ours)
    mend = "Try more bits (QUANT=bf16)" if "q" in name else "Export it with FORMAT=safetensors"
    if not abs(loss) <= CLOSE[name]:  # no number is not close, either
        raise NotEqual(
            f"The answers of the model itself are {loss:.2f} nats a token less likely to llama.cpp "
            f"({CLOSE[name]} is the most for {name}): it was not kept. {mend}."
        )
    return f"{len(ours)} tokens of its own answers: {loss:+.3f} nats each against float32"
