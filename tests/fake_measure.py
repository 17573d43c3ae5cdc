"""A fake measure of a machine with given speeds and memory, for tests of choices that need measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from carnet.config import ResolvedConfig
from carnet.training.autotune import COMPILING
from carnet.training.measure import Measure, Numbers

GIGA = 10**9
Seconds = Callable[[ResolvedConfig], float]


def another_network(seconds: float) -> dict[str, Numbers]:
    """Return a kept measurement of compiling another network, which is then expected of every network."""
    return {f"{COMPILING}another network": {"seconds": seconds}}


@dataclass
class FakeMeasure(Measure):
    """Four cores of two threads each, half a gigabyte in use, four free, a compiler."""

    of_step: Seconds = lambda _: 0.1
    """Seconds of a step."""
    image_bytes: float = 1e7
    """Memory of a step for each image; it takes none besides."""
    spent: float = 0.0
    """Seconds since the command began."""
    compile_seconds: float = 0.0
    """Seconds of compiling."""
    known: dict[str, Numbers] = field(default_factory=lambda: another_network(60.0))
    rates: Numbers = field(default_factory=lambda: {"fp32": 80.0, "bf16": 1.0})
    no_compiler: str = ""
    free: int = 4 * GIGA
    can_keep: bool = True
    cores: int = 8
    physical_cores: int = 4
    has_depthwise: bool = True
    is_decoded: bool = False
    seconds_to_prepare: float = 0.001
    micro_batch: int | None = None
    held: list[tuple[str, str]] = field(default_factory=list)
    """Limits that were set."""
    images_in_turns: list[int] = field(default_factory=list)
    """Number of images in each comparison."""

    def elapsed(self) -> float:
        return self.spent

    def used_bytes(self) -> int:
        return GIGA // 2

    def free_bytes(self) -> int:
        return self.free

    def keep_freed_memory(self) -> bool:
        return self.can_keep

    def hold_memory_below(self, limit: str, device: str) -> None:
        self.held.append((limit, device))

    def compiler_problem(self, device: str) -> str:
        return self.no_compiler

    def matrix_rates(self, config: ResolvedConfig) -> Numbers:
        return self.rates

    def recall(self) -> Mapping[str, Numbers]:
        return self.known

    def remember(self, what: str, numbers: Numbers) -> None:
        self.known[what] = numbers

    def seconds(self, config: ResolvedConfig, *, initial: bool = False) -> float:
        return self.of_step(config) * (0.5 if initial else 1.0)

    def seconds_in_turns(self, configs: Mapping[str, ResolvedConfig], num_images: int) -> Mapping[str, float]:
        self.images_in_turns.append(num_images)
        if any(config.compile for config in configs.values()):
            self.spent += self.compile_seconds
        return {name: self.of_step(config) for name, config in configs.items()}

    def peak_bytes(self, config: ResolvedConfig, num_images: int) -> int:
        return int(GIGA / 2 + num_images * self.image_bytes)

    def least_bytes(self, config: ResolvedConfig) -> int:
        return int(self.image_bytes / 2)

    def seconds_to_evaluate(self, num_images: int) -> float:
        return 0.01


@dataclass(frozen=True)
class Images:
    """The numbers that `resolve` needs to know of the data."""

    num_train: int
    num_valid: int = 50
    image_size: int = 244
