"""The registry: what each variant is called, what it needs, and whether this machine has it.

Pure Python: the parent process reads it without torch. It knows names, packages and devices; it deliberately loads nothing. A new
variant is one small file with `load(case)` and one entry here.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class VariantUnavailableError(Exception):
    """A variant cannot run here or on this model; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to hold the weights, or one way to compute attention.

    Attributes:
        name: what a case calls it.
        kind: `weights` or `attention`.
        title: what it is, in a line for people.
        module: of a weights variant: the module of this package whose `load(case)` loads it, imported in the worker alone.
        implementation: of an attention variant: transformers' `attn_implementation`; empty leaves the model's own.
        backend: of an attention variant: the name of torch's `SDPBackend` to force; empty forces none.
        packages: importable names that must be there; a dotted one is looked for without importing its parent.
        extra: the extra of `layerstream-compare` that installs them; empty when there is none.
        needs_accelerator: there is no kernel for a CPU.
        needs_compiler: a C++ compiler builds the kernel at the first use on a CPU.
        faster_with_cpu_flags: flags of /proc/cpuinfo that select a faster kernel; without them another one runs.
    """

    name: str
    kind: str
    title: str
    module: str = ""
    implementation: str = ""
    backend: str = ""
    packages: tuple[str, ...] = ()
    extra: str = ""
    needs_accelerator: bool = False
    needs_compiler: bool = False
    faster_with_cpu_flags: tuple[str, ...] = ()

    def availability(self, environment: Mapping[str, Any] | None = None) -> str | None:
        """Return why this variant cannot run here, or None when nothing is known against it. Nothing is imported or loaded.

        Args:
            environment: what is known already; of it `accelerators` (empty where there is none) is used when present, and the
                device files are looked at when not.
        """
        missing = [package for package in self.packages if not has_package(package)]
        if missing:
            how = f"; pip install 'layerstream-compare[{self.extra}]'" if self.extra else ""
            return f"{self.name} needs the package {' and '.join(missing)}, which is not installed{how}"
        known = dict(environment or {})
        on_accelerator = bool(known["accelerators"]) if "accelerators" in known else has_accelerator()
        if self.needs_accelerator and not on_accelerator:
            return f"{self.name} has no kernel for a CPU, and no accelerator was found"
        if (
            self.needs_compiler
            and not on_accelerator
            and not any(map(shutil.which, ("c++", "g++", "clang++")))
        ):
            return f"{self.name} builds its CPU kernel with a C++ compiler, and none was found"
        return None

    def missing_cpu_flags(self, flags: frozenset[str] | None = None) -> tuple[str, ...]:
        """Return the flags that a faster kernel wants and this CPU lacks; never a reason not to run."""
        found = cpu_flags() if flags is None else flags
        return tuple(flag for flag in self.faster_with_cpu_flags if flag not in found)


def _bitsandbytes(name: str, title: str, *flags: str) -> Variant:
    return Variant(
        name=name,
        kind="weights",
        title=title,
        module="bnb",
        packages=("bitsandbytes",),
        faster_with_cpu_flags=flags,
    )


def _low_bits(bits: int) -> Variant:
    return Variant(
        name=f"autoround-int{bits}",
        kind="weights",
        title=f"{bits}-bit weights by AutoRound's plain rounding, groups of 64, packed",
        module="low_bits",
        packages=("auto_round",),
        extra="low-bits",
    )


def _sdpa(name: str, backend: str, *, needs_accelerator: bool = False) -> Variant:
    title = f"scaled_dot_product_attention with the {name} backend forced"
    return Variant(
        name=f"sdpa-{name}",
        kind="attention",
        title=title,
        implementation="sdpa",
        backend=backend,
        needs_accelerator=needs_accelerator,
    )


def _flash(generation: int, package: str) -> Variant:
    return Variant(
        name=f"flash-attention-{generation}",
        kind="attention",
        title=f"the flash-attn package, generation {generation}",
        implementation=f"flash_attention_{generation}",
        packages=(package,),
        needs_accelerator=True,
    )


_FOUR_BIT_FLAGS = ("avx512f", "avx512_bf16")

_VARIANTS = (
    Variant(name="streamed", kind="weights", title="layerstream within a memory budget", module="streamed"),
    Variant(
        name="resident", kind="weights", title="plain transformers, all weights in memory", module="resident"
    ),
    _bitsandbytes(
        "bnb-int8", "8-bit weights and activations by bitsandbytes (LLM.int8)", "avx512f", "avx512_vnni"
    ),
    _bitsandbytes("bnb-nf4", "4-bit NormalFloat weights by bitsandbytes", *_FOUR_BIT_FLAGS),
    _bitsandbytes("bnb-nf4-dq", "4-bit NormalFloat, its scales quantized too", *_FOUR_BIT_FLAGS),
    _bitsandbytes("bnb-fp4", "4-bit floating point weights by bitsandbytes", *_FOUR_BIT_FLAGS),
    _bitsandbytes("bnb-fp4-dq", "4-bit floating point, its scales quantized too", *_FOUR_BIT_FLAGS),
    Variant(
        name="torchao-int8",
        kind="weights",
        title="8-bit weights alone, by torchao",
        module="torchao_int8",
        packages=("torchao",),
        extra="torchao",
    ),
    _low_bits(3),
    _low_bits(2),
    Variant(name="default", kind="attention", title="what transformers chooses"),
    Variant(
        name="eager", kind="attention", title="matmul, softmax, matmul, in Python", implementation="eager"
    ),
    Variant(
        name="sdpa",
        kind="attention",
        title="scaled_dot_product_attention, torch chooses",
        implementation="sdpa",
    ),
    _sdpa("math", "MATH"),
    _sdpa("flash", "FLASH_ATTENTION"),
    _sdpa("efficient", "EFFICIENT_ATTENTION", needs_accelerator=True),
    _sdpa("cudnn", "CUDNN_ATTENTION", needs_accelerator=True),
    _flash(2, "flash_attn"),
    _flash(3, "flash_attn_interface"),
    _flash(4, "flash_attn.cute"),
    Variant(
        name="flex",
        kind="attention",
        title="torch's flex_attention",
        implementation="flex_attention",
        needs_compiler=True,
    ),
    Variant(
        name="hub-flash-attention-2",
        kind="attention",
        title="flash attention 2 as a kernel from the Hub",
        implementation="kernels-community/flash-attn2",
        packages=("kernels",),
        needs_accelerator=True,
    ),
)


def list_variants(kind: str | None = None) -> tuple[Variant, ...]:
    """Return the registered variants in the order in which tables show them; of one `kind` (`weights`, `attention`) or all."""
    return tuple(variant for variant in _VARIANTS if kind in (None, variant.kind))


def find_variant(name: str, kind: str) -> Variant:
    """Return the variant of `kind` called `name`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    known = {variant.name: variant for variant in list_variants(kind)}
    if name not in known:
        raise ValueError(f"no {kind} variant is called {name!r}; there are {', '.join(known)}")
    return known[name]


def has_package(name: str) -> bool:
    """Return whether `name` can be imported, without importing anything; `a.b` is looked for inside the folders of `a`."""
    top, *inner = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not inner:
        return spec is not None
    below = Path(*inner)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return any(
        (folder / below).is_dir() or (folder / below).with_suffix(".py").is_file() for folder in folders
    )


def has_accelerator() -> bool:
    """Return whether a device file of a GPU's compute driver is there (NVIDIA, AMD); asks no driver."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


def cpu_flags() -> frozenset[str]:
    """Return the flags of the first CPU in /proc/cpuinfo; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.split())
