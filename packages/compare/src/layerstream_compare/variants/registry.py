"""List every variant: its name, its requirements, and whether this machine meets them.

The parent process reads it without torch, so nothing is imported or loaded here. A new variant is one small
module with `load(case)` and one entry in this registry.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


class VariantUnavailableError(Exception):
    """A variant cannot run here or on this model; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to hold the weights, or one way to compute attention.

    Attributes:
        name: name by which a case selects it.
        kind: `weights` or `attention`.
        title: one-line description for users.
        module: weights variants only: the module here whose `load(case)` loads it, imported only in the
            worker.
        implementation: attention variants only: transformers' `attn_implementation`; empty keeps the model's.
        backend: attention variants only: name of torch's `SDPBackend` to force; empty forces none.
        packages: importable names it requires; a dotted one is found without importing its parent.
        distribution: the installed distribution that must bring them, where several use one name.
        install: what to do when they are missing. It names the library itself: this package's extras can
            be asked for by name only once the package is on an index.
        needs_accelerator: it has no kernel for a CPU.
        needs_nvidia: it has kernels for NVIDIA GPUs only.
        needs_compiler: on a CPU, a C++ compiler builds the kernel at first use.
        faster_with_cpu_flags: flags in /proc/cpuinfo that select a faster kernel; without them it still runs.
    """

    name: str
    kind: str
    title: str
    module: str = ""
    implementation: str = ""
    backend: str = ""
    packages: tuple[str, ...] = ()
    distribution: str = ""
    install: str = ""
    needs_accelerator: bool = False
    needs_nvidia: bool = False
    needs_compiler: bool = False
    faster_with_cpu_flags: tuple[str, ...] = ()

    def availability(self) -> str | None:
        """Return why this variant cannot run here, or None if no reason is known. Imports nothing."""
        # the hardware first: nobody should install a package that cannot run here
        if reason := self._lacking_hardware():
            return reason
        if missing := self._missing_packages():
            how = f": {self.install}" if self.install else ""
            return f"{self.name} needs the package {' and '.join(missing)}, which is not installed{how}"
        if not self.needs_compiler or has_accelerator() or any(map(shutil.which, _COMPILERS)):
            return None
        return f"{self.name} builds its CPU kernel with a C++ compiler, and none was found"

    def _lacking_hardware(self) -> str:
        if has_accelerator():
            is_other = self.needs_nvidia and driver_vendors() == (AMD,)
            return f"{self.name} has kernels for NVIDIA GPUs only" if is_other else ""
        if self.needs_accelerator:
            why = "no accelerator was found"
            if driver_vendors():
                why = f"torch {installed_version('torch')} is built for CPUs only"
            return f"{self.name} has no kernel for a CPU, and {why}"
        return ""

    def _missing_packages(self) -> list[str]:
        missing = [package for package in self.packages if not has_package(package)]
        if self.distribution and (missing or not installed_version(self.distribution)):
            return [self.distribution]
        return missing

    def missing_cpu_flags(self, flags: frozenset[str] | None = None) -> tuple[str, ...]:
        """Return the flags that a faster kernel needs and the CPU lacks; they are never a reason not to run.

        Args:
            flags: the CPU's flags; this machine's by default.
        """
        present = cpu_flags() if flags is None else flags
        return tuple(flag for flag in self.faster_with_cpu_flags if flag not in present)


def _bitsandbytes(name: str, title: str, *flags: str) -> Variant:
    return Variant(
        name=name,
        kind="weights",
        title=title,
        module="bnb",
        packages=("bitsandbytes",),
        install="pip install bitsandbytes",
        faster_with_cpu_flags=flags,
    )


def _autoround(bits: int) -> Variant:
    return Variant(
        name=f"autoround-int{bits}",
        kind="weights",
        title=f"{bits}-bit weights by AutoRound's plain rounding, groups of 64, packed",
        module="autoround",
        packages=("auto_round",),
        install="pip install auto-round",
    )


def _sdpa(name: str, backend: str, *, needs_accelerator: bool = False, needs_nvidia: bool = False) -> Variant:
    title = f"scaled_dot_product_attention with the {name} backend forced"
    return Variant(
        name=f"sdpa-{name}",
        kind="attention",
        title=title,
        implementation="sdpa",
        backend=backend,
        needs_accelerator=needs_accelerator,
        needs_nvidia=needs_nvidia,
    )


def _flash(
    generation: int, package: str, distribution: str, install: str, *, needs_nvidia: bool = True
) -> Variant:
    return Variant(
        name=f"flash-attention-{generation}",
        kind="attention",
        title=f"the {distribution} package, generation {generation}",
        implementation=f"flash_attention_{generation}",
        packages=(package,),
        # generations 2 and 4 are both imported as flash_attn
        distribution=distribution,
        install=install,
        needs_accelerator=True,
        needs_nvidia=needs_nvidia,
    )


def _hub_flash(generation: int, kernel: str) -> Variant:
    return Variant(
        name=f"hub-flash-attention-{generation}",
        kind="attention",
        title=f"flash attention {generation} as a kernel from the Hub ({kernel})",
        implementation=kernel,
        packages=("kernels",),
        install="pip install kernels",
        needs_accelerator=True,
        needs_nvidia=True,
    )


NVIDIA, AMD = "NVIDIA", "AMD"
_DRIVER_FILES = {NVIDIA: "/dev/nvidiactl", AMD: "/dev/kfd"}
_COMPILERS = ("c++", "g++", "clang++")
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
        title="8-bit weights only, by torchao",
        module="torchao_int8",
        packages=("torchao",),
        install="pip install torchao",
    ),
    _autoround(3),
    _autoround(2),
    Variant(name="default", kind="attention", title="the implementation that transformers chooses"),
    Variant(
        name="eager", kind="attention", title="matmul, softmax, matmul, in Python", implementation="eager"
    ),
    Variant(
        name="sdpa",
        kind="attention",
        title="scaled_dot_product_attention, backend chosen by torch",
        implementation="sdpa",
    ),
    _sdpa("math", "MATH"),
    _sdpa("flash", "FLASH_ATTENTION"),
    _sdpa("efficient", "EFFICIENT_ATTENTION", needs_accelerator=True),
    _sdpa("cudnn", "CUDNN_ATTENTION", needs_accelerator=True, needs_nvidia=True),
    _flash(
        2,
        "flash_attn",
        "flash-attn",
        "pip install flash-attn --no-build-isolation (it may be compiled for a long time)",
        needs_nvidia=False,
    ),
    _flash(
        3,
        "flash_attn_interface",
        "flash-attn-3",
        "build it from the folder hopper of github.com/Dao-AILab/flash-attention, or choose "
        "hub-flash-attention-3, which needs no building",
    ),
    _flash(4, "flash_attn.cute", "flash-attn-4", "pip install flash-attn-4"),
    Variant(
        name="flex",
        kind="attention",
        title="torch's flex_attention",
        implementation="flex_attention",
        needs_compiler=True,
    ),
    _hub_flash(2, "kernels-community/flash-attn2"),
    _hub_flash(3, "kernels-community/vllm-flash-attn3"),
    _hub_flash(4, "kernels-community/flash-attn4"),
)


def list_variants(kind: str | None = None) -> tuple[Variant, ...]:
    """Return the registered variants in table order: all, or those of one `kind` (`weights`, `attention`)."""
    return tuple(variant for variant in _VARIANTS if kind in (None, variant.kind))


def find_variant(name: str, kind: str) -> Variant:
    """Return the variant of `kind` called `name`.

    Raises:
        ValueError: there is none; the message lists the valid names.
    """
    variants = {variant.name: variant for variant in list_variants(kind)}
    if name not in variants:
        raise ValueError(f"no {kind} variant is called {name!r}; choose one of {', '.join(variants)}")
    return variants[name]


def has_package(name: str) -> bool:
    """Return whether `name` can be imported, without importing it; `a.b` is looked up in `a`'s folders."""
    top, *inner = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not inner:
        return spec is not None
    paths = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
    return any(path.is_dir() or path.with_suffix(".py").is_file() for path in paths)


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, from its metadata; empty if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def has_accelerator() -> bool:
    """Return whether torch can use a GPU: a compute driver's device file exists, and torch was built for it.

    The driver is not called.
    """
    return bool(driver_vendors()) and not _is_cpu_build()


def driver_vendors() -> tuple[str, ...]:
    """Return the vendors, `NVIDIA` and `AMD`, whose compute driver's device file exists."""
    return tuple(vendor for vendor, file in _DRIVER_FILES.items() if Path(file).exists())


def _is_cpu_build() -> bool:
    return installed_version("torch").endswith("+cpu")


def cpu_flags() -> frozenset[str]:
    """Return the flags of the first CPU in /proc/cpuinfo; empty if there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.split())
