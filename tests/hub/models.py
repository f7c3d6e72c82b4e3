"""Tiny random models for the loopback Hub: architecture, special tokens and files of the real ones.

They end their turns soon, see `end_soon`, and are random otherwise.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    FalconConfig,
    FalconForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    set_seed,
)

from tests.hub.data_sets import SEED
from tests.hub.endings import before_answers, end_soon
from tests.hub.tokenizing import (
    GEMMA_TEMPLATE,
    QWEN2_5_TEMPLATE,
    QWEN3_TEMPLATE,
    SMOLLM2_TEMPLATE,
    byte_level,
    gemma_tokenizer,
    qwen_tokenizer,
    smollm2_tokenizer,
    unigram,
)

# 64 is the block of NF4 quantization: every weight then is a whole number of blocks.
WIDTH, LAYERS, HEADS = 64, 2, 4


def _save(
    model: PreTrainedModel,
    folder: Path,
    published: dict[str, Any],
    shards: str,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model and its configuration as published.

    `shards` is the size at which the weights are cut into files. `published` has what the real
    `config.json` says and transformers would not write today; None removes an entry. `weights` are
    the model's own, where the real files name them as transformers would not today.
    """
    today = weights is None
    model.save_pretrained(
        folder, max_shard_size=shards, state_dict=weights, save_original_format=today
    )
    dtype = str(model.dtype).removeprefix("torch.")
    _publish(folder, {"dtype": None, "torch_dtype": dtype, **published})


def _publish(folder: Path, published: dict[str, Any]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | published
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def falcon_7b(folder: Path) -> None:
    """Write Falcon as in 7B: one key/value head, parallel attention, no template, no pad token."""
    names = (
        "TITLE ABSTRACT INTRODUCTION SUMMARY COMMENT ANSWER QUESTION DOMAIN PREFIX SUFFIX MIDDLE"
    )
    marks = [f">>{name}<<" for name in names.split()]
    end = "<|endoftext|>"  # id 11, as there
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level([*marks, end]),
        eos_token=end,
        additional_special_tokens=marks,
        model_max_length=2048,
    )
    tokenizer.save_pretrained(folder)
    config = FalconConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        multi_query=True,
        parallel_attn=True,
        bias=False,
        new_decoder_architecture=False,
        alibi=False,
        bos_token_id=11,
        eos_token_id=11,
    )
    set_seed(SEED)
    # The real repository still names its own code, which nobody should run: it is not here.
    own_code = {"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"}
    model = FalconForCausalLM(config).bfloat16()
    end_soon(model, 11, before_answers(tokenizer))
    absent = ("num_kv_heads", "ffn_hidden_size", "rope_parameters", "max_position_embeddings")
    published = {"auto_map": own_code, **dict.fromkeys(absent)}
    _save(model, folder, published, shards="200KB")


def smollm2_instruct(folder: Path, key_value_heads: int) -> None:
    """Write SmolLM2 as in 360M (grouped keys and values) or 1.7B: a tied Llama with ChatML."""
    tokenizer = smollm2_tokenizer(pad_token="<|im_end|>")
    tokenizer.chat_template = SMOLLM2_TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    tokenizer.backend_tokenizer.model.save(str(folder))
    set_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).bfloat16()
    end_soon(model, 2, before_answers(tokenizer))
    _save(model, folder, {"rope_theta": 1e5, "rope_parameters": None}, shards="5GB")


def flan_t5_base(folder: Path) -> None:
    """Write T5 as in FLAN: gated GELU, an output layer of its own, `</s>` after every text."""
    tokenizer = T5Tokenizer(vocab=unigram())
    tokenizer.save_pretrained(folder)
    special: dict[str, Any] = {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
    }
    config = T5Config(
        vocab_size=len(tokenizer) + 28,  # more rows than tokens: there 32,128 for 32,100
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        **special,
    )
    set_seed(SEED)
    model = T5ForConditionalGeneration(config)
    # transformers ties the two on construction, whatever the configuration says. In FLAN-T5 they
    # differ, and loading must notice it.
    model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(config.vocab_size, WIDTH))
    # A decoder begins with the pad token. An embedding has about 1 in each coordinate.
    end_soon(model, 1, [0], says=8.0, listens=2.0)
    published = {"tie_word_embeddings": False, "scale_decoder_outputs": None, "n_positions": 512}
    _save(model, folder, published, shards="5GB")


def opt_1_3b(folder: Path) -> None:
    """Write OPT as in 1.3B: float16, `</s>` as BOS and EOS, a tokenizer of two files."""
    tokenizer = byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt, and no tokenizer.json
    special = {"unk_token": "</s>", "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {
        **special,
        "add_bos_token": True,  # each text begins with </s>
        "add_prefix_space": False,
        "errors": "replace",
        "tokenizer_class": "GPT2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    config = OPTConfig(
        vocab_size=tokenizer.get_vocab_size() + 8,  # more rows than tokens, as there
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        ffn_dim=4 * WIDTH,
        num_attention_heads=HEADS,
        max_position_embeddings=2048,
        do_layer_norm_before=True,
        word_embed_proj_dim=WIDTH,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
    set_seed(SEED)
    model = OPTForCausalLM(config).half()
    tokens = before_answers(AutoTokenizer.from_pretrained(folder))
    end_soon(model, 2, tokens, listens=2.5)  # what positions add, it does not hear
    _save(model, folder, {"prefix": "</s>"}, shards="5GB")


def _qwen(
    folder: Path,
    tokenizer: Qwen2Tokenizer,
    classes: tuple[Callable[..., Any], Callable[..., PreTrainedModel]],
    sampling: dict[str, float],
    shards: str,
) -> None:
    """Write a model as of Qwen; `sampling` is how it generates unless told otherwise."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    set_seed(SEED)
    config = classes[0](
        vocab_size=len(tokenizer) + 8,  # more rows than tokens, as there
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        bos_token_id=pad,
        eos_token_id=end,
    )
    model = classes[1](config).bfloat16()
    end_soon(model, end, before_answers(tokenizer))
    ends = {"bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [end, pad]}
    model.generation_config = GenerationConfig(do_sample=True, top_k=20, **sampling, **ends)
    _save(model, folder, {"rope_theta": 1e6, "rope_parameters": None, "layer_types": None}, shards)


def qwen2_5_instruct(folder: Path) -> None:
    """Write Qwen2.5 as in 0.5B and 1.5B: tied, grouped keys and values, biases on q, k and v."""
    tokenizer = qwen_tokenizer(folder, QWEN2_5_TEMPLATE, plain=())
    sampling = {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1}
    config = partial(Qwen2Config, tie_word_embeddings=True)
    _qwen(folder, tokenizer, (config, Qwen2ForCausalLM), sampling, shards="5GB")


def qwen3(folder: Path, tied: bool) -> None:
    """Write Qwen3 as in 1.7B (tied) or 14B (not): q and k are normed, the head size is explicit."""
    tokenizer = qwen_tokenizer(folder, QWEN3_TEMPLATE, plain=("<think>", "</think>"))
    sampling = {"temperature": 0.6, "top_p": 0.95}
    config = partial(Qwen3Config, tie_word_embeddings=tied, head_dim=WIDTH // HEADS)
    _qwen(folder, tokenizer, (config, Qwen3ForCausalLM), sampling, shards="200KB")


def _gemma_text(rows: int, key_value_heads: int) -> dict[str, Any]:
    """Return the dimensions of a text model as of Gemma 3, under the published names."""
    return {
        "model_type": "gemma3_text",
        "vocab_size": rows,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": key_value_heads,
        "head_dim": 2 * WIDTH // HEADS,  # heads times this is not the hidden size, as there
        "query_pre_attn_scalar": 2 * WIDTH // HEADS,
        "sliding_window": 64,
        "sliding_window_pattern": LAYERS,  # the last layer sees the whole text; there each sixth
    }


def _save_gemma(
    model: PreTrainedModel, folder: Path, published: dict[str, Any], **layout: Any
) -> None:
    ends = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": published["eos_token_id"]}
    settings = {"top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"}
    model.generation_config = GenerationConfig(do_sample=True, **settings, **ends)
    _save(model, folder, published, **layout)


def _end_gemma_soon(model: PreTrainedModel, tokenizer: GemmaTokenizer) -> None:
    end = tokenizer.get_vocab()["<end_of_turn>"]
    # The norms behind the layers make them speak louder than elsewhere.
    end_soon(model, end, before_answers(tokenizer), says=0.5, listens=4.0)


def gemma_3_1b_it(folder: Path) -> None:
    """Write Gemma 3 as in 1B: text only, one key/value head, and one row fewer than tokens.

    The token without a row stands for images. There, a person has to accept the licence first.
    """
    tokenizer = gemma_tokenizer(folder)
    published: dict[str, Any] = {
        **_gemma_text(rows=len(tokenizer) - 1, key_value_heads=1),
        "eos_token_id": [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
    }
    set_seed(SEED)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**published)).bfloat16()
    _end_gemma_soon(model, tokenizer)
    absent = {"rope_parameters": None, "layer_types": None}
    _save_gemma(model, folder, {**published, "rope_theta": 1e6, **absent}, shards="5GB")


def gemma_3_4b_it(folder: Path) -> None:
    """Write Gemma 3 as in 4B: a SigLIP tower and a projector before the text model."""
    tokenizer = gemma_tokenizer(folder, processor_class="Gemma3Processor")
    side, image_tokens = 56, 4  # pixels, and what becomes of sixteen patches
    text = _gemma_text(rows=len(tokenizer) + 63, key_value_heads=HEADS // 2)
    published: dict[str, Any] = {
        "eos_token_id": [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        "boi_token_index": tokenizer.convert_tokens_to_ids("<start_of_image>"),
        "eoi_token_index": tokenizer.convert_tokens_to_ids("<end_of_image>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        "mm_tokens_per_image": image_tokens,
        "text_config": {**text, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": side,
            "patch_size": side // 4,
            "vision_use_head": False,
        },
    }
    set_seed(SEED)
    model = Gemma3ForConditionalGeneration(Gemma3Config(**published)).bfloat16()
    _end_gemma_soon(model, tokenizer)
    # Named as there. The output layer is the embedding, and not written twice.
    weights = {
        name.removeprefix("model.")
        .replace("language_model.", "language_model.model.")
        .replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }
    _save_gemma(model, folder, published, shards="200KB", weights=weights)
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": image_tokens}
    images = {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    for name, content in (
        ("processor_config", processor),
        ("preprocessor_config", {**processor, **images}),
        ("chat_template", {"chat_template": GEMMA_TEMPLATE}),  # once more, for the processor
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def gpt2(folder: Path) -> None:
    """Write the configuration and tokenizer of GPT-2; no weights, since it is trained from none."""
    byte_level([]).model.save(str(folder))
    tokenizer = GPT2Tokenizer.from_pretrained(folder, model_max_length=1024)
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id  # the last id, as there
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=1024,
        bos_token_id=end,
        eos_token_id=end,
        architectures=["GPT2LMHeadModel"],
    )
    config.save_pretrained(folder)
