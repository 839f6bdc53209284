"""One run of a model, watched operation by operation, that ties the axes of weights and activations together.

What runs is the model itself on real numbers, so control flow, loops and library code need no symbols.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, nullcontext
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thalweg.surgery._axes import fix, fresh
from thalweg.surgery._axis_rules import follow
from thalweg.surgery._axis_trace import Trace

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class _Watch(TorchDispatchMode):
    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so would import the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            with self:  # there, composite operations arrive whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        self.trace.op = func._schema.name.removeprefix("aten::")
        follow(self.trace, func, args, kwargs, made)
        self.trace.calls += counts(func)
        return made


def counts(func: Any) -> bool:
    """Whether an operation has a number; torch slips in a detach or not."""
    return func is not torch.ops.aten.detach.default


def run(model: nn.Module, inputs: Any) -> Any:
    """The model's answer to a tensor, a tuple of positional or a mapping of keyword arguments.

    A list of tensors is what a loader makes of a tuple; one of anything else is a single argument.
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    loaded = isinstance(inputs, list) and inputs and all(isinstance(one, Tensor) for one in inputs)
    return model(*inputs) if loaded or isinstance(inputs, tuple) else model(inputs)


def tensors_in(answer: Any) -> list[Tensor]:
    """All tensors of a model's answer, whatever it holds them in.

    Raises:
        ValueError: it holds something that cannot be looked into.
    """
    if isinstance(answer, Tensor):
        return [answer]
    if answer is None or isinstance(answer, str | bytes | Number | torch.Size | torch.dtype | torch.device):
        return []
    if isinstance(answer, Mapping):
        parts = list(answer.values())
    elif isinstance(answer, Sequence | Set):
        parts = list(answer)
    elif hasattr(answer, "__dict__"):
        parts = list(vars(answer).values())
    else:
        raise ValueError(
            "model must answer with tensors, or with tuples, lists, mappings or plain objects that hold "
            f"them, got {type(answer).__name__}"
        )
    return [tensor for part in parts for tensor in tensors_in(part)]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, plain kernels, and nobody's hooks but those that make weights."""
    modules = list(model.modules())
    hooks = [
        (module, name, found) for module in modules for name in HOOKS if (found := getattr(module, name))
    ]
    training = [(module, module.training) for module in modules]
    fast = torch.backends.mha.get_fastpath_enabled()
    onednn, cudnn = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    try:
        for module, name, found in hooks:
            own = [(key, hook) for key, hook in found.items() if makes_weights(hook)]
            if len(own) < len(found):
                setattr(module, name, OrderedDict(own))
        if any(flag for _, flag in training):
            model.eval()
        # Fused kernels hide what attention and recurrent layers do.
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.mkldnn.enabled = torch.backends.cudnn.enabled = False  # type: ignore[assignment]
        # Compiled parts run as they were written; where no compiler was loaded there are none.
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]), eager:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = onednn
        torch.backends.cudnn.enabled = cudnn
        for module, flag in training:
            if module.training is not flag:
                module.training = flag
        for module, name, found in hooks:
            setattr(module, name, found)


def makes_weights(hook: object) -> bool:
    """Whether it is one of torch's own, such as weight normalisation's."""
    return type(hook).__module__.startswith("torch.nn.utils")


def movable(model: nn.Module) -> dict[str, Tensor]:
    """Weights and running statistics by name, tied ones once: all that may be permuted."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            for key in ("running_mean", "running_var"):
                if isinstance(value := getattr(module, key, None), Tensor):
                    found[f"{name}.{key}" if name else key] = value
    return found


@contextmanager
def _naming(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the names of the modules that run in ``running``."""
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, arguments: Any) -> None:
        running.append(names[module])

    def leave(module: nn.Module, arguments: Any, made: Any) -> None:
        running.pop()

    handles: list[Any] = []
    try:
        for module in names:
            handles += (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module, inputs: Any) -> tuple[Trace, Any]:
    """Run ``model`` once on ``inputs`` and tie its axes; also gives the answer.

    Raises:
        ValueError: the model does not run on them.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                "model must be made of modules in Python, and be merged before torch.jit, got "
                f"{name or type(model).__name__!r} of TorchScript"
            )
    found = Trace(movable(model))
    for tensor in tree_leaves(inputs):
        if isinstance(tensor, Tensor):
            found.place(tensor, [fresh(n, "an input of the model") for n in tensor.shape])
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(_naming(model, found.modules))
        try:
            with _Watch(found):
                answer = run(model, inputs)
        except Exception as error:
            raise ValueError(
                f"inputs must be what {type(model).__name__} runs on, got {type(error).__name__}"
                f"{found.where}: {error}"
            ) from error
    for tensor in tensors_in(answer):
        for axis in found.layout(tensor):
            fix(axis, "an output of the model")
    return found, answer
