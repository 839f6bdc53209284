"""State in 8 and 4 bits: what it stores, how far from the exact state it may be, and what it saves."""

import pytest
import torch
import transcriptions_low_memory as low_memory
from torch import nn
from toys import updates_of

from thalweg import optim
from thalweg.optim._blocks import dynamic_table, from_table, unpack


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quantized_adam(p, bits=8, **settings):
    settings = {"smallest": 0, **settings}
    return optim.Descent([p], optim.quantized(optim.adam(), bits, **settings), lr=1e-3)


def table_of(slot, bits):
    if slot == "square" and bits == 4:
        return torch.arange(1, 17) / 16
    return low_memory.dynamic_values(slot != "square") if bits == 8 else dynamic_table(4, True)


def stored(optimizer, p, slot, bits, block):
    """The numbers that the state stands for, and the scale of each."""
    codes = unpack(optimizer.state[p][f"quantized.{slot}"], bits, p.numel())
    scale = optimizer.state[p][f"quantized.{slot}_scale"]
    return from_table(codes, scale, table_of(slot, bits), block), scale.repeat_interleave(block)[: p.numel()]


@pytest.mark.parametrize(("bits", "block"), [(8, 256), (4, 128)])
def test_the_stored_moments_are_within_half_a_gap_of_the_table_from_adams(bits, block):
    p, q, g = nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.zeros(1000)), random(1000)
    ours = quantized_adam(p, bits)
    theirs = torch.optim.Adam([q])
    torch.testing.assert_close(updates_of(ours, p, [g]), updates_of(theirs, q, [g]))
    for slot, name in (("mean", "exp_avg"), ("square", "exp_avg_sq")):
        found, scale = stored(ours, p, slot, bits, block)
        table, true = table_of(slot, bits), theirs.state[q][name]
        unit = true / scale
        above = torch.searchsorted(table, unit.contiguous()).clamp(1, len(table) - 1)
        half = (table[above] - table[above - 1]) / 2
        outside = (table[0] - unit).clamp_min(0)  # below the least value of the 4-bit table without a zero
        assert ((found - true).abs() <= (half + outside) * scale * (1 + 1e-5)).all()
        assert (found - true).abs().max() > 0


@pytest.mark.parametrize(("bits", "off"), [(8, 0.03), (4, 0.25)])
def test_a_hundred_steps_stay_near_adams(bits, off):
    """Noise about a gradient that drifts: the distance of the paths, as a share of how far Adam went."""
    paths = []
    for make in (lambda p: quantized_adam(p, bits), lambda p: torch.optim.Adam([p], lr=1e-3)):
        p = nn.Parameter(torch.zeros(4096))
        optimizer, drift = make(p), random(4096, seed=1)
        for seed in range(100):
            p.grad = drift + random(4096, seed=100 + seed)
            optimizer.step()
        paths.append(p.detach())
    assert (paths[0] - paths[1]).norm() < off * paths[1].norm()
    assert paths[0].isfinite().all()


def test_eight_bits_follow_the_transcription():
    """120 steps of Adam whose moments go through the table one number at a time."""
    p = nn.Parameter(torch.zeros(40, dtype=torch.float64))
    gradients = [random(40, seed=seed, dtype=torch.float64) * 10.0 ** (seed % 3) for seed in range(120)]
    ours = torch.stack(updates_of(quantized_adam(p, block=16), p, gradients))
    signed, unsigned = low_memory.dynamic_values(True), low_memory.dynamic_values(False)
    m = v = torch.zeros(40, dtype=torch.float64)
    for t, (u, g) in enumerate(zip(ours, gradients, strict=True), start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        expected = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(u, expected, rtol=1e-6, atol=1e-6)
        m, v = low_memory.stored(m, signed, 16), low_memory.stored(v, unsigned, 16)


@pytest.mark.parametrize(("bits", "expected"), [(8, 2 * 4096 + 2 * 16 * 4), (4, 4096 + 2 * 32 * 4)])
def test_the_bytes_are_those_of_the_codes_and_one_scale_a_block(bits, expected):
    p = nn.Parameter(random(64, 64))
    optimizer = quantized_adam(p, bits)
    updates_of(optimizer, p, [random(64, 64)])
    state = {key: slot for key, slot in optimizer.state[p].items() if key != "step"}
    assert sum(slot.numel() * slot.element_size() for slot in state.values()) == expected


def test_q_galore_counts_its_bytes():
    """A projection of 4 bits, moments of 8 bits, a scale (and zero point) for each 256 of them."""
    p = nn.Parameter(random(64, 256))
    optimizer = optim.QGaLore([p], rank=16)
    updates_of(optimizer, p, [random(64, 256)])
    size = {
        key.split(".")[-1]: slot.numel() * slot.element_size()
        for key, slot in optimizer.state[p].items()
        if key != "step"
    }
    assert size == {
        "basis": 64 * 16 // 2,
        "basis_step": 4 * 4,
        "basis_zero": 4,
        "mean": 16 * 256,
        "mean_scale": 4 * 16,
        "square": 16 * 256,
        "square_scale": 4 * 16,
        "refresh": 16,
        "overlaps": 40,
        "leading": 4 * 64,
    }


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("bits", [8, 4])
def test_compiled_state_is_the_eager_one_but_for_a_code_in_a_thousand(bits):
    """More than a chunk, less than a block at the end. Where codes differ, it is by one, from rounding."""
    length = (1 << 17) + 301
    gradients = [random(length, seed=seed) for seed in range(3)]
    p, q = nn.Parameter(torch.zeros(length)), nn.Parameter(torch.zeros(length))
    ours, eager = (
        optim.Descent([one], optim.quantized(optim.adam(), bits), lr=1e-3, compile=compile)
        for one, compile in ((p, True), (q, False))
    )
    updates_of(ours, p, gradients), updates_of(eager, q, gradients)
    torch.testing.assert_close(p, q, rtol=0, atol=2e-5)  # a fiftieth of a step
    for slot in ("mean", "square"):
        a, b = (
            unpack(one.state[w][f"quantized.{slot}"], bits, length).int()
            for one, w in ((ours, p), (eager, q))
        )
        assert (a - b).abs().max() <= 1
        assert (a != b).float().mean() < 1e-3


def test_small_parameters_keep_full_state_and_large_ones_do_not():
    small, large = nn.Parameter(random(4095)), nn.Parameter(random(4096))
    optimizer = optim.Descent([small, large], optim.quantized(optim.adam()))
    small.grad, large.grad = random(4095), random(4096)
    optimizer.step()
    assert optimizer.state[small]["quantized.mean"].dtype == torch.float32
    assert optimizer.state[large]["quantized.mean"].dtype == torch.uint8


def test_chunks_do_not_show():
    """More elements than are unpacked at a time, an odd rest, and blocks whose scales differ."""
    length = (1 << 17) + 301
    gradients = [random(length, seed=seed) * torch.linspace(1e-3, 1e3, length) for seed in range(3)]
    p, q = nn.Parameter(torch.zeros(length)), nn.Parameter(torch.zeros(length - (1 << 17)))
    for bits in (8, 4):
        whole = updates_of(quantized_adam(p, bits), p, gradients)
        rest = updates_of(quantized_adam(q, bits), q, [g[1 << 17 :] for g in gradients])
        for a, b in zip(whole, rest, strict=True):
            torch.testing.assert_close(a[1 << 17 :], b, rtol=1e-4, atol=1e-4)


def test_four_bits_never_store_a_mean_square_of_zero():
    """Entries a thousand times below the largest: with a zero in the table their steps would explode."""
    p = nn.Parameter(torch.zeros(128))
    g = torch.full((128,), 1e-3)
    g[0] = 1.0
    updates = updates_of(quantized_adam(p, 4), p, [g] * 20)
    assert all(u.abs().max() <= 1.01 for u in updates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 2}, r"^bits must be one of 4, 8; got 2"),
        ({"block": 100}, r"^block must divide 131072, got 100"),
        ({"smallest": -1}, r"^smallest must be an integer >= 0"),
        ({"inner": optim.project()}, r"^inner must be of scope element"),
    ],
)
def test_bad_arguments_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.quantized(**{"inner": optim.adam(), **settings})
