import pytest
import torch

from carnet.training.channel_sums import channel_sums, is_large


@pytest.mark.parametrize(("shape", "large"), [((3, 4, 5, 6), False), ((2, 8, 200, 180), True)])
def test_the_order_does_not_change_the_sums(shape: tuple[int, ...], large: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert is_large(x) == large
    torch.testing.assert_close(channel_sums(x), x.sum((0, 2, 3)))
