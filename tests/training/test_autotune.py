"""What is chosen by measuring, decided on made-up measurements."""

from dataclasses import replace
from typing import Any

import pytest
from made_up import MadeUp, Seconds, another_network

from carnet.config import ResolvedConfig, TrainingConfig, published
from carnet.errors import ConfigError, OutOfMemoryError
from carnet.training.autotune import COMPILING, tune
from carnet.training.resolve import first_guess
from carnet.training.schedule import mean_cost


def tuned(
    seconds: float | Seconds = 0.1, measure: MadeUp | None = None, steps: int = 100, **asked: Any
) -> ResolvedConfig:
    """The published recipe with some of its flags changed, as it comes out of all choices.

    Args:
        seconds: what a step takes.
        measure: a machine; None: a usual one. Its steps are set to `seconds`.
        steps: of an epoch.
        asked: flags.
    """
    config = replace(published(), **({"device": "cpu"} | asked))
    measure = measure or MadeUp()
    measure.of_step = seconds if callable(seconds) else lambda _: seconds
    assert config.image_size is not None
    assert config.batch_size is not None
    resolved = first_guess(config, num_train=steps * config.batch_size, image_size=config.image_size)
    # A machine of eight cores, whatever this one has.
    workers = 8 if config.workers is None else config.workers
    resolved = replace(resolved, threads=config.threads or measure.cores, workers=workers)
    return tune(resolved, config, num_valid=50, measure=measure)


def compiled_is(ratio: float) -> Seconds:
    return lambda config: ratio if config.compile else 1.0


def never_compiled(config: ResolvedConfig) -> float:
    assert not config.compile, "compiling was tried"
    return 1.0


def compiling_fails(config: ResolvedConfig) -> float:
    if config.compile:
        raise RuntimeError("the linker is gone\nwith a long story")
    return 1.0


def compilings(measure: MadeUp) -> dict[str, dict[str, float]]:
    """What is known of compiling this network."""
    return {
        name.removeprefix(COMPILING): numbers
        for name, numbers in measure.known.items()
        if name.startswith(f"{COMPILING}carnet18")
    }


def test_compiled_where_it_repays() -> None:
    assert tuned(compiled_is(0.6)).compile
    assert not tuned(compiled_is(0.95)).compile
    assert "not compiled: that is not 1.1 times as fast" in " ".join(tuned(compiled_is(1.1)).reasons)
    assert tuned(compiled_is(2.0), epochs=1, compile=True).compile
    assert not tuned(compiled_is(0.1), compile=False).compile


def test_trying_to_compile_costs_at_most_a_twentieth_of_the_run() -> None:
    # 100 steps of a second are an epoch; compiling is expected to take a minute.
    assert tuned(compiled_is(0.6), epochs=12).compile
    config = tuned(never_compiled, epochs=11)
    assert any("not compiled: it takes about 1 min 00 s" in reason for reason in config.reasons)
    tuned(never_compiled, budget="19m")
    assert tuned(compiled_is(0.6), budget="21m").compile
    measure = MadeUp(known=another_network(4.0))
    assert tuned(compiled_is(0.6), measure, epochs=1).compile
    (network,) = compilings(measure)
    assert all(word in network for word in ("carnet18 at 244 px", "micro_batch 16", "threads 8", "fp32"))


def test_what_trying_to_compile_took_is_remembered() -> None:
    measure = MadeUp(compile_seconds=21.04)
    tuned(never_compiled, measure, compile=False)
    assert not compilings(measure)
    for seconds, numbers in (
        (compiled_is(0.5), {"seconds": 21.0, "speedup": 2.0}),
        (compiled_is(2.0), {"seconds": 21.0, "speedup": 0.5}),
        (compiling_fails, {"seconds": 21.0}),
    ):
        measure = MadeUp(compile_seconds=21.04)
        tuned(seconds, measure)
        ((what, remembered),) = compilings(measure).items()
        assert what.startswith("carnet18 at 244 px")
        assert remembered == numbers


def test_what_was_no_faster_compiled_is_not_compiled_again() -> None:
    measure = MadeUp()
    tuned(compiled_is(1.25), measure)
    config = tuned(never_compiled, measure)
    assert any("not compiled: a compiled network was 0.80 times as fast" in reason for reason in config.reasons)
    assert tuned(compiled_is(2.0), measure, compile=True).compile
    measure = MadeUp()
    tuned(compiled_is(0.7), measure)
    # What was measured first counts.
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
def test_each_way_to_compute_is_the_fastest_by_a_margin(field: str, usual: Any, other: Any) -> None:
    def chosen(ratio: float, **asked: Any) -> Any:
        seconds = lambda config: ratio if getattr(config, field) == other else 1.0  # noqa: E731
        measure = MadeUp(rates={"fp32": 80.0, "bf16": 81.0})
        return getattr(tuned(seconds, measure, **({"compile": False, "precision": None} | asked)), field)

    assert [chosen(ratio) for ratio in (2.0, 1.0, 0.92, 0.9)] == [usual, usual, usual, other]
    assert chosen(0.1, **{field: usual}) == usual
    # Too short to repay measuring.
    assert chosen(0.1, epochs=1, steps=1) == usual


def test_emulated_bf16_is_not_tried() -> None:
    def never_bf16(config: ResolvedConfig) -> float:
        assert config.precision == "fp32"
        return 1.0

    assert tuned(never_bf16, precision=None).precision == "fp32"


def test_what_was_measured_before_counts_again() -> None:
    """Also where it would now come out otherwise; but a run that is too short to measure never chooses otherwise."""
    measure = MadeUp()
    is_contiguous_faster = lambda config: 0.5 if config.memory_format == "contiguous" else 1.0  # noqa: E731
    assert tuned(is_contiguous_faster, measure).memory_format == "contiguous"
    assert tuned(1.0, measure).memory_format == "contiguous"
    assert tuned(0.1, measure, steps=1).memory_format == "channels_last"
    assert tuned(1.0, measure, batch_size=8).memory_format == "channels_last"


def test_ways_to_compute_are_compared_on_parts_of_a_batch() -> None:
    # Half of it, since another way may take more memory; and less where a step takes long.
    for seconds, number in ((0.1, 8), (1.0, 4)):
        measure = MadeUp()
        tuned(seconds, measure, compile=False)
        assert set(measure.images_in_turns) == {number}


def test_muon_multiplies_in_the_faster_precision() -> None:
    for bf16, chosen in ((1.0, "fp32"), (80.0, "fp32"), (87.0, "fp32"), (89.0, "bf16"), (400.0, "bf16")):
        config = tuned(measure=MadeUp(rates={"fp32": 80.0, "bf16": bf16}), optimizer="muon")
        assert config.muon_precision == chosen
        assert any(f"Muon in {chosen}" in reason and "80 GFLOP/s in fp32" in reason for reason in config.reasons)
        assert config.matrix_gflops == {"fp32": 80.0, "bf16": bf16}
    for asked in ("fp32", "bf16"):
        assert tuned(optimizer="muon", muon_precision=asked).muon_precision == asked
    assert not any("Muon" in reason for reason in tuned(optimizer="adam").reasons)


def test_every_step_that_is_measured_has_muons_precision() -> None:
    seen = set()

    def seconds(config: ResolvedConfig) -> float:
        seen.add(config.muon_precision)
        return 1.0

    tuned(seconds, MadeUp(rates={"fp32": 1.0, "bf16": 100.0}), optimizer="muon")
    assert seen == {"bf16"}


def test_several_processes_train_in_the_precision_that_multiplies_faster() -> None:
    """Their steps are not tried in turns."""
    for bf16, chosen in ((87.0, "fp32"), (89.0, "bf16")):
        measure = MadeUp(rates={"fp32": 80.0, "bf16": bf16})
        config = tuned(measure=measure, devices=2, precision=None)
        assert config.precision == chosen
        assert any(reason.startswith(f"{chosen}: products of matrices") for reason in config.reasons)
        assert not measure.images_in_turns
    assert tuned(measure=MadeUp(rates={"fp32": 1.0, "bf16": 9.0}), devices=2, precision="fp32").precision == "fp32"


def test_without_a_compiler_the_run_goes_on() -> None:
    measure = MadeUp(no_compiler="there is no C++ compiler")
    config = tuned(1.0, measure)
    assert not config.compile
    assert "not compiled: there is no C++ compiler" in config.reasons
    with pytest.raises(ConfigError, match="--compile on: there is no C"):
        tuned(1.0, measure, compile=True)


def test_a_compiler_that_fails_is_told_and_done_without() -> None:
    config = tuned(compiling_fails)
    assert not config.compile
    assert "not compiled: that failed (the linker is gone)" in config.reasons
    with pytest.raises(ConfigError, match=r"--compile on: the linker is gone$"):
        tuned(compiling_fails, compile=True)


def test_images_at_a_time_as_memory_allows() -> None:
    assert tuned(batch_size=16).micro_batch == 16
    # 0.9 x 2 GB - 0.5 GB leave 1.3 GB; kept memory would take 1.6 times as much, but is not kept below a limit.
    config = tuned(measure=MadeUp(image_bytes=2e8), batch_size=16, max_memory="2GB")
    assert (config.micro_batch, config.keep_memory) == (4, False)
    assert any(
        "4 images at a time" in reason and "batch-norm statistics those of 4" in reason for reason in config.reasons
    )
    assert tuned(measure=MadeUp(image_bytes=8e8), batch_size=16).micro_batch == 2
    assert tuned(measure=MadeUp(image_bytes=2e8), batch_size=17, max_memory="2GB").micro_batch == 6
    with pytest.raises(ConfigError, match=r"a step of 2 images of 244 px takes at least .* more than the 1.0 GB"):
        tuned(measure=MadeUp(image_bytes=5e8), max_memory="1GB")
    with pytest.raises(ConfigError, match="free some memory, or take a smaller --image-size"):
        tuned(measure=MadeUp(image_bytes=1e11))
    with pytest.raises(ConfigError, match="raise --max-memory, or take a smaller --image-size"):
        tuned(measure=MadeUp(image_bytes=1e11), max_memory="1GB")
    # Two images take 0.4 GB more: whether four fit into 1 GB is not tried out.
    assert tuned(measure=MadeUp(image_bytes=2e8), batch_size=16, max_memory="1GB").micro_batch == 2
    assert tuned(batch_size=16, micro_batch=2).micro_batch == 2


def test_freed_memory_is_kept_where_that_is_possible() -> None:
    config = tuned()
    assert config.keep_memory
    assert "freed memory is kept for the next step" in config.reasons
    for config in (tuned(measure=MadeUp(can_keep=False)), tuned(keep_memory=False)):
        assert not config.keep_memory
        assert "freed memory is kept for the next step" not in config.reasons


def test_a_step_that_ran_out_of_memory_goes_on_with_fewer_images() -> None:
    config = tuned(measure=MadeUp(micro_batch=4))
    assert config.micro_batch == 4
    assert "4 images at a time, for memory ran out with more" in config.reasons


def test_less_is_kept_for_the_backward_pass_where_memory_is_limited() -> None:
    assert tuned(compiled_is(0.5)).recompute == 1.0
    assert tuned(compiled_is(0.5), max_memory="2GB").recompute < 1.0


def test_the_compiler_needs_room_below_the_limit() -> None:
    # Half a gigabyte is in use already.
    assert tuned(compiled_is(0.5), max_memory="1.2GB").compile
    config = tuned(compiled_is(0.5), max_memory="1GB")
    assert not config.compile
    assert any("more than the limit leaves" in reason for reason in config.reasons)
    assert tuned(compiled_is(0.5), max_memory="1GB", compile=True).compile


def test_threads_are_those_that_are_faster() -> None:
    assert tuned(lambda config: 1.0 if config.threads == 8 else 0.8).threads == 4
    assert tuned(lambda config: 1.0 if config.threads == 8 else 1.2).threads == 8
    assert tuned(lambda config: 1.0 if config.threads == 6 else 0.1, threads=6).threads == 6


def test_workers_keep_up() -> None:
    assert tuned(1.0).workers == 1
    # 16 images in 10 ms, each of which takes 1 ms to prepare: two threads, and something to spare.
    assert tuned(0.01).workers == 3
    assert tuned(0.0001).workers == 8
    assert [tuned(0.0001, workers=workers).workers for workers in (0, 5)] == [0, 5]


def test_decoded_images_are_prepared_between_the_steps_where_cores_are_few() -> None:
    assert tuned(0.01, MadeUp(is_decoded=True), threads=2).workers == 0
    assert tuned(0.01, MadeUp(is_decoded=True), threads=3).workers == 3
    assert tuned(0.01, MadeUp(is_decoded=False), threads=2).workers == 3


def test_a_budget_chooses_epochs() -> None:
    # 100 steps of 0.1 s, for each of which 8 threads prepare 16 images in 1 ms each, and 50 images of 0.01 s.
    config = tuned(0.1, budget="10m", epochs=None)
    assert config.epochs == int((600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) + 0.5))
    assert config.training_seconds == 596.5
    assert config.num_steps == int(100 * (600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) + 0.5))


def test_without_a_budget_all_epochs_are_trained() -> None:
    config = tuned(0.1, epochs=7)
    assert (config.num_steps, config.max_steps, config.training_seconds) == (700, None, None)


def test_looking_and_measuring_are_part_of_the_budget() -> None:
    assert tuned(0.1, MadeUp(spent=300), budget="10m").training_seconds == 296.5


def test_a_budget_may_not_hold_an_epoch() -> None:
    config = tuned(10.0, budget="30m", compile=False, steps=1000)
    assert config.epochs == 1
    assert config.num_steps == int((1800 - 3.5) / (10 + 16 * 0.001 / 8))
    assert any("training ends inside the first, after 179 steps" in reason for reason in config.reasons)
    # An epoch and a half is worth a longer schedule than an epoch.
    config = tuned(0.1, budget="19s", compile=False)
    assert (config.epochs, config.num_steps) == (1, int(100 * 15.5 / 10.7))
    with pytest.raises(ConfigError, match=r"--budget 2m leaves time for 11 steps of training, after .* give at least"):
        tuned(10.0, budget="2m", compile=False)


def test_the_length_of_a_run_is_foretold() -> None:
    # 100 steps of 0.1 s, for each of which 8 threads prepare 16 images in 1 ms each, and 50 images of 0.01 s.
    reasons = tuned(0.1, epochs=50).reasons
    assert "50 epochs take about 8 min 56 s" in reasons
    (long,) = (reason for reason in tuned(0.1, epochs=200).reasons if "200 epochs take about 35 min" in reason)
    assert "--budget 30m" in long
    assert not any("take about" in reason for reason in tuned(0.1, budget="10m", epochs=None).reasons)


def test_a_budget_shortens_a_run_and_never_prolongs_it() -> None:
    config = tuned(0.1, budget="10m", epochs=7)
    assert (config.epochs, config.num_steps, config.max_steps) == (7, 700, 700)
    assert any("fit into 10m, of the 7 asked for" in reason for reason in config.reasons)
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


def test_the_epochs_that_a_budget_chooses_decide_how_much_images_are_changed() -> None:
    for budget, min_crop, cutmix in (("2m", 0.35, 0.0), ("10m", 0.25, 0.5)):
        config = tuned(0.1, budget=budget, epochs=None, min_crop=None, cutmix=None)
        assert (config.min_crop, config.cutmix) == (min_crop, cutmix)


def test_steps_that_fail_for_another_reason_end_the_command() -> None:
    def too_large(config: ResolvedConfig) -> float:
        if config.compile:
            raise OutOfMemoryError("a step of 16 images does not fit")
        return 1.0

    with pytest.raises(ConfigError, match="a step of 16 images does not fit"):
        tuned(too_large)


def test_nothing_is_left_open() -> None:
    config = tuned(measure=MadeUp(), **dict.fromkeys(("precision", "min_crop", "cutmix")))
    decided_elsewhere = {"layout", "cache", "max_memory", "budget", "max_steps", "training_seconds"}
    assert {name for name, value in config.to_json().items() if value is None} <= decided_elsewhere
    assert ResolvedConfig.from_json(config.to_json()) == config
    assert isinstance(config, TrainingConfig)
