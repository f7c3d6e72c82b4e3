"""Tiny random models with a word tokenizer: the real classes at no cost."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

WORDS = [f"w{number}" for number in range(40)]
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }} {{ turn.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words with a chat template that ends each turn with `<end>`."""
    names = ["<pad>", "<end>", "<unk>", "user", "assistant", "system", *WORDS]
    vocabulary = {word: number for number, word in enumerate(names)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    return fast


def model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Return a two-layer Llama in float32 with random weights, its configuration changed."""
    set_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": 46,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes))


def encoder_decoder(seed: int = 0, **changes: Any) -> T5ForConditionalGeneration:
    """Return a two-layer T5 in float32 with random weights, its configuration changed."""
    set_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": 46,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return T5ForConditionalGeneration(T5Config(**settings | changes))


def model_with_windows() -> Gemma3ForCausalLM:
    """Return a Gemma 3 whose first layers see a window of four tokens, shorter than a prompt."""
    set_seed(0)
    config = Gemma3TextConfig(
        vocab_size=46,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )
    return Gemma3ForCausalLM(config)
