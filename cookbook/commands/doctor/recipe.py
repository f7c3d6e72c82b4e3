"""What `make check-data` takes from a recipe: its own lines, so that both say the same.

The statements that choose a template, check labels and plan a training are executed as they stand
in the notebook; nothing of them is written a second time.
"""

import ast
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat

from cookbook.commands.run import parameters, recipe_of
from cookbook.profiles import CookbookError

Names = dict[str, Any]


@contextmanager
def heard(said: list[str]) -> Iterator[None]:
    """Keep what is printed meanwhile, line by line, for the report."""
    stream = io.StringIO()
    try:
        with redirect_stdout(stream):
            yield
    finally:
        said += [line for line in stream.getvalue().splitlines() if line.strip()]


class Recipe:
    """A notebook's code, and the questions that a look through data has for it."""

    def __init__(self, path: Path) -> None:
        try:
            notebook = nbformat.read(path, as_version=4)
        except (ValueError, AttributeError, nbformat.reader.NotJSONError) as error:
            raise CookbookError(f"{path} is no notebook ({error}). Name one: NB=02-PEFT/...") from (
                error
            )
        self.name = recipe_of(path)
        self.settings: dict[str, tuple[Any, ...]] = parameters(notebook).get("SETTINGS", {})
        if not self.settings:
            raise CookbookError(f"{path} has no SETTINGS table, so it is no recipe.")
        self.cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        self.source = "\n".join(self.cells)
        self.texts = "data.text_batches" in self.source
        self.judges = "KTOTrainer(" in self.source  # single answers, by thumbs
        of_pairs = ("DPOTrainer(", "RewardTrainer(")
        self.prefers = self.judges or any(one in self.source for one in of_pairs)
        self.grpo = "GRPOTrainer(" in self.source and not self.prefers
        self.problems = "own_answers.load_tokenizer(" in self.source  # prompts made by the package
        self.checks = self.grpo or self.problems  # results of problems, by a program
        self.figures = "#### figure" in self.source
        self.pairs = self._pairs()
        self.apart = next(iter(re.findall(r'apart="(\w+)"', self.source)), "")
        self.labels = self.pairs is not None and self.pairs[1] == "label"

    def _nodes(self) -> Iterator[ast.AST]:
        for cell in self.cells:
            yield from ast.walk(ast.parse(cell))

    def _pairs(self) -> tuple[str, str] | None:
        """Return the two columns that rows are read into; None where it takes conversations."""
        for node in self._nodes():
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "as_pairs":
                asked, answered = ast.literal_eval(node.args[1])
                return str(asked), str(answered)
        return ("prompt", "completion") if self.prefers else None

    def instruction(self, labels: Iterable[str]) -> str:
        """Return the system text that the recipe puts before every question; empty without one."""
        if self.problems:
            from cookbook.own_answers import INSTRUCTION

            return INSTRUCTION
        given: Names = {"labels": list(labels)}
        for node in self._nodes():
            if isinstance(node, ast.Assign) and _assigns(node, {"INSTRUCTION"}):
                _execute([node], given)
        return str(given.get("INSTRUCTION", ""))

    def choose_template(self, tokenizer: Any) -> None:
        """Give the tokenizer the template that the recipe gives it, if it does."""
        if self.problems:
            from cookbook.own_answers import PLAIN_TEMPLATE

            tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
        given: Names = {"tokenizer": tokenizer}
        # The first cell that does: a later one may set it back, to compare.
        cell = next((one for one in self.cells if "tokenizer.chat_template = " in one), "")
        for node in ast.walk(ast.parse(cell)):
            chooses = isinstance(node, ast.If) and any(map(_sets_template, node.body))
            if chooses or _assigns(node, {"TEMPLATE", "its_own_template"}):
                _execute([node], given)

    def check(self, names: set[str], given: Names) -> Names:
        """Execute what first assigns `names`, and what beside it defines functions, fills `names`
        in a loop, or raises by a condition on them.

        Returns all names there are then.
        """
        bodies = (ast.parse(cell).body for cell in self.cells)
        first: list[ast.stmt] = next(
            (body for body in bodies if any(_assigns(one, names) for one in body)), []
        )
        for node in first:
            raises = isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)
            asks = raises and names & {*_used([getattr(node, "test")])}
            fills = isinstance(node, ast.For) and names & {*_called_on(node)}
            if asks or fills or _assigns(node, names) or isinstance(node, ast.FunctionDef):
                _execute([node], given)
        return given

    def plans(self, given: Names) -> list[Any]:
        """Execute the cells from the examples to the plan; return what the planner said in them."""
        from cookbook import planner

        made: list[Any] = []

        def plan_training(*arguments: Any, **named: Any) -> Any:
            made.append(planner.plan_training(*arguments, **named))
            return made[-1]

        last = next(n for n, cell in enumerate(self.cells) if "planner.plan_training(" in cell)
        first = last
        if not self.texts and not self.prefers:
            shows = [n for n, cell in enumerate(self.cells[:last]) if "SupervisedView(" in cell]
            first = shows[-1] + 1
        body = [node for cell in self.cells[first : last + 1] for node in ast.parse(cell).body]
        if self.prefers:  # answers may be made by the model: only the adapter is needed before
            body[:0] = [node for node in self._nodes() if _assigns(node, {"lora"})]
        asked = SimpleNamespace(
            plan_training=plan_training,
            shapes=planner.shapes,
            answer_shapes=planner.answer_shapes,
            Shape=planner.Shape,
        )
        names = {**self._imported({*_used(body)} - {*given}), **given, "planner": asked}
        with heard([]):
            _execute(body, names)
        return made

    def _imported(self, wanted: set[str]) -> Names:
        """Import what the notebook imports under these names, and nothing else of it."""
        found: Names = {}
        for node in self._nodes():
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                node.names = [one for one in node.names if (one.asname or one.name) in wanted]
                if node.names:
                    _execute([node], found)
        return found


def _used(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        yield from (one.id for one in ast.walk(node) if isinstance(one, ast.Name))


def _called_on(node: ast.AST) -> Iterator[str]:
    """Yield the names of which a statement calls a method, like `append` or `setdefault`."""
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute):
            yield from _used([one.func.value])


def _assigns(node: ast.AST, names: set[str]) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(one, ast.Name) and one.id in names for one in targets)


def _sets_template(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(getattr(one, "attr", "") == "chat_template" for one in targets)


def _execute(nodes: list[Any], names: Names) -> None:
    """Run statements of a notebook of this repository, as `make notebook` would."""
    exec(compile(ast.Module(nodes, type_ignores=[]), "<notebook>", "exec"), names)
