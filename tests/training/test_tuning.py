"""What is chosen by measuring, decided on made-up measurements."""

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from carnet import TrainingConfig
from carnet.config import published
from carnet.errors import ConfigError
from carnet.text import Silent
from carnet.training import autotune as tuning
from carnet.training.measurements import MatrixRates
from carnet.training.resolve import Plan, resolve
from carnet.training.schedule import mean_cost
from carnet.training.step import compiler_problem

GIGA = 10**9
SMALL = TrainingConfig(image_size=48, epochs=2, batch_size=8)
needs_compiler = pytest.mark.skipif(bool(compiler_problem("cpu")), reason=compiler_problem("cpu"))


class MadeUp:
    """A rehearsal with given measurements."""

    is_decoded = False
    has_depthwise = True

    def __init__(self, seconds: Callable[[Plan], float], image_bytes: float = 1e7) -> None:
        self.of_plan, self.image_bytes = seconds, image_bytes
        self.seconds_to_load = 0.001
        self.micro_batch = 0
        self.undone = False

    def seconds(self, plan: Plan, *, first: bool = False) -> float:
        return self.of_plan(plan) * (0.5 if first else 1.0)

    def seconds_in_turns(self, plans: dict[str, Plan], num_images: int) -> dict[str, float]:
        return {name: self.of_plan(plan) for name, plan in plans.items()}

    def peak_bytes(self, plan: Plan, num_images: int) -> int:
        return int(GIGA / 2 + num_images * self.image_bytes)

    def least_bytes(self, plan: Plan) -> int:
        return int(self.image_bytes / 2)

    def seconds_to_judge(self, num_images: int) -> float:
        return 0.01

    def undo(self) -> None:
        self.undone = True


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores of two threads each, half a gigabyte in use, four free, a compiler."""
    monkeypatch.setattr(tuning, "physical_cores", lambda: 4)
    monkeypatch.setattr(tuning, "available_cores", lambda: 8)
    monkeypatch.setattr(tuning, "anonymous_bytes", lambda: GIGA // 2)
    monkeypatch.setattr(tuning, "free_bytes", lambda: 4 * GIGA)
    monkeypatch.setattr(tuning, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(tuning, "compiler_problem", lambda _: "")
    monkeypatch.setattr(tuning, "kept_matrix_rates", lambda _: MatrixRates(fp32=80.0, bf16=1.0))
    monkeypatch.setattr(tuning, "expected_seconds", lambda _: 60.0)
    monkeypatch.setattr(tuning, "known_speedup", lambda _: None)
    monkeypatch.setattr(tuning, "remember_compiling", lambda *_: None)
    monkeypatch.setattr(tuning, "recall", dict)
    monkeypatch.setattr(tuning, "remember", lambda *_: None)
    # What is measured is made up, and takes no time.
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: 5000.0, perf_counter=time.perf_counter))


def tuned(
    seconds: float | Callable[[Plan], float] = 0.1,
    image_bytes: float = 1e7,
    steps: int = 100,
    spent: float = 0.0,
    **recipe: Any,
) -> tuple[TrainingConfig, Plan]:
    config = replace(published(), **({"device": "cpu"} | recipe))
    rehearsal = MadeUp(seconds if callable(seconds) else lambda _: seconds, image_bytes)
    plan = replace(resolve(config), threads=config.threads or 8, workers=8)
    answer = tuning.tune(
        config, plan, lambda: rehearsal, steps_per_epoch=steps, num_valid=50, started=5000.0 - spent,  # type: ignore[arg-type,return-value]
        progress=Silent(),
    )  # fmt: skip
    assert rehearsal.undone
    return answer


def compiled_is(ratio: float) -> Callable[[Plan], float]:
    return lambda plan: ratio if plan.compile else 1.0


def test_compiled_where_it_repays() -> None:
    assert tuned(compiled_is(0.6))[1].compile
    assert not tuned(compiled_is(0.95))[1].compile
    assert "not compiled: that is not 1.1 times as fast" in " ".join(tuned(compiled_is(1.1))[1].reasons)
    assert tuned(compiled_is(2.0), epochs=1, compile="on")[1].compile
    assert not tuned(compiled_is(0.1), compile="off")[1].compile


def never_compiled(plan: Plan) -> float:
    assert not plan.compile, "compiling was tried"
    return 1.0


def test_trying_to_compile_costs_at_most_a_twentieth_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # 100 steps of a second are an epoch; compiling is expected to take a minute.
    assert tuned(compiled_is(0.6), epochs=12)[1].compile
    plan = tuned(never_compiled, epochs=11)[1]
    assert any("not compiled: it takes about 1 min 00 s" in reason for reason in plan.reasons)
    tuned(never_compiled, budget="19m")
    assert tuned(compiled_is(0.6), budget="21m")[1].compile
    asked: list[str] = []

    def expected(network: str) -> float:
        asked.append(network)
        return 4.0

    monkeypatch.setattr(tuning, "expected_seconds", expected)
    assert tuned(compiled_is(0.6), epochs=1)[1].compile
    (network,) = asked
    assert all(word in network for word in ("carnet18 at 244 px", "micro_batch 16", "threads 8", "fp32"))


def test_what_trying_to_compile_took_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered: list[Any] = []
    monkeypatch.setattr(
        tuning, "remember_compiling", lambda what, seconds, *speedup: remembered.append((what, speedup))
    )

    def fails(plan: Plan) -> float:
        if plan.compile:
            raise RuntimeError("no linker")
        return 1.0

    tuned(never_compiled, compile="off")
    assert not remembered
    for seconds, speedup in ((compiled_is(0.5), (2.0,)), (compiled_is(2.0), (0.5,)), (fails, ())):
        remembered.clear()
        tuned(seconds)
        ((what, times),) = remembered
        assert what.startswith("carnet18 at 244 px")
        assert times == speedup


def test_what_was_no_faster_compiled_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "known_speedup", lambda _: 0.8)
    plan = tuned(never_compiled)[1]
    assert any("not compiled: a compiled network was 0.80 times as fast" in reason for reason in plan.reasons)
    assert tuned(compiled_is(2.0), compile="on")[1].compile
    monkeypatch.setattr(tuning, "known_speedup", lambda _: 1.3)
    assert tuned(compiled_is(0.7))[1].compile


@pytest.mark.parametrize(
    ("field", "usual", "other"),
    [
        ("precision", "fp32", "bf16"),
        ("memory_format", "channels_last", "contiguous"),
        ("fast_depthwise", True, False),
        ("threads", 8, 4),
    ],
)
def test_each_way_to_compute_is_the_fastest_by_a_margin(
    field: str, usual: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "kept_matrix_rates", lambda _: MatrixRates(fp32=80.0, bf16=81.0))

    def chosen(ratio: float, **recipe: Any) -> Any:
        seconds = lambda plan: ratio if getattr(plan, field) == other else 1.0  # noqa: E731
        return getattr(tuned(seconds, **({"compile": "off", "precision": "auto"} | recipe))[1], field)

    assert [chosen(ratio) for ratio in (2.0, 1.0, 0.92, 0.9)] == [usual, usual, usual, other]
    flag = {True: "on", False: "off"}.get(usual, usual) if field == "fast_depthwise" else usual
    assert chosen(0.1, **{field: flag}) == usual
    # Too short to repay measuring.
    assert chosen(0.1, epochs=0, steps=1) == usual


def test_emulated_bf16_is_not_tried() -> None:
    def never_bf16(plan: Plan) -> float:
        assert plan.precision == "fp32"
        return 1.0

    assert tuned(never_bf16, precision="auto")[1].precision == "fp32"


def test_what_was_measured_before_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it would now come out otherwise; but a run that is too short to measure never chooses otherwise."""
    known: dict[str, dict[str, float]] = {}
    monkeypatch.setattr(tuning, "recall", lambda: known)
    monkeypatch.setattr(tuning, "remember", known.__setitem__)
    is_contiguous_faster = lambda plan: 0.5 if plan.memory_format == "contiguous" else 1.0  # noqa: E731
    assert tuned(is_contiguous_faster)[1].memory_format == "contiguous"
    assert tuned(1.0)[1].memory_format == "contiguous"
    assert tuned(0.1, steps=1)[1].memory_format == "channels_last"
    assert tuned(1.0, batch_size=8)[1].memory_format == "channels_last"


def test_muon_multiplies_in_the_faster_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for bf16, chosen in ((1.0, "fp32"), (80.0, "fp32"), (87.0, "fp32"), (89.0, "bf16"), (400.0, "bf16")):
        monkeypatch.setattr(tuning, "kept_matrix_rates", lambda _, bf16=bf16: MatrixRates(fp32=80.0, bf16=bf16))
        plan = tuned(optimizer="muon")[1]
        assert plan.muon_precision == chosen
        assert any(f"Muon in {chosen}" in reason and "80 GFLOP/s in fp32" in reason for reason in plan.reasons)
    for asked in ("fp32", "bf16"):
        assert tuned(optimizer="muon", muon_precision=asked)[1].muon_precision == asked
    assert not any("Muon" in reason for reason in tuned(optimizer="adam")[1].reasons)


def test_every_step_that_is_measured_has_muons_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "kept_matrix_rates", lambda _: MatrixRates(fp32=1.0, bf16=100.0))
    seen = set()

    def seconds(plan: Plan) -> float:
        seen.add(plan.muon_precision)
        return 1.0

    tuned(seconds, optimizer="muon")
    assert seen == {"bf16"}


def test_without_a_compiler_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "compiler_problem", lambda _: "there is no C++ compiler")
    plan = tuned(1.0)[1]
    assert not plan.compile
    assert "not compiled: there is no C++ compiler" in plan.reasons
    with pytest.raises(ConfigError, match="--compile on: there is no C"):
        tuned(1.0, compile="on")


def test_a_compiler_that_fails_is_told_and_done_without() -> None:
    def fails(plan: Plan) -> float:
        if plan.compile:
            raise RuntimeError("the linker is gone\nwith a long story")
        return 1.0

    plan = tuned(fails)[1]
    assert not plan.compile
    assert "not compiled: that failed (the linker is gone)" in plan.reasons
    with pytest.raises(ConfigError, match=r"--compile on: the linker is gone$"):
        tuned(fails, compile="on")


def test_images_at_a_time_as_memory_allows() -> None:
    assert tuned(batch_size=16)[1].micro_batch == 16
    # 0.9 x 2 GB - 0.5 GB leave 1.3 GB; kept memory would take 1.6 times as much, but is not kept below a limit.
    plan = tuned(batch_size=16, image_bytes=2e8, max_memory="2GB")[1]
    assert (plan.micro_batch, plan.keep_memory) == (4, False)
    assert any(
        "4 images at a time" in reason and "batch-norm statistics those of 4" in reason for reason in plan.reasons
    )
    assert tuned(batch_size=16, image_bytes=8e8)[1].micro_batch == 2
    assert tuned(batch_size=17, image_bytes=2e8, max_memory="2GB")[1].micro_batch == 6
    with pytest.raises(ConfigError, match=r"a step of 2 images of 244 px takes at least .* more than the 1.0 GB"):
        tuned(image_bytes=5e8, max_memory="1GB")
    with pytest.raises(ConfigError, match="free some memory, or take a smaller --image-size"):
        tuned(image_bytes=1e11)
    with pytest.raises(ConfigError, match="raise --max-memory, or take a smaller --image-size"):
        tuned(image_bytes=1e11, max_memory="1GB")
    # Two images take 0.4 GB more: whether four fit into 1 GB is not tried out.
    assert tuned(batch_size=16, image_bytes=2e8, max_memory="1GB")[1].micro_batch == 2
    assert tuned(batch_size=16, micro_batch=2)[1].micro_batch == 2


def test_less_is_kept_for_the_backward_pass_where_memory_is_limited() -> None:
    assert tuned(compiled_is(0.5))[1].recompute == 1.0
    assert tuned(compiled_is(0.5), max_memory="2GB")[1].recompute < 1.0


def test_the_compiler_needs_room_below_the_limit() -> None:
    # Half a gigabyte is in use already.
    assert tuned(compiled_is(0.5), max_memory="1.2GB")[1].compile
    plan = tuned(compiled_is(0.5), max_memory="1GB")[1]
    assert not plan.compile
    assert any("more than the limit leaves" in reason for reason in plan.reasons)
    assert tuned(compiled_is(0.5), max_memory="1GB", compile="on")[1].compile


def test_threads_are_those_that_are_faster() -> None:
    assert tuned(lambda plan: 1.0 if plan.threads == 8 else 0.8)[1].threads == 4
    assert tuned(lambda plan: 1.0 if plan.threads == 8 else 1.2)[1].threads == 8
    assert tuned(lambda plan: 1.0 if plan.threads == 6 else 0.1, threads=6)[1].threads == 6


def test_workers_keep_up() -> None:
    assert tuned(1.0)[1].workers == 1
    # 16 images in 10 ms, each of which takes 1 ms to prepare: two threads, and something to spare.
    assert tuned(0.01)[1].workers == 3
    assert tuned(0.0001)[1].workers == 8
    assert tuned(0.0001, workers=0)[1].workers == 8


def test_decoded_images_are_prepared_between_the_steps_where_cores_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MadeUp, "is_decoded", True)
    assert tuned(0.01, threads=2)[1].workers == 0
    assert tuned(0.01, threads=3)[1].workers == 3
    monkeypatch.setattr(MadeUp, "is_decoded", False)
    assert tuned(0.01, threads=2)[1].workers == 3


def test_a_budget_chooses_epochs() -> None:
    # 100 steps of 0.1 s, for each of which 8 threads prepare 16 images in 1 ms each, and 50 images of 0.01 s.
    config, plan = tuned(0.1, budget="10m", epochs=0)
    assert config.epochs == int((600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) + 0.5))
    assert plan.training_seconds == 596.5
    assert plan.training_steps == int(100 * (600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) + 0.5))


def test_looking_and_measuring_are_part_of_the_budget() -> None:
    assert tuned(0.1, budget="10m", spent=300)[1].training_seconds == 296.5


def test_a_budget_may_not_hold_an_epoch() -> None:
    config, plan = tuned(10.0, budget="30m", compile="off", steps=1000)
    assert config.epochs == 1
    assert plan.training_steps == int((1800 - 3.5) / (10 + 16 * 0.001 / 8))
    assert any("training ends inside the first, after 179 steps" in reason for reason in plan.reasons)
    # An epoch and a half is worth a longer schedule than an epoch.
    config, plan = tuned(0.1, budget="19s", compile="off")
    assert (config.epochs, plan.training_steps) == (1, int(100 * 15.5 / 10.7))
    with pytest.raises(ConfigError, match=r"--budget 2m leaves time for 11 steps of training, after .* give at least"):
        tuned(10.0, budget="2m", compile="off")


def test_the_length_of_a_run_is_foretold() -> None:
    # 100 steps of 0.1 s, for each of which 8 threads prepare 16 images in 1 ms each, and 50 images of 0.01 s.
    reasons = tuned(0.1, epochs=50)[1].reasons
    assert "50 epochs take about 8 min 56 s" in reasons
    (long,) = (reason for reason in tuned(0.1, epochs=200)[1].reasons if "200 epochs take about 35 min" in reason)
    assert "--budget 30m" in long
    assert not any("take about" in reason for reason in tuned(0.1, budget="10m", epochs=0)[1].reasons)


def test_a_budget_shortens_a_run_and_never_prolongs_it() -> None:
    config, plan = tuned(0.1, budget="10m", epochs=7)
    assert (config.epochs, plan.training_steps, plan.most_steps) == (7, 700, 700)
    assert any("fit into 10m, of the 7 asked for" in reason for reason in plan.reasons)
    config, plan = tuned(0.1, budget="10m", epochs=70)
    assert config.epochs == int((600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) + 0.5)) < 70
    assert plan.most_steps == 7000
    assert tuned(0.1, budget="10m", epochs=0)[1].most_steps == 0


def test_small_images_at_the_beginning_leave_time_for_more_epochs() -> None:
    grown, plan = tuned(0.1, budget="10m", epochs=0, start_share=0.55)
    assert plan.first_cost == 0.5
    share = mean_cost(0, grown, 0.5)
    assert 0.5 < share < 1
    assert grown.epochs == int((600 - 3.5) / (100 * (0.1 + 16 * 0.001 / 8) * share + 0.5))
    assert tuned(0.1, budget="10m")[1].first_cost == 1.0
