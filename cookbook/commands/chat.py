"""Talk to a finished run in the terminal, and to the model that it began from.

`python -m cookbook.commands.chat [RUN]` is what `make chat` calls; without RUN it takes the newest.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import BitsAndBytesConfig, PreTrainedModel, TextStreamer
from transformers.models.falcon import modeling_falcon

from cookbook import memory
from cookbook.chat import render
from cookbook.forms import Turn
from cookbook.paths import as_typed, start_command
from cookbook.profiles import CookbookError, compute_dtype
from cookbook.serving import merging, runs

HELP = """/base    ask the untrained model the last question, in the same conversation
/reset   begin a new conversation
/system  what comes after it is the system turn of a new conversation
/quit    leave (or Ctrl-D); Ctrl-C stops an answer"""
LONGEST_ANSWER = 512  # tokens


class Conversation:
    """A run's model, and what was said to it so far."""

    def __init__(self, run: runs.Run) -> None:
        self.run = run
        self.tokenizer = merging.load_tokenizer(run.tokenizer)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = merging.load(run, compute_dtype(), **self._placed())
        self._base: Any = None
        self.turns: list[Turn] = []

    def _placed(self) -> dict[str, Any]:
        """Return where the model goes: to the GPU, in 4 bits where it would not fit in 16."""
        if self.device == "cpu":
            return {}
        path = runs.base_of(self.run) if self.run.adapter else str(self.run.weights)
        placed: dict[str, Any] = {"device_map": self.device}
        if memory.free_bytes() < merging.MARGIN * 2 * merging.weights_of(path):
            # Of its own class, Falcon's layers would stay in 16 bits: see its notebook.
            modeling_falcon.FalconLinear = torch.nn.Linear  # type: ignore[misc, assignment]
            placed["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=compute_dtype(),
            )
        return placed

    def ask(self, question: str) -> None:
        """Print the trained model's answer while it is written, and remember both.

        Of an answer that was stopped, or a question that is refused, nothing is remembered.
        """
        turns = self._fitting([*self.turns, {"role": "user", "content": question}])
        answer = self._answer(self.model, turns, "trained> ")
        self.turns = [*turns, {"role": "assistant", "content": answer}]

    def ask_base(self) -> None:
        """Print the untrained model's answer to the last question; it is not remembered."""
        if not self.turns or self.turns[-1]["role"] != "assistant":
            print("Ask something first; /base puts the last question to the untrained model.")
            return
        model, untrained = self.base()
        if model is None:
            print("This model began from random weights: there is no untrained one to ask.")
            return
        with untrained():
            self._answer(model, self.turns[:-1], "untrained> ")

    def base(self) -> tuple[Any, Callable[[], AbstractContextManager[None]]]:
        """Return the untrained model and how to enter it; None after training from scratch."""
        if self.run.adapter:
            return self.model, self.model.disable_adapter
        if self._base is None and "model_files" in self.run.settings:
            placed = self._placed()
            base = merging.load_base(self.run, self.tokenizer, compute_dtype(), **placed)
            self._base = base.eval()
        return self._base, nullcontext

    def begin(self, system: str = "") -> None:
        """Begin a new conversation; say so where the chat template has no place for its rules."""
        self.turns = []
        print("(a new conversation)")
        if system and self.tokenizer.chat_template is None:
            print("This model has no chat template, and so no system turn.")
        elif system:
            begun: list[Turn] = [{"role": "system", "content": system}]
            if system not in self._rendered([*begun, {"role": "user", "content": "?"}]):
                print("The chat template leaves system turns out: the model does not see this one.")
            self.turns = begun

    def _answer(self, model: PreTrainedModel, turns: list[Turn], speaker: str) -> str:
        ids = self._prompt(turns)
        both = model.config.is_encoder_decoder  # which answers beside the question, not after it
        settings = copy.deepcopy(self.model.generation_config)
        settings.max_length, settings.num_beams = None, 1  # beams cannot be streamed
        room = LONGEST_ANSWER if both else self._context() - len(ids)
        settings.max_new_tokens = min(LONGEST_ANSWER, room)
        settings.pad_token_id = self.tokenizer.pad_token_id
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        given = torch.tensor([ids], device=model.device)
        if sys.stdin.isatty():
            print(speaker, end="", flush=True)
        with torch.inference_mode():
            output: Any = model.generate(  # type: ignore[operator]
                input_ids=given,
                attention_mask=torch.ones_like(given),
                generation_config=settings,
                streamer=streamer,
            )
        start = 1 if both else len(ids)
        return str(self.tokenizer.decode(output[0, start:], skip_special_tokens=True))

    def _prompt(self, turns: list[Turn]) -> list[int]:
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer(turns[-1]["content"])["input_ids"])
        text = self._rendered(turns)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rendered(self, turns: list[Turn]) -> str:
        try:
            return render(self.tokenizer, turns, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            rules = " Begin anew without a system turn: /reset." if len(turns) > 1 else ""
            raise CookbookError(
                f"The chat template refuses this conversation ({error}).{rules}"
            ) from error

    def _context(self) -> int:
        """Return how many tokens the model takes; relative positions set no bound of their own."""
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        return int(longest or min(self.tokenizer.model_max_length, 2**15))

    def _fitting(self, turns: list[Turn]) -> list[Turn]:
        """Return a conversation without its oldest turns where all of it would be too long.

        Raises `CookbookError` where its last question alone leaves no room for an answer.
        """
        longest, kept = self._context(), turns
        room = min(LONGEST_ANSWER, longest // 4)
        first = 1 if turns[0]["role"] == "system" else 0
        while len(ids := self._prompt(kept)) + room > longest and len(kept) - first > 2:
            kept = [*kept[:first], *kept[first + 2 :]]
        if len(ids) >= longest:
            raise CookbookError(
                f"That has {len(ids)} tokens, and the model takes {longest}: say it in fewer."
            )
        if len(kept) < len(turns) and self.tokenizer.chat_template is not None:
            print("(Longer than the model's context: the oldest turns are left out.)")
        return kept


def talk(conversation: Conversation) -> None:
    """Read questions and commands until the input ends."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            line = input("\nyou> " if terminal else "").strip()
        except KeyboardInterrupt:
            if not terminal:
                return
            print("\n(/quit or Ctrl-D leaves)")
            continue
        except EOFError:
            print()
            return
        if line in ("/quit", "/exit"):
            return
        try:
            _act(conversation, line)
        except KeyboardInterrupt:
            print("\n(stopped, and forgotten)")
        except CookbookError as error:
            print(error)


def _act(conversation: Conversation, line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/base":
        conversation.ask_base()
    elif command in ("/reset", "/system"):
        conversation.begin(rest.strip() if command == "/system" else "")
    elif command.startswith("/") and command[1:].isalpha():
        print(HELP)
    elif line:
        conversation.ask(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="", help="the folder of a finished run")
    options = parser.parse_args(arguments)
    start_command()
    merging.quiet()
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives `input` its arrows and its history)
    try:
        run = runs.find(options.run)
        conversation = Conversation(run)
    except CookbookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    base = run.metrics["model"] if "model_files" in run.settings else "random weights"
    what = f"its adapter on {base}" if run.adapter else f"trained from {base}"
    print(f"{as_typed(run.folder)}: {what}. /base, /reset, /quit, /help")
    if conversation.tokenizer.chat_template is None:
        print("It has no chat template: what you type is continued as it stands.")
    talk(conversation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
