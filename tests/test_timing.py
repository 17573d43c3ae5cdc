from carnet.machine import take_turns


def test_calls_take_turns_and_the_first_of_each_is_not_counted() -> None:
    order: list[object] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = take_turns(calls, rounds=3, progress=lambda done, total: order.append((done, total)))
    turn = ["a", "a", "b", "b"]
    assert order == [*turn, (1, 3), *turn, (2, 3), *turn, (3, 3)]
    assert [len(times) for times in found.values()] == [3, 3]
    assert all(time >= 0 for times in found.values() for time in times)
