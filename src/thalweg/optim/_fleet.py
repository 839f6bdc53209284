"""One kernel over many tensors: a single parallel loop in C over chunks of all of them.

A call of its own for every tensor costs 15 us of Python and leaves the other threads waiting between calls.
Here the tensors of a group cost one call together, the small ones no more than their elements, and nothing is
compiled for their number.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thalweg.optim import _kept
from thalweg.optim._direct import P
from thalweg.optim._kernel import Compiled
from thalweg.optim._machine_code import MOST_ARGUMENTS, MachineCode
from thalweg.optim._pass import Pass

if TYPE_CHECKING:
    from thalweg.optim._item import Item

PLACES = 1  # where seed and offset of the noise stand among a kernel's arguments
# Elements of a chunk: enough to stream from memory, few enough to share the work out evenly.
CHUNK = 1 << 18
# How an argument moves on from chunk to chunk, where not by so many bytes an element.
STAYS, IS_LENGTH, IS_PLACES = 0, -1, -2

DRIVER = (
    """
#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

using Words = std::array<int64_t, MOST>;

template <size_t... I>
static void call(int64_t kernel, const Words& a, std::index_sequence<I...>) {
    reinterpret_cast<void (*)(decltype(static_cast<int64_t>(I))...)>(kernel)(a[I]...);
}

template <size_t N>
static void call_with(int64_t kernel, const Words& a) { call(kernel, a, std::make_index_sequence<N>{}); }

template <size_t... N>
static constexpr auto every(std::index_sequence<N...>) {
    return std::array<void (*)(int64_t, const Words&), sizeof...(N)>{&call_with<N>...};
}

static constexpr auto callers = every(std::make_index_sequence<MOST + 1>{});

extern "C" void drive(int64_t kernel, int64_t arguments, const int64_t* strides, int64_t tensors,
                         const int64_t* table, const int64_t* lengths, int64_t chunk, int64_t threads) {
    std::vector<std::pair<int64_t, int64_t>> work;
    for (int64_t t = 0; t < tensors; ++t)
        for (int64_t start = 0; start < lengths[t]; start += chunk) work.emplace_back(t, start);
    const auto caller = callers[arguments];
    #pragma omp parallel for schedule(dynamic) num_threads(threads) if(work.size() > 1)
    for (size_t w = 0; w < work.size(); ++w) {
        const auto [t, start] = work[w];
        const int64_t length = std::min(chunk, lengths[t] - start);
        int64_t places[2];
        Words words;
        for (int64_t a = 0; a < arguments; ++a) {
            const int64_t base = table[t * arguments + a];
            if (strides[a] == -1) {
                words[a] = length;
            } else if (strides[a] == -2) {
                const auto* own = reinterpret_cast<const int64_t*>(base);
                places[0] = own[0];
                places[1] = own[1] + start;
                words[a] = reinterpret_cast<int64_t>(places);
            } else {
                words[a] = base + start * strides[a];
            }
        }
        caller(kernel, words);
    }
}
"""
).replace("MOST", str(MOST_ARGUMENTS))


@functools.cache
def _driver() -> Any:
    name = _kept.name_of("driver", DRIVER)
    kept = None if name is None else _kept.read(name)
    try:
        if kept is None:
            from torch._inductor.codecache import CppCodeCache  # seconds to import

            library = CppCodeCache.load(DRIVER)
        else:
            library = ctypes.CDLL(kept["library"])
        driver = library.drive
    except Exception:  # without a compiler there are no kernels either, unless they were kept
        return None
    if name is not None and kept is None:
        _kept.write(name, {"wrapper": library._name, "library": library._name})
    driver.restype = None
    driver.argtypes = (ctypes.c_int64,) * 8
    return driver


class Fleet:
    """The last kernel of a line for many parameters at once."""

    def __init__(self, kernel: Compiled):
        self.kernel = kernel
        self.codes: dict[Any, MachineCode | None] = {}

    def run(self, items: Sequence[Item]) -> bool:
        """Run it for items that are alike in all but length; False if they have to go one by one."""
        if not items:
            return True
        first = items[0]
        kind = (first.place.kind, first.source.grad.dtype)  # type: ignore[union-attr]
        if kind not in self.codes:
            return self._begin(kind, items)
        code = self.codes[kind]
        if code is not None:
            self._drive(code, items)
        return code is not None

    def _begin(self, kind: Any, items: Sequence[Item]) -> bool:
        """Compile with one of the items, which may find machine code."""
        for item in items:
            call = item.last_call()
            kernel = self.kernel.general(call)
            if kernel is None:
                continue
            if kernel.run is None:
                kernel(*call)
                others = [one for one in items if one is not item]
            else:
                others = list(items)
            code = self.codes[kind] = None if _driver() is None else kernel.code
            if code is not None:
                self._drive(code, others)
            else:
                for one in others:
                    self.kernel(*one.last_call())
            return True
        return False

    def _drive(self, code: MachineCode, items: Sequence[Item]) -> None:
        if not items:
            return
        call = items[0].last_call()
        strides = [_stride(index, call) for index in code.wiring]
        rows = np.array([item.last_addresses() for item in items], dtype=np.int64)
        table = np.ascontiguousarray(rows[:, [0 if index is None else index for index in code.wiring]])
        numbers = np.array(strides + [item.place.length for item in items], dtype=np.int64)
        at = numbers.ctypes.data
        lengths, threads = at + 8 * len(strides), torch.get_num_threads()
        _driver()(code.address, len(strides), at, len(items), table.ctypes.data, lengths, CHUNK, threads)


def _stride(index: int | None, call: Sequence[Any]) -> int:
    """How the argument at ``index`` moves on from chunk to chunk."""
    if index is None:
        return IS_LENGTH
    if index == PLACES:
        return IS_PLACES
    return STAYS if index < P else call[index].element_size()


def fleet(stage: Sequence[tuple[Pass, Any]]) -> Fleet | None:
    """A stage for many parameters at once, if it is one compiled pass that writes weights in flat order."""
    if len(stage) != 1:
        return None
    part, kernel = stage[0]
    return Fleet(kernel) if isinstance(kernel, Compiled) and part.view == "flat" and part.writes else None
