from carnet.timing import take_turns


def test_calls_take_turns_and_the_first_of_each_is_not_counted() -> None:
    order = []
    found = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "a", "b", "b"] * 3
    assert [len(times) for times in found.values()] == [3, 3]
    assert all(time >= 0 for times in found.values() for time in times)
