"""What the reference does otherwise than the libraries whose models it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps

from convert.verify.reference import Sinusoid
from moddit.embeddings import sinusoid_frequencies


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cosines_first", [True, False])
def test_sinusoids_have_frequencies_that_are_rounded_once(shift: int, cosines_first: bool) -> None:
    right = Timesteps(256, cosines_first, shift)
    ours = Sinusoid(right)
    assert np.array_equal(ours.frequencies.numpy(), sinusoid_frequencies(256, shift))
    for timestep in (0.0, 1.0, 250.5, 999.0):
        values = torch.full((2,), timestep)
        torch.testing.assert_close(ours(values), right(values), rtol=0, atol=1e-6 + 1.3e-7 * timestep)
