"""What is chosen by measuring, before the first step: Muon's precision, micro-batch, threads, compiling, epochs.

A rehearsal takes real steps on a real batch, and then puts the weights back. Everything chosen is frozen in the plan
and the recipe of the run, so that it can be repeated and resumed; every choice is told with its reason.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from carnet.config import TrainingConfig
from carnet.errors import CarnetError, ConfigError
from carnet.models.device import on_threads
from carnet.prefetch import available_cores
from carnet.text import Progress, counted, duration, parse_bytes, parse_seconds, show_bytes
from carnet.training.measurements import (
    MARGIN,
    expected_seconds,
    kept_matrix_rates,
    known_speedup,
    recall,
    remember,
    remember_compiling,
)
from carnet.training.memory import anonymous_bytes, free_bytes, hold_memory_below, keep_freed_memory, trim_memory
from carnet.training.rehearsal import Rehearsal
from carnet.training.resolve import DECIDING, Plan, physical_cores, whole_micro_batch
from carnet.training.schedule import first_side, mean_cost
from carnet.training.step import compiler_problem, end_compiling

SHORT_RUN_SECONDS = 30.0
"""A shorter run is over before a choice could repay its measuring."""
LONG_RUN_SECONDS = 1800.0
"""A longer run says how to limit it."""
COMPILING_SHARE = 1 / 20
"""Share of the run that trying to compile may cost: it saves a fifth to a third where it succeeds."""
FEWEST_STEPS = 100
"""Where a budget leaves fewer, and no epoch, nothing can be learned."""
FEW_THREADS = 2
"""Of the arithmetic, up to which threads that change decoded images cost the steps more than they save them: one that
waits for a core makes all wait. `benchmarks/kernels.py` compares."""
_LEAN_RECOMPUTE = 0.3
_COMPILING_BYTES = 600 * 10**6
"""What compiling takes besides: the C++ compiler, and PyTorch's own."""
_SPARE_MEMORY = 0.9
"""Share of the limit that is planned for; the rest is for what the measurement has not seen."""
_KEPT_MEMORY = 1.6
"""How much more a step takes where freed memory is kept, because of the gaps."""
_TRIAL_SECONDS = 0.25
"""What a step may take that is tried in turns with others."""


def tune(
    config: TrainingConfig,
    plan: Plan,
    rehearse: Callable[[], Rehearsal],
    *,
    steps_per_epoch: int,
    num_valid: int,
    started: float,
    progress: Progress,
) -> tuple[TrainingConfig, Plan]:
    """Fill in what only this machine can tell.

    Args:
        config: the recipe; a budget decides its epochs.
        plan: as `resolve` gives it.
        rehearse: begins the rehearsal.
        steps_per_epoch: optimizer steps of an epoch.
        num_valid: validation images, judged after each epoch.
        started: when the command began, by `time.monotonic`.
        progress: shown what is measured.

    Raises:
        ConfigError: if the memory allowed is too little, or compiling was asked for and fails.
    """
    progress.say("Measures this machine …")
    rehearsal = rehearse()
    try:
        tuning = _Tuning(config, plan, rehearsal, steps_per_epoch, started)
        tuning.choose_step()
        tuning.measure_growth()
        tuning.choose_compiling()
        tuning.choose_workers()
        if config.budget:
            tuning.choose_epochs(num_valid)
        else:
            tuning.foretell(num_valid)
        return tuning.config, replace(tuning.plan, reasons=(*plan.reasons, *tuning.reasons))
    finally:
        rehearsal.undo()


def seconds_of_step(
    config: TrainingConfig, plan: Plan, rehearsal: Rehearsal, *, steps_per_epoch: int, started: float
) -> float:
    """What a step takes once precision, layout, gradients and threads are chosen.

    Args:
        config: the recipe.
        plan: as `resolve` gives it.
        rehearsal: which is undone at the end.
        steps_per_epoch: optimizer steps of an epoch.
        started: when the command began, by `time.monotonic`.
    """
    try:
        tuning = _Tuning(config, plan, rehearsal, steps_per_epoch, started)
        tuning.choose_step()
        return tuning.step_seconds
    finally:
        rehearsal.undo()


class _Tuning:
    """Choices so far. Each method makes one, and says why."""

    def __init__(self, config: TrainingConfig, plan: Plan, rehearsal: Rehearsal, steps: int, started: float) -> None:
        self.config, self.plan, self.rehearsal = config, plan, rehearsal
        self.steps_per_epoch, self.started = steps, started
        self.step_seconds = 0.0
        self.reasons: list[str] = []

    @property
    def run_seconds(self) -> float:
        """What the steps of the run take, as measured so far."""
        asked = self.step_seconds * self.steps_per_epoch * self.config.epochs
        if self.config.budget:
            return min(self._left(), asked or self._left())
        return asked

    def choose_step(self) -> None:
        """Everything but compiling, and time it."""
        self.choose_muon_precision()
        if self.plan.devices > 1 and self.plan.device == "cpu" and self.config.precision == "auto":
            # Steps of several processes are not tried in turns.
            self.plan = replace(self.plan, precision=self.rates.faster_precision)
            self.reasons.append(f"{self.plan.precision}: {self.rates}")
        self.fit_memory()
        self.measure_step()
        if self.plan.devices == 1:
            self.choose_kernels()

    def choose_muon_precision(self) -> None:
        """Let Muon multiply in the precision that this device multiplies fastest."""
        with on_threads(self.plan.threads):
            rates = self.rates = kept_matrix_rates(self.plan.device)
        self.plan = replace(self.plan, matrix_gflops=rates.to_json())
        if self.config.optimizer == "muon" and self.config.muon_precision == "auto":
            self.plan = replace(self.plan, muon_precision=rates.faster_precision)
            self.reasons.append(f"Muon in {rates.faster_precision}: {rates}")

    def fit_memory(self) -> None:
        """Choose how many images go through the network at a time."""
        plan, config = self.plan, self.config
        if plan.device == "cuda":
            if config.max_memory:
                hold_memory_below(config.max_memory, plan.device)
                self.reasons.append(f"at most {config.max_memory} of the GPU's memory")
            return
        limit = anonymous_bytes() + free_bytes() // plan.devices
        if config.max_memory:
            limit = min(limit, parse_bytes(config.max_memory) // plan.devices)
        smallest = min(2, plan.micro_batch)
        self._require_room(anonymous_bytes() + smallest * self.rehearsal.least_bytes(plan), smallest, limit)
        fixed, each = self._memory_of(smallest, limit)
        fitting = int((_SPARE_MEMORY * limit - fixed) / each) if each else plan.micro_batch
        if fitting < smallest:
            self._require_room((fixed + smallest * each) / _SPARE_MEMORY, smallest, limit)
        if fitting < plan.micro_batch and not config.micro_batch:
            size = _part_of(plan.micro_batch, fitting)
            self.plan = replace(plan, micro_batch=size)
            self.reasons.append(
                f"{counted(size, 'image')} at a time, so that a step stays below {show_bytes(limit)}: gradients are "
                f"those of {config.batch_size}, batch-norm statistics those of {size}"
            )
        elif config.max_memory:
            needed = fixed + plan.micro_batch * each
            self.reasons.append(f"a step takes about {show_bytes(needed)} of the {show_bytes(limit)} allowed")
        if self.plan.keep_memory:
            self.plan = replace(self.plan, keep_memory=keep_freed_memory())
            self.reasons += ["freed memory is kept for the next step"] if self.plan.keep_memory else []

    def _require_room(self, needed: float, num_images: int, limit: int) -> None:
        if needed > limit:
            raise ConfigError(
                f"a step of {counted(num_images, 'image')} of {self.config.image_size} px takes at least "
                f"{show_bytes(needed)} here, more than the {show_bytes(limit)} there are; "
                f"{'raise --max-memory' if self.config.max_memory else 'free some memory'}, or take a smaller "
                "--image-size"
            )

    def _memory_of(self, smallest: int, limit: int) -> tuple[float, float]:
        """What a step takes: bytes whatever the number of images, and bytes for each."""
        # Memory that earlier steps have freed and this process has kept would hide what these take.
        gc.collect()
        trim_memory()
        before = anonymous_bytes()
        peak = self.rehearsal.peak_bytes(self.plan, smallest)
        twice = min(2 * smallest, self.plan.micro_batch)
        if twice == smallest or peak + (peak - before) > limit:
            # Measuring more might exceed the limit; all that has come with the first step counts as the images'.
            return before, max(0, peak - before) / smallest
        each = max(0, self.rehearsal.peak_bytes(self.plan, twice) - peak) / (twice - smallest)
        return peak - smallest * each, each * (_KEPT_MEMORY if self.plan.keep_memory else 1.0)

    def measure_step(self) -> None:
        """Time a step as planned so far."""
        self.step_seconds = self.rehearsal.seconds(self.plan)
        if size := self.rehearsal.micro_batch:
            self.plan = replace(self.plan, micro_batch=size)
            self.reasons.append(f"{counted(size, 'image')} at a time, for memory ran out with more")

    def choose_kernels(self) -> None:
        """Choose precision, layout, gradient of depthwise convolutions and threads: each by steps timed in turns."""
        before, num_reasons = self.plan, len(self.reasons)
        precisions = {name: replace(self.plan, precision=name) for name in ("fp32", "bf16")}
        # Emulated bf16 is slow in whatever is computed, so that the network need not be tried.
        is_fast = self.rates.bf16 > self.rates.fp32
        if self.plan.device == "cpu" and self.config.precision == "auto" and is_fast:
            self._choose("precision", precisions)
        if self.plan.device != "mps" and self.config.memory_format == "auto":
            layouts = ("channels_last", "contiguous")
            self._choose("layout", {_words(name): replace(self.plan, memory_format=name) for name in layouts})
        if self.config.fast_depthwise == "auto" and self.rehearsal.has_depthwise:
            ours = self.plan.fast_depthwise
            names = {True: "our gradient of depthwise convolutions", False: "PyTorch's"}
            self._choose(
                "gradient of depthwise convolutions",
                {names[way]: replace(self.plan, fast_depthwise=way) for way in (ours, not ours)},
            )
        if self.plan.device == "cpu" and not self.config.threads and physical_cores() < self.plan.threads:
            # Where two threads share a core.
            numbers = (self.plan.threads, physical_cores())
            self._choose("threads", {counted(n, "thread"): replace(self.plan, threads=n) for n in numbers})
        if len(self.reasons) == num_reasons:
            layout = _words(self.plan.memory_format)
            self.reasons.append(f"{self.plan.precision}, {layout} layout; other ways to compute were not measured")
        if self.plan == before:
            return
        whole = whole_micro_batch(self.config, self.plan.devices)
        if replace(self.plan, threads=before.threads) != before:
            # Another way to compute takes more memory, or less.
            self.plan = replace(self.plan, micro_batch=whole)
            self.fit_memory()
        self.measure_step()

    def _choose(self, what: str, plans: Mapping[str, Plan]) -> None:
        """Take the plan that is the fastest by the margin, or else the first one.

        What was measured on this machine before counts again, so that equal runs choose the same. A run that is too
        short to repay measuring takes the first one, also after longer ones have measured.
        """
        if self.run_seconds < SHORT_RUN_SECONDS:
            return
        config, (usual, first) = self.config, next(iter(plans.items()))
        key = f"{what} of {config.model} at {config.image_size} px, {circumstances(config, first)}"
        seconds = recall().get(key, {})
        if set(seconds) != set(plans):
            share = first.micro_batch * first.devices / config.batch_size
            num_images = _few(first.micro_batch, self.step_seconds * share)
            measured = self.rehearsal.seconds_in_turns(plans, num_images)
            seconds = {name: float(f"{measured[name] / num_images:.3g}") for name in plans}
            remember(key, seconds)
        best = min(plans, key=lambda name: seconds[name])
        chosen = best if seconds[best] * MARGIN <= seconds[usual] else usual
        self.plan = plans[chosen]
        others = [f"{name} {1000 * seconds[name]:.3g}" for name in plans if name != chosen]
        self.reasons.append(f"{chosen}: {1000 * seconds[chosen]:.3g} ms an image, {', '.join(others)} ms")

    def choose_compiling(self) -> None:
        """Compile where that is asked for, or the run is long enough to repay it, and it works."""
        wish, plan = self.config.compile, self.plan
        if wish == "off" or (wish == "auto" and plan.devices > 1):
            return
        network = f"{self.config.model} at {self.config.image_size} px, {circumstances(self.config, plan)}"
        if wish == "auto" and (reason := self._reason_not_to_compile(network)):
            self.reasons.append(f"not compiled: {reason}")
            return
        if problem := compiler_problem(plan.device):
            raise ConfigError(f"--compile on: {problem}; install one, or leave the flag out")
        recompute = _LEAN_RECOMPUTE if self.config.max_memory else 1.0
        compiled = replace(plan, compile=True, recompute=recompute)
        started = time.perf_counter()
        try:
            times = self.rehearsal.seconds_in_turns({"plain": plan, "compiled": compiled}, plan.micro_batch)
        # What a compiler of another machine can raise is not ours to list; the error is told, and training goes on.
        except Exception as error:
            end_compiling()
            remember_compiling(network, time.perf_counter() - started)
            if wish == "on" or isinstance(error, CarnetError):
                raise ConfigError(f"--compile on: {_first_line(error)}") from error
            self.reasons.append(f"not compiled: that failed ({_first_line(error)})")
            return
        took = time.perf_counter() - started
        # What was measured first counts, so that equal runs choose the same.
        speedup = known_speedup(network) or times["plain"] / times["compiled"]
        remember_compiling(network, took, speedup)
        gain = f"{times['plain']:.2f} to {times['compiled']:.2f} s, in {duration(took)}"
        if wish == "on" or speedup >= MARGIN:
            first_seconds = plan.first_cost * self.step_seconds
            self.plan, self.step_seconds = compiled, self.step_seconds / speedup
            self._set_first_cost(first_seconds)
            self.reasons.append(f"compiled: {gain}")
        else:
            self.reasons.append(f"not compiled: that is not {MARGIN} times as fast, {gain}")

    def _reason_not_to_compile(self, network: str) -> str:
        """Why compiling is not even tried: a clause; empty where it is."""
        device, limit = self.plan.device, self.config.max_memory
        if device == "mps":
            return "that is not reliable on Apple's GPUs yet"
        speedup = known_speedup(network)
        if speedup is not None and speedup < MARGIN:
            return f"a compiled network was {speedup:.2f} times as fast here before, which is less than {MARGIN}"
        seconds = expected_seconds(network)
        if seconds > COMPILING_SHARE * self.run_seconds:
            return f"it takes about {duration(seconds)}, too long for a run of {duration(self.run_seconds)}"
        if problem := compiler_problem(device):
            return problem
        if (
            limit
            and device != "cuda"
            and parse_bytes(limit) // self.plan.devices - anonymous_bytes() < _COMPILING_BYTES
        ):
            return f"it takes about {show_bytes(_COMPILING_BYTES)} of memory, more than the limit leaves"
        return ""

    def measure_growth(self) -> None:
        """Learn how much less a step takes at the beginning, where images grow."""
        if first_side(self.config) < self.config.image_size and self.run_seconds >= SHORT_RUN_SECONDS:
            self._set_first_cost(self.rehearsal.seconds(self.plan, first=True))

    def _set_first_cost(self, seconds: float) -> None:
        self.plan = replace(self.plan, first_cost=round(min(1.0, seconds / self.step_seconds), 3))

    def choose_workers(self) -> None:
        """As many threads to prepare images as keep up with the steps; none where they would only be in the way."""
        plan = self.plan
        if (
            self.config.workers < 0
            and plan.device == "cpu"
            and plan.threads <= FEW_THREADS
            and self.rehearsal.is_decoded
        ):
            self.plan = replace(plan, workers=0)
        elif self.config.workers < 0:
            rate = self.config.batch_size / plan.devices / self.step_seconds
            needed = int(np.ceil(1.5 * self.rehearsal.seconds_to_load * rate))
            self.plan = replace(plan, workers=max(1, min(needed, plan.workers)))
        workers = self.plan.workers
        threads = f"{counted(plan.threads, 'thread')} of {counted(available_cores(), 'core')}"
        prepared = f"{counted(workers, 'thread')} to prepare images" if workers else "images prepared between the steps"
        self.reasons.append(f"{threads}, {prepared}")

    def foretell(self, num_valid: int) -> None:
        """Say how long the epochs take, and what to do where that is long."""
        step, judging = self._seconds_of_step(), self._seconds_to_evaluate(num_valid)
        cost = mean_cost(0, self.config, self.plan.first_cost)
        seconds = self.config.epochs * (self.steps_per_epoch * step * cost + judging) + judging
        told = f"{counted(self.config.epochs, 'epoch')} take about {duration(seconds)}"
        if seconds > LONG_RUN_SECONDS:
            told += "; --budget 30m takes half an hour"
        self.reasons.append(told)

    def _seconds_to_evaluate(self, num_valid: int) -> float:
        return num_valid * self.rehearsal.seconds_to_judge(self.plan.judging_batch)

    def _seconds_of_step(self) -> float:
        """With the preparation of its images, which a rehearsal has not seen where the same cores do it."""
        if self.plan.device != "cpu":
            return self.step_seconds
        threads = self.plan.threads if self.plan.workers else 1
        preparing = self.config.batch_size * self.rehearsal.seconds_to_load / (threads * self.plan.devices)
        return self.step_seconds + preparing

    def choose_epochs(self, num_valid: int) -> None:
        """As many as fit into what is left of the budget, and no more than were asked for."""
        judging = self._seconds_to_evaluate(num_valid)
        step = self._seconds_of_step()
        epoch = self.steps_per_epoch * step * mean_cost(0, self.config, self.plan.first_cost) + judging
        # The end judges once more, and writes the report.
        left = max(1.0, self._left() - judging - 3.0)
        # Where not even one fits, its images have their full side, as at the end of every run.
        of_one = min(self.steps_per_epoch, max(1, int(left / step)))
        steps = int(self.steps_per_epoch * left / epoch) if left >= epoch else of_one
        if steps < min(FEWEST_STEPS, self.steps_per_epoch):
            spent = time.monotonic() - self.started
            raise ConfigError(
                f"--budget {self.config.budget} leaves time for {counted(steps, 'step')} of training, after "
                f"{duration(spent)} of looking at the images and measuring; give at least "
                f"{duration(spent + judging + 3.0 + FEWEST_STEPS * step)}"
            )
        asked, fitting = self.config.epochs, max(1, steps // self.steps_per_epoch)
        most_steps = asked * self.steps_per_epoch
        if asked:
            steps = min(steps, most_steps)
        self.config = replace(self.config, epochs=min(fitting, asked or fitting))
        self.plan = replace(self.plan, training_seconds=round(left, 1), training_steps=steps, most_steps=most_steps)
        instead = f", of the {asked} asked for" if asked else ""
        self.reasons.append(
            f"{counted(fitting, 'epoch')} of about {duration(epoch)} fit into {self.config.budget}{instead}"
            if steps >= self.steps_per_epoch
            else f"an epoch takes about {duration(epoch)}, so training ends inside the first, after {steps:,} steps"
        )

    def _left(self) -> float:
        return parse_seconds(self.config.budget) - (time.monotonic() - self.started)


def _few(num_images: int, seconds: float) -> int:
    """Half of a batch, because another way to compute may take more memory, or as many as make a step short."""
    num_images, seconds = max(min(2, num_images), num_images // 2), seconds / 2
    while seconds > _TRIAL_SECONDS and num_images >= 8:
        num_images, seconds = num_images // 2, seconds / 2
    return num_images


def circumstances(config: TrainingConfig, plan: Plan) -> str:
    """What a measurement depends on besides network and side."""
    names = ("device_name", *DECIDING, "keep_memory")
    return ", ".join((config.optimizer, *(f"{name} {getattr(plan, name)}" for name in names)))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _part_of(whole: int, limit: int) -> int:
    """The largest equal part of a batch that is not above a limit; a size that divides it can be compiled once."""
    divisors = [size for size in range(1, limit + 1) if whole % size == 0]
    best = max(divisors)
    # A prime number of images has no useful divisor: parts that differ by one image then.
    return best if 2 * best > limit or best == limit else -(-whole // -(-whole // limit))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:200]
