"""The sensors of a run: which there are, which run before a step, and why some give nothing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._untouched import untouched
from thalweg.watch.budget import Budget
from thalweg.watch.communication import CommunicationError, alone
from thalweg.watch.half_precision import as_called
from thalweg.watch.hooks import eagerly
from thalweg.watch.loss_function import LossFunctionError
from thalweg.watch.moment import Moment, Raw, Sensor, all_sensors, how_to_give
from thalweg.watch.readings import labelled
from thalweg.watch.recorder import Recorder
from thalweg.watch.watched import Watched, sharded
from thalweg.watch.whole_batches import refuse_parts

__all__ = ["ProbeDisabled", "Senses"]

# A sensor whose readings are not finite waits up to so many times as long as it wants to.
SELDOM = 64
# What one process can look at where parameters are spread over several; the rest would wait for the others.
ALONE = {"output", "targets"}


class ProbeDisabled(UserWarning):
    """A sensor failed and was switched off; training goes on."""


@contextmanager
def _unseen(sensor: Sensor, moment: Moment) -> Iterator[None]:
    """For a sensor that may run the model: uncompiled, without a trace, and without other processes."""
    if moment.model is None or not sensor.runs:
        yield
        return
    with eagerly(), untouched(moment.model, moment.loss_fn), alone():
        yield


def _read(sensor: Sensor, moment: Moment) -> list[Raw]:
    """Its readings; where it fails on a part of the batch, those of batches as they are."""
    try:
        return sensor.read(moment)
    except Exception as error:
        if not sensor.runs or not refuse_parts(moment, error):
            raise
        try:
            return sensor.read(moment)
        except Exception:
            # The first error is that of a sensor as it has been, the second often follows from it.
            raise error from error.__cause__


class Senses:
    """Every sensor once, or once an optimizer, within one budget.

    Attributes:
        sensors: by the name of their account in the budget.
        available: fields of the moment that have been there.
        memories: what each keeps from one reading to the next; ``silent`` is why it has nothing to say.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizers: Sequence[Watched],
        recorder: Recorder,
        budget: Budget,
        paused: Callable[[], AbstractContextManager[None]],
        looks: bool,
    ):
        self.optimizers, self.recorder, self.budget, self.paused = optimizers, recorder, budget, paused
        self.sensors: dict[str, Sensor] = {}
        self.available: set[str] = set()
        self.begun = False
        self.ways: Mapping[str, str] = {}
        self._owners: dict[str, int] = {}
        spread = looks and sharded(model, optimizers)
        for index, one in enumerate(optimizers):
            for sensor in all_sensors() if looks else ():
                if spread and not (sensor.needs and set(sensor.needs) <= ALONE):
                    recorder.disabled[sensor.name] = "the model is sharded, and only one process looks"
                elif index == 0 or sensor.each:
                    name = labelled(sensor.name, one.label)
                    self.sensors[name], self._owners[name] = sensor, index
                    budget.add(name, share=sensor.share, every=sensor.every, passes=1.0, early=sensor.early)
        self.memories: dict[str, dict[str, Any]] = {one: {} for one in self.sensors}

    def read(self, index: int, moment: Moment, raws: list[Raw]) -> float:
        """Run every sensor of this optimizer that is due; gives the seconds that they took."""
        one = self.optimizers[index]
        one.refresh(moment.model)
        moment.named, moment.optimizer, moment.scale = one.named, one.optimizer, one.scale
        available = moment.available()
        if not available <= self.available or not self.begun:
            self._plan(moment, available)
        paid = 0.0
        for name in self.budget.due(moment.step):
            sensor = self.sensors[name]
            if name in self.recorder.disabled or self._owners[name] != index or sensor.missing(available):
                continue
            began = time.perf_counter()
            moment.memory = self.memories[name]
            failure: Exception | None = None
            try:
                region = moment.region if sensor.runs else None
                with self.paused(), _unseen(sensor, moment), as_called(moment.model, region):
                    raws += _read(sensor, moment)
            except Exception as error:
                failure = error
            took = time.perf_counter() - began
            self.budget.pay(name, moment.step, took)
            paid += took
            self._note(name, moment.step, failure, one)
            if self.memories[name].get("over"):
                self._share_out()
        return paid

    def _note(self, name: str, step: int, failure: Exception | None, one: Watched) -> None:
        """A reading that is not finite is left out, any other that fails the last; more often, less soon."""
        memory = self.memories[name]
        if failure is None:
            memory.pop("in a row", None)
        elif isinstance(failure, NotFiniteError):
            memory["in a row"] = row = memory.get("in a row", 0) + 1
            times, *_ = memory.get("left out", (0,))
            memory["left out"] = times + 1, step, str(failure)
            self.budget.delay(name, self.sensors[name].every * (min(2**row, SELDOM) - 1))
        # Of a run that is no longer finite nothing can be said, which is not the sensor's fault.
        elif one.finite():
            self._switch_off(name, failure)

    def forget(self, index: int) -> None:
        """What has been kept of this optimizer is of another one from now on."""
        for name, owner in self._owners.items():
            if owner == index and self.sensors[name].each:
                self.memories[name].clear()

    def left_out(self) -> dict[str, str]:
        """By sensor: what it lacks, why it can say nothing of this run, or how seldom it ran."""
        words = dict(self.budget.left_out())
        budget = self.budget
        if self.sensors and 0 < budget.fraction * budget.trained < budget.hooks:
            words["hooks and recorder"] = (
                f"took {budget.hooks / budget.trained:.1%} of the time of {budget.steps} steps by "
                f"themselves, more than the budget of {budget.fraction:.2g}"
            )
        if self.recorder.judges.thin > 1:
            words["loss"] = (
                f"judged every {self.recorder.judges.thin} steps rather than every 1; all are stored"
            )
        for name, one in self.sensors.items():
            missing = one.missing(self.available) if self.begun else []
            if missing:
                ways = dict.fromkeys(self.ways.get(need) or how_to_give(need) for need in missing)
                words[name] = f"never ran: needs {' and '.join(ways)}"
            elif why := self.memories[name].get("silent"):
                words[name] = f"gives no readings: {why}"
            elif why := self.memories[name].get("unjudged"):
                words[name] = why
            if missed := self.memories[name].get("left out"):
                told = "left out {} times, the last time before step {}: {}".format(*missed)
                words[name] = f"{words[name]}; {told}" if name in words else told
        return words | {name: f"switched off: {why}" for name, why in self.recorder.disabled.items()}

    def _plan(self, moment: Moment, available: set[str]) -> None:
        """Something is there for the first time: share the budget out anew."""
        self.begun, self.ways = True, moment.ways
        self.available |= available
        self._share_out()
        for name, one in self.sensors.items():
            if name in self.budget.accounts and not one.missing(self.available | {"batch"}):
                try:
                    self.budget.expect(name, one.estimate(moment))
                except Exception as error:
                    self._switch_off(name, error)

    def _share_out(self) -> None:
        """The budget is for those that have what they need and have something to say."""
        over = {name for name, memory in self.memories.items() if memory.get("over")}
        lacking = {name for name, one in self.sensors.items() if one.missing(self.available)}
        self.budget.idle(over | lacking)

    def _switch_off(self, name: str, error: Exception) -> None:
        """Off with it; with all that call the loss function or run the model, if it is that which failed."""
        same = [name]
        if isinstance(error, CommunicationError):
            same = [key for key, other in self.sensors.items() if other.runs]
        elif isinstance(error, LossFunctionError):
            same = [key for key, other in self.sensors.items() if "loss_fn" in other.needs]
        for one in same:
            self.budget.close(one)
        warnings.warn(self.recorder.switch_off("sensor", same, error), ProbeDisabled, stacklevel=3)
