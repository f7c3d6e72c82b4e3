"""DPO and KTO without reading a prompt once for each of its answers."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from cookbook.chat import IGNORED
from cookbook.groups import _in_place
from cookbook.training import output_layer_at

if TYPE_CHECKING:
    from trl.trainer.utils import FusedCausalLMOutput


def read_prompts_once(trainer: Any) -> None:
    """Let a DPO or KTO `trainer` score answers alone: their prompts are read once.

    A pair's two answers follow the same prompt. Its keys and values, computed once, serve both, and
    gradients add up in them ([Prefix Grouper](https://arxiv.org/abs/2506.05433)). The output layer
    runs at the answers' tokens only; without Triton TRL runs it at every position, and masks what
    it got. What is computed stays the same but for rounding. Meant for the CPU; not measured on a
    GPU. Raises ValueError if activations are recomputed, which leaves no keys and values.
    """
    if trainer.args.activation_checkpointing or trainer.args.gradient_checkpointing:
        raise ValueError("Set `activation_checkpointing=False`: prompts are kept to be shared.")
    model = trainer.model
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    usual = model.forward

    @functools.wraps(usual)  # `generate` looks at the signature
    def forward(*args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return usual(*args, **inputs)
        ids, mask, labels = (inputs.get(k) for k in ("input_ids", "attention_mask", "labels"))
        of_routers = inputs.get("output_router_logits")
        if ids is None or labels is None or of_routers or not _follow_prompts(labels, mask):
            return usual(*args, fused_lm_head=True, **inputs)
        return score_answers(model, ids, labels)

    model.forward = forward


def _follow_prompts(labels: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Tell whether each row is a prompt, all of an answer, and padding: what can be taken apart."""
    if mask is None:
        return False
    answers, real = labels != IGNORED, mask.bool()
    ends = torch.diff(answers.int(), dim=1)
    one_run = (ends == 1).sum(1).eq(1) & ~answers[:, 0]
    to_the_end = ((ends == -1).sum(1) == 0) | (answers & real).sum(1).eq(
        real.sum(1) - answers.int().argmax(1)
    )
    on_the_right = real[:, :-1].ge(real[:, 1:]).all(1)
    return bool((one_run & to_the_end & on_the_right).all())


def score_answers(
    model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor
) -> "FusedCausalLMOutput":
    """Return what TRL's fused head does: log-probabilities and more, each (batch, length - 1).

    `input_ids` and `labels` are (batch, length): prompts without labels, answers with them, padded
    on the right. Where there is no label results are 0. Only `log_probs` carries a gradient.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    answers = labels != IGNORED
    starts = answers.int().argmax(1).tolist()
    counts = answers.sum(1).tolist()
    rows = input_ids.tolist()
    groups: dict[tuple[int, ...], int] = {}
    place = [groups.setdefault(tuple(row[:at]), len(groups)) for row, at in zip(rows, starts)]
    device, longest = input_ids.device, max(counts)
    prompts = _padded([list(one) for one in groups], left=True).to(device)
    prompt_mask = _padded([[1] * len(one) for one in groups], left=True).to(device)
    ids = _padded([row[at : at + n] for row, at, n in zip(rows, starts, counts)]).to(device)
    mask = _padded([[1] * n for n in counts]).to(device).bool()
    at = torch.tensor(place, device=device)

    last = torch.zeros_like(prompt_mask, dtype=torch.bool)
    last[:, -1] = True
    positions = (prompt_mask.cumsum(-1) - 1).clamp(min=0)
    with output_layer_at(model, last):
        read = model(
            input_ids=prompts, attention_mask=prompt_mask, position_ids=positions, use_cache=True
        )
    # The prompt's last position predicts an answer's first token; the others follow row by row.
    parts, targets = [read.logits[at]], [ids[:, 0]]
    if longest > 1:
        read.past_key_values.batch_select_indices(at)
        after = torch.tensor(starts, device=device)[:, None]
        with output_layer_at(model, mask[:, 1:]):
            rest = model(
                input_ids=ids[:, :-1],
                attention_mask=torch.cat([prompt_mask[at], mask[:, :-1].long()], dim=1),
                position_ids=after + torch.arange(longest - 1, device=device),
                past_key_values=read.past_key_values,
                use_cache=True,
            )
        parts, targets = [*parts, rest.logits], [*targets, ids[:, 1:][mask[:, 1:]]]
    logits, target = torch.cat(parts).float(), torch.cat(targets)
    found = {"log_probs": -functional.cross_entropy(logits, target, reduction="none")}
    with torch.no_grad():
        found["entropy"] = torch.distributions.Categorical(logits=logits).entropy()
        found["mean_logits"] = logits.mean(-1)
        found["is_top1"] = logits.argmax(-1) == target
    scored = {
        name: values.new_zeros(answers[:, 1:].shape).masked_scatter(
            answers[:, 1:], _in_place(values, mask)[mask]
        )
        for name, values in found.items()
    }
    loss = -scored["log_probs"].sum() / mask.sum()
    return FusedCausalLMOutput(loss=loss, **scored)


def _padded(rows: list[list[int]], left: bool = False) -> torch.Tensor:
    longest = max(map(len, rows))
    gaps = [[0] * (longest - len(row)) for row in rows]
    return torch.tensor([[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps)])
