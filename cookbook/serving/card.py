"""The model card of what leaves this machine: base, licence, data, and what was measured."""

import json
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

from cookbook.data import EMBEDDED
from cookbook.offline.manifest import PRODUCTS
from cookbook.report import before_after_table
from cookbook.serving.runs import Run, public_base

# The embedded model's id on the Hub. Its weights here came from 4 bits, and differ a little.
# pragma: allowlist nextline secret
_ON_HUB = {"SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_WAIT = 10  # seconds for the page of a base, without which a card is written, too
_ASK = {
    "chat": """from transformers import pipeline
pipe = pipeline("text-generation", "{folder}")
pipe([{{"role": "user", "content": "..."}}], max_new_tokens=128)""",
    "text": """from transformers import pipeline
pipe = pipeline("text-generation", "{folder}")
pipe("...", max_new_tokens=128)""",
    "both": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSeq2SeqLM.from_pretrained("{folder}")
output = model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=128)
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
    "adapter": """from peft import AutoPeftModelFor{task}
model = AutoPeftModelFor{task}.from_pretrained("{folder}")""",
    "gguf": "llama-server -m {file}",
}


def base_on_hub(run: Run) -> str:
    """Return the id or name under which others find a run's base; never a path."""
    name = public_base(run)
    return _ON_HUB.get(name, name)


def _has_id(run: Run) -> bool:
    """Tell whether a run's base is one of the Hub's: a folder's name may be somebody else's id."""
    return base_on_hub(run).count("/") == 1 and not Path(str(run.settings["model"])).is_absolute()


def licence_of(run: Run) -> str | None:
    """Return the licence of a run's base as its source names it; None where nobody says.

    Of a base on the Hub its page is asked, if the Hub can be reached.
    """
    name = str(run.metrics["model"])
    if name.startswith(EMBEDDED):
        known = {product.name: product for product in PRODUCTS}
        found = known.get(name.removeprefix(EMBEDDED))
        return found.sources[0].data_licence.lower() if found else None
    if not _has_id(run) or constants.HF_HUB_OFFLINE:
        return None
    try:
        data = HfApi().model_info(name, timeout=_WAIT).card_data
    except (HfHubHTTPError, HTTPError, OSError):
        return None  # the card says then that the base's licence applies
    return str(data.license) if data and data.get("license") else None


def write(run: Run, folder: Path, kind: str) -> None:
    """Write `README.md`: what the folder holds, of which base, and what the run measured."""
    from_scratch = run.adapter is None and "model_files" not in run.settings
    licence = licence_of(run)
    head = [
        *_library(kind, folder),
        *([f"base_model: {base_on_hub(run)}"] if _has_id(run) and not from_scratch else []),
        *([f"license: {licence}"] if licence and not from_scratch else []),
        "tags: [fine-tuned, llm-finetuning-cookbook]",
    ]
    train, metrics = run.metrics["train"], run.metrics
    where = "random weights" if from_scratch else base_on_hub(run)
    note = ""
    if str(metrics["model"]).startswith(EMBEDDED) and not from_scratch:
        note = (
            "\nIt was trained on weights that had been in 4 bits (Q4_1) in the package they came "
            "from; on the base's own weights it scores a little differently.\n"
        )
    rights = "That of the training data applies"
    if not from_scratch:
        of_base = f"The base has the licence {licence}" if licence else "The base's licence applies"
        rights = f"{of_base}. {rights} as well"
    text = f"""---
{chr(10).join(head)}
---
# {run.name}

{kind[0].upper()}{kind[1:]}, trained from {where} on {metrics["dataset"]}
({train["tokens"]} tokens, {train["steps"]} steps, seed {metrics["seed"]}) by the notebook
{run.recipe} of the LLM Finetuning Cookbook, profile {metrics["profile"]}.
{note}
## Measured

The same examples before and after training, with 95 % intervals:

```
{before_after_table(metrics)}
```

## Use

```
{_use(run, folder)}
```

## Licence

{rights}.
"""
    ModelCard(text).save(folder / "README.md")


def _library(kind: str, folder: Path) -> list[str]:
    if "GGUF" in kind:
        return []  # the Hub knows the files, and what runs them
    library = "peft" if "adapter" in kind else "transformers"
    task = [] if _task(folder) == "Seq2SeqLM" else ["pipeline_tag: text-generation"]
    return [f"library_name: {library}", *task]


def _task(folder: Path) -> str:
    """Return what of transformers' classes a saved model or adapter is for."""
    of_adapter, of_model = folder / "adapter_config.json", folder / "config.json"
    path = of_adapter if of_adapter.is_file() else of_model
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    both = settings.get("is_encoder_decoder") or settings.get("task_type") == "SEQ_2_SEQ_LM"
    return "Seq2SeqLM" if both else "CausalLM"


def _use(run: Run, folder: Path) -> str:
    """Return the lines that load what a folder holds."""
    gguf = next((path.name for path in folder.glob("*.gguf")), "")
    if (folder / "adapter_config.json").is_file():
        form = "adapter"
    elif gguf:
        form = "gguf"
    elif _task(folder) == "Seq2SeqLM":
        form = "both"
    else:
        form = "chat" if (folder / "chat_template.jinja").is_file() else "text"
    return _ASK[form].format(folder=run.name, file=gguf, task=_task(folder))
