from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from carnet.data.samples import Sample, hold_out


def numbered(contents: list[tuple[int, int]]) -> tuple[list[Sample], dict[Path, str]]:
    """(label, content number) pairs -> samples and digests."""
    samples = [Sample(Path(f"{i}.jpg"), label) for i, (label, _) in enumerate(contents)]
    return samples, {s.path: f"content {c}" for s, (_, c) in zip(samples, contents, strict=True)}


@given(
    contents=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=80),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 5),
)
def test_equal_files_stay_on_one_side_and_nothing_is_lost(
    contents: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    samples, digests = numbered(contents)
    train, valid = hold_out(samples, digests, fraction=fraction, seed=seed)
    assert sorted(train + valid, key=lambda s: s.path) == sorted(samples, key=lambda s: s.path)
    assert not {digests[s.path] for s in train} & {digests[s.path] for s in valid}
    for label in range(4):
        size = sum(s.label == label for s in samples)
        held = sum(s.label == label for s in valid)
        assert held <= max(1, round(fraction * size))
        assert size == 0 or held < size


@given(
    sizes=st.lists(st.integers(2, 40), min_size=2, max_size=5), fraction=st.floats(0.05, 0.6), seed=st.integers(0, 9)
)
def test_stratified(sizes: list[int], fraction: float, seed: int) -> None:
    contents = [(label, 1000 * label + i) for label, size in enumerate(sizes) for i in range(size)]
    samples, digests = numbered(contents)
    _, valid = hold_out(samples, digests, fraction=fraction, seed=seed)
    for label, size in enumerate(sizes):
        assert sum(s.label == label for s in valid) == max(1, round(fraction * size))


def test_follows_from_seed_and_content_alone() -> None:
    samples, digests = numbered([(i % 3, i) for i in range(60)])
    train, valid = hold_out(samples, digests, fraction=0.2, seed=1)
    assert hold_out(samples, digests, fraction=0.2, seed=1) == (train, valid)
    assert hold_out(samples, digests, fraction=0.2, seed=2)[1] != valid
    renamed = [Sample(Path("x") / s.path, s.label) for s in reversed(samples)]
    moved = hold_out(renamed, {Path("x") / p: d for p, d in digests.items()}, fraction=0.2, seed=1)[1]
    assert {s.path.name for s in moved} == {s.path.name for s in valid}


def test_a_class_is_never_held_back_whole() -> None:
    samples, digests = numbered([(0, 1), (0, 2), (1, 3), (1, 4), (1, 5), (1, 6)])
    train, valid = hold_out(samples, digests, fraction=0.9, seed=0)
    assert [s.label for s in train] == [0, 1]
    assert [s.label for s in valid] == [0, 1, 1, 1]


def test_single_image_is_kept_for_training() -> None:
    samples, digests = numbered([(0, 1), (1, 2), (1, 3)])
    train, valid = hold_out(samples, digests, fraction=0.5, seed=0)
    assert [s.label for s in train] == [0, 1]
    assert [s.label for s in valid] == [1]
