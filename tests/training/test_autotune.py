"""Choices that need measuring, on fake measurements."""

from dataclasses import replace
from typing import Any

import pytest
from fake_measure import FakeMeasure, Seconds, another_network
from runs import NEVER_CHOSEN

from carnet.config import ResolvedConfig, TrainingConfig, published
from carnet.errors import ConfigError, OutOfMemoryError
from carnet.training.autotune import COMPILING, tune
from carnet.training.resolve import first_guess
from carnet.training.schedule import mean_cost


def tuned(
    seconds: float | Seconds = 0.1, measure: FakeMeasure | None = None, steps: int = 100, **asked: Any
) -> ResolvedConfig:
    """Return the published recipe with some flags changed, after all choices.

    Args:
        seconds: of a step.
        measure: of a machine; None: a usual one. Its steps are set to `seconds`.
        steps: of an epoch.
        asked: flags.
    """
    config = replace(published(), **({"device": "cpu"} | asked))
    measure = measure or FakeMeasure()
    measure.of_step = seconds if callable(seconds) else lambda _: seconds
    assert config.image_size is not None
    assert config.batch_size is not None
    resolved = first_guess(config, num_train=steps * config.batch_size, image_size=config.image_size)
    # The fake machine has eight cores, whatever this one has.
    workers = 8 if config.workers is None else config.workers
    resolved = replace(resolved, threads=config.threads or measure.cores, workers=workers)
    return tune(resolved, config, num_valid=50, measure=measure)


def gives_reason(config: ResolvedConfig, *parts: str) -> bool:
    """Return whether one of the config's reasons names all of this."""
    return any(all(part in reason for part in parts) for reason in config.reasons)


def compiled_is(ratio: float) -> Seconds:
    return lambda config: ratio if config.compile else 1.0


def never_compiled(config: ResolvedConfig) -> float:
    assert not config.compile, "compiling was tried"
    return 1.0


def compiling_fails(config: ResolvedConfig) -> float:
    if config.compile:
        raise RuntimeError("the linker is gone\nwith a long story")
    return 1.0


def compilings(measure: FakeMeasure) -> dict[str, dict[str, float]]:
    """Return the kept measurements of compiling this network."""
    return {
        name.removeprefix(COMPILING): numbers
        for name, numbers in measure.known.items()
        if name.startswith(f"{COMPILING}carnet18")
    }


def test_a_network_is_compiled_where_that_is_faster_by_a_margin() -> None:
    assert tuned(compiled_is(0.6)).compile
    assert not tuned(compiled_is(0.95)).compile
    assert gives_reason(tuned(compiled_is(1.1)), "not compiled", "1.1 times")
    assert tuned(compiled_is(2.0), epochs=1, compile=True).compile
    assert not tuned(compiled_is(0.1), compile=False).compile


def test_trying_to_compile_costs_at_most_a_twentieth_of_the_run() -> None:
    # 100 steps of a second are an epoch; compiling is expected to take a minute.
    assert tuned(compiled_is(0.6), epochs=12).compile
    config = tuned(never_compiled, epochs=11)
    assert gives_reason(config, "not compiled", "1 min 00 s")
    tuned(never_compiled, budget="19m")
    assert tuned(compiled_is(0.6), budget="21m").compile
    measure = FakeMeasure(known=another_network(4.0))
    assert tuned(compiled_is(0.6), measure, epochs=1).compile
    (network,) = compilings(measure)
    assert all(word in network for word in ("carnet18 at 244 px", "micro_batch 16", "threads 8", "fp32"))


def test_the_time_of_compiling_is_remembered() -> None:
    measure = FakeMeasure(compile_seconds=21.04)
    tuned(never_compiled, measure, compile=False)
    assert not compilings(measure)
    for seconds, numbers in (
        (compiled_is(0.5), {"seconds": 21.0, "speedup": 2.0}),
        (compiled_is(2.0), {"seconds": 21.0, "speedup": 0.5}),
        (compiling_fails, {"seconds": 21.0}),
    ):
        measure = FakeMeasure(compile_seconds=21.04)
        tuned(seconds, measure)
        ((what, remembered),) = compilings(measure).items()
        assert what.startswith("carnet18 at 244 px")
        assert remembered == numbers


def test_a_network_that_was_no_faster_compiled_is_not_compiled_again() -> None:
    measure = FakeMeasure()
    tuned(compiled_is(1.25), measure)
    config = tuned(never_compiled, measure)
    assert gives_reason(config, "not compiled", "0.80 times")
    assert tuned(compiled_is(2.0), measure, compile=True).compile
    measure = FakeMeasure()
    tuned(compiled_is(0.7), measure)
    # The first measurement counts.
    assert tuned(compiled_is(1.2), measure).compile
    assert {numbers["speedup"] for numbers in compilings(measure).values()} == {1.429}


@pytest.mark.parametrize(
    ("field", "usual", "other"),
    [
        ("precision", "fp32", "bf16"),
        ("memory_format", "channels_last", "contiguous"),
        ("fast_depthwise", True, False),
        ("threads", 8, 4),
    ],
)
def test_an_alternative_is_chosen_if_it_is_faster_by_a_margin(field: str, usual: Any, other: Any) -> None:
    def chosen(ratio: float, **asked: Any) -> Any:
        seconds = lambda config: ratio if getattr(config, field) == other else 1.0  # noqa: E731
        measure = FakeMeasure(rates={"fp32": 80.0, "bf16": 81.0})
        return getattr(tuned(seconds, measure, **({"compile": False, "precision": None} | asked)), field)

    assert [chosen(ratio) for ratio in (2.0, 1.0, 0.92, 0.9)] == [usual, usual, usual, other]
    assert chosen(0.1, **{field: usual}) == usual
    # The run is too short to repay measuring.
    assert chosen(0.1, epochs=1, steps=1) == usual


def test_emulated_bf16_is_not_tried() -> None:
    def never_bf16(config: ResolvedConfig) -> float:
        assert config.precision == "fp32"
        return 1.0

    assert tuned(never_bf16, precision=None).precision == "fp32"


def test_kept_measurements_are_not_repeated() -> None:
    """They count even if new ones would differ; but a run that is too short to measure keeps the usual choice."""
    measure = FakeMeasure()
    is_contiguous_faster = lambda config: 0.5 if config.memory_format == "contiguous" else 1.0  # noqa: E731
    assert tuned(is_contiguous_faster, measure).memory_format == "contiguous"
    assert tuned(1.0, measure).memory_format == "contiguous"
    assert tuned(0.1, measure, steps=1).memory_format == "channels_last"
    assert tuned(1.0, measure, batch_size=8).memory_format == "channels_last"


def test_alternatives_are_compared_on_parts_of_a_batch() -> None:
    # Half of it, because an alternative may take more memory; and fewer images where a step takes long.
    for seconds, number in ((0.1, 8), (1.0, 4)):
        measure = FakeMeasure()
        tuned(seconds, measure, compile=False)
        assert set(measure.images_in_turns) == {number}


def test_muon_multiplies_in_the_faster_precision() -> None:
    for bf16, chosen in ((1.0, "fp32"), (80.0, "fp32"), (87.0, "fp32"), (89.0, "bf16"), (400.0, "bf16")):
        config = tuned(measure=FakeMeasure(rates={"fp32": 80.0, "bf16": bf16}), optimizer="muon")
        assert config.muon_precision == chosen
        assert gives_reason(config, f"Muon in {chosen}", "80 GFLOP/s")
        assert config.matrix_gflops == {"fp32": 80.0, "bf16": bf16}
    for asked in ("fp32", "bf16"):
        assert tuned(optimizer="muon", muon_precision=asked).muon_precision == asked
    assert not gives_reason(tuned(optimizer="adam"), "Muon")


def test_every_step_that_is_measured_has_muons_precision() -> None:
    seen = set()

    def seconds(config: ResolvedConfig) -> float:
        seen.add(config.muon_precision)
        return 1.0

    tuned(seconds, FakeMeasure(rates={"fp32": 1.0, "bf16": 100.0}), optimizer="muon")
    assert seen == {"bf16"}


def test_several_processes_train_in_the_precision_that_multiplies_faster() -> None:
    """Their steps are not timed in turns."""
    for bf16, chosen in ((87.0, "fp32"), (89.0, "bf16")):
        measure = FakeMeasure(rates={"fp32": 80.0, "bf16": bf16})
        config = tuned(measure=measure, devices=2, precision=None)
        assert config.precision == chosen
        assert gives_reason(config, f"{chosen}: ", "80 GFLOP/s")
        assert not measure.images_in_turns
    assert tuned(measure=FakeMeasure(rates={"fp32": 1.0, "bf16": 9.0}), devices=2, precision="fp32").precision == "fp32"


def test_without_a_compiler_the_run_goes_on() -> None:
    measure = FakeMeasure(no_compiler="no C++ compiler found")
    config = tuned(1.0, measure)
    assert not config.compile
    assert gives_reason(config, "not compiled", "no C++ compiler found")
    with pytest.raises(ConfigError, match=r"--compile on.*no C\+\+ compiler found"):
        tuned(1.0, measure, compile=True)


def test_a_run_goes_on_if_compiling_fails() -> None:
    config = tuned(compiling_fails)
    assert not config.compile
    assert gives_reason(config, "not compiled", "the linker is gone")
    assert not gives_reason(config, "with a long story")
    with pytest.raises(ConfigError, match=r"--compile on.*the linker is gone$"):
        tuned(compiling_fails, compile=True)


def test_memory_decides_the_micro_batch() -> None:
    assert tuned(batch_size=16).micro_batch == 16
    # 0.9 x 2 GB - 0.5 GB leave 1.3 GB; kept memory would take 1.6 times as much, but is not kept below a limit.
    config = tuned(measure=FakeMeasure(image_bytes=2e8), batch_size=16, max_memory="2GB")
    assert (config.micro_batch, config.keep_memory) == (4, False)
    assert gives_reason(config, "4 images", "2.0 GB", "batch-norm")
    assert tuned(measure=FakeMeasure(image_bytes=8e8), batch_size=16).micro_batch == 2
    assert tuned(measure=FakeMeasure(image_bytes=2e8), batch_size=17, max_memory="2GB").micro_batch == 6
    for image_bytes in (5e8, 1e11):
        with pytest.raises(ConfigError, match=r"2 images of 244 px.* 1\.0 GB .*--max-memory.*--image-size"):
            tuned(measure=FakeMeasure(image_bytes=image_bytes), max_memory="1GB")
    with pytest.raises(ConfigError, match="--image-size") as raised:
        tuned(measure=FakeMeasure(image_bytes=1e11))
    assert "--max-memory" not in str(raised.value)
    # Two images take 0.4 GB more: a step of four is not tried, because it might exceed 1 GB.
    assert tuned(measure=FakeMeasure(image_bytes=2e8), batch_size=16, max_memory="1GB").micro_batch == 2
    assert tuned(batch_size=16, micro_batch=2).micro_batch == 2


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    config = tuned()
    assert config.keep_memory
    assert gives_reason(config, "freed memory")
    for config in (tuned(measure=FakeMeasure(can_keep=False)), tuned(keep_memory=False)):
        assert not config.keep_memory
        assert not gives_reason(config, "freed memory")


def test_a_step_that_ran_out_of_memory_takes_a_smaller_micro_batch() -> None:
    config = tuned(measure=FakeMeasure(micro_batch=4))
    assert config.micro_batch == 4
    assert gives_reason(config, "4 images", "memory ran out")


def test_fewer_activations_are_kept_where_memory_is_limited() -> None:
    assert tuned(compiled_is(0.5)).recompute == 1.0
    assert tuned(compiled_is(0.5), max_memory="2GB").recompute < 1.0


def test_the_compiler_needs_room_below_the_limit() -> None:
    # Half a gigabyte is in use already.
    assert tuned(compiled_is(0.5), max_memory="1.2GB").compile
    config = tuned(compiled_is(0.5), max_memory="1GB")
    assert not config.compile
    assert gives_reason(config, "not compiled", "600 MB", "--max-memory")
    assert tuned(compiled_is(0.5), max_memory="1GB", compile=True).compile


def test_physical_cores_decide_the_threads_if_that_is_faster() -> None:
    assert tuned(lambda config: 1.0 if config.threads == 8 else 0.8).threads == 4
    assert tuned(lambda config: 1.0 if config.threads == 8 else 1.2).threads == 8
    assert tuned(lambda config: 1.0 if config.threads == 6 else 0.1, threads=6).threads == 6


def test_workers_keep_up_with_the_steps() -> None:
    assert tuned(1.0).workers == 1
    # 16 images in 10 ms, each of which takes 1 ms to prepare: two threads, and some to spare.
    assert tuned(0.01).workers == 3
    assert tuned(0.0001).workers == 8
    assert [tuned(0.0001, workers=workers).workers for workers in (0, 5)] == [0, 5]


def test_decoded_images_are_prepared_between_the_steps_where_cores_are_few() -> None:
    assert tuned(0.01, FakeMeasure(is_decoded=True), threads=2).workers == 0
    assert tuned(0.01, FakeMeasure(is_decoded=True), threads=3).workers == 3
    assert tuned(0.01, FakeMeasure(is_decoded=False), threads=2).workers == 3


def test_a_budget_chooses_epochs() -> None:
    # 100 steps of 0.1 s, for each of which 8 threads prepare 16 images in 1 ms each, and 50 images of 0.01 s.
    config = tuned(0.1, budget="10m", epochs=None)
    assert config.epochs == int((600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) + 0.5))
    assert config.training_seconds == 596.5
    assert config.num_steps == int(100 * (600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) + 0.5))


def test_without_a_budget_all_epochs_are_trained() -> None:
    config = tuned(0.1, epochs=7)
    assert (config.num_steps, config.max_steps, config.training_seconds) == (700, None, None)


def test_scanning_and_measuring_are_part_of_the_budget() -> None:
    assert tuned(0.1, FakeMeasure(spent=300), budget="10m").training_seconds == 296.5


def test_a_run_may_end_inside_its_first_epoch() -> None:
    config = tuned(10.0, budget="30m", compile=False, steps=1000)
    assert config.epochs == 1
    assert config.num_steps == int((1800 - 3.5) / (10 + 16 * 0.001 / 8))
    assert gives_reason(config, "179 steps")
    # An epoch and a half has a longer schedule than an epoch.
    config = tuned(0.1, budget="19s", compile=False)
    assert (config.epochs, config.num_steps) == (1, int(100 * 15.5 / 10.7))
    with pytest.raises(ConfigError, match=r"--budget 2m .*11 steps.* 16 min"):
        tuned(10.0, budget="2m", compile=False)


def test_the_length_of_a_run_is_estimated() -> None:
    # 100 steps of 0.1 s, for each of which 8 threads prepare 16 images in 1 ms each, and 50 images of 0.01 s.
    assert gives_reason(tuned(0.1, epochs=50), "50 epochs", "8 min 56 s")
    assert not gives_reason(tuned(0.1, epochs=50), "--budget")
    assert gives_reason(tuned(0.1, epochs=200), "200 epochs", "35 min", "--budget 30m")


def test_a_budget_shortens_a_run_and_never_prolongs_it() -> None:
    config = tuned(0.1, budget="10m", epochs=7)
    assert (config.epochs, config.num_steps, config.max_steps) == (7, 700, 700)
    assert gives_reason(config, "10m", "7 requested")
    config = tuned(0.1, budget="10m", epochs=70)
    assert config.epochs == int((600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) + 0.5)) < 70
    assert config.max_steps == 7000
    assert tuned(0.1, budget="10m", epochs=None).max_steps is None


def test_small_images_at_the_beginning_leave_time_for_more_epochs() -> None:
    grown = tuned(0.1, budget="10m", epochs=None, initial_size_ratio=0.55)
    assert grown.initial_step_cost == 0.5
    share = mean_cost(grown)
    assert 0.5 < share < 1
    assert grown.epochs == int((600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) * share + 0.5))
    assert tuned(0.1, budget="10m").initial_step_cost == 1.0


def test_the_epochs_that_a_budget_chooses_decide_the_augmentation() -> None:
    for budget, min_crop, cutmix in (("2m", 0.35, 0.0), ("10m", 0.25, 0.5)):
        config = tuned(0.1, budget=budget, epochs=None, min_crop=None, cutmix=None)
        assert (config.min_crop, config.cutmix) == (min_crop, cutmix)


def test_other_errors_in_trial_steps_end_the_command() -> None:
    def too_large(config: ResolvedConfig) -> float:
        if config.compile:
            raise OutOfMemoryError("a step of 16 images does not fit")
        return 1.0

    with pytest.raises(ConfigError, match="16 images"):
        tuned(too_large)


def test_nothing_is_left_open() -> None:
    config = tuned(measure=FakeMeasure(), **dict.fromkeys(("precision", "min_crop", "cutmix")))
    assert {name for name, value in config.to_json().items() if value is None} <= NEVER_CHOSEN
    assert ResolvedConfig.from_json(config.to_json()) == config
    assert isinstance(config, TrainingConfig)
