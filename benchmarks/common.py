"""What all benchmarks share: random checkpoints, a cold page cache, interleaved rounds, facts about the machine, and result files.

Knows nothing of layerstream: a benchmark's own file says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "layerstream",
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "bitsandbytes",
    "torchao",
    "auto-round",
)
SAFETENSORS_DTYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
MIB, GIB = 1024**2, 1024**3


# -- checkpoints ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The shape of a Llama with random weights; the head is untied."""

    hidden_size: int
    intermediate_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int = 32000
    dtype: str = "bfloat16"

    def tensors_of_block(self, block: int) -> dict[str, tuple[int, ...]]:
        """Return the stored names and shapes of one block."""
        kv_size = self.hidden_size // self.num_heads * self.num_kv_heads
        square, wide = (self.hidden_size, self.hidden_size), (self.intermediate_size, self.hidden_size)
        shapes = {
            "input_layernorm": (self.hidden_size,),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
            "mlp.gate_proj": wide,
            "mlp.up_proj": wide,
            "post_attention_layernorm": (self.hidden_size,),
            "self_attn.k_proj": (kv_size, self.hidden_size),
            "self_attn.o_proj": square,
            "self_attn.q_proj": square,
            "self_attn.v_proj": (kv_size, self.hidden_size),
        }
        return {f"model.layers.{block}.{name}.weight": shape for name, shape in shapes.items()}

    def edges(self) -> dict[str, tuple[int, ...]]:
        """Return the stored names and shapes of all that is not a block."""
        table = (self.vocab_size, self.hidden_size)
        return {
            "model.embed_tokens.weight": table,
            "model.norm.weight": (self.hidden_size,),
            "lm_head.weight": table,
        }

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return getattr(torch, self.dtype).itemsize

    @property
    def weight_bytes(self) -> int:
        """All weights together."""
        blocks = [self.tensors_of_block(block) for block in range(self.num_blocks)]
        return self.element_bytes * sum(
            prod(shape) for part in [*blocks, self.edges()] for shape in part.values()
        )

    def config(self) -> dict[str, Any]:
        """Return transformers' config."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_blocks,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": self.dtype,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        }


# 0.44 GB of blocks + 0.13 GB of edges
HALF_GB = LlamaShape(hidden_size=1024, intermediate_size=2816, num_blocks=20, num_heads=16, num_kv_heads=8)
# 1.54 GB
ONE_AND_A_HALF_GB = LlamaShape(
    hidden_size=2048, intermediate_size=5632, num_blocks=16, num_heads=16, num_kv_heads=8
)
# 3.05 GB
THREE_GB = replace(ONE_AND_A_HALF_GB, num_blocks=33)
TINY = LlamaShape(
    hidden_size=64, intermediate_size=160, num_blocks=4, num_heads=4, num_kv_heads=2, vocab_size=512
)
# 0.21 GB, for --quick
SMALL = LlamaShape(
    hidden_size=768, intermediate_size=2112, num_blocks=12, num_heads=12, num_kv_heads=6, vocab_size=16000
)
LLAMA_70B = LlamaShape(
    hidden_size=8192, intermediate_size=28672, num_blocks=80, num_heads=64, num_kv_heads=8, dtype="float16"
)


def write_llama(
    directory: Path, shape: LlamaShape, *, blocks_per_shard: int = 4, sparse: bool = False
) -> Path:
    """Write a random Llama as sharded safetensors, tensor by tensor: no more than one tensor is ever in memory.

    Args:
        directory: made anew.
        shape: of the model.
        blocks_per_shard: decoder blocks in one file.
        sparse: write the headers only and leave holes (zeros that take no disk) where the weights would be.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(shape.config(), indent=1))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "pad_token_id": 0}))
    starts = range(0, shape.num_blocks, blocks_per_shard)
    shards = [
        _join(shape, range(start, min(start + blocks_per_shard, shape.num_blocks))) for start in starts
    ] + [shape.edges()]
    places, generator = {}, torch.Generator().manual_seed(0)
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / name, tensors, shape, None if sparse else generator)
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": shape.weight_bytes}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _join(shape: LlamaShape, blocks: range) -> dict[str, tuple[int, ...]]:
    return {name: size for block in blocks for name, size in shape.tensors_of_block(block).items()}


def _write_shard(
    path: Path, tensors: dict[str, tuple[int, ...]], shape: LlamaShape, generator: torch.Generator | None
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors.items():
        start, end = end, end + prod(size) * shape.element_bytes
        header[name] = {
            "dtype": SAFETENSORS_DTYPE[shape.dtype],
            "shape": list(size),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.micro_batch("<Q", len(text)) + text)
        if generator is None:
            file.truncate(8 + len(text) + end)
            return
        for name, size in tensors.items():
            file.write(_random_bytes(name, size, shape.dtype, generator))
        file.flush()
        os.fsync(file.fileno())


def _random_bytes(name: str, size: tuple[int, ...], dtype: str, generator: torch.Generator) -> memoryview:
    """Return one tensor's bytes: norms of one, else normal numbers of width 0.02, as a fresh model has them."""
    tensor = torch.ones(size) if "norm" in name else torch.randn(*size, generator=generator).mul_(0.02)
    return memoryview(tensor.to(getattr(torch, dtype)).contiguous().view(torch.uint8).reshape(-1).numpy())


def drop_page_cache(directory: Path) -> None:
    """Ask the system to forget the cached pages of every file in `directory`, so that the next read goes to the disk."""
    for path in sorted(directory.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


# -- measuring -----------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start_s = perf_counter()
    work()
    return perf_counter() - start_s


def interleave(
    cases: dict[str, Callable[[], float]], *, rounds: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Return each case's figures, one a round.

    Every round runs every case once, odd rounds in the reverse order, so that drift of the machine falls on all alike.
    """
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(-warmups, rounds):
        order = list(cases.items())
        for name, case in order if number % 2 == 0 else reversed(order):
            figure = case()
            if number >= 0:
                figures[name].append(figure)
    return figures


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the rounds' own ratios: both halves of each saw the same minute of the machine."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


# -- results -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one benchmark found.

    Attributes:
        theme: the file's first word.
        title: a heading.
        columns: of the table.
        rows: of the table, as text.
        verdicts: one line a wanted figure, with what was found.
        notes: how it was measured, one paragraph each.
        figures: everything as numbers, for the JSON file.
        svg: a plot, or None.
        drawings: further ones, by a word for their file's name.
    """

    theme: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    svg: str | None = None
    drawings: dict[str, str] = field(default_factory=dict)


def verdict(what: str, found: float, wanted: float, *, at_most: bool = True) -> str:
    """Return one line that says whether `found` is what was wanted."""
    met = found <= wanted if at_most else found >= wanted
    return f"{'met' if met else 'MISSED'}: {what} {found:.3f} (wanted {'at most' if at_most else 'at least'} {wanted:g})"


def arguments(description: str) -> argparse.Namespace:
    """Return what every benchmark takes from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small version that shows that the script works; its figures mean little",
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds")
    parser.add_argument(
        "--work",
        type=Path,
        help="where checkpoints are made and removed; a real disk, not tmpfs (default: temp dir)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where the result files go (default: benchmarks/results, nowhere with --quick)",
    )
    parser.add_argument(
        "--hardware", help="the machine's name in file names (default: made of processor, cores and memory)"
    )
    parser.add_argument("--date", default=date.today().isoformat(), help="the date in file names")
    return parser.parse_args()


@contextmanager
def work_directory(options: argparse.Namespace) -> Iterator[Path]:
    """Yield a fresh directory for checkpoints; it is removed with everything in it."""
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="layerstream-bench-", dir=options.work))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def environment(directory: Path | None = None) -> dict[str, str]:
    """Return the hardware and the versions that a figure depends on."""
    facts = {
        "processor": processor_name(),
        "cores": f"{os.cpu_count()} ({torch.get_num_threads()} torch threads)",
        "bf16 instructions": "yes" if "avx512_bf16" in _cpu_flags() else "no",
        "memory": f"{psutil.virtual_memory().total / GIB:.1f} GiB",
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if directory is not None:
        facts["disk"] = _disk_facts(directory)
    return facts | {name: _version(name) for name in PACKAGES}


def processor_name() -> str:
    """Return the processor's name with family and model: virtual machines often hide the rest."""
    fields = dict(line.split(":", 1) for line in _cpuinfo() if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {known['cpu family']}, model {known['model']})" if "cpu family" in known else name


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return []


def _cpu_flags() -> set[str]:
    return {flag for line in _cpuinfo() if line.startswith("flags") for flag in line.split()}


def _disk_facts(directory: Path) -> str:
    """Return the file system's type and, on Linux, what kind of device is behind it."""
    matches = [
        part
        for part in psutil.disk_partitions(all=True)
        if directory.resolve().is_relative_to(part.mountpoint)
    ]
    if not matches:
        return "unknown"
    part = max(matches, key=lambda each: len(each.mountpoint))
    device = Path(part.device).name
    rotational = Path(f"/sys/block/{device}/queue/rotational")
    kind = (
        {"0": "no seek", "1": "rotational"}.get(rotational.read_text().strip(), "?")
        if rotational.exists()
        else "?"
    )
    return f"{part.fstype} on {device} ({kind})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def hardware_slug() -> str:
    """Return a short name of this machine for file names."""
    words = [word.lower() for word in processor_name().split("(")[0].split() if word.isalnum()][:3]
    return "-".join([*words, f"{os.cpu_count()}core", f"{round(psutil.virtual_memory().total / GIB)}gib"])


def publish(outcome: Outcome, options: argparse.Namespace, facts: dict[str, str]) -> int:
    """Print the outcome and write its files; return the exit status, which says nothing about the figures."""
    table = Table(title=outcome.title)
    for number, column in enumerate(outcome.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in outcome.rows:
        table.add_row(*row)
    console = Console(width=160)
    console.print(table)
    for line in outcome.verdicts:
        console.print(line, highlight=False)
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return 0
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{outcome.theme}_{options.hardware or hardware_slug()}_{options.date}"
    (out / f"{stem}.md").write_text(_as_markdown(outcome, facts, stem))
    # where the checkpoints lay is nobody's business
    told = [
        option
        for option in sys.argv[1:]
        if not Path(option).is_absolute() and option not in ("--work", "--out")
    ]
    content = {"environment": facts, "command": " ".join([Path(sys.argv[0]).name, *told]), **asdict(outcome)}
    (out / f"{stem}.json").write_text(
        json.dumps({key: value for key, value in content.items() if key not in ("svg", "drawings")}, indent=1)
        + "\n"
    )
    if outcome.svg is not None:
        (out / f"{stem}.svg").write_text(outcome.svg)
    for name, drawing in outcome.drawings.items():
        (out / f"{stem}_{name}.svg").write_text(drawing)
    console.print(f"written: {out / stem}.md")
    return 0


def _as_markdown(outcome: Outcome, facts: dict[str, str], stem: str) -> str:
    lines = [f"# {outcome.title}", ""]
    lines += [f"- {line}" for line in outcome.verdicts] + [""]
    lines += ["| " + " | ".join(outcome.columns) + " |", "|" + "---|" * len(outcome.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in outcome.rows] + [""]
    if outcome.svg is not None:
        lines += [f"![{outcome.title}]({stem}.svg)", ""]
    lines += [line for name in outcome.drawings for line in (f"![{name}]({stem}_{name}.svg)", "")]
    lines += [paragraph + "\n" for paragraph in outcome.notes]
    lines += ["| | |", "|---|---|"] + [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(lines) + "\n"
