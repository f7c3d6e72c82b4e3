"""The notebook contract, one function per rule: notebook in, list of complaints out."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from nbformat import NotebookNode
from packaging.utils import canonicalize_name

SECTIONS = [
    "Setup and Dependencies",
    "Imports",
    "Data Loading",
    "Model Configuration",
    "Training",
    "Evaluation",
    "Inference Examples",
    "Next Steps",
]
PROFILES = ["cpu", "gpu16", "gpu80"]
SHORTEST_COPY = 4  # lines; shorter pieces are alike by chance
LONGEST_CELL = 25  # lines of code that a reader takes in at once
BEFORE = "Before training"
# What is there because a processor is slow, or a library has a fault on it: behind `cookbook.cpu`.
BEHIND_THE_DOOR = {
    "attn_implementation",
    "dataloader_pin_memory",
    "disable_input_dtype_casting",
    "keep_4bit_layers_trainable",
    "keep_freed_memory",
    "on_gpu",
    "use_cpu",
}

# Import name -> distribution, for packages that are not installed where the rules run.
KNOWN_DISTRIBUTIONS = {
    "bitsandbytes": "bitsandbytes",
    "deeplake": "deeplake",
    "math_verify": "math-verify",
    "openai": "openai",
    "optuna": "optuna",
    "peft": "peft",
    "rouge_score": "rouge-score",
    "sentencepiece": "sentencepiece",
    "sklearn": "scikit-learn",
    "starlette": "starlette",
    "trl": "trl",
    "uvicorn": "uvicorn",
    "xllamacpp": "xllamacpp",
}


def code_cells(notebook: NotebookNode) -> list[str]:
    """Sources of the code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def calls(notebook: NotebookNode, name: str) -> Iterator[dict[str, ast.expr]]:
    """Yield the arguments of each call of a function, by their names or places ("0", "1", ...).

    Those that a mapping gives are called "**", of several mappings the first.
    """
    for node in ast.walk(ast.parse("\n".join(code_cells(notebook)))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
            named = {one.arg or "**": one.value for one in reversed(node.keywords)}
            yield {str(place): one for place, one in enumerate(node.args)} | named


def headings(markdown: str) -> Iterator[tuple[int, str]]:
    """(level, text) of each heading outside code fences."""
    fenced = False
    for line in markdown.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        match = re.match(r"(#{1,6})\s+(.*?)\s*#*$", line)
        if match and not fenced:
            yield len(match.group(1)), match.group(2)


def _parsed(notebook: NotebookNode) -> Iterator[ast.Module]:
    for source in code_cells(notebook):
        try:
            yield ast.parse(source)
        except SyntaxError:
            continue  # reported by plain_python


def _nodes(notebook: NotebookNode) -> Iterator[ast.AST]:
    for module in _parsed(notebook):
        yield from ast.walk(module)


def plain_python(notebook: NotebookNode) -> list[str]:
    """Cells are Python: no shell, no magics, so that `make script` gives a script that runs."""
    complaints = []
    for source in code_cells(notebook):
        try:
            ast.parse(source)
        except SyntaxError as error:
            line = source.splitlines()[(error.lineno or 1) - 1] if source else ""
            complaints.append(f"no plain Python (shell command, magic or mistake): {line.strip()}")
    return complaints


def sections(notebook: NotebookNode) -> list[str]:
    """A title in the first cell, then the eight sections at level 2, in order."""
    markdown = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    found = [heading for cell in markdown for heading in headings(cell.source)]
    complaints = []
    if not notebook.cells or not re.match(r"# \S", notebook.cells[0].source):
        complaints.append("the first cell does not begin with the title (# ...)")
    if [level for level, _ in found].count(1) != 1:
        complaints.append("there must be exactly one title (#)")
    second = [text for level, text in found if level == 2]
    if second != SECTIONS:
        complaints.append(f"the sections (##) are {second}, not {SECTIONS}")
    return complaints


def first_cell(notebook: NotebookNode) -> list[str]:
    """What one will learn, licences, and a line with time and memory for each profile.

    "not measured" stands for a figure that nobody has measured yet.
    """
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        return ["the first cell is no text"]
    text = notebook.cells[0].source
    complaints = []
    if not re.search(r"\byou(?:'ll| will) learn\b", text, re.IGNORECASE):
        complaints.append('the first cell does not say what "you will learn"')
    if not re.search(r"\blicen[cs]e|\bApache-2\.0|\bMIT\b|\bCC-", text, re.IGNORECASE):
        complaints.append("the first cell names no licence")
    for profile in PROFILES:
        lines = [line for line in text.splitlines() if re.search(rf"\b{profile}\b", line)]
        timed = any(
            re.search(r"\d\s*(?:s|min|minutes?|h|hours?)\b|not measured", line) for line in lines
        )
        sized = any(re.search(r"\d\s*(?:MB|MiB|GB|GiB)\b|not measured", line) for line in lines)
        if not (timed and sized):
            complaints.append(f"the first cell has no time and memory for profile {profile}")
    return complaints


def parameters(notebook: NotebookNode) -> list[str]:
    """Exactly one cell tagged `parameters`; it defines SETTINGS, three values for each setting."""
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        return [f"there are {len(tagged)} cells tagged parameters; one code cell is wanted"]
    try:
        body = ast.parse(tagged[0].source).body
    except SyntaxError:
        return ["the cell tagged parameters is no Python"]
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.AnnAssign):
            target = node.target
        if isinstance(target, ast.Name) and target.id == "SETTINGS":
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            return _settings_complaints(node.value)
    return ["the cell tagged parameters defines no SETTINGS"]


def _settings_complaints(value: ast.expr | None) -> list[str]:
    try:
        table = ast.literal_eval(value) if isinstance(value, ast.Dict) else None
    except ValueError:
        table = None
    if table is None:
        return ["SETTINGS is no dict literal"]
    return [
        f"SETTINGS has no value for each of {', '.join(PROFILES)} in {name}"
        for name, row in table.items()
        if not isinstance(row, tuple) or len(row) != len(PROFILES)
    ]


def short_cells(notebook: NotebookNode) -> list[str]:
    """No cell has more lines than a reader takes in at once; the table of settings may."""
    lengths = [
        (number, len(cell.source.splitlines()))
        for number, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])
    ]
    return [
        f"cell {number} has {length} lines; {LONGEST_CELL} are the most"
        for number, length in lengths
        if length > LONGEST_CELL
    ]


def scored_before(notebook: NotebookNode) -> list[str]:
    """Scoring the untrained model is a step of its own in the section on training."""
    markdown = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    found = [one for cell in markdown for one in headings(cell.source) if one[0] < 4]
    places = [n for n, one in enumerate(found) if one == (3, BEFORE)]
    inside = [
        n for n in places if [text for level, text in found[:n] if level == 2][-1:] == ["Training"]
    ]
    return [] if len(inside) == 1 else [f'there is no step "### {BEFORE}" in the section Training']


def one_door(notebook: NotebookNode) -> list[str]:
    """What only a processor needs stands behind `cpu.`, where a reader with a GPU skips it."""
    used = {
        getattr(node, "id", getattr(node, "attr", getattr(node, "arg", None)))
        for node in _nodes(notebook)
    }
    used |= {node.value for node in _nodes(notebook) if isinstance(node, ast.Constant)}
    return [
        f"{name} is a processor's business: see cookbook/cpu.py"
        for name in sorted(BEHIND_THE_DOOR)
        if name in used
    ]


def lesson(notebook: NotebookNode) -> list[str]:
    """Cells tagged `lesson` are there, and import nothing of this repository."""
    tagged = [one for one in notebook.cells if "lesson" in one.metadata.get("tags", [])]
    complaints = [] if len(tagged) > 2 else ["fewer than three cells are tagged lesson"]
    for cell in tagged:
        if re.search(r"^\s*(from|import) cookbook\b", cell.source, re.MULTILINE):
            complaints.append("a cell tagged lesson imports cookbook")
    return complaints


def stripped(notebook: NotebookNode) -> list[str]:
    """Committed without outputs and execution counts."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    complaints = []
    if any(cell.outputs for cell in cells):
        complaints.append("there are outputs; make format strips them")
    if any(cell.execution_count is not None for cell in cells):
        complaints.append("there are execution counts; make format strips them")
    return complaints


def installs_nothing(notebook: NotebookNode) -> list[str]:
    """No package manager is called, in whatever way; an error may name the command that mends."""
    pattern = re.compile(
        r"^\s*[!%]|\b(?:pip3?|uv|conda|mamba|apt|apt-get|poetry)\b['\", ]+install\b"
        r"|os\.system|ensurepip",
        re.MULTILINE,
    )
    return [
        f"installs something or calls a shell: {match.group().strip()}"
        for source in code_cells(notebook)
        for match in pattern.finditer(re.sub(r'raise SystemExit\(\s*"[^"]*"\s*\)', "", source))
    ]


def no_remote_code(notebook: NotebookNode) -> list[str]:
    """`trust_remote_code` runs what a stranger uploaded."""
    found = any("trust_remote_code" in source for source in code_cells(notebook))
    return ["uses trust_remote_code"] if found else []


def no_login(notebook: NotebookNode) -> list[str]:
    """No login cell, no token: nothing that stops a run without an account.

    The key of a server that the notebook itself started is none of these.
    """
    complaints = []
    for node in _nodes(notebook):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in {"login", "notebook_login", "interpreter_login", "getpass"}:
                complaints.append(f"calls {name}()")
            complaints += [
                f"passes {keyword.arg}="
                for keyword in node.keywords
                if keyword.arg in {"token", "use_auth_token", "api_key", "hub_token"}
                and ast.unparse(keyword.value) != "server.key"
            ]
    token = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\b(?:HF|HUGGING\w*)_TOKEN\b")
    if any(token.search(cell.source) for cell in notebook.cells):
        complaints.append("names a token")
    return complaints


def imports(notebook: NotebookNode, allowed: set[str]) -> list[str]:
    """Imports come from the standard library, cookbook, or the `allowed` distributions."""
    complaints = []
    for name in sorted(imported_modules(notebook)):
        if name in sys.stdlib_module_names or name == "cookbook":
            continue
        sources = distributions_of(name, metadata.packages_distributions())
        if sources.isdisjoint(allowed):
            complaints.append(
                f"imports {name} ({', '.join(sorted(sources)) or 'unknown'}), which is a direct "
                "dependency neither of core nor of the folder's group"
            )
    return complaints


def imported_modules(notebook: NotebookNode) -> set[str]:
    """Top-level names of what the notebook imports, at any depth of its code."""
    found = set()
    for node in _nodes(notebook):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def distributions_of(module: str, installed: Mapping[str, list[str]]) -> set[str]:
    """Normalised names of the distributions that provide an import name."""
    known = KNOWN_DISTRIBUTIONS.get(module)
    provided = [*installed.get(module, []), *([known] if known else [])]
    return {str(canonicalize_name(name)) for name in provided}


def swallows_nothing(notebook: NotebookNode) -> list[str]:
    """No exception is caught and dropped."""
    return [
        f"line {node.lineno} of a cell catches an exception and drops it"
        for node in _nodes(notebook)
        if isinstance(node, ast.ExceptHandler) and all(_is_empty(line) for line in node.body)
    ] + [
        "uses contextlib.suppress"
        for node in _nodes(notebook)
        if isinstance(node, ast.Name | ast.Attribute)
        and getattr(node, "id", getattr(node, "attr", "")) == "suppress"
    ]


def scored_by_one_process(notebook: NotebookNode) -> list[str]:
    """Where several processes run the notebook's script, only the first scores and saves."""
    cells = notebook.cells
    starts = {one.source.partition("\n")[0]: at for at, one in enumerate(cells)}
    evaluation = starts.get("## Evaluation", len(cells))
    section = cells[evaluation : starts.get("## Inference Examples", len(cells))]
    code = next((one.source for one in section if one.cell_type == "code"), "")
    before = "".join(one.source for one in cells[:evaluation] if one.cell_type == "code")
    if code and "training.first_process_goes_on()" not in before + code:
        return ["several processes would score and save: call training.first_process_goes_on()"]
    return []


def _is_empty(node: ast.stmt) -> bool:
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return constant or isinstance(node, ast.Pass | ast.Continue)


def copies(notebooks: Mapping[str, NotebookNode]) -> list[str]:
    """Cells and functions of four lines or more that occur in more than one notebook."""
    places: dict[str, set[str]] = defaultdict(set)
    label: dict[str, str] = {}
    for name, notebook in notebooks.items():
        for title, piece in _pieces(notebook):
            places[piece].add(name)
            label[piece] = title
    return [
        f"{label[piece]} is the same in {', '.join(sorted(found))}"
        for piece, found in places.items()
        if len(found) > 1
    ]


def _pieces(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """(what it is, normalised code) of each cell and function long enough to compare.

    The syntax tree is compared, so that blanks and comments make no difference.
    """
    for module in _parsed(notebook):
        if _is_setup(module) or _only_trains(module):
            continue  # the contract asks every notebook for this cell
        if not all(isinstance(node, ast.Import | ast.ImportFrom) for node in module.body):
            yield from _long("a cell", module.body)
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _long(f"function {node.name}()", node.body)


def _is_setup(module: ast.Module) -> bool:
    calls = (node.func for node in ast.walk(module) if isinstance(node, ast.Call))
    return any(isinstance(name, ast.Name) and name.id == "choose_profile" for name in calls)


def _only_trains(module: ast.Module) -> bool:
    """Tell whether a cell resumes or begins the training, checks that it ended, and no more."""
    code = [ast.unparse(node) for node in module.body]
    if "planned = plan.compared(trainer, checkpoint)" in code[1:]:
        code.remove("planned = plan.compared(trainer, checkpoint)")
    return code == [
        "with training.guarded(trainer) as checkpoint:\n"
        "    trainer.train(resume_from_checkpoint=checkpoint)"
    ]


def _long(title: str, body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    code = "\n".join(ast.unparse(statement) for statement in _without_docstring(body))
    lines = sum(len(ast.unparse(node).splitlines()) for node in _without_docstring(body))
    if lines >= SHORTEST_COPY:
        yield title, code


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if is_text else body


def folder_of(path: Path) -> str:
    """The technique folder a notebook lies in."""
    return path.parent.name
