"""Equal stages of a run, by the steps they start at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.ops import Bop, Fourier
from fda_jax.ops.stages import stages_behind


@pytest.mark.parametrize(("total", "stages"), [(50, 5), (100, 10), (7820, 10), (156400, 400)])
def test_a_stage_starts_at_its_step_whatever_a_division_loses(total: int, stages: int) -> None:
    steps = np.arange(total)
    behind = jax.jit(lambda step: stages_behind(step / total, stages))(steps)
    np.testing.assert_array_equal(behind, steps * stages // total)


def test_rules_that_change_by_stages_do_so_at_their_steps() -> None:
    steps, one = np.arange(50), jnp.float32(1)

    @jax.jit
    @jax.vmap
    def seen(step):
        progress = step / 50
        average = Bop(gamma=0.5, decay=0.5).update(one, one, one, 0 * one, progress)[1]
        return Fourier().num_terms(progress), average

    terms, average = seen(steps)
    np.testing.assert_array_equal(terms, 10 + steps // 5)
    np.testing.assert_array_equal(average, 0.5 ** (1 + steps // 10))
