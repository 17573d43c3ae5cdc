"""What is chosen by measuring, before the first step: precision, micro-batch, kernels, threads, compiling, epochs.

Each choice is a function of the config so far, of what was asked for, of the data and of what measures this machine; it
returns the config with its choice and the reason. The true measure takes real steps on a real batch
(`carnet.training.rehearsal`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from carnet.config import ResolvedConfig, TrainingConfig, steps_per_epoch
from carnet.errors import CarnetError, ConfigError
from carnet.text import counted, duration, parse_bytes, parse_seconds, show_bytes
from carnet.training.measurements import MARGIN, Images, Measure, compiling, expected_seconds, known_speedup
from carnet.training.schedule import initial_side, mean_cost

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
LONG_RUN_EPOCHS = 30
"""Epochs from which a network sees enough of every image to need more variety."""
_LEAN_RECOMPUTE = 0.3
_COMPILING_BYTES = 600 * 10**6
"""What compiling takes besides: the C++ compiler, and PyTorch's own."""
_SPARE_MEMORY = 0.9
"""Share of the limit that is planned for; the rest is for what the measurement has not seen."""
_KEPT_MEMORY = 1.6
"""How much more a step takes where freed memory is kept, because of the gaps."""
_TRIAL_SECONDS = 0.25
"""What a step may take that is tried in turns with others."""
_LAST_SECONDS = 3.0
"""For the report, after a budget's last step."""


Choice = Callable[[ResolvedConfig, TrainingConfig, Images, Measure], ResolvedConfig]


def whole_micro_batch(batch_size: int, devices: int, asked: int | None) -> int:
    """Images that go through the network at a time in each process, where memory does not matter."""
    whole = -(-batch_size // devices)
    return min(asked or whole, whole)


def augmentation_for(asked: TrainingConfig, epochs: int) -> dict[str, Any]:
    """How much images are changed: more in a long run, which would learn them by heart otherwise."""
    is_long = epochs >= LONG_RUN_EPOCHS
    return {
        "min_crop": asked.min_crop or (0.25 if is_long else 0.35),
        "cutmix": (0.5 if is_long else 0.0) if asked.cutmix is None else asked.cutmix,
    }


def circumstances(config: ResolvedConfig) -> str:
    """What a measurement depends on besides network and side."""
    names = (
        *("device_name", "device", "devices", "precision", "threads", "memory_format", "micro_batch", "compile"),
        *("fast_depthwise", "muon_precision", "keep_memory"),
    )
    return ", ".join((config.optimizer, *(f"{name} {getattr(config, name)}" for name in names)))


def seconds_left(asked: TrainingConfig, measure: Measure) -> float:
    """What is left of the budget."""
    assert asked.budget is not None
    return parse_seconds(asked.budget) - measure.elapsed()


def choose_matrix_precision(
    config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure
) -> ResolvedConfig:
    """Let Muon multiply in the precision that this device multiplies fastest; several processes train in it."""
    rates = measure.matrix_rates(config)
    config = replace(config, matrix_gflops=rates.to_json())
    if asked.optimizer == "muon" and asked.muon_precision is None:
        config = config.because(f"Muon in {rates.faster_precision}: {rates}", muon_precision=rates.faster_precision)
    if config.devices > 1 and config.device == "cpu" and asked.precision is None:
        # Steps of several processes are not tried in turns.
        config = config.because(f"{rates.faster_precision}: {rates}", precision=rates.faster_precision)
    return config


def fit_memory(config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> ResolvedConfig:
    """Choose how many images go through the network at a time."""
    if config.device == "cuda":
        if asked.max_memory is None:
            return config
        measure.hold_memory_below(asked.max_memory, config.device)
        return config.because(f"at most {asked.max_memory} of the GPU's memory")
    limit = measure.used_bytes() + measure.free_bytes() // config.devices
    if asked.max_memory is not None:
        limit = min(limit, parse_bytes(asked.max_memory) // config.devices)
    smallest = min(2, config.micro_batch)
    _require_room(measure.used_bytes() + smallest * measure.least_bytes(config), smallest, limit, config)
    fixed, each = _memory_of(smallest, limit, config, measure)
    fitting = int((_SPARE_MEMORY * limit - fixed) / each) if each else config.micro_batch
    if fitting < smallest:
        _require_room((fixed + smallest * each) / _SPARE_MEMORY, smallest, limit, config)
    if fitting < config.micro_batch and asked.micro_batch is None:
        size = _part_of(config.micro_batch, fitting)
        config = config.because(
            f"{counted(size, 'image')} at a time, so that a step stays below {show_bytes(limit)}: gradients are "
            f"those of {config.batch_size}, batch-norm statistics those of {size}",
            micro_batch=size,
        )
    elif asked.max_memory is not None:
        needed = fixed + config.micro_batch * each
        config = config.because(f"a step takes about {show_bytes(needed)} of the {show_bytes(limit)} allowed")
    if config.keep_memory:
        if not measure.keep_freed_memory():
            return replace(config, keep_memory=False)
        config = config.because("freed memory is kept for the next step")
    return config


def _require_room(needed: float, num_images: int, limit: int, config: ResolvedConfig) -> None:
    if needed > limit:
        raise ConfigError(
            f"a step of {counted(num_images, 'image')} of {config.image_size} px takes at least "
            f"{show_bytes(needed)} here, more than the {show_bytes(limit)} there are; "
            f"{'raise --max-memory' if config.max_memory else 'free some memory'}, or take a smaller --image-size"
        )


def _memory_of(smallest: int, limit: int, config: ResolvedConfig, measure: Measure) -> tuple[float, float]:
    """What a step takes: bytes whatever the number of images, and bytes for each."""
    # Memory that earlier steps have freed and this process has kept would hide what these take.
    before = measure.used_bytes(settled=True)
    peak = measure.peak_bytes(config, smallest)
    twice = min(2 * smallest, config.micro_batch)
    if twice == smallest or peak + (peak - before) > limit:
        # Measuring more might exceed the limit; all that has come with the first step counts as the images'.
        return before, max(0, peak - before) / smallest
    each = max(0, measure.peak_bytes(config, twice) - peak) / (twice - smallest)
    return peak - smallest * each, each * (_KEPT_MEMORY if config.keep_memory else 1.0)


def _part_of(whole: int, limit: int) -> int:
    """The largest equal part of a batch that is not above a limit; a size that divides it can be compiled once."""
    divisors = [size for size in range(1, limit + 1) if whole % size == 0]
    best = max(divisors)
    # A prime number of images has no useful divisor: parts that differ by one image then.
    return best if 2 * best > limit or best == limit else -(-whole // -(-whole // limit))


def time_step(config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> ResolvedConfig:
    """Time a step as it is planned so far."""
    config = replace(config, step_seconds=measure.seconds(config))
    if size := measure.micro_batch:
        config = config.because(f"{counted(size, 'image')} at a time, for memory ran out with more", micro_batch=size)
    return config


def choose_step(config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> ResolvedConfig:
    """Fit a step into memory, choose how it is computed, and time it as it is then."""
    first = time_step(fit_memory(config, asked, data, measure), asked, data, measure)
    if first.devices > 1:
        return first
    chosen, reasons = choose_kernels(first, asked, data, measure)
    if chosen == first:
        return replace(first, reasons=(*first.reasons, *reasons))
    if replace(chosen, threads=first.threads) == first:
        fitted = chosen
    else:
        # Another way to compute takes more memory, or less: what was said of it before does not count.
        whole = whole_micro_batch(config.batch_size, config.devices, asked.micro_batch)
        fitted = fit_memory(replace(chosen, micro_batch=whole, reasons=config.reasons), asked, data, measure)
    timed = time_step(fitted, asked, data, measure)
    return replace(timed, reasons=(*timed.reasons, *reasons))


def choose_kernels(
    config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure
) -> tuple[ResolvedConfig, tuple[str, ...]]:
    """Choose precision, layout, gradient of depthwise convolutions and threads, by steps timed in turns; and why."""
    reasons: tuple[str, ...] = ()
    for what, ways in _ways_to_compute(asked, measure):
        # Each is tried with what was chosen before it.
        configs = {name: replace(config, **way) for name, way in ways(config).items()}
        # A run that is too short to repay measuring takes the first one, also after longer ones have measured.
        if configs and _run_seconds(config, asked, data, measure) >= SHORT_RUN_SECONDS:
            config, reason = _fastest(what, configs, measure)
            reasons += (reason,)
    if not reasons:
        layout = _words(config.memory_format)
        reasons = (f"{config.precision}, {layout} layout; other ways to compute were not measured",)
    return config, reasons


Ways = Callable[[ResolvedConfig], Mapping[str, Mapping[str, Any]]]


def _ways_to_compute(asked: TrainingConfig, measure: Measure) -> list[tuple[str, Ways]]:
    """What is tried, in this order, each with its ways by name, the usual one first; only one: nothing is tried."""

    def precisions(config: ResolvedConfig) -> Mapping[str, Mapping[str, Any]]:
        # Emulated bf16 is slow in whatever is computed, so that the network need not be tried.
        rates = config.matrix_gflops or {}
        is_fast = config.device == "cpu" and asked.precision is None and rates["bf16"] > rates["fp32"]
        return {name: {"precision": name} for name in ("fp32", "bf16")} if is_fast else {}

    def layouts(config: ResolvedConfig) -> Mapping[str, Mapping[str, Any]]:
        is_open = config.device != "mps" and asked.memory_format is None
        names = ("channels_last", "contiguous") if is_open else ()
        return {_words(name): {"memory_format": name} for name in names}

    def gradients(config: ResolvedConfig) -> Mapping[str, Mapping[str, Any]]:
        ours = config.fast_depthwise
        names = {True: "our gradient of depthwise convolutions", False: "PyTorch's"}
        ways = (ours, not ours) if asked.fast_depthwise is None and measure.has_depthwise else ()
        return {names[way]: {"fast_depthwise": way} for way in ways}

    def threads(config: ResolvedConfig) -> Mapping[str, Mapping[str, Any]]:
        # Where two threads share a core.
        is_open = config.device == "cpu" and asked.threads is None and measure.physical_cores < config.threads
        numbers = (config.threads, measure.physical_cores) if is_open else ()
        return {counted(number, "thread"): {"threads": number} for number in numbers}

    return [
        ("precision", precisions),
        ("layout", layouts),
        ("gradient of depthwise convolutions", gradients),
        ("threads", threads),
    ]


def _fastest(what: str, configs: Mapping[str, ResolvedConfig], measure: Measure) -> tuple[ResolvedConfig, str]:
    """The one that is the fastest by the margin, or else the first one; and a phrase that says so.

    What was measured on this machine before counts again, so that equal runs choose the same.
    """
    usual, first = next(iter(configs.items()))
    key = f"{what} of {first.model} at {first.image_size} px, {circumstances(first)}"
    seconds = measure.recall().get(key, {})
    if set(seconds) != set(configs):
        share = first.micro_batch * first.devices / first.batch_size
        num_images = _few(first.micro_batch, first.step_seconds * share)
        measured = measure.seconds_in_turns(configs, num_images)
        seconds = {name: float(f"{measured[name] / num_images:.3g}") for name in configs}
        measure.remember(key, seconds)
    best = min(configs, key=lambda name: seconds[name])
    chosen = best if seconds[best] * MARGIN <= seconds[usual] else usual
    others = [f"{name} {1000 * seconds[name]:.3g}" for name in configs if name != chosen]
    return configs[chosen], f"{chosen}: {1000 * seconds[chosen]:.3g} ms an image, {', '.join(others)} ms"


def _run_seconds(config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> float:
    """What the steps of the run take, as measured so far."""
    of_epoch = config.step_seconds * steps_per_epoch(data.num_train, config.batch_size, config.devices)
    if asked.budget is None:
        return of_epoch * config.epochs
    left = seconds_left(asked, measure)
    return min(left, of_epoch * (asked.epochs or 0) or left)


def _few(num_images: int, seconds: float) -> int:
    """Half of a batch, because another way to compute may take more memory, or as many as make a step short."""
    num_images, seconds = max(min(2, num_images), num_images // 2), seconds / 2
    while seconds > _TRIAL_SECONDS and num_images >= 8:
        num_images, seconds = num_images // 2, seconds / 2
    return num_images


def _words(name: str) -> str:
    return name.replace("_", " ")


def time_initial_step(config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> ResolvedConfig:
    """Learn how much less a step takes at the beginning, where images grow."""
    is_long = _run_seconds(config, asked, data, measure) >= SHORT_RUN_SECONDS
    if initial_side(config) == config.image_size or not is_long:
        return config
    return _with_initial_cost(config, measure.seconds(config, initial=True))


def _with_initial_cost(config: ResolvedConfig, seconds: float) -> ResolvedConfig:
    return replace(config, initial_step_cost=round(min(1.0, seconds / config.step_seconds), 3))


def choose_compiling(config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> ResolvedConfig:
    """Compile where that is asked for, or the run is long enough to repay it, and it works."""
    if asked.compile is False or (asked.compile is None and config.devices > 1):
        return config
    network = f"{config.model} at {config.image_size} px, {circumstances(config)}"
    if asked.compile is None and (reason := _reason_not_to_compile(network, config, asked, data, measure)):
        return config.because(f"not compiled: {reason}")
    if problem := measure.compiler_problem(config.device):
        raise ConfigError(f"--compile on: {problem}; install one, or leave the flag out")
    compiled = replace(config, compile=True, recompute=_LEAN_RECOMPUTE if asked.max_memory else 1.0)
    started = measure.elapsed()
    try:
        times = measure.seconds_in_turns({"plain": config, "compiled": compiled}, config.micro_batch)
    # What a compiler of another machine can raise is not ours to list; the error is told, and training goes on.
    except Exception as error:
        measure.remember(compiling(network), {"seconds": max(0.1, round(measure.elapsed() - started, 1))})
        if asked.compile or isinstance(error, CarnetError):
            raise ConfigError(f"--compile on: {_first_line(error)}") from error
        return config.because(f"not compiled: that failed ({_first_line(error)})")
    took = measure.elapsed() - started
    # What was measured first counts, so that equal runs choose the same.
    speedup = known_speedup(measure.recall(), network) or round(times["plain"] / times["compiled"], 3)
    measure.remember(compiling(network), {"seconds": max(0.1, round(took, 1)), "speedup": speedup})
    gain = f"{times['plain']:.2f} to {times['compiled']:.2f} s, in {duration(took)}"
    if not (asked.compile or speedup >= MARGIN):
        return config.because(f"not compiled: that is not {MARGIN} times as fast, {gain}")
    initial_seconds = config.initial_step_cost * config.step_seconds
    compiled = replace(compiled, step_seconds=config.step_seconds / speedup)
    return _with_initial_cost(compiled, initial_seconds).because(f"compiled: {gain}")


def _reason_not_to_compile(
    network: str, config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure
) -> str:
    """Why compiling is not even tried: a clause; empty where it is."""
    if config.device == "mps":
        return "that is not reliable on Apple's GPUs yet"
    known = measure.recall()
    speedup = known_speedup(known, network)
    if speedup is not None and speedup < MARGIN:
        return f"a compiled network was {speedup:.2f} times as fast here before, which is less than {MARGIN}"
    seconds, run_seconds = expected_seconds(known, network), _run_seconds(config, asked, data, measure)
    if seconds > COMPILING_SHARE * run_seconds:
        return f"it takes about {duration(seconds)}, too long for a run of {duration(run_seconds)}"
    if problem := measure.compiler_problem(config.device):
        return problem
    if asked.max_memory is not None and config.device != "cuda":
        left = parse_bytes(asked.max_memory) // config.devices - measure.used_bytes()
        if left < _COMPILING_BYTES:
            return f"it takes about {show_bytes(_COMPILING_BYTES)} of memory, more than the limit leaves"
    return ""


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:200]


def choose_workers(config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> ResolvedConfig:
    """As many threads to prepare images as keep up with the steps; none where they would only be in the way."""
    workers = config.workers
    if asked.workers is None and config.device == "cpu" and config.threads <= FEW_THREADS and measure.is_decoded:
        workers = 0
    elif asked.workers is None:
        rate = config.batch_size / config.devices / config.step_seconds
        workers = max(1, min(ceil(1.5 * measure.seconds_to_prepare * rate), workers))
    threads = f"{counted(config.threads, 'thread')} of {counted(measure.cores, 'core')}"
    prepared = f"{counted(workers, 'thread')} to prepare images" if workers else "images prepared between the steps"
    return config.because(f"{threads}, {prepared}", workers=workers)


def choose_length(config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure) -> ResolvedConfig:
    """As many epochs as fit into what is left of the budget, at most those asked for; or say how long they take."""
    steps_of_epoch = steps_per_epoch(data.num_train, config.batch_size, config.devices)
    num_valid = data.num_valid // config.devices
    evaluating = num_valid * measure.seconds_to_evaluate(config.evaluation_batch)
    step = config.step_seconds
    if config.device == "cpu":
        # With the preparation of its images, which a measured step has not seen where the same cores do it.
        threads = config.threads if config.workers else 1
        step += config.batch_size * measure.seconds_to_prepare / (threads * config.devices)
    epoch = steps_of_epoch * step * mean_cost(config) + evaluating
    if asked.budget is None:
        seconds = config.epochs * epoch + evaluating
        told = f"{counted(config.epochs, 'epoch')} take about {duration(seconds)}"
        return config.because(told + ("; --budget 30m takes half an hour" if seconds > LONG_RUN_SECONDS else ""))
    # The end evaluates once more, and writes the report.
    left = max(1.0, seconds_left(asked, measure) - evaluating - _LAST_SECONDS)
    # A run that ends inside its first epoch evaluates there as well.
    of_one = int(max(0.0, left - evaluating) / (step * mean_cost(config)))
    steps = int(steps_of_epoch * left / epoch) if left >= epoch else max(1, min(of_one, steps_of_epoch))
    if steps < min(FEWEST_STEPS, steps_of_epoch):
        spent = measure.elapsed()
        raise ConfigError(
            f"--budget {asked.budget} leaves time for {counted(steps, 'step')} of training, after "
            f"{duration(spent)} of looking at the images and measuring; give at least "
            f"{duration(spent + evaluating + _LAST_SECONDS + FEWEST_STEPS * step)}"
        )
    fitting = max(1, steps // steps_of_epoch)
    max_steps = asked.epochs and asked.epochs * steps_of_epoch
    instead = f", of the {asked.epochs} asked for" if asked.epochs else ""
    return config.because(
        f"{counted(fitting, 'epoch')} of about {duration(epoch)} fit into {asked.budget}{instead}"
        if steps >= steps_of_epoch
        else f"an epoch takes about {duration(epoch)}, so training ends inside the first, after {steps:,} steps",
        epochs=min(fitting, asked.epochs or fitting),
        num_steps=min(steps, max_steps or steps),
        max_steps=max_steps,
        training_seconds=round(left, 1),
    )


def choose_augmentation(
    config: ResolvedConfig, asked: TrainingConfig, data: Images, measure: Measure
) -> ResolvedConfig:
    """How much images are changed, which depends on the epochs that a budget may have chosen."""
    return replace(config, **augmentation_for(asked, config.epochs))


CHOICES_OF_STEP: tuple[Choice, ...] = (choose_matrix_precision, choose_step)
"""Everything but compiling."""
CHOICES: tuple[Choice, ...] = (
    *CHOICES_OF_STEP,
    time_initial_step,
    choose_compiling,
    choose_workers,
    choose_length,
    choose_augmentation,
)
"""In this order, because each needs what was chosen before it."""
