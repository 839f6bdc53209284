"""Codes of 8 and 4 bits: the tables against values known by hand, packing, and the error of each rounding."""

import pytest
import torch
import transcriptions_low_memory as low_memory

from thalweg import optim
from thalweg.optim._blocks import (
    dynamic_table,
    from_grid,
    from_table,
    pack,
    state_table,
    to_grid,
    to_table,
    unpack,
)
from thalweg.optim._codes import state_code


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("signed", [True, False])
def test_the_8_bit_table_is_the_dynamic_tree(signed):
    torch.testing.assert_close(dynamic_table(8, signed), low_memory.dynamic_values(signed), rtol=1e-6, atol=0)


def test_the_4_bit_table_by_hand():
    expected = [-0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055, 0.0, 0.0055, 0.0325, 0.0775]
    expected += [0.2125, 0.4375, 0.6625, 0.8875, 1.0]
    assert dynamic_table(4, True).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("bits", "count"), [(8, 7), (4, 8), (4, 7), (4, 1), (4, 0)])
def test_packed_codes_come_back(bits, count):
    codes = torch.randint(2**bits, (count,), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.numel() == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("length", [1, 255, 256, 257, 1000])
@pytest.mark.parametrize("bits", [8, 4])
def test_every_number_goes_to_the_nearest_value_of_its_block(bits, length):
    x, table = random(length), dynamic_table(bits, True)
    codes, scale = to_table(x, table, 256)
    found = from_table(codes, scale, table, 256)
    for index in range(length):
        values = table * x[index // 256 * 256 :][:256].abs().max()
        best = (values - x[index]).abs().min()
        assert (found[index] - x[index]).abs().item() == pytest.approx(best.item(), abs=1e-7)


@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (4, True), (4, False)])
def test_the_quick_look_up_and_the_arithmetic_are_a_binary_search(bits, signed):
    """On numbers of every size, on the ends of the codes themselves, and on their neighbours in float32."""
    table = state_table(bits, signed)
    ends = (table[1:] + table[:-1]) / 2
    sizes = 10.0 ** (-12 * torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    x = torch.cat([torch.ones(1), table, ends, ends.nextafter(ends + 1), ends.nextafter(ends - 1), sizes])
    x = torch.cat([x, -sizes]) if signed else x
    codes, scale = to_table(x, table, 1 << 20)
    assert scale.tolist() == [1.0]
    assert torch.equal(codes.int(), torch.bucketize(x, ends).int())
    assert torch.equal(state_code(bits, signed).nearest(x), codes)


def test_the_largest_of_a_block_and_zeros_are_kept_exactly():
    x = torch.cat([torch.tensor([3.7, 0.0, -1.0]), torch.zeros(253), torch.zeros(256)])
    for signed in (True, False):
        table = dynamic_table(8, signed)
        found = from_table(*to_table(x.clamp_min(-1.0 if signed else 0.0), table, 256), table, 256)
        assert found[0] == x[0]
        assert found[3:].eq(0).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_even_grid_is_off_by_at_most_half_a_step(bits):
    x = random(1000)
    codes, step, zero = to_grid(x, bits, 256)
    found = from_grid(codes, step, zero, 256)
    per_number = step.repeat_interleave(256)[:1000]
    assert ((found - x).abs() <= per_number * 1.001).all()  # the zero point is rounded as well
    inside = (codes > 0) & (codes < 2**bits - 1)
    assert ((found - x).abs() <= per_number * 0.501)[inside].all()
    torch.testing.assert_close(found, low_memory.on_grid(x, bits))


def test_a_group_of_one_sign_keeps_its_values():
    """The released code clamps the zero point but not the range: 5.0 to 5.1 comes back as 0 to 0.1 there."""
    x = torch.linspace(5.0, 5.1, 256)
    found = from_grid(*to_grid(x, 8, 256), 256)
    assert (found - x).abs().max() < 5.1 / 255 / 2 * 1.001
    low, high = x.min(), x.max()
    step = (high - low) / 255
    zero = (-low / step).round().clamp(0, 255)
    released = step * (((x / step).round() + zero).clamp(0, 255) - zero)
    assert (released - x).abs().max() > 4.5


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_a_constant_group_is_exact(value):
    x = torch.full((300,), value)
    torch.testing.assert_close(from_grid(*to_grid(x, 8, 256), 256), x, rtol=1e-6, atol=0)


def test_with_noise_rounding_is_right_on_average():
    x = torch.tensor([-1.0, 1.0, 0.3003]).repeat(1)
    found = torch.stack(
        [
            from_grid(*to_grid(x, 4, 256, torch.rand(3, generator=torch.Generator().manual_seed(i))), 256)
            for i in range(4000)
        ]
    )
    step = 2 / 15
    assert set(((found[:, 2] / step).round()).tolist()) == {2.0, 3.0}
    assert found[:, 2].mean().item() == pytest.approx(0.3003, abs=4 * step / 2 / 4000**0.5)


def weights_on_grid(rounds, size, **settings):
    """64 x 64 weights after ``rounds`` steps of ``size``, and where exact arithmetic would be."""
    start = random(64, 64)
    p = torch.nn.Parameter(start.clone())
    optimizer = optim.Descent([p], optim.integer_weights(**settings), lr=1.0)
    first = None
    for _ in range(rounds):
        p.grad = torch.full_like(p, -size)
        optimizer.step()
        first = p.detach().clone() if first is None else first
    return first, p.detach()


def test_a_hundred_updates_of_a_fiftieth_of_the_grid_arrive_on_average_and_to_nearest_none_would():
    start = random(64, 64)
    step = ((start.view(-1, 256).amax(1) - start.view(-1, 256).amin(1)) / 255).mean().item()
    _, after = weights_on_grid(100, step / 50)
    assert (after - start).mean().item() == pytest.approx(2 * step, rel=0.05)
    nearest = low_memory.on_grid(start, 8)
    assert torch.equal(
        low_memory.on_grid(nearest + step / 50, 8).sub(nearest).abs() > step / 2, torch.zeros(64, 64).bool()
    )


def test_all_weights_lie_on_256_values_of_their_group():
    _, after = weights_on_grid(5, 0.01)
    for group in after.view(-1, 256):
        assert group.unique().numel() <= 256
        step = group.unique().diff().min()
        assert (group / step - (group / step).round()).abs().max() < 1e-2


def test_small_matrices_vectors_and_steps_that_are_not_finite_are_left_alone():
    small, vector, broken = (torch.nn.Parameter(random(*shape)) for shape in [(8, 8), (5000,), (64, 64)])
    optimizer = optim.Descent([small, vector, broken], optim.integer_weights(), lr=0.1)
    before = small.detach().clone(), vector.detach().clone()
    for p in (small, vector, broken):
        p.grad = torch.ones_like(p)
    broken.grad[0, 0] = torch.nan
    optimizer.step()
    torch.testing.assert_close(small.detach(), before[0] - 0.1)
    torch.testing.assert_close(vector.detach(), before[1] - 0.1)
    assert broken[0, 0].isnan()
    assert broken.isnan().sum() < 4096
