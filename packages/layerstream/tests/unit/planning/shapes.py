"""Models and machines as numbers, for the tests of planning."""

from __future__ import annotations

from layerstream.spec.profiles import ActivationProfile, Machine, ModelProfile, UnitProfile
from layerstream.spec.sizes import GIB, align_up

HIDDEN, INTERMEDIATE, KV_WIDTH, VOCABULARY = 8192, 28672, 1024, 32000
READ_BUFFER_BYTES = 32 * 1024**2
ATTENTION = {
    "q_proj": HIDDEN**2,
    "k_proj": HIDDEN * KV_WIDTH,
    "v_proj": HIDDEN * KV_WIDTH,
    "o_proj": HIDDEN**2,
}
MLP = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), HIDDEN * INTERMEDIATE)


def unit(name: str, block: int | None, num_parameters: int, *, alignment: int = 1) -> UnitProfile:
    """Return a unit of two bytes per parameter."""
    size = 2 * num_parameters
    return UnitProfile(
        name=name,
        block=block,
        weight_bytes=size,
        slot_bytes=align_up(size, alignment),
        host_bytes=align_up(size, alignment),
        read_bytes=size,
        num_parameters=num_parameters,
    )


def llama_70b() -> ModelProfile:
    """Return the 70B shape in fp16: 80 blocks of 1.711 GB, embedding and head of 524 MB each, untied."""
    names = [f"model.layers.{index}" for index in range(80)]
    block = sum(ATTENTION.values()) + sum(MLP.values())
    parts = {"self_attn": sum(ATTENTION.values()), "mlp": sum(MLP.values())}
    layers = {f"self_attn.{name}": size for name, size in ATTENTION.items()} | {
        f"mlp.{name}": size for name, size in MLP.items()
    }
    return ModelProfile(
        name="70b",
        model_type="llama",
        dtype="float16",
        num_parameters=80 * block + 2 * VOCABULARY * HIDDEN,
        blocks=tuple(unit(name, index, block, alignment=512) for index, name in enumerate(names)),
        parts=tuple(
            unit(f"{name}.{part}", index, parts[part]) for index, name in enumerate(names) for part in parts
        ),
        layers=tuple(
            unit(f"{name}.{layer}", index, layers[layer])
            for index, name in enumerate(names)
            for layer in layers
        ),
        head=unit("lm_head", None, VOCABULARY * HIDDEN),
        head_rows=VOCABULARY,
        embedding_bytes=2 * VOCABULARY * HIDDEN,
        embedding_row_bytes=2 * HIDDEN,
        edge_bytes=2 * HIDDEN,
        hidden_size=HIDDEN,
        vocab_size=VOCABULARY,
        activation=ActivationProfile(
            fixed_bytes=10_000_000,
            bytes_per_token=230_000,
            cache_bytes_per_token=80 * 2 * KV_WIDTH * 2,
            cache_layer_share=1 / 80,
        ),
    )


def small_model(
    *,
    num_blocks: int = 8,
    tied: bool = False,
    head: bool = True,
    embedding_bytes: int = 4_000_000,
    head_rows: int = 1000,
) -> ModelProfile:
    """Return a model of 10 MB blocks in parts of 4 and 6 MB, and a 4 MB head; no cache and no activations."""
    names = [f"layers.{index}" for index in range(num_blocks)]
    return ModelProfile(
        name="small",
        model_type="llama",
        dtype="float16",
        num_parameters=num_blocks * 5_000_000,
        blocks=tuple(unit(name, index, 5_000_000) for index, name in enumerate(names)),
        parts=tuple(
            unit(f"{name}.{part}", index, size)
            for index, name in enumerate(names)
            for part, size in (("self_attn", 2_000_000), ("mlp", 3_000_000))
        ),
        head=unit("lm_head", None, 2_000_000) if head else None,
        head_rows=head_rows,
        head_is_tied=tied,
        embedding_bytes=embedding_bytes,
        embedding_row_bytes=4000,
        edge_bytes=1000,
        activation=ActivationProfile(fixed_bytes=0, bytes_per_token=0.0),
    )


def cpu(memory_bytes: int = 16 * GIB) -> Machine:
    """Return a machine without an accelerator."""
    return Machine(device="cpu", device_memory_bytes=memory_bytes, host_memory_bytes=memory_bytes)


def card(device_gib: float, host_gib: float) -> Machine:
    """Return a machine with an accelerator of `device_gib` and host memory of `host_gib`."""
    return Machine(
        device="cuda:0",
        device_memory_bytes=int(device_gib * GIB),
        host_memory_bytes=int(host_gib * GIB),
        disk_bytes_per_s=3.0e9,
        copy_bytes_per_s=24.0e9,
        memory_bytes_per_s=500.0e9,
        flops_per_s=1.0e14,
        runtime_bytes=500 * 1024**2,
    )
