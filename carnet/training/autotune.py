"""Choose by measuring, before the first step: precision, micro-batch, kernels, threads, compilation, length of the run.

Each choice takes the config so far, what was requested and the measure of this machine. It returns the config with its
choice and the reason for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from carnet.config import ResolvedConfig, TrainingConfig
from carnet.errors import CarnetError, ConfigError
from carnet.text import counted, duration, parse_bytes, parse_seconds, show_bytes
from carnet.training.measure import MARGIN, Measure, faster_precision
from carnet.training.schedule import initial_side, mean_cost

SHORT_RUN_SECONDS = 30.0
"""A shorter run ends before a choice could repay its measuring."""
LONG_RUN_SECONDS = 1800.0
"""A longer run says how to limit it."""
COMPILING = "compiling with summed batch norms "
"""Begins the names of measurements of compiling; those of other compiled code do not count."""
COMPILING_SHARE = 1 / 20
"""Largest share of the run that trying to compile may cost: it saves a fifth to a third where it succeeds."""
PRIOR_COMPILING_SECONDS = 65.0
"""Expected where nothing was compiled on this machine yet: the usual time on two processor cores, see docs/speed.md."""
FEWEST_STEPS = 100
"""If a budget leaves fewer, and no epoch, nothing can be learned."""
FEW_THREADS = 2
"""With at most so many compute threads, threads that augment decoded images cost more than they save: where one compute
thread waits for a core, all wait. `benchmarks/kernels.py` compares."""
LONG_RUN_EPOCHS = 30
"""From this number of epochs on, a network sees every image often enough to need stronger augmentation."""
FULL_LR_STEPS = 400
"""Steps of fine-tuning from which on the learning rate is not lowered."""
_LEAN_RECOMPUTE = 0.3
_COMPILING_BYTES = 600 * 10**6
"""Memory of the C++ compiler and PyTorch's own."""
_SPARE_MEMORY = 0.9
"""Share of the limit that is planned for; the rest is for what the measurement has not seen."""
_KEPT_MEMORY = 1.6
"""Factor of a step's memory where freed memory is kept, because of the gaps."""
_TRIAL_SECONDS = 0.25
"""Longest step that takes turns with others."""
_LAST_SECONDS = 3.0
"""Time for the report, after a budget's last step."""


def tune(config: ResolvedConfig, requested: TrainingConfig, num_valid: int, measure: Measure) -> ResolvedConfig:
    """Make every choice that needs measuring, in an order in which each has what it depends on.

    Args:
        config: a first guess.
        requested: the config as it was requested.
        num_valid: validation images.
        measure: of this machine.

    Raises:
        ConfigError: if memory or budget are too small, or compiling was requested and fails.
    """
    config = choose_matrix_precision(config, requested, measure)
    config = choose_step(config, requested, measure)
    config = time_initial_step(config, requested, measure)
    config = choose_compiling(config, requested, measure)
    config = choose_workers(config, requested, measure)
    config = choose_length(config, requested, num_valid, measure)
    return replace(config, **augmentation_for(requested, config.epochs), lr=lr_for(config, requested))


def augmentation_for(requested: TrainingConfig, epochs: int) -> dict[str, Any]:
    """Return how strongly images are augmented: more in a long run, which would overfit them otherwise."""
    is_long = epochs >= LONG_RUN_EPOCHS
    return {
        "min_crop": requested.min_crop or (0.25 if is_long or requested.teacher else 0.35),
        "cutmix": (0.5 if is_long else 0.0) if requested.cutmix is None else requested.cutmix,
    }


def lr_for(config: ResolvedConfig, requested: TrainingConfig) -> float:
    """Return the highest learning rate: of a short fine-tuning less, whose steps would all be a beginning.

    The first steps of AdamW move every weight by the whole rate, and spoil more than a few of them learn.
    """
    if requested.lr is not None or not config.is_fine_tuning:
        return config.lr
    return config.lr * min(1.0, config.num_steps / FULL_LR_STEPS)


def circumstances(config: ResolvedConfig) -> str:
    """Return what a measurement depends on besides network and side."""
    names = (
        *("device_name", "device", "devices", "precision", "threads", "memory_format", "micro_batch", "compile"),
        *("fast_depthwise", "muon_precision", "keep_memory"),
    )
    return ", ".join((config.optimizer, *(f"{name} {getattr(config, name)}" for name in names)))


def choose_matrix_precision(config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> ResolvedConfig:
    """Choose the precision of Muon's matrix products; several processes train in the same one."""
    rates = measure.matrix_rates(config)
    faster = faster_precision(rates)
    why = f"matrix products run at {rates['fp32']:.3g} GFLOP/s in fp32 and {rates['bf16']:.3g} in bf16"
    config = replace(config, matrix_gflops=rates)
    if config.optimizer == "muon" and requested.muon_precision is None:
        config = config.because(f"Muon in {faster}: {why}", muon_precision=faster)
    if config.devices > 1 and config.device == "cpu" and requested.precision is None:
        # Steps of several processes are not timed in turns.
        config = config.because(f"{faster}: {why}", precision=faster)
    return config


def choose_step(config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> ResolvedConfig:
    """Fit a step into memory, choose how it is computed, and time the step that results."""
    first = time_step(fit_memory(config, requested, measure), measure)
    if first.devices > 1:
        return first
    chosen, reasons = choose_kernels(first, requested, measure)
    if chosen != first:
        if replace(chosen, threads=first.threads) != first:
            # Another way to compute takes more memory or less, so that the micro-batch is chosen anew.
            whole = replace(chosen, micro_batch=config.micro_batch, reasons=config.reasons)
            chosen = fit_memory(whole, requested, measure)
        chosen = time_step(chosen, measure)
    return replace(chosen, reasons=(*chosen.reasons, *reasons))


def fit_memory(config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> ResolvedConfig:
    """Choose the micro-batch."""
    if config.device == "cuda":
        if requested.max_memory is None:
            return config
        measure.hold_memory_below(requested.max_memory, config.device)
        return config.because(f"at most {requested.max_memory} of the GPU's memory")
    smallest, least = min(2, config.micro_batch), measure.least_bytes(config)
    used = measure.used_bytes()
    limit = used + measure.free_bytes() // config.devices
    if requested.max_memory is not None:
        limit = min(limit, parse_bytes(requested.max_memory) // config.devices)
    _require_room(used + smallest * least, smallest, limit, config)
    fixed, each = _step_memory(smallest, used, limit, config, measure)
    fitting = int((_SPARE_MEMORY * limit - fixed) / each) if each else config.micro_batch
    if fitting < smallest:
        _require_room((fixed + smallest * each) / _SPARE_MEMORY, smallest, limit, config)
    if fitting < config.micro_batch and requested.micro_batch is None:
        size = _micro_batch_below(fitting, config.micro_batch)
        config = config.because(
            f"micro-batches of {counted(size, 'image')}, so that a step stays below {show_bytes(limit)}: gradients "
            f"accumulate over {config.batch_size} images, batch-norm statistics are those of {size}",
            micro_batch=size,
        )
    elif requested.max_memory is not None:
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
            f"a step of {counted(num_images, 'image')} of {config.image_size} px needs at least {show_bytes(needed)} "
            f"of memory, more than the {show_bytes(limit)} available; "
            f"{'raise --max-memory' if config.max_memory else 'free some memory'}, or take a smaller --image-size"
        )


def _step_memory(smallest: int, used: int, limit: int, config: ResolvedConfig, measure: Measure) -> tuple[float, float]:
    """Return the bytes of a step that do not depend on the number of images, and the bytes for each image."""
    peak = measure.peak_bytes(config, smallest)
    twice = min(2 * smallest, config.micro_batch)
    if twice == smallest or peak + (peak - used) > limit:
        # Measuring more might exceed the limit, so that everything the first step added counts as the images'.
        return used, max(0, peak - used) / smallest
    each = max(0, measure.peak_bytes(config, twice) - peak) / (twice - smallest)
    return peak - smallest * each, each * (_KEPT_MEMORY if config.keep_memory else 1.0)


def _micro_batch_below(limit: int, whole: int) -> int:
    """Return the largest equal part of a batch below a limit; a size that divides it needs compiling only once."""
    best = max(size for size in range(1, limit + 1) if whole % size == 0)
    # A prime number of images has no useful divisor, so that its parts differ by one image.
    return best if 2 * best > limit or best == limit else -(-whole // -(-whole // limit))


def time_step(config: ResolvedConfig, measure: Measure) -> ResolvedConfig:
    """Time a step as it is planned so far."""
    config = replace(config, step_seconds=measure.seconds(config))
    if size := measure.micro_batch:
        config = config.because(
            f"micro-batches of {counted(size, 'image')}, because the GPU's memory ran out with more", micro_batch=size
        )
    return config


def choose_kernels(
    config: ResolvedConfig, requested: TrainingConfig, measure: Measure
) -> tuple[ResolvedConfig, tuple[str, ...]]:
    """Choose precision, layout, gradient of depthwise convolutions and threads by steps timed in turns; and say why."""
    reasons: tuple[str, ...] = ()
    for field in ("precision", "memory_format", "fast_depthwise", "threads"):
        # Each is tried with what was chosen before it.
        ways = _alternatives(field, config, requested, measure)
        # A run that is too short to repay measuring keeps the usual one, also after longer ones have measured.
        if len(ways) > 1 and _run_seconds(config, requested, measure) >= SHORT_RUN_SECONDS:
            configs = {name: replace(config, **{field: value}) for name, value in ways.items()}
            config, reason = _fastest(field, configs, measure)
            reasons += (reason,)
    if not reasons:
        layout = config.memory_format.replace("_", " ")
        reasons = (f"{config.precision}, {layout} layout; no alternatives were measured",)
    return config, reasons


def _alternatives(field: str, config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> dict[str, Any]:
    """Return the values of a field that are compared, by their names, the usual one first; fewer than two: none are."""
    on_cpu = config.device == "cpu"
    if getattr(requested, field) is not None:
        return {}
    if field == "precision":
        # Emulated bf16 is slow in every computation, so that the network need not be tried.
        rates = config.matrix_gflops or {}
        return {name: name for name in ("fp32", "bf16")} if on_cpu and rates["bf16"] > rates["fp32"] else {}
    if field == "memory_format":
        # PyTorch's gradients with channels last are wrong on Apple's GPUs.
        formats = () if config.device == "mps" else ("channels_last", "contiguous")
        return {name.replace("_", " "): name for name in formats}
    if field == "fast_depthwise":
        names = {True: "our gradient of depthwise convolutions", False: "PyTorch's"}
        usual = config.fast_depthwise
        return {names[way]: way for way in (usual, not usual)} if measure.has_depthwise else {}
    # Two threads may share a core.
    numbers = (config.threads, min(config.threads, measure.physical_cores)) if on_cpu else ()
    return {counted(number, "thread"): number for number in numbers}


_NAMES = {"memory_format": "layout", "fast_depthwise": "gradient of depthwise convolutions"}
"""Fields that measurements call otherwise."""


def _fastest(field: str, configs: Mapping[str, ResolvedConfig], measure: Measure) -> tuple[ResolvedConfig, str]:
    """Return the config that is the fastest by the margin, or else the first one; and a phrase that says so."""
    usual, first = next(iter(configs.items()))
    share = first.micro_batch * first.devices / first.batch_size
    # Half of a batch, because an alternative may take more memory, and fewer images where a step takes long.
    num_images, seconds = max(min(2, first.micro_batch), first.micro_batch // 2), first.step_seconds * share / 2
    while seconds > _TRIAL_SECONDS and num_images >= 8:
        num_images, seconds = num_images // 2, seconds / 2

    def per_image() -> dict[str, float]:
        return {name: taken / num_images for name, taken in measure.seconds_in_turns(configs, num_images).items()}

    what = f"{_NAMES.get(field, field)} of {first.model} at {first.image_size} px, {circumstances(first)}"
    times = measure.once(what, configs, per_image)
    best = min(configs, key=lambda name: times[name])
    chosen = best if times[best] * MARGIN <= times[usual] else usual
    others = [f"{name} {1000 * times[name]:.3g}" for name in configs if name != chosen]
    return configs[chosen], f"{chosen}: {1000 * times[chosen]:.3g} ms per image, {', '.join(others)} ms"


def _run_seconds(config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> float:
    """Return the time that the steps of the run take, as measured so far."""
    planned = config.step_seconds * config.num_steps
    if requested.budget is None:
        return planned
    left = parse_seconds(requested.budget) - measure.elapsed()
    return min(left, planned if requested.epochs else left)


def time_initial_step(config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> ResolvedConfig:
    """Time a step as at the beginning of a run whose images grow."""
    if initial_side(config) == config.image_size or _run_seconds(config, requested, measure) < SHORT_RUN_SECONDS:
        return config
    return _with_initial_cost(config, measure.seconds(config, initial=True))


def _with_initial_cost(config: ResolvedConfig, seconds: float) -> ResolvedConfig:
    return replace(config, initial_step_cost=round(min(1.0, seconds / config.step_seconds), 3))


def choose_compiling(config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> ResolvedConfig:
    """Compile where that is requested, or the run is long enough to repay it, and it works."""
    if requested.compile is False or (requested.compile is None and config.devices > 1):
        return config
    what = f"{COMPILING}{config.model} at {config.image_size} px, {circumstances(config)}"
    if requested.compile is None and (reason := _reason_not_to_compile(what, config, requested, measure)):
        return config.because(f"not compiled: {reason}")
    if problem := measure.compiler_problem(config.device):
        raise ConfigError(f"--compile on: {problem}; without it, leave the flag out")
    compiled = replace(config, compile=True, recompute=_LEAN_RECOMPUTE if requested.max_memory else 1.0)
    started = measure.elapsed()
    try:
        times = measure.seconds_in_turns({"plain": config, "compiled": compiled}, config.micro_batch)
    # Compilers raise errors of many classes; training continues without compiling, and says why.
    except Exception as error:
        measure.remember(what, {"seconds": max(0.1, round(measure.elapsed() - started, 1))})
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        if requested.compile or isinstance(error, CarnetError):
            raise ConfigError(f"--compile on: {first_line}") from error
        return config.because(f"not compiled: compiling failed ({first_line})")
    took = measure.elapsed() - started
    # The speedup that was measured first counts, so that equal runs choose the same.
    speedup = measure.recall().get(what, {}).get("speedup") or round(times["plain"] / times["compiled"], 3)
    measure.remember(what, {"seconds": max(0.1, round(took, 1)), "speedup": speedup})
    gain = f"{times['compiled']:.2f} s instead of {times['plain']:.2f} s per step, after compiling for {duration(took)}"
    if not (requested.compile or speedup >= MARGIN):
        return config.because(f"not compiled: less than {MARGIN} times as fast, {gain}")
    initial_seconds = config.initial_step_cost * config.step_seconds
    compiled = replace(compiled, step_seconds=config.step_seconds / speedup)
    return _with_initial_cost(compiled, initial_seconds).because(f"compiled: {gain}")


def _reason_not_to_compile(what: str, config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> str:
    """Return why compiling is not even tried, as a clause; empty where it is."""
    if config.device == "mps":
        return "compiling is not reliable on Apple's GPUs yet"
    known = {name: numbers for name, numbers in measure.recall().items() if name.startswith(COMPILING)}
    before = known.get(what, {})
    if before.get("speedup", MARGIN) < MARGIN:
        return f"the compiled network was {before['speedup']:.2f} times as fast before, less than {MARGIN} times"
    # Without a measurement of this network, the longest time of others counts.
    longest = max((numbers.get("seconds", 0.0) for numbers in known.values()), default=0.0)
    seconds = before.get("seconds") or longest or PRIOR_COMPILING_SECONDS
    run_seconds = _run_seconds(config, requested, measure)
    if seconds > COMPILING_SHARE * run_seconds:
        return f"compiling takes about {duration(seconds)}, too long for a run of {duration(run_seconds)}"
    if problem := measure.compiler_problem(config.device):
        return problem
    if requested.max_memory is not None and config.device != "cuda":
        left = parse_bytes(requested.max_memory) // config.devices - measure.used_bytes()
        if left < _COMPILING_BYTES:
            return f"compiling takes about {show_bytes(_COMPILING_BYTES)}, more than --max-memory leaves"
    return ""


def choose_workers(config: ResolvedConfig, requested: TrainingConfig, measure: Measure) -> ResolvedConfig:
    """Choose as many threads to prepare images as keep up with the steps; none where they would slow the steps."""
    workers = config.workers
    if requested.workers is None and config.device == "cpu" and config.threads <= FEW_THREADS and measure.is_decoded:
        workers = 0
    elif requested.workers is None:
        rate = config.batch_size / config.devices / config.step_seconds
        workers = max(1, min(ceil(1.5 * measure.seconds_to_prepare * rate), workers))
    threads = f"{counted(config.threads, 'compute thread')} on {counted(measure.cores, 'core')}"
    prepared = f"{counted(workers, 'thread')} to prepare images" if workers else "images prepared between the steps"
    return config.because(f"{threads}, {prepared}", workers=workers)


def choose_length(
    config: ResolvedConfig, requested: TrainingConfig, num_valid: int, measure: Measure
) -> ResolvedConfig:
    """Choose as many epochs as the rest of a budget allows, at most those requested; or say how long they take."""
    steps_of_epoch = config.num_steps // config.epochs
    evaluating = num_valid // config.devices * measure.seconds_to_evaluate(config.evaluation_batch)
    step = config.step_seconds
    if config.device == "cpu":
        # Preparing images takes time of the same cores, which a measured step has not seen.
        threads = config.threads if config.workers else 1
        step += config.batch_size * measure.seconds_to_prepare / (threads * config.devices)
    epoch = steps_of_epoch * step * mean_cost(config) + evaluating
    if requested.budget is None:
        seconds = config.epochs * epoch + evaluating
        told = f"{counted(config.epochs, 'epoch')} take about {duration(seconds)}"
        return config.because(
            told + ("; --budget 30m limits the run to half an hour" if seconds > LONG_RUN_SECONDS else "")
        )
    # At the end the run evaluates once more, and writes the report.
    spent = measure.elapsed()
    left = max(1.0, parse_seconds(requested.budget) - spent - evaluating - _LAST_SECONDS)
    # A run that ends inside its first epoch evaluates there as well.
    of_one = int(max(0.0, left - evaluating) / (step * mean_cost(config)))
    steps = int(steps_of_epoch * left / epoch) if left >= epoch else max(1, min(of_one, steps_of_epoch))
    if steps < min(FEWEST_STEPS, steps_of_epoch):
        raise ConfigError(
            f"--budget {requested.budget} leaves time for {counted(steps, 'step')} of training, after "
            f"{duration(spent)} of scanning the images and measuring; give at least "
            f"{duration(spent + evaluating + _LAST_SECONDS + FEWEST_STEPS * step)}"
        )
    fitting = max(1, steps // steps_of_epoch)
    max_steps = requested.epochs and requested.epochs * steps_of_epoch
    instead = f", of the {requested.epochs} requested" if requested.epochs else ""
    return config.because(
        f"{counted(fitting, 'epoch')} of about {duration(epoch)} fit into {requested.budget}{instead}"
        if steps >= steps_of_epoch
        else f"an epoch takes about {duration(epoch)}, so training ends inside the first one, after {steps:,} steps",
        epochs=min(fitting, requested.epochs or fitting),
        num_steps=min(steps, max_steps or steps),
        max_steps=max_steps,
        training_seconds=round(left, 1),
    )
