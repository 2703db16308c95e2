"""Strategies for models and machines that plans are made for."""

from __future__ import annotations

from hypothesis import strategies as st

from layerstream.spec.profiles import ActivationProfile, Machine, ModelProfile, UnitProfile

MB = 1_000_000


def _unit(name: str, block: int | None, size: int) -> UnitProfile:
    return UnitProfile(
        name=name,
        block=block,
        weight_bytes=size,
        slot_bytes=size + 100,
        host_bytes=size + 200,
        read_bytes=size,
        num_parameters=size // 2,
    )


@st.composite
def models(draw: st.DrawFn) -> ModelProfile:
    """Draw a model of equal or unequal blocks, maybe with finer units, head and embedding, tied or not."""
    num_blocks = draw(st.integers(1, 8))
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=3))
    factors = draw(st.lists(st.integers(1, 3), min_size=num_blocks, max_size=num_blocks))
    parts = [
        _unit(f"b.{i}.{j}", i, size * factors[i] * MB)
        for i in range(num_blocks)
        for j, size in enumerate(sizes)
    ]
    blocks = [_unit(f"b.{i}", i, sum(sizes) * factors[i] * MB) for i in range(num_blocks)]
    edge = draw(st.integers(1, 60)) * MB
    has_head, tied = draw(st.booleans()), draw(st.booleans())
    return ModelProfile(
        name="drawn",
        model_type="llama",
        dtype="float16",
        num_parameters=1,
        blocks=tuple(blocks),
        parts=tuple(parts) if draw(st.booleans()) else (),
        head=_unit("head", None, edge) if has_head else None,
        head_rows=draw(st.sampled_from([0, 1000])),
        head_is_tied=has_head and tied,
        embedding_bytes=edge if draw(st.booleans()) else 0,
        embedding_row_bytes=1000,
        edge_bytes=draw(st.integers(0, 5)) * MB,
        activation=ActivationProfile(fixed_bytes=MB, bytes_per_token=1000.0, cache_bytes_per_token=5000.0),
    )


machines = st.builds(
    Machine,
    device=st.sampled_from(["cpu", "cuda:0"]),
    device_memory_bytes=st.just(400 * MB),
    host_memory_bytes=st.integers(200, 1000).map(lambda size: size * MB),
    disk_bytes_per_s=st.sampled_from([2e8, 3e9]),
    copy_bytes_per_s=st.sampled_from([1e9, 2e10]),
    memory_bytes_per_s=st.sampled_from([1e9, 5e10]),
    flops_per_s=st.sampled_from([1e10, 1e12, 1e14]),
    runtime_bytes=st.sampled_from([0, 10 * MB]),
)
