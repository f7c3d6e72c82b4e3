"""DPO and KTO without reading a prompt once for each of its answers."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from cookbook.chat import IGNORED
from cookbook.evaluation import _pad
from cookbook.groups import answer_logits, check_kept, in_place, without_shell

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
    check_kept(trainer)
    model = without_shell(trainer.model)
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
    answers = labels != IGNORED
    places = torch.arange(labels.shape[1], device=labels.device)
    starts, ends = answers.int().argmax(1, keepdim=True), mask.sum(1, keepdim=True)
    padded_on_the_right = mask.bool().equal(places < ends)
    whole = answers.equal((places >= starts) & (places < ends))
    return padded_on_the_right and whole and bool((starts > 0).all())


def beside(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens, mask and positions, each (rows, length), of prompts with their answers.

    Padding is left of prompts and right of answers: these begin at one place in all rows.
    """
    ids, mask = (
        torch.cat([_pad(before, 0, at=0), _pad(after, 0)], dim=1)
        for before, after in (
            (prompts, answers),
            tuple([[1] * len(one) for one in part] for part in (prompts, answers)),
        )
    )
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def score_answers(
    model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor
) -> "FusedCausalLMOutput":
    """Return what TRL's fused head does: log-probabilities and more, each (batch, length - 1).

    `input_ids` and `labels` are (batch, length): prompts without labels, answers with them, padded
    on the right. Where there is no label results are 0. Only `log_probs` carries a gradient.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    answers = labels != IGNORED
    starts, counts = answers.int().argmax(1).tolist(), answers.sum(1).tolist()
    rows = input_ids.tolist()
    prompts = [row[:start] for row, start in zip(rows, starts)]
    said = [row[start : start + count] for row, start, count in zip(rows, starts, counts)]
    ids, mask, positions = (one.to(input_ids.device) for one in beside(prompts, said))
    logits, targets = answer_logits(model, ids, mask, max(counts), positions)
    logits = logits.float()
    found = {"log_probs": -functional.cross_entropy(logits, targets, reduction="none")}
    with torch.no_grad():
        found["entropy"] = torch.distributions.Categorical(logits=logits).entropy()
        found["mean_logits"] = logits.mean(-1)
        found["is_top1"] = logits.argmax(-1) == targets
    said_at = mask[:, -max(counts) :].bool()
    scored = {
        name: values.new_zeros(answers[:, 1:].shape).masked_scatter(
            answers[:, 1:], in_place(values, said_at)[said_at]
        )
        for name, values in found.items()
    }
    loss = -scored["log_probs"].sum() / answers.sum()
    return FusedCausalLMOutput(loss=loss, **scored)
