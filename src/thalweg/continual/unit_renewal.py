"""Continual backpropagation (arXiv 2306.13812): a slow trickle of new units in the place of useless ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from thalweg._core.checks import check_choice, check_count, check_number, check_unit_interval
from thalweg.continual._chain import Link, hidden_links
from thalweg.continual._fresh import INITS, Init, Renewal, check_trained, draw, states_to_reset
from thalweg.continual._ranks import inner, means, of_first, several
from thalweg.continual._running import Units
from thalweg.continual._utility import UTILITIES, sizes

__all__ = ["ContinualBackprop", "continual_backprop"]


class ContinualBackprop:
    """What :func:`continual_backprop` returns: call :meth:`step` after each step of the optimizer.

    Attributes:
        layers: names of the layers whose units are renewed, in the order in which they run.
        replaced: how many units were renewed so far.
    """

    def __init__(
        self,
        links: Mapping[str, Link],
        optimizer: torch.optim.Optimizer,
        *,
        rate: float,
        maturity: int,
        decay: float,
        utility: str,
        init: Init,
        moments: Collection[str] | None,
        generator: torch.Generator | None,
        group: Any = None,
    ):
        self.rate, self.maturity, self.decay, self.utility = rate, maturity, decay, utility
        self.init, self.moments, self.generator, self.group = init, moments, generator, group
        self.optimizer, self.layers, self.replaced = optimizer, tuple(links), 0
        self._units = {name: Units(link, decay) for name, link in links.items()}
        self._closed = False

    @torch.no_grad()
    def step(self) -> dict[str, tuple[int, ...]]:
        """Update the utilities with what was read since the last call, and renew what is due.

        Returns:
            layer to the indices of its renewed units; layers with none are left out.

        Raises:
            RuntimeError: after :meth:`close`, or if a layer saw no training pass since the last call.
            ValueError: a state of the optimizer cannot be reset entry by entry; no unit was renewed.
        """
        if self._closed:
            raise RuntimeError("step() was called after close()")
        listening = self._units.values()
        features = [units.read() for units in listening]
        averages = means(features, self.group)
        if averages is None:
            blind = [
                units.link.reader_name for units, x in zip(listening, features, strict=True) if not len(x)
            ]
            raise RuntimeError(
                "step() must follow a pass in training mode with gradients enabled: module "
                f"{blind[0]!r} saw none"
            )
        running = [units.follow(mean) for units, mean in zip(listening, averages, strict=True)]
        parts = zip(features, running, strict=True)
        found = means([sizes(self.utility, x, mean) for x, mean in parts], self.group)
        due = {}
        for (name, units), size in zip(self._units.items(), found or (), strict=True):
            units.judge(self.utility, size, self.generator)
            if self.utility == "random":
                units.utility.copy_(of_first([units.utility], self.group)[0])
            if chosen := units.due(self.rate, self.maturity):
                due[name] = self._agreed(chosen)
        renewals = {name: self._renewal(self._units[name], chosen) for name, chosen in due.items()}
        # All that can be refused comes before the first write.
        states = [states_to_reset(self.optimizer, r, self.moments) for r in renewals.values()]
        for (name, renewal), entries in zip(renewals.items(), states, strict=True):
            renewal.apply()
            for state, dim, indices in entries:
                state.index_fill_(dim, indices, 0)
            self._units[name].forget(renewal.indices)
            self.replaced += len(due[name])
        return due

    def _agreed(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """The first rank's choice. How many are due all ranks know alike, from the ages."""
        if self.group is None:
            return chosen
        device = next(iter(self._units.values())).utility.device
        return tuple(of_first([torch.tensor(chosen, device=device)], self.group)[0].tolist())

    def _renewal(self, units: Units, chosen: tuple[int, ...]) -> Renewal:
        weight = units.link.maker.weight
        indices = torch.tensor(chosen, device=weight.device)
        fresh = draw(weight, len(chosen), self.init, self.generator).to(weight.device)
        mean = units.corrected(units.activation)[indices]
        return Renewal(units.link, indices, *of_first([fresh, mean], self.group))

    def state_dict(self) -> dict[str, Any]:
        """Utilities, mean activations, ages, fractions owed: tensors and numbers only."""
        layers = {name: units.state() for name, units in self._units.items()}
        random = {} if self.generator is None else {"generator": self.generator.get_state()}
        return {"layers": layers, "replaced": self.replaced, **random}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is of other layers or sizes; nothing is loaded then.
        """
        saved = state_dict.get("layers")
        if not isinstance(saved, Mapping) or tuple(saved) != self.layers or "replaced" not in state_dict:
            found = list(saved) if isinstance(saved, Mapping) else list(state_dict)
            raise ValueError(f"state_dict must be of the layers {list(self.layers)}, got {found}")
        for name, entry in saved.items():
            self._units[name].check(name, entry)
        for name, entry in saved.items():
            self._units[name].load(entry)
        self.replaced = int(state_dict["replaced"])
        if self.generator is not None and "generator" in state_dict:
            self.generator.set_state(state_dict["generator"].cpu())

    def close(self) -> None:
        """Stop listening to the model; may be called twice."""
        self._closed = True
        for units in self._units.values():
            units.handle.remove()
            units.seen.clear()

    def __enter__(self) -> ContinualBackprop:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def continual_backprop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rate: float = 1e-4,
    maturity: int = 100,
    decay: float = 0.99,
    utility: str = "contribution",
    init: Init = "default",
    layers: Iterable[str] | None = None,
    moments: Collection[str] | None = None,
    generator: torch.Generator | None = None,
    group: Any = None,
) -> ContinualBackprop:
    r"""Renew mature hidden units of low utility, a few at a time (arXiv 2306.13812).

    ::

        renewal = continual.continual_backprop(model, optimizer, rate=1e-4)
        for x, y in stream:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
            renewal.step()

    A unit's feature :math:`h_i` is what the next layer reads of it, behind activation, normalisation and
    pooling. Each step, with age :math:`a_i` and running means corrected by :math:`1 - \eta^{a_i}`,

    .. math:: f_i = \eta f_i + (1-\eta)\,\overline{h_i}, \qquad u_i = \eta u_i + (1-\eta)\, y_i

    where :math:`y_i`, with mean absolute weights :math:`w^{out}_i` that leave and :math:`w^{in}_i` that enter
    the unit, is

    ======================  =========================================================================
    contribution            :math:`\overline{|h_i|}\, w^{out}_i`
    zero_contribution       :math:`\overline{|h_i - \hat f_i|}\, w^{out}_i`
    adaptable_contribution  :math:`\overline{|h_i - \hat f_i|}\, w^{out}_i / w^{in}_i`
    feature_by_input        :math:`\overline{|h_i - \hat f_i|} / w^{in}_i`
    weight, adaptation      :math:`w^{out}_i`; :math:`1 / w^{in}_i`
    random                  uniform
    ======================  =========================================================================

    Of the units older than ``maturity`` a share ``rate`` is due each step, fractions add up, and those with
    the lowest corrected utility become new: incoming weights drawn afresh, bias 0, entries of normalisations
    at their start. The next layer's bias takes over :math:`\hat f_i` times the weights that leave, and these
    become 0, so that the layer's mean output stays (but for zero padding, where the bias is missing, or with
    a layer normalisation between). Layers are chosen for together and written in order: between two units
    that are renewed at once the weight is fresh. The optimizer's state of all entries written, but for that
    bias, becomes 0; steps that count for a whole tensor stay.

    Means are over the batch and, in convolutions, positions, of all passes in training mode with gradients
    enabled since the last call; the inputs of the next layers are held until then.

    Where several ranks train one model, means are over the batches of all of them, and the first rank chooses
    units and draws their weights, so that weights and states stay bit-equal. Every rank then calls ``step``;
    a rank without data may have seen no pass.

    Args:
        model: traced with ``torch.fx``; not run. If it is compiled, before its first run. Between two
            ``Linear`` or convolutions, run once each: activations, dropout, pooling, batch and layer
            normalisation, flattening, and modules that say by an attribute ``unitwise = True`` that they
            treat every unit alone.
        optimizer: trains ``model``; any torch optimizer with state shaped like its parameters.
        rate: share of the mature units renewed per step, in [0, 1]. The paper's are 1e-6 to 1e-4; short runs
            need more.
        maturity: steps for which a new unit is left alone, at least 0.
        decay: :math:`\eta`, in [0, 1).
        utility: one of the names above.
        init: incoming weights are uniform within :math:`\sqrt{1/n}` (``default``, which ``Linear`` and
            convolutions use), :math:`\sqrt{6/n}` (``kaiming``, for ReLU), :math:`\sqrt{3/n}` (``lecun``)
            or :math:`\sqrt{6/(n+m)}` (``xavier``), n being the fan in and m the fan out; or a function that
            fills a tensor of the whole layer's shape, such as ``torch.nn.init.orthogonal_``.
        layers: names of the layers whose units are renewed; None for all but the output layer.
        moments: names of the optimizer's states to reset, where others hold copies of weights; None for all.
        generator: draws the weights; its state is saved. None for torch's global one.
        group: the ranks that train this one model. None for those of ``model`` if it is wrapped in
            DistributedDataParallel, otherwise for all ranks, whose gradients somebody else has to average.

    Raises:
        ValueError: an argument is out of range; a module is not understood, shared, tied, grouped,
            parametrized, sharded over ranks or not trained (it is named).
    """
    check_number("rate", rate, 0, 1)
    check_count("maturity", maturity, 0)
    check_unit_interval("decay", decay)
    check_choice("utility", utility, UTILITIES)
    if not callable(init):
        check_choice("init", init, INITS)
    for name, names in (("layers", layers), ("moments", moments)):
        if isinstance(names, str):
            raise ValueError(f"{name} must be a collection of names, got the string {names!r}")
    # The module inside a wrapped one has the hooks and the layers.
    module, wrapped = inner(model)
    links = hidden_links(module, layers)
    for link in links.values():
        check_trained(link, optimizer)
    return ContinualBackprop(
        links,
        optimizer,
        rate=rate,
        maturity=maturity,
        decay=decay,
        utility=utility,
        init=init,
        moments=moments,
        generator=generator,
        group=several(group or wrapped),
    )
