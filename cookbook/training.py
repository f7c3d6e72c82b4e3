"""Resuming, trainable weights in float32, and a loss that skips what carries no label."""

import copy
import json
import os
import re
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.nn import functional
from transformers import PreTrainedModel, Trainer, TrainerCallback

from cookbook.chat import IGNORED
from cookbook.memory import peak_memory_bytes, reset_peak
from cookbook.profiles import CookbookError, place_in_launch

WORLD_SIZE = "world_size"  # the file of a checkpoint that tells how many processes wrote it
SMALLEST_DISK = 2**20  # bytes; with less left, a save that failed has failed for that
_NOT_IDENTITY = ("profile", "own")  # settings that do not change what is trained


def prepare_run(
    folder: Path, config: SimpleNamespace, made_of: dict[str, str] | None = None
) -> Path:
    """Return `folder` ready for this run, and its `checkpoints` folder made.

    `made_of` are digests of the model's files and of the rows (`models.identity_of`). A run that
    was interrupted under the same settings and made of the same is kept, to be resumed. A finished
    run, or another one, is never overwritten: it moves aside to `<folder>.1`, `.2`, ...
    Of several processes that were launched together the first does it, and the others find it done.
    """
    settings = {key: value for key, value in vars(config).items() if key not in _NOT_IDENTITY}
    identity = json.loads(json.dumps(settings | (made_of or {}), default=str))
    record = folder / "run.json"
    with first_process_first():
        if record.is_file():
            earlier = json.loads(record.read_text(encoding="utf-8"))
            finished = (folder / "metrics.json").is_file()
            if finished or earlier != identity:
                names = identity.keys() | earlier.keys()
                changed = {name for name in names if earlier.get(name) != identity.get(name)}
                why = "finished" if finished else f"began with other {_in_words(changed)}"
                print(f"An earlier run that {why} was kept as {_move_aside(folder).name}.")
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(identity, indent=2) + "\n")
    return folder


def _in_words(changed: set[str]) -> str:
    """Say what differs between two runs: settings, or the content of rows or of a model's files."""
    content = {"rows": "rows (the data changed)", "model_files": "weights (the model changed)"}
    named = [words for name, words in content.items() if name in changed]
    settings = sorted(changed - {*content})
    return " and ".join(named + ([f"settings ({', '.join(settings)})"] if settings else []))


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all, wherever the machine stops."""
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _move_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    aside.mkdir()
    for item in folder.iterdir():
        shutil.move(item, aside / item.name)
    return aside


def newest_whole_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint below `folder` that was written to its end, or None.

    A machine can stop in the middle of saving. Such a torn checkpoint is named and left out, and
    the one before it is taken.
    """
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"\d+", path.name[11:])]
    for path in sorted(found, key=lambda one: int(one.name[11:]), reverse=True):
        problem = _what_is_torn(path)
        if problem is None:
            return str(path)
        print(f"{path.name} is not whole ({problem}); trying the one before it.")
    return None


def step_of(checkpoint: str | None) -> int:
    """Return the step after which a checkpoint was saved; 0 for none."""
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0


def _what_is_torn(checkpoint: Path) -> str | None:
    """Return what is missing or unreadable in a Trainer checkpoint, or None if it is whole."""
    weights = list(checkpoint.glob("*.safetensors"))
    shards = list(checkpoint.glob("pytorch_model_fsdp_*"))
    if not weights and not shards:
        return "no weights"
    for folder in [*shards, *(checkpoint.glob("optimizer_*") if shards else ())]:
        if problem := _what_shards_lack(folder):
            return f"{folder.name}: {problem}"
    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            return f"{path.name}: {error}"
    name = "trainer_state.json"
    try:
        json.loads((checkpoint / name).read_text(encoding="utf-8"))
        random = ["rng_state.pth"]
        if any(checkpoint.glob("rng_state_*.pth")):  # each of several processes writes its own
            name = WORLD_SIZE
            number = int((checkpoint / name).read_text(encoding="ascii"))
            random = [f"rng_state_{rank}.pth" for rank in range(number)]
    except (OSError, ValueError) as error:
        return f"{name}: {error}"
    for name in [*random, "scheduler.pt", *([] if shards else ["optimizer.pt"])]:
        if not zipfile.is_zipfile(checkpoint / name):
            return f"{name} is missing or cut off"
    return None


def _what_shards_lack(folder: Path) -> str | None:
    """Return what is wrong with what several processes saved together, or None.

    Each writes a file; then the first writes which tensor lies where, and how long it is.
    """
    try:
        places = FileSystemReader(folder).read_metadata().storage_data.values()
        for one in places:
            if (folder / one.relative_path).stat().st_size < one.offset + one.length:
                return f"{one.relative_path} is cut off"
    except Exception as error:  # bytes that are no pickle raise nearly anything
        return f"{type(error).__name__}: {error}"
    return None if places else "no tensors"


def keep_4bit_layers_trainable(model: torch.nn.Module) -> None:
    """Let gradients pass through 4-bit layers after they were evaluated on a CPU.

    On processors with AVX512-BF16, bitsandbytes 0.50 repacks a layer's weights the first time it
    runs in evaluation mode, for a kernel without a backward pass, and keeps them so: training after
    an evaluation then gets no gradient through any 4-bit layer, with a warning and no error. This
    turns the repacking off. Call it before the model runs for the first time.
    """
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def train_in_float32(model: torch.nn.Module) -> int:
    """Cast the trainable weights to float32 in place and return how many there are.

    bfloat16 has 8 significant bits: an update below 1/256 of a weight rounds away. Only what is
    trained needs the precision; the frozen base keeps its own.
    """
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    if not trainable:
        raise CookbookError("No weight is trainable: the adapter's target modules match nothing.")
    for weight in trainable:
        weight.data = weight.data.float()
    return trainable_weights(model)


def trainable_weights(model: torch.nn.Module) -> int:
    """Return how many weights of the model are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def copy_of_trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that are trained as they are now, by name."""
    named = ((name, one) for name, one in model.named_parameters() if one.requires_grad)
    return {name: one.detach().clone() for name, one in named}


def largest_change(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> float:
    """Return by how much that weight changed which changed most since `copy_of_trainable`.

    Raises `CookbookError` where one is in another precision now: an engine that samples in 16 bits
    must not leave them so.
    """
    changes = []
    for name, old in before.items():
        now = model.get_parameter(name).detach()
        if now.dtype != old.dtype:
            raise CookbookError(f"{name} was {old.dtype} and is {now.dtype} after training.")
        changes.append(float((now - old).abs().max()))
    return max(changes)


def costs(trainer: Any) -> dict[str, float]:
    """Return what a training took, right after it, and free what its optimizer remembers.

    Without a trainer's `optimizer` its other parts would still hold it.
    """
    trainer.optimizer.state.clear()  # AdamW's means
    return {
        "weights_trained": trainable_weights(trainer.model),
        "seconds": trainer.state.log_history[-1]["train_runtime"],
        "peak_memory_bytes": peak_memory_bytes(),
    }


def check_gradients(model: torch.nn.Module, loss: torch.Tensor) -> int:
    """Backpropagate `loss` and return how many trainable tensors received a gradient; all must.

    Activation (gradient) checkpointing over a frozen base can cut the graph; training then changes
    nothing.
    """
    loss.backward()
    trainable = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    without = [name for name, one in trainable if one.grad is None]
    model.zero_grad()
    if without:
        raise CookbookError(
            f"{len(without)} of {len(trainable)} trainable tensors get no gradient, {without[0]} "
            "first. With activation checkpointing use `use_reentrant: False`."
        )
    return len(trainable)


def shifted_labels(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """Return what each output position predicts (batch, length).

    In a decoder alone a position predicts the token after it; an encoder-decoder shifts its own
    input instead.
    """
    if model.config.is_encoder_decoder:
        return labels
    return functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]


@contextmanager
def output_layer_at(model: PreTrainedModel, wanted: torch.Tensor) -> Iterator[None]:
    """Let a decoder's logits be those of the wanted positions only: (positions, vocabulary).

    `wanted` is a mask (batch, length).
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][wanted],))
    try:
        yield
    finally:
        hook.remove()


def supervised_logits(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a model with its output layer at supervised positions only.

    `inputs` has `input_ids`, `attention_mask` and `labels`, each (batch, length). Returns the
    logits (positions, vocabulary) and their targets (positions,). The output layer multiplies
    every position with the whole vocabulary; where no label is, that work has no use. An
    encoder-decoder's labels are a sequence of their own, nearly all of it supervised.
    """
    logits, targets, _ = _supervised(model, inputs)
    return logits, targets


def _supervised(
    model: PreTrainedModel, inputs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return logits and targets at supervised positions, and the routers' auxiliary loss, if the
    inputs ask for one (`output_router_logits`).
    """
    targets = shifted_labels(model, inputs["labels"])
    wanted = targets != IGNORED
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    if model.config.is_encoder_decoder:
        # With its decoder's input given it needs no labels, from which it would compute a loss too.
        given = rest if "decoder_input_ids" in inputs else inputs
        return model(**given).logits[wanted], targets[wanted], None
    with output_layer_at(model, wanted):
        output = model(**rest, use_cache=False)
    return output.logits, targets[wanted], getattr(output, "aux_loss", None)


def use_supervised_positions_loss(trainer: Trainer) -> None:
    """Give `trainer` the same cross entropy, computed at supervised positions only.

    The loss and its gradients are unchanged. Meant for the CPU, where the whole vocabulary at every
    prompt position is costly. Not measured on a GPU, where TRL computes its own loss in chunks.

    For encoder-decoders, on every device: T5, BART and their kin take the mean over a micro-batch
    and are given, but ignore, how many labels the whole step has. Trainer then adds those means up:
    with `gradient_accumulation_steps` of 4 the gradient is four times too large (transformers 5.23,
    `Trainer.training_step`). This loss divides by the labels of the step.
    """

    def compute_loss(
        model: PreTrainedModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        if return_outputs:
            raise NotImplementedError("Set `prediction_loss_only=True`: there are no full logits.")
        weight = _weight_of_routers(trainer)
        if weight:
            inputs = inputs | {"output_router_logits": True}
        plain = trainer.accelerator.unwrap_model(model)
        logits, targets, of_routers = _supervised(plain, inputs)
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        balance = 0.0 if of_routers is None else weight * of_routers
        if num_items_in_batch is None:
            return total / targets.numel() + balance
        # Counted over all processes, whose gradients are averaged and not added up.
        processes: int = trainer.accelerator.num_processes
        # The mean of a micro-batch, and Trainer adds up those of a step.
        balance = balance / trainer.current_gradient_accumulation_steps
        return total * processes / num_items_in_batch + balance

    trainer.compute_loss = compute_loss  # type: ignore[method-assign, assignment]


def _weight_of_routers(trainer: Any) -> float:
    """Return what TRL multiplies the auxiliary loss of experts' routers with; 0 without them."""
    enabled = getattr(trainer, "aux_loss_enabled", False)
    return float(trainer.router_aux_loss_coef) if enabled else 0.0


class _AllTrained(Exception):
    """The checkpoint that a training goes on from is of its last step."""


class _Guard(TrainerCallback):
    """End a training after the step at hand, with a checkpoint, once a signal asked for it."""

    asked = False

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        args, state = given[:2]
        if state.global_step >= state.max_steps:  # Trainer would train one step more
            raise _AllTrained
        rows = getattr(named["train_dataloader"], "dataset", None)
        if isinstance(rows, Dataset) and "input_ids" in rows.column_names:
            if args.train_sampling_strategy == "random":  # others begin with the longest
                self._try_longest(rows, named["train_dataloader"].collate_fn)

    def _try_longest(self, rows: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        """See whether the longest micro-batch fits into memory, and leave no trace of it."""
        trainer: Any = self._trainer
        lengths = [len(ids) for ids in rows["input_ids"]]
        longest = sorted(range(len(rows)), key=lengths.__getitem__)
        batch = collate([rows[at] for at in longest[-trainer.args.per_device_train_batch_size :]])
        logged = copy.deepcopy(getattr(trainer, "_metrics", None))
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        trainer.current_gradient_accumulation_steps = 1  # Trainer sets it with its first batch
        with torch.random.fork_rng(devices):
            trainer.training_step(trainer.model_wrapped, batch)
        trainer.model_wrapped.zero_grad()
        if logged is not None:
            trainer._metrics = logged

    def on_epoch_begin(self, *given: Any, **named: Any) -> None:
        args, state = given[:2]
        if epoch := int(state.epoch or 0):
            # Samplers draw an epoch's order from here. What was drawn before would decide it too,
            # and a training that goes on in a later epoch has drawn less.
            torch.manual_seed(args.seed + epoch)
            batches = named["train_dataloader"].batch_sampler
            sampler = getattr(getattr(batches, "batch_sampler", batches), "sampler", None)
            if generator := getattr(sampler, "generator", None):  # TRL's sampler has its own
                generator.manual_seed(args.seed + epoch)

    def ask(self, *_: object) -> None:
        self.asked = True

    def on_step_end(self, *given: Any, **_: Any) -> None:
        args, state, control = given[:3]
        if args.world_size > 1:  # saving is common work: all begin it at this step, or none
            asked = torch.tensor(float(self.asked), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.asked = bool(asked)
        if state.epoch == int(state.epoch):  # the next one's order, in the checkpoint of this step
            torch.manual_seed(args.seed + int(state.epoch))
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_save(self, *given: Any, **_: Any) -> None:
        args, state = given[:2]
        if args.world_size > 1 and args.should_save:
            # A process can end before it has written its part, which no file of others tells.
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(folder / WORLD_SIZE, f"{args.world_size}\n")


@contextmanager
def guarded(trainer: Trainer) -> Iterator[str | None]:
    """Train inside this: whatever ends a training early costs no more than the steps since a save.

    It gives the newest whole checkpoint of an interrupted run, to go on from, or None. The count
    of peak memory begins anew.

    SIGTERM, sent to a machine that is taken away, saves a checkpoint after the step at hand and
    then ends the process. Used-up memory or disk raises `CookbookError` with what to change. So
    does a training that ended before its last step, so that no cell scores it as finished. From
    the checkpoint of the last step nothing more is trained. Where rows come in random order the
    longest are tried first, so that a lack of memory shows now and not hours later. Meanwhile
    adapters leave casts to autocast, which makes them anyway.
    """
    checkpoint = newest_whole_checkpoint(Path(str(trainer.args.output_dir)))
    callback, start = _Guard(trainer), time.monotonic()
    if _weight_of_routers(trainer):
        # TRL sets it, and asks in each call besides. Left in the configuration, and in those of
        # checkpoints, it breaks generating (see `evaluation`).
        model: Any = trainer.model
        model.config.get_text_config().output_router_logits = False
    trainer.add_callback(callback)
    usual = signal.signal(signal.SIGTERM, callback.ask)
    reset_peak()
    try:
        with _casts_left_to_autocast(trainer):
            yield checkpoint
    except _AllTrained:
        trainer.log({"train_runtime": time.monotonic() - start})
    except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
        remedy = _remedy(error, trainer)
        if remedy is None:
            raise
        raise CookbookError(remedy) from error
    finally:
        signal.signal(signal.SIGTERM, usual)
        trainer.remove_callback(callback)
    state = trainer.state
    if callback.asked:
        print(f"SIGTERM: saved a checkpoint after step {state.global_step}.", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    if state.global_step < state.max_steps:
        raise CookbookError(
            f"Training stopped at step {state.global_step} of {state.max_steps}. "
            "Run the training cell again: it resumes from the newest whole checkpoint."
        )


@contextmanager
def _casts_left_to_autocast(trainer: Any) -> Iterator[None]:
    """Keep peft from casting a layer's input to its adapter's precision, and autocast from casting
    it back. Not in GRPO: answers are sampled outside of autocast.
    """
    if not hasattr(trainer.model, "peft_config") or hasattr(trainer, "reward_funcs"):
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(trainer.model):
        yield


def _remedy(error: Exception, trainer: Trainer) -> str | None:
    """Return what to change where memory or disk was used up, or None for another error."""
    args = trainer.args
    memory_words = ("out of memory", "allocate memory", "bad_alloc")
    if isinstance(error, MemoryError) or any(word in str(error) for word in memory_words):
        return (
            "Out of memory. In SETTINGS lower `per_device_train_batch_size` "
            f"({args.per_device_train_batch_size}) and raise `gradient_accumulation_steps` "
            f"({args.gradient_accumulation_steps}) by the same factor, which trains the same "
            "(`global_batch_size`, where there is one, does that by itself); then set "
            "`activation_checkpointing`, or lower the longest length. Restart the kernel first."
        )
    folder = Path(str(args.output_dir))
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    # torch.save says of a full disk only that a position in its file is unexpected.
    if "No space left" in str(error) or shutil.disk_usage(there).free < SMALLEST_DISK:
        return (
            f"The disk of {folder} is full, and the checkpoint that was being saved is not whole; "
            "earlier ones are. Make room, or lower `save_total_limit`, and run this cell again."
        )
    return None


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first of several processes do this before the others: what is written once is there.

    Without several processes it does nothing.
    """
    if place_in_launch()[1] < 2:
        yield
        return
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        yield


def first_process_goes_on() -> None:
    """End every process of one launch but the first: to score and save a model is work for one.

    Call it once all trainings are done. Without several processes it does nothing.
    """
    rank, world_size = place_in_launch()
    if world_size < 2:
        return
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if rank:
        sys.exit()


def loss_curve(history: Iterable[dict[str, Any]], key: str = "loss") -> list[tuple[int, float]]:
    """Return (step, value) pairs of `key` from a trainer's `state.log_history`."""
    return [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]


def moving_mean(values: Sequence[float], window: int = 8) -> list[float]:
    """Return the mean of each value and up to `window` - 1 before it."""
    starts = [max(0, end - window) for end in range(1, len(values) + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in zip(starts, range(1, len(values) + 1))]
