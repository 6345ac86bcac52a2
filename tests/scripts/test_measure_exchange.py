"""The table of what devices send each other."""

import pytest


@pytest.fixture
def program(load_program):
    return load_program("scripts/measure_exchange.py")


def test_ways_of_exchanging_a_small_adapter_cost_what_they_should(program):
    shape, n, t = (64, 8), 16, 32
    gradients, chosen = program.measure(shape, n, t, "gradients", 16)
    assert chosen == "instantiate"
    products, gram = n * 64 * 8 * 4 // 8 * 7 // 8, 2 * n * n * 4 * 7 // 8
    assert gradients == products + gram
    factors, _ = program.measure(shape, n, t, "factors", 16)
    assert factors >= n * t * (64 + 8) * 4 * 7 // 8
    features, _ = program.measure(shape, n, t, "features", 16)
    assert features == (n * 16 + n * n) * 4 * 7 // 8  # and the rows of the Gram matrix
