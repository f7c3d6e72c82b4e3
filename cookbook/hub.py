"""Load from the Hub, and say in a sentence or two what went wrong there and what mends it."""

import ast
import json
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from urllib.parse import urlsplit

from datasets import DatasetDict, IterableDataset, exceptions, load_dataset
from datasets.data_files import EmptyDatasetError
from huggingface_hub import HfApi, constants, errors, get_token, hf_hub_download
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from cookbook.profiles import CookbookError

Kind = Literal["model", "data set"]

CONVERTED = "refs/convert/parquet"  # the branch with the Hub's own Parquet copy of a data set
MOST_NAMES = 10  # configurations that a message names
MOST_CHARACTERS = 140  # of what a library says, within a message

_SCRIPT = "Dataset scripts are no longer supported"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_OWN = {"model": "COOKBOOK_MODEL to a folder", "data set": "COOKBOOK_DATASET to a file"}
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}|Bearer \S+")
_ADDRESS = re.compile(r"\w+://\S+")
_FOLDER = re.compile(r"(?<!\w)/\S+/")  # of the cache: long, and nobody's concern
_SAYS = {
    "disk": "The disk has no space left for the {what}. Free some, or set HF_HOME to a folder on a "
    "larger one.",
    "gated": "The {what} is gated: accept its terms on its page on the Hub, then {log_in} to a "
    "token of that account.",
    "missing": "{hub} has no {what}, or it cannot be reached without a login. Check the spelling "
    "(owner/name); if it is private, {log_in}. Without the Hub {others}.",
    "disabled": "{hub} has disabled the {what}. Take another, or {others}.",
    "401": "{hub} refuses the access token that was sent for the {what}: it is wrong or has "
    "expired. Make a new one and {log_in} to it, or go on without: `unset HF_TOKEN; hf auth "
    "logout`.",
    "403": "{hub} does not let you read the {what} (403). Give the token the permission to read "
    "it, or ask those who run your network whether a proxy blocks it.",
    "407": "The proxy lets nothing through for the {what}. Set HTTPS_PROXY to what your network "
    "asks for (its address, and in it the user and password), or {others}.",
    "429": "{hub} takes no more requests for now (429), so the {what} is not loaded. Wait some "
    "minutes; who is logged in may ask more often: {log_in}.",
    "other": "{hub} fails at the moment ({status}), so the {what} is not loaded. Try again in some "
    "minutes, or {others}.",
    "offline": "{variable} is set, so the Hub cannot be reached, and the {what} is not in the "
    "cache. Load it once with a network (`unset {variable}`), or {others}.",
    "certificate": "The certificate of the Hub is not trusted, so the {what} is not loaded. Behind "
    "a company's proxy set SSL_CERT_FILE to the file with the company's certificates.",
    "stranger": "What answers for the {what} is not the Hub. Check HF_ENDPOINT, and whether a proxy"
    " or a login page stands in between, or {others}.",
    "timeout": "{hub} cannot be reached (no answer in time), and the {what} is not in the cache. "
    "Check the network and HTTPS_PROXY, or {others}.",
    "lost": "{hub} cannot be reached (no connection), and the {what} is not in the cache. Check "
    "the network, HTTPS_PROXY and HF_ENDPOINT, or {others}.",
    "name": "The {what} is no file or folder here and no id on the Hub (owner/name). Check "
    "{setting}.",
    "format": "{name!r} is a file format and no data set. Set COOKBOOK_DATASET to a file or "
    "folder, or to the id of a data set on the Hub (owner/name).",
    "no data": "The {what} has no data file that can be read (JSONL, CSV, Parquet, text). Take "
    "another, or set COOKBOOK_DATASET to your own file.",
    "script": "The {what} needs a script of its own, which is not run. Write its rows as JSONL, "
    "CSV or Parquet, and set COOKBOOK_DATASET to that file.",
    "no copy": "The {what} needs a script of its own, which is not run, and the Hub has no Parquet "
    "copy of it. Write its rows as JSONL, CSV or Parquet, and set COOKBOOK_DATASET to that file.",
    "table": "The files of the {what} cannot be read as one table: {words}. Fetch them with `hf "
    "download {name} --repo-type dataset --local-dir mine`, keep those of the same columns, and set"
    " COOKBOOK_DATASET=mine.",
    "code": "The {what} brings code of its own, which is not run. Set COOKBOOK_MODEL to a model of "
    "an architecture that transformers knows.",
    "damaged": "The weights of the {what} are damaged, or only a Git LFS pointer. Fetch them anew: "
    "`hf cache rm model/{name}`, or `git lfs pull` in a folder of your own.",
    "adapter": "The {what} is an adapter for {base} and no model. Set COOKBOOK_MODEL to {base}, or "
    "merge them: `PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained("
    "folder)`, the tokenizer beside it.",
    "gguf": "The {what} has only GGUF files, which are for llama.cpp. Set COOKBOOK_MODEL to the "
    "model that they were made from; their page on the Hub names it.",
    "tokenizer": "The {what} has no tokenizer that can be read (tokenizer.json, tokenizer.model). "
    "Put the files of the tokenizer that it was trained with beside its config.json.",
    "pickled": "The {what} has pickled weights, which can run code: they are read with weights_only"
    " or not at all. Set COOKBOOK_MODEL to one with *.safetensors, which "
    "`model.save_pretrained(folder)` writes.",
    "no config": "The {what} has no config.json, so it is no model. Check COOKBOOK_MODEL.",
    "no weights": "The {what} has no *.safetensors weights. Set COOKBOOK_MODEL to one that has.",
    "words": "The {what} cannot be loaded: {words}. Take another, or {others}.",
}


class HubError(CookbookError):
    """What the Hub has under a name, or the Hub itself, cannot be used."""


def load_data_set(name: str, configuration: str | None = None) -> DatasetDict:
    """Return the splits of a data set on the Hub; raises `HubError` where that fails.

    Where no `configuration` is given, `COOKBOOK_CONFIG` names it. Of a data set that needs a script
    the Hub's own Parquet copy is loaded, where there is one, and a line says so.
    """
    if name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}"):
        # `load_dataset` would read every such file below the working directory.
        raise HubError(_SAYS["format"].format(name=name))
    chosen = configuration_for(name, configuration)
    try:
        with explained(name, "data set"):
            try:
                return load_dataset(name, chosen)
            except RuntimeError as error:
                if _SCRIPT not in str(error):
                    raise
                return _load_converted(name, chosen, error)
    except CookbookError:
        raise
    except Exception as error:  # the library that reads one of the files can raise anything
        raise HubError(_Failure(error, name, "data set").says("words")) from error


def stream(name: str) -> IterableDataset:
    """Return the training rows of a data set on the Hub, read while they arrive."""
    with explained(name, "data set"):
        chosen = configuration_for(name)
        return load_dataset(name, chosen, split="train", streaming=True)


def configuration_for(name: str, configuration: str | None = None) -> str | None:
    """Return `configuration`, or what `COOKBOOK_CONFIG` names, or None.

    The variable belongs to the reader's own data set: where `COOKBOOK_DATASET` is another than
    `name`, as for the second data set of a recipe, it is not used.
    """
    own = (os.environ.get("COOKBOOK_DATASET") or name) == name
    return configuration or (os.environ.get("COOKBOOK_CONFIG") if own else None) or None


def model_settings(name: str) -> dict[str, Any]:
    """Return the `config.json` of a folder or Hub id; raises `HubError` where there is none."""
    with explained(name, "model"):
        settings, _ = PreTrainedConfig.get_config_dict(name)
        if not settings:  # transformers takes a missing file for an empty one
            raise FileNotFoundError("no config.json")
        return settings


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `HubError` for a tokenizer without a vocabulary.

    For some architectures (GPT-2, Qwen, Gemma, T5) transformers makes one, silently, where the
    model's folder or repository has no tokenizer.
    """
    if len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()) < 2:
        missing = FileNotFoundError("Couldn't instantiate the backend tokenizer")
        raise HubError(_model(_Failure(missing, name, "model")))


@contextmanager
def explained(name: str, kind: Kind) -> Iterator[None]:
    """Turn what loading `name` raises inside into a `HubError` of one to three sentences.

    Meant for `from_pretrained`, and for `load_dataset(streaming=True)` with its iteration. What is
    no failure of the Hub's or of the files there is raised as it is.
    """
    try:
        yield
    except CookbookError:
        raise
    except Exception as error:
        if sentence := _Failure(error, name, kind).sentence():
            raise HubError(sentence) from error
        raise


@dataclass(frozen=True)
class _Failure:
    """An error, and what was being loaded."""

    error: Exception
    name: str
    kind: Kind

    @cached_property
    def errors(self) -> list[BaseException]:
        """The error and all that led to it, those too that a library meant to hide."""
        found: list[BaseException] = []
        one: BaseException | None = self.error
        while one is not None and one not in found:
            found.append(one)
            one = one.__cause__ or one.__context__
        return found

    @cached_property
    def text(self) -> str:
        return "\n".join(map(str, self.errors))

    def has(self, *types: type[BaseException]) -> bool:
        return any(isinstance(one, types) for one in self.errors)

    def has_named(self, name: str) -> bool:
        """Whether an error is of a class of this name: those of httpx are no dependency of ours."""
        return any(name == base.__name__ for one in self.errors for base in type(one).__mro__)

    def says(self, case: str, **more: str) -> str:
        """Return the sentence for a case, filled in."""
        return _SAYS[case].format(
            name=self.name,
            what=f"{self.kind} {self.name!r}",
            hub=_hub(),
            setting=_OWN[self.kind].split()[0],
            log_in="log in with `hf auth login`, or set HF_TOKEN",
            others=f"use `COOKBOOK_PROFILE=cpu`, or set {_OWN[self.kind]} of your own",
            words=words(self.error),
            **more,
        )

    def sentence(self) -> str | None:
        """Return what a person needs to know, or None for what is no failure of the Hub's."""
        of_files = _model if self.kind == "model" else _data_set
        found = _refusal(self) or _connection(self) or of_files(self)
        if found is None and isinstance(self.error, (OSError, exceptions.DatasetsError)):
            return self.says("words")
        return found


def _hub() -> str:
    """Return "The Hub", with its address where `HF_ENDPOINT` sets one, without a login in it."""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "")
    host = address.netloc.rpartition("@")[2]
    return f"The Hub at {address.scheme}://{host}" if host else "The Hub"


def words(error: BaseException) -> str:
    """Return the first line of what a library says: short, without addresses and tokens."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if token := get_token():
        line = line.replace(token, "***")
    line = _TOKEN.sub("***", _FOLDER.sub("", _ADDRESS.sub("the Hub", line)))
    return textwrap.shorten(line, MOST_CHARACTERS, placeholder=" ...").rstrip(". ")


def _refusal(failure: _Failure) -> str | None:
    """Return what the status means that the Hub answered with, or that the disk is full."""
    if re.search("Not enough disk space|No space left|quota exceeded", failure.text):
        return failure.says("disk")
    if failure.has(errors.GatedRepoError) or "is a gated dataset" in failure.text:
        return failure.says("gated")
    if failure.has(errors.DisabledRepoError):
        return failure.says("disabled")
    status = _status(failure)
    if status == 404 or failure.has(
        errors.RepositoryNotFoundError, exceptions.DatasetNotFoundError
    ):
        return failure.says("missing")
    if failure.has_named("ProxyError"):
        return failure.says("407")
    if str(status) in _SAYS:
        return failure.says(str(status))
    return failure.says("other", status=str(status)) if status else None


def _status(failure: _Failure) -> int | None:
    """Return the status of the answer that led to the failure."""
    for one in failure.errors:
        # That a file is missing is no refusal: `_model` says which.
        if isinstance(one, errors.HfHubHTTPError) and not isinstance(
            one, errors.EntryNotFoundError
        ):
            return one.response.status_code
    return None


def _connection(failure: _Failure) -> str | None:
    """Return why nothing was heard of the Hub."""
    unheard = failure.has_named("TransportError")
    lost = unheard or failure.has(ConnectionError, errors.LocalEntryNotFoundError)
    if not lost and "Couldn't find cache for" not in failure.text:
        return None
    if constants.is_offline_mode():
        variable = next((one for one in _OFFLINE if os.environ.get(one)), _OFFLINE[0])
        return failure.says("offline", variable=variable)
    if not unheard and not failure.has(errors.FileMetadataError):
        failure = _asked_again(failure)  # datasets does not tell the reason
    if "CERTIFICATE" in failure.text:
        return failure.says("certificate")
    if failure.has(errors.FileMetadataError):
        return failure.says("stranger")
    return failure.says("timeout" if failure.has_named("TimeoutException") else "lost")


def _asked_again(failure: _Failure) -> _Failure:
    """Return how one more question to the Hub fails, or the same failure where it does not."""
    kind = "model" if failure.kind == "model" else "dataset"
    try:
        HfApi().repo_info(failure.name, repo_type=kind, timeout=10)
    except Exception as error:
        return replace(failure, error=error)
    return failure


def _data_set(failure: _Failure) -> str | None:
    text = failure.text
    if failure.has(EmptyDatasetError, exceptions.DataFilesNotFoundError):
        return failure.says("no data")
    if _SCRIPT in text:
        return failure.says("script")
    asked = re.search("BuilderConfig '(.*)' not found", text)
    names = re.search(r"vailable[^\[\n]*(\[.*\])", text)
    if names and (asked or "Config name is missing" in text):
        return _choice(failure.name, asked and asked[1], ast.literal_eval(names[1]))
    if failure.has(errors.HFValidationError) or "Couldn't find any data file at" in text:
        return failure.says("name")
    if failure.has(exceptions.DatasetGenerationError):
        cause = failure.error.__cause__
        if failure.has_named("CastError"):  # it lists both schemas, without a first sentence
            cause = ValueError("their columns or types differ")
        failure = replace(failure, error=cause) if isinstance(cause, Exception) else failure
        return failure.says("table")
    return None


def _choice(name: str, asked: str | None, names: Sequence[str]) -> str:
    """Return the message about a configuration that was not named, or is not there."""
    shown = textwrap.shorten(", ".join(names[:MOST_NAMES]), 200, placeholder=" ...")
    if len(names) > MOST_NAMES:
        shown += f" and {len(names) - MOST_NAMES} more"
    none = "several configurations:" if asked is None else f"no configuration {asked!r}, only"
    return (
        f"The data set {name!r} has {none} {shown}. Choose one, for example "
        f"`COOKBOOK_CONFIG={names[0]}`."
    )


def _load_converted(name: str, configuration: str | None, error: Exception) -> DatasetDict:
    """Return the Hub's own Parquet copy of a data set, whose script was refused with `error`."""
    try:
        files = HfApi().list_repo_files(name, repo_type="dataset", revision=CONVERTED)
    except errors.RevisionNotFoundError:
        files = []
    paths = [Path(file) for file in files if file.endswith(".parquet")]
    names = sorted({path.parts[0] for path in paths})
    if not names:
        raise HubError(_Failure(error, name, "data set").says("no copy")) from error
    chosen = names[0] if configuration is None and len(names) == 1 else configuration
    if chosen not in names:
        raise HubError(_choice(name, chosen, names)) from error
    # Without the folder the rows of all configurations would be mixed.
    splits = load_dataset(name, data_dir=chosen, revision=CONVERTED)
    partial = any(path.match(f"{chosen}/partial-*/*") for path in paths)
    rest = ", which holds only a first part of the rows." if partial else "."
    print(f"{name} needs a script, which is not run: loaded the Hub's Parquet copy{rest}")
    return splits


def _model(failure: _Failure) -> str | None:
    text = failure.text
    if failure.has(errors.HFValidationError):
        return failure.says("name")
    if "trust_remote_code" in text:
        return failure.says("code")
    if failure.has(SafetensorError):
        return failure.says("damaged")
    tokenizer = "Couldn't instantiate the backend tokenizer" in text
    lacks = "no config.json|Unrecognized model in|does not appear to have|Error no file named"
    if not (tokenizer or failure.has(UnpicklingError) or re.search(lacks, text)):
        # tokenizers raises the plainest of errors for a file that it cannot read.
        return failure.says("words") if type(failure.error) is Exception else None
    case = _lack(_files(failure.name), tokenizer, failure.has(UnpicklingError))
    return failure.says(case, base=_base_of(failure.name) if case == "adapter" else "")


def _lack(files: Sequence[str], tokenizer: bool, unpickled: bool) -> str:
    """Return the case that the files of a model tell, where one of them was not found or read."""
    endings = {Path(file).suffix for file in files}
    whole = ".safetensors" in endings
    if "adapter_config.json" in files and "config.json" not in files:
        return "adapter"
    if ".gguf" in endings and not whole:
        return "gguf"
    if tokenizer:
        return "tokenizer"
    if unpickled or (endings & {".bin", ".pt", ".pth", ".ckpt"} and not whole):
        return "pickled"
    if files and "config.json" not in files:
        return "no config"
    return "no weights" if files and not whole else "words"


def _files(name: str) -> list[str]:
    """Return the files of a model's folder or repository; none where the Hub does not tell."""
    if Path(name).is_dir():
        return [path.name for path in Path(name).iterdir()]
    try:
        return HfApi().list_repo_files(name)
    except Exception:  # what failed first is what is told
        return []


def _base_of(name: str) -> str:
    """Return the model that an adapter was trained on, as its settings name it."""
    path = Path(name, "adapter_config.json")
    try:
        path = path if path.is_file() else Path(hf_hub_download(name, path.name))
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except Exception:  # the message does without
        base = None
    return repr(base) if base else "another model"
