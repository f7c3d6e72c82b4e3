"""A run's model in a form that others load: written whole, and checked by loading it again."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from cookbook import models, saving
from cookbook.models import identity_of
from cookbook.paths import as_typed
from cookbook.profiles import CookbookError
from cookbook.serving import card, converter, merging, quantize
from cookbook.serving.checks import check_adapter_gguf, check_gguf, wanted_of
from cookbook.serving.modelfile import TemplateError, write_modelfile
from cookbook.serving.runs import Run, base_of, public_base, runs_folder

FORMATS = ("safetensors", "gguf", "adapter")
QUANTS = ("f32", "bf16", *quantize.FORMATS)
RECORD = "export.json"
_PEFT = "base_model.model."  # before the names of an adapter's tensors
_TABLES = tuple(f"{one}.weight" for one in "embed_tokens wte word_embeddings lm_head".split())
_GRAIN = 1e-3  # of the largest weight: what rounding and new rows make differ, and training exceeds
_TMP = "16-bit"  # beside what is written: what quantized files are made from


@dataclass
class Export:
    """One folder with an exported model: what it was made from, and what was checked."""

    folder: Path
    checks: list[str] = field(default_factory=list)

    @property
    def gguf(self) -> Path:
        """Its GGUF file."""
        return next(self.folder.glob("*.gguf"))


def export(run: Run, form: str, quants: tuple[str, ...] = ("bf16",)) -> list[Export]:
    """Write a run's model in a form of `FORMATS`, GGUF in each of `quants`, and return where.

    What is there already, whole and made of the same weights, is kept. Everything else is written
    beside its place and moved there once it has been loaded again and has answered. Raises
    `CookbookError` where the form has no place for the model, or what was written does not answer
    as the model does; nothing is left then but what was there before.
    """
    if form not in FORMATS:
        raise CookbookError(f"FORMAT={form} is none of {', '.join(FORMATS)}.")
    quants = tuple(dict.fromkeys(quants))
    unknown = [name for name in quants or ("",) if name not in QUANTS]
    if form == "gguf" and unknown:
        raise CookbookError(f"QUANT={unknown[0]} is none of {', '.join(QUANTS)}.")
    if form == "adapter" and run.adapter is None:
        raise CookbookError(
            f"{as_typed(run.folder)} trained all weights and has no adapter: export it with "
            "FORMAT=safetensors or FORMAT=gguf."
        )
    with _alone(place_of(run)):
        if form == "gguf":
            return _as_gguf(run, quants)
        write = _write_adapter if form == "adapter" else _write_safetensors
        return [_kept(run, form) or _written(run, form, partial(write, run))]


def quants_of(text: str) -> tuple[str, ...]:
    """Return the formats that a person named, with commas between."""
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def place_of(run: Run) -> Path:
    """Return the folder of a run's exports: `runs/exports/<recipe>/<profile>`."""
    part = f"-{run.part}" if run.part else ""
    return runs_folder() / "exports" / run.recipe / f"{run.folder.name}{part}"


def made_of(run: Run) -> dict[str, str]:
    """Return digests of a run's weights, and of the base that they belong to."""
    weights = {"weights": identity_of(str(run.weights))["model_files"]}
    if run.adapter is None:
        return weights
    return weights | {"base": str(run.settings.get("model_files") or public_base(run))}


def current(run: Run, name: str) -> Export | None:
    """Return the export of this name if it is whole and made of the run's weights as they are."""
    folder = place_of(run) / name
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all(
        (folder / file).is_file() and (folder / file).stat().st_size == size
        for file, size in record["files"].items()
    )
    if not whole or record["made_of"] != made_of(run):
        return None
    return Export(folder, record["checks"])


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Have a run's exports alone: two at once would write the same files."""
    lock = FileLock(place / "export.lock", blocking=False)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise CookbookError(
            f"Another export is writing to {as_typed(place)}. Wait for it to end."
        ) from None
    except OSError as error:
        raise CookbookError(
            f"Nothing can be written to {as_typed(place)} ({error.strerror}). Name another folder "
            "for exports: COOKBOOK_RUNS."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _kept(run: Run, name: str) -> Export | None:
    """Return the export `name` if it is current, and say so."""
    if found := current(run, name):
        print(f"{as_typed(found.folder)} is there, whole and of these weights: kept.")
    return found


def _written(run: Run, name: str, write: Callable[[Path], list[str]]) -> Export:
    """Return the export `name`, written by `write`, which returns what it checked."""
    target = place_of(run) / name
    part, old = target.with_name(f"{name}.part"), target.with_name(f"{name}.old")
    if old.exists() and not target.exists():  # stopped between the two renamings
        old.rename(target)
    shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
    part.mkdir(parents=True)
    try:
        checks = write(part)
        _record(run, name, part, checks)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, CookbookError):
            raise
        if converter.tells_of_a_full_disk(str(error)):
            raise CookbookError(
                f"The disk of {as_typed(target)} is full: nothing was exported, and what was "
                "there before is as it was. Make room and run this again."
            ) from error
        raise
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return Export(target, checks)


def _record(run: Run, name: str, part: Path, checks: list[str]) -> None:
    versions = "torch transformers peft xllamacpp".split()
    content = {
        "run": f"{run.recipe}/{run.folder.name}",
        "export": name,
        "made_of": made_of(run),
        "files": {
            path.relative_to(part).as_posix(): path.stat().st_size
            for path in sorted(part.rglob("*"))
            if path.is_file()
        },
        "checks": checks,
        "versions": {one: metadata.version(one) for one in versions if _is_installed(one)},
    }
    (part / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _is_installed(name: str) -> bool:
    return any(one.name.lower() == name for one in metadata.distributions(name=name))


def _write_safetensors(run: Run, part: Path) -> list[str]:
    """Write the merged model in 16 bits, load it again, and compare weights and answers."""
    model, tokenizer, proof = merging.merged(run)
    model = merging.in_precision(model, torch.bfloat16)
    answers = [merging.greedy(model, tokenizer, row) for row in merging.prompts(tokenizer)]
    saving.save(model, tokenizer, part)
    again = models.from_pretrained(str(part), dtype=torch.bfloat16).eval()
    words = merging.load_tokenizer(part)
    same = [merging.greedy(again, words, row) for row in merging.prompts(words)] == answers
    weights, others = model.state_dict(), again.state_dict()
    equal = all(torch.equal(weight, others[name]) for name, weight in weights.items())
    if not same or not equal or words.chat_template != tokenizer.chat_template:
        raise CookbookError(
            f"Loaded again, the export of {run.name} has other weights, answers or another "
            "template than the model in memory: it was not kept. Please report it, with the model."
        )
    card.write(run, part, "merged model" if run.adapter else "model")
    return [proof, f"loaded again: equal weights, {len(answers)} equal answers, chat template kept"]


def _write_adapter(run: Run, part: Path) -> list[str]:
    """Write a run's adapter for PEFT and vLLM, and as GGUF for llama.cpp where that has a place."""
    assert run.adapter is not None
    left_out = shutil.ignore_patterns("README.md")  # another one is written
    shutil.copytree(run.adapter, part, ignore=left_out, dirs_exist_ok=True)
    settings = json.loads((part / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = card.base_on_hub(run)  # never a path of this machine
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (part / "adapter_config.json").write_text(text, encoding="utf-8")
    tensors = load_file(part / "adapter_model.safetensors")
    checks = [f"{len(tensors)} tensors of the adapter read again", *_adapter_as_gguf(run, part)]
    card.write(run, part, "LoRA adapter")
    return checks


def _adapter_as_gguf(run: Run, part: Path) -> list[str]:
    try:
        base = base_gguf(run)
        with _as_converted(run, part) as folder:
            converter.convert_adapter(folder, part / "adapter.gguf")
    except converter.CannotConvert as error:
        print(error)
        return [f"no GGUF: {error}"]
    model, tokenizer = merging.load(run, torch.float32), merging.load_tokenizer(run.tokenizer)
    wanted = wanted_of(model, tokenizer)
    return check_adapter_gguf(base, part / "adapter.gguf", wanted, tokenizer)


@contextmanager
def _as_converted(run: Run, part: Path) -> Iterator[Path]:
    """Yield a folder with what an adapter changes, and its base's configuration.

    PEFT saves the tables of tokens with an adapter whose base got rows for new ones, as of Gemma.
    Untrained, they are those of the base's file, and left out here.
    """
    weights = load_file(part / "adapter_model.safetensors")
    tables = {name for name in weights if name.endswith(_TABLES)}
    if tables:
        tokenizer = merging.load_tokenizer(run.tokenizer)
        base = merging.load_base(run, tokenizer, torch.float32).state_dict()
        tables = {
            one for one in tables if _is_of_base(weights[one], base.get(one.removeprefix(_PEFT)))
        }
    config = models.config_of(base_of(run))
    if not config.architectures:  # the text of a model that also sees
        text: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        config.architectures = [text.__name__]
    with tempfile.TemporaryDirectory(dir=part) as place:
        folder = Path(place)
        config.save_pretrained(folder)
        shutil.copyfile(part / "adapter_config.json", folder / "adapter_config.json")
        kept = {name: weight for name, weight in weights.items() if name not in tables}
        save_file(kept, folder / "adapter_model.safetensors")
        yield folder


def _is_of_base(table: torch.Tensor, base: torch.Tensor | None) -> bool:
    """Tell whether a table is a base's: new rows begin as the mean of all, and a grain of noise."""
    if base is None or table.shape != base.shape:
        return False
    return bool(((table.float() - base).abs() < _GRAIN * base.abs().max()).all())


def base_gguf(run: Run) -> Path:
    """Return the GGUF file of the base that a run's adapter belongs to: see `gguf_of_base`."""
    return gguf_of_base(base_of(run), merging.load_tokenizer(run.tokenizer), public_base(run))


def gguf_of_base(path: str, tokenizer: PreTrainedTokenizerBase, name: str) -> Path:
    """Return an untrained model as a GGUF file in bfloat16, written where it is not there yet.

    `path` is its folder or Hub id, the tokenizer that of the adapters, whose template and added
    tokens the file gets. It lies beside all exports, named by the digests of both, and serves every
    adapter of it.
    Raises `CannotConvert` for what llama.cpp does not run, so that one knows before a training.
    """
    words = f"{tokenizer.chat_template} {sorted(tokenizer.get_vocab().items())}"
    digest = hashlib.sha256(words.encode()).hexdigest()[:8]
    made_of = f"{identity_of(path)['model_files']}-{digest}"
    target = runs_folder() / "exports" / "bases" / f"{Path(name).name}-{made_of}.gguf"
    with _alone(target.parent):
        if target.is_file():
            return target
        part, folder = target.with_suffix(".part"), target.with_suffix(".folder")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            model = models.from_pretrained(path, dtype=torch.bfloat16)
            models.fit_vocabulary(model, tokenizer)
            refuse_encoder_decoder(name, model)
            saving.save(model, tokenizer, folder)
            begins = merging.bos_left_out(tokenizer)
            converter.convert_model(folder, part, Path(name).name, begins)
            part.replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            part.unlink(missing_ok=True)
    return target


def _as_gguf(run: Run, quants: tuple[str, ...]) -> list[Export]:
    """Write a run's model as GGUF in several formats, from one merged model."""
    done = {name: found for name in quants if (found := _kept(run, f"gguf-{name}"))}
    missing = [name for name in quants if name not in done]
    if missing:
        folder = place_of(run) / f"{_TMP}.part"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            done |= _written_as_gguf(run, folder, missing)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return [done[name] for name in quants]


def _written_as_gguf(run: Run, folder: Path, quants: list[str]) -> dict[str, Export]:
    model, tokenizer, proof = merging.merged(run)
    refuse_encoder_decoder(run.name, model)
    begins, fits = merging.bos_left_out(tokenizer), model.dtype == torch.float32
    made: dict[str, Export] = {}

    def write(name: str, part: Path) -> list[str]:
        out = part / f"{run.name}-{name}.gguf"
        if name in quantize.FORMATS:
            quantize.quantize(source, out, name)
        else:
            shutil.copyfile(source, out)
        checks = [proof, *check_gguf(out, wanted, tokenizer, name)]
        shutil.copyfile(folder / "generation_config.json", part / "generation_config.json")
        checks.append(_modelfile(part, out, tokenizer, GenerationConfig.from_pretrained(folder)))
        card.write(run, part, f"GGUF file ({name})")
        return checks

    # In 32 bits first; then rounded to 16, of which the rest are made.
    for exact in (True, False):
        chosen = [name for name in quants if (name == "f32") is exact]
        if chosen:
            model = merging.in_precision(model, torch.float32 if exact else torch.bfloat16)
            saving.save(model, tokenizer, folder)
            source = folder / "source.gguf"
            converter.convert_model(folder, source, run.name, begins, float32=exact)
            if fits:  # rounded as the file is, and computed exactly
                model = merging.in_precision(model, torch.float32)
            wanted = wanted_of(model, tokenizer)
            made |= {one: _written(run, f"gguf-{one}", partial(write, one)) for one in chosen}
    return made


def refuse_encoder_decoder(name: str, model: PreTrainedModel) -> None:
    """Raise `CannotConvert` for a model that llama.cpp converts and its server does not run."""
    if model.config.is_encoder_decoder:
        raise converter.CannotConvert(
            f"{name} is an encoder-decoder ({model.config.model_type}), which llama.cpp's "
            "server does not run: it ends at loading. Export it with FORMAT=safetensors."
        )


def _modelfile(
    part: Path, gguf: Path, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig
) -> str:
    try:
        write_modelfile(part, gguf.name, tokenizer, settings)
    except TemplateError as error:
        print(error)
        return f"no Modelfile: {error}"
    return "Modelfile: its template writes ten conversations as the chat template does"
