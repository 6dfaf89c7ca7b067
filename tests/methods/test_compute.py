"""Where and how a training computes; what is set for it is put back."""

from __future__ import annotations

import pytest
import torch

from nnet_edge.methods.compute import deterministic, full_fp32


def test_tf32_is_off_inside_and_as_before_outside() -> None:
    before = torch.backends.cudnn.allow_tf32
    with full_fp32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_kernels_are_put_back_after_a_failure(wanted: bool) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    seen: list[bool] = []

    def fail() -> None:
        with deterministic(wanted):
            seen.append(torch.are_deterministic_algorithms_enabled())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert seen == [wanted or before]
    assert torch.are_deterministic_algorithms_enabled() == before
