"""The models that the GPU profiles name, at full size: their public configurations, no weights.

The entries are those of the published `config.json` files as far as they decide shapes, precision
and attention. `parameters` is the published number of weights, which a test compares with the
model that transformers builds from the entry.
"""

from dataclasses import dataclass
from typing import Any

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A model's class, its configuration as published, and its number of weights."""

    model_class: str  # in transformers
    config: Config
    dtype: str  # of the published weights
    parameters: int
    weights: bool = True  # False: trained from none, so that only the configuration is needed

    @property
    def size(self) -> int:
        """Bytes of the weights on disk."""
        return self.parameters * BYTES[self.dtype] if self.weights else 0


def _qwen2(**own: Any) -> Config:
    shared = {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    }
    return shared | own


def _qwen3(**own: Any) -> Config:
    shared = {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_act": "silu",
        "head_dim": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "attention_bias": False,
        "use_sliding_window": False,
    }
    return shared | own


def _smollm2(**own: Any) -> Config:
    shared = {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return shared | own


SMOLLM2_360M = Architecture(
    "LlamaForCausalLM",
    _smollm2(
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        rope_theta=100_000,
    ),
    "bfloat16",
    361_821_120,
)
SMOLLM2_1_7B = Architecture(
    "LlamaForCausalLM",
    _smollm2(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        rope_theta=130_000,
    ),
    "bfloat16",
    1_711_376_384,
)
FALCON_7B = Architecture(
    "FalconForCausalLM",
    {
        "model_type": "falcon",
        "vocab_size": 65_024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "alibi": False,
        "bias": False,
    },
    "bfloat16",
    # With an output layer that shares the embedding's weights. The published files store it twice:
    # 65,024 * 4,544 more are 7,217,189,760.
    6_921_720_704,
)
FLAN_T5_BASE = Architecture(
    "T5ForConditionalGeneration",
    {
        "model_type": "t5",
        "vocab_size": 32_128,
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_heads": 12,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
    },
    "float32",
    247_577_856,
)
OPT_1_3B = Architecture(
    "OPTForCausalLM",
    {
        "model_type": "opt",
        "vocab_size": 50_272,
        "hidden_size": 2048,
        "word_embed_proj_dim": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "activation_function": "relu",
    },
    "float16",
    1_315_758_080,
)
GPT2 = Architecture(
    "GPT2LMHeadModel",
    {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50_257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
    },
    "float32",
    124_439_808,
    weights=False,
)
QWEN2_5_0_5B = Architecture(
    "Qwen2ForCausalLM",
    _qwen2(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    ),
    "bfloat16",
    494_032_768,
)
QWEN2_5_1_5B = Architecture(
    "Qwen2ForCausalLM",
    _qwen2(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
    ),
    "bfloat16",
    1_543_714_304,
)
GEMMA_3_1B = Architecture(
    "Gemma3ForCausalLM",
    {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 32_768,
        "sliding_window": 512,
        "tie_word_embeddings": True,
    },
    "bfloat16",
    999_885_952,
)
GEMMA_3_4B = Architecture(
    "Gemma3ForConditionalGeneration",
    {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": 262_208,
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 131_072,
            "sliding_window": 1024,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    "bfloat16",
    4_300_079_472,
)
QWEN3_1_7B = Architecture(
    "Qwen3ForCausalLM",
    _qwen3(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "bfloat16",
    1_720_574_976,
)
QWEN3_4B_2507 = Architecture(
    "Qwen3ForCausalLM",
    _qwen3(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        max_position_embeddings=262_144,
        rope_theta=5_000_000,
        tie_word_embeddings=True,
    ),
    "bfloat16",
    4_022_468_096,
)
QWEN3_14B = Architecture(
    "Qwen3ForCausalLM",
    _qwen3(
        hidden_size=5120,
        intermediate_size=17_408,
        num_hidden_layers=40,
        num_attention_heads=40,
        tie_word_embeddings=False,
    ),
    "bfloat16",
    14_768_307_200,
)

ARCHITECTURES = {
    "HuggingFaceTB/SmolLM2-360M-Instruct": SMOLLM2_360M,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": SMOLLM2_1_7B,
    "tiiuae/falcon-7b": FALCON_7B,
    "google/flan-t5-base": FLAN_T5_BASE,
    "facebook/opt-1.3b": OPT_1_3B,
    "openai-community/gpt2": GPT2,
    "Qwen/Qwen2.5-0.5B-Instruct": QWEN2_5_0_5B,
    "Qwen/Qwen2.5-1.5B-Instruct": QWEN2_5_1_5B,
    "google/gemma-3-1b-it": GEMMA_3_1B,
    "google/gemma-3-4b-it": GEMMA_3_4B,
    "Qwen/Qwen3-1.7B": QWEN3_1_7B,
    "Qwen/Qwen3-4B-Instruct-2507": QWEN3_4B_2507,
    "Qwen/Qwen3-14B": QWEN3_14B,
}
