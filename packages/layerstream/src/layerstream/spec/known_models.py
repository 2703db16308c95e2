"""Well-known models as the numbers of their configs, each with its source.

A config here holds what decides sizes and memory. It leaves out what moves no weight, such as the scaling of
rotary positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_FP8 = "published in FP8, which layerstream does not load yet; planned as 16-bit weights"
_MXFP4 = "published with experts in MXFP4, which layerstream does not load yet; planned as 16-bit weights"
_TEXT_ONLY = "the language model alone, without the vision part"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """The config of a published model.

    Attributes:
        title: its name in texts.
        model_type: transformers' name of the architecture.
        num_parameters: the parameters of a model that is built from the config, ties counted once.
        settings: the config's keywords that differ from the architecture's defaults.
        dtype: the dtype that it is planned in: the published one, or 16 bits if that was quantized.
        hub_id: where it is published; empty for the older ones.
        note: what a reader must know beside the numbers; empty for most.
    """

    title: str
    model_type: str
    num_parameters: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    hub_id: str = ""
    note: str = ""


def _decoder(
    *, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> dict[str, Any]:
    """Return the settings that most of today's architectures share."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
    }


def _llama_3(
    title: str, hub_id: str, *, hidden: int, inner: int, layers: int, heads: int, parameters: int
) -> KnownModel:
    # Llama 3 report (arXiv 2407.21783), table 3, and the Hub's config.json as litgpt's config.py repeats it
    sizes = _decoder(hidden=hidden, inner=inner, layers=layers, heads=heads, kv_heads=8, vocabulary=128_256)
    settings = sizes | {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5}
    return KnownModel(
        title=title, hub_id=hub_id, num_parameters=parameters, model_type="llama", settings=settings
    )


def _qwen3(
    size: str, *, hidden: int, inner: int, layers: int, heads: int, tied: bool = False, parameters: int
) -> KnownModel:
    # Qwen3 report (arXiv 2505.09388), table 1; widths as in litgpt's config.py and slime's scripts/models
    sizes = _decoder(hidden=hidden, inner=inner, layers=layers, heads=heads, kv_heads=8, vocabulary=151_936)
    return KnownModel(
        title=f"Qwen3 {size}",
        hub_id=f"Qwen/Qwen3-{size}",
        num_parameters=parameters,
        model_type="qwen3",
        settings=sizes | {"head_dim": 128, "tie_word_embeddings": tied},
    )


def _qwen3_moe(
    size: str, *, hidden: int, inner: int, layers: int, heads: int, expert: int, parameters: int
) -> KnownModel:
    # Qwen3 report, table 2; widths as in litgpt's config.py and slime's scripts/models
    sizes = _decoder(hidden=hidden, inner=inner, layers=layers, heads=heads, kv_heads=4, vocabulary=151_936)
    experts = {"moe_intermediate_size": expert, "num_experts": 128, "num_experts_per_tok": 8}
    return KnownModel(
        title=f"Qwen3 {size}",
        hub_id=f"Qwen/Qwen3-{size}",
        num_parameters=parameters,
        model_type="qwen3_moe",
        settings=sizes | experts | {"head_dim": 128},
    )


def _mistral(
    title: str,
    hub_id: str,
    *,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    vocabulary: int,
    parameters: int,
) -> KnownModel:
    # the Hub's config.json; 7B and Large as litgpt's config.py repeats it
    sizes = _decoder(
        hidden=hidden, inner=inner, layers=layers, heads=heads, kv_heads=8, vocabulary=vocabulary
    )
    settings = sizes | {"head_dim": 128, "sliding_window": None}
    return KnownModel(
        title=title, hub_id=hub_id, num_parameters=parameters, model_type="mistral", settings=settings
    )


def _mixtral(
    size: str, *, hidden: int, inner: int, layers: int, heads: int, vocabulary: int, parameters: int
) -> KnownModel:
    # Mixtral paper (arXiv 2401.04088), table 1, and litgpt's config.py; transformers' defaults are 8x7B
    return KnownModel(
        title=f"Mixtral {size}",
        hub_id=f"mistralai/Mixtral-{size}-v0.1",
        num_parameters=parameters,
        model_type="mixtral",
        settings=_decoder(
            hidden=hidden, inner=inner, layers=layers, heads=heads, kv_heads=8, vocabulary=vocabulary
        ),
    )


def _gemma_3(
    size: str, *, hidden: int, inner: int, layers: int, heads: int, head_dim: int = 256, parameters: int
) -> KnownModel:
    # litgpt's config.py; the vocabulary is that of transformers' Gemma3TextConfig
    sizes = _decoder(
        hidden=hidden, inner=inner, layers=layers, heads=heads, kv_heads=heads // 2, vocabulary=262_208
    )
    return KnownModel(
        title=f"Gemma 3 {size}",
        hub_id=f"google/gemma-3-{size.lower()}-it",
        num_parameters=parameters,
        model_type="gemma3_text",
        settings=sizes | {"head_dim": head_dim, "sliding_window": 1024},
        note=_TEXT_ONLY,
    )


def _gpt_oss(title: str, *, layers: int, experts: int, parameters: int) -> KnownModel:
    # gpt-oss model card (arXiv 2508.10925), table 1; transformers' GptOssConfig defaults are 120b
    return KnownModel(
        title=title,
        hub_id=f"openai/{title}",
        num_parameters=parameters,
        model_type="gpt_oss",
        settings={"num_hidden_layers": layers, "num_local_experts": experts},
        note=_MXFP4,
    )


def _glm_4(title: str, hub_id: str, *, parameters: int, **settings: Any) -> KnownModel:
    # GLM-4.5 report (arXiv 2508.06471), table 1, and slime's scripts/models; Glm4MoeConfig's defaults are
    # Air's, and 4.6 has 4.5's sizes. The published block for multi-token prediction is not loaded.
    return KnownModel(
        title=title,
        hub_id=hub_id,
        num_parameters=parameters,
        model_type="glm4_moe",
        settings={"attention_bias": True, "head_dim": 128, **settings},
    )


_GLM_355B = {
    "hidden_size": 5120,
    "intermediate_size": 12_288,
    "num_hidden_layers": 92,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "first_k_dense_replace": 3,
    "use_qk_norm": True,
}

_RECENT: Mapping[str, KnownModel] = {
    "llama-3.2-1b": KnownModel(
        title="Llama 3.2 1B",
        hub_id="meta-llama/Llama-3.2-1B",
        model_type="llama",
        # the Hub's config.json as litgpt's config.py repeats it
        settings=_decoder(hidden=2048, inner=8192, layers=16, heads=32, kv_heads=8, vocabulary=128_256)
        | {"head_dim": 64, "max_position_embeddings": 131_072, "tie_word_embeddings": True},
        num_parameters=1_235_814_400,
    ),
    "llama-3.1-8b": _llama_3(
        "Llama 3.1 8B",
        "meta-llama/Llama-3.1-8B",
        hidden=4096,
        inner=14_336,
        layers=32,
        heads=32,
        parameters=8_030_261_248,
    ),
    "llama-3.3-70b": _llama_3(
        "Llama 3.3 70B",
        "meta-llama/Llama-3.3-70B-Instruct",
        hidden=8192,
        inner=28_672,
        layers=80,
        heads=64,
        parameters=70_553_706_496,
    ),
    "llama-3.1-405b": _llama_3(
        "Llama 3.1 405B",
        "meta-llama/Llama-3.1-405B",
        hidden=16_384,
        inner=53_248,
        layers=126,
        heads=128,
        parameters=405_853_388_800,
    ),
    "qwen3-0.6b": _qwen3(
        "0.6B", hidden=1024, inner=3072, layers=28, heads=16, tied=True, parameters=596_049_920
    ),
    "qwen3-1.7b": _qwen3(
        "1.7B", hidden=2048, inner=6144, layers=28, heads=16, tied=True, parameters=1_720_574_976
    ),
    "qwen3-4b": _qwen3(
        "4B", hidden=2560, inner=9728, layers=36, heads=32, tied=True, parameters=4_022_468_096
    ),
    "qwen3-8b": _qwen3("8B", hidden=4096, inner=12_288, layers=36, heads=32, parameters=8_190_735_360),
    "qwen3-14b": _qwen3("14B", hidden=5120, inner=17_408, layers=40, heads=40, parameters=14_768_307_200),
    "qwen3-32b": _qwen3("32B", hidden=5120, inner=25_600, layers=64, heads=64, parameters=32_762_123_264),
    "qwen3-30b-a3b": _qwen3_moe(
        "30B-A3B", hidden=2048, inner=6144, layers=48, heads=32, expert=768, parameters=30_532_122_624
    ),
    "qwen3-235b-a22b": _qwen3_moe(
        "235B-A22B", hidden=4096, inner=12_288, layers=94, heads=64, expert=1536, parameters=235_093_634_560
    ),
    "qwen3-next-80b-a3b": KnownModel(
        # Qwen3NextConfig's defaults in transformers, and slime's scripts/models
        title="Qwen3-Next 80B-A3B",
        hub_id="Qwen/Qwen3-Next-80B-A3B-Instruct",
        model_type="qwen3_next",
        settings={},
        num_parameters=79_674_391_296,
    ),
    "mistral-7b": _mistral(
        "Mistral 7B v0.3",
        "mistralai/Mistral-7B-v0.3",
        hidden=4096,
        inner=14_336,
        layers=32,
        heads=32,
        vocabulary=32_768,
        parameters=7_248_023_552,
    ),
    "mistral-small-24b": _mistral(
        "Mistral Small 3 24B",
        "mistralai/Mistral-Small-24B-Instruct-2501",
        hidden=5120,
        inner=32_768,
        layers=40,
        heads=32,
        vocabulary=131_072,
        parameters=23_572_403_200,
    ),
    "mistral-large-123b": _mistral(
        "Mistral Large 2 123B",
        "mistralai/Mistral-Large-Instruct-2411",
        hidden=12_288,
        inner=28_672,
        layers=88,
        heads=96,
        vocabulary=32_768,
        parameters=122_610_069_504,
    ),
    "mixtral-8x7b": _mixtral(
        "8x7B", hidden=4096, inner=14_336, layers=32, heads=32, vocabulary=32_000, parameters=46_702_792_704
    ),
    "mixtral-8x22b": _mixtral(
        "8x22B", hidden=6144, inner=16_384, layers=56, heads=48, vocabulary=32_768, parameters=140_630_071_296
    ),
    "gemma-3-4b": _gemma_3("4B", hidden=2560, inner=10_240, layers=34, heads=8, parameters=3_880_263_168),
    "gemma-3-12b": _gemma_3("12B", hidden=3840, inner=15_360, layers=48, heads=16, parameters=11_766_034_176),
    "gemma-3-27b": _gemma_3(
        "27B", hidden=5376, inner=21_504, layers=62, heads=32, head_dim=128, parameters=27_009_346_304
    ),
    "gpt-oss-20b": _gpt_oss("gpt-oss-20b", layers=24, experts=32, parameters=20_914_757_184),
    "gpt-oss-120b": _gpt_oss("gpt-oss-120b", layers=36, experts=128, parameters=116_829_156_672),
    "glm-4.5-air": _glm_4("GLM-4.5-Air 106B-A12B", "zai-org/GLM-4.5-Air", parameters=106_852_245_504),
    "glm-4.5": _glm_4("GLM-4.5 355B-A32B", "zai-org/GLM-4.5", **_GLM_355B, parameters=352_797_814_784),
    "glm-4.6": _glm_4(
        "GLM-4.6 355B-A32B",
        "zai-org/GLM-4.6",
        **_GLM_355B,
        max_position_embeddings=202_752,
        parameters=352_797_814_784,
    ),
    "deepseek-v3": KnownModel(
        # DeepseekV3Config's defaults in transformers, and slime's scripts/models; without the block for
        # multi-token prediction
        title="DeepSeek-V3 671B-A37B",
        hub_id="deepseek-ai/DeepSeek-V3",
        model_type="deepseek_v3",
        settings={},
        note=_FP8,
        num_parameters=671_026_404_352,
    ),
    "kimi-k2": KnownModel(
        # DeepSeek-V3's architecture with the sizes of slime's scripts/models/kimi-k2.sh
        title="Kimi K2 1T-A32B",
        hub_id="moonshotai/Kimi-K2-Instruct",
        model_type="deepseek_v3",
        settings={
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "n_routed_experts": 384,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "vocab_size": 163_840,
        },
        note=_FP8,
        num_parameters=1_026_408_209_408,
    ),
}

_CLASSIC: Mapping[str, KnownModel] = {
    "gpt-3-175b": KnownModel(
        # Its weights were never published: GPT-2's architecture with the sizes of the paper's table 2.1.
        title="GPT-3 175B",
        dtype="float16",
        model_type="gpt2",
        settings={"n_layer": 96, "n_embd": 12288, "n_head": 96, "n_positions": 2048, "vocab_size": 50257},
        num_parameters=174_604_259_328,
    ),
    "bloom-176b": KnownModel(
        title="BLOOM 176B",
        dtype="float16",
        model_type="bloom",
        settings={"n_layer": 70, "hidden_size": 14336, "n_head": 112, "vocab_size": 250880},
        num_parameters=176_247_271_424,
    ),
    "llama-2-70b": KnownModel(
        title="Llama-2-70B",
        dtype="float16",
        model_type="llama",
        settings={
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
            "vocab_size": 32000,
            "rms_norm_eps": 1e-5,
        },
        num_parameters=68_976_648_192,
    ),
    "falcon-40b": KnownModel(
        title="Falcon-40B",
        dtype="float16",
        model_type="falcon",
        settings={
            "hidden_size": 8192,
            "num_hidden_layers": 60,
            "num_attention_heads": 128,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
            "vocab_size": 65024,
        },
        num_parameters=41_303_293_952,
    ),
    "mpt-30b": KnownModel(
        title="MPT-30B",
        dtype="float16",
        model_type="mpt",
        settings={"d_model": 7168, "n_heads": 64, "n_layers": 48, "max_seq_len": 8192, "vocab_size": 50432},
        num_parameters=29_957_200_896,
    ),
    "starcoder-15.5b": KnownModel(
        title="StarCoder 15.5B",
        dtype="float16",
        model_type="gpt_bigcode",
        settings={
            "n_embd": 6144,
            "n_layer": 40,
            "n_head": 48,
            "n_inner": 24576,
            "n_positions": 8192,
            "vocab_size": 49152,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        num_parameters=15_517_456_384,
    ),
}

KNOWN_MODELS: Mapping[str, KnownModel] = {**_RECENT, **_CLASSIC}
"""The models that can be named without a checkpoint."""
