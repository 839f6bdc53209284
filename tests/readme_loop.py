"""README's loop, read from README: code is pasted into it, and nothing is added that README does not have."""

import re
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")
(BLOCK,) = (one for one in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "thalweg.watch(" in one)
HEAD, LOOP = BLOCK[: BLOCK.index("with thalweg.watch")], BLOCK[BLOCK.index("with thalweg.watch") :]
WITH = LOOP.partition("\n")[0] + "\n"
IS_A_LOOP = re.compile(r"^for .*\bloader\b.*:", re.MULTILINE)


def batches(count=40, size=16):
    """A loader of ``count`` batches: 8 numbers, 4 classes that a linear layer tells apart."""
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(count * size, 8, generator=source)
    classes = (inputs @ torch.randn(8, 4, generator=source)).argmax(-1)
    return DataLoader(TensorDataset(inputs, classes), size, shuffle=True, generator=source)


def paste(code, model, opt, loader, after=False):
    """Run README's loop with ``code`` in it: in place of the loop if it is one, else in front of it.

    Args:
        after: paste it behind a first loop and in front of a second, where ``batch`` and ``run`` are known.

    Returns:
        The names that there are in the end, and of every step the optimizer, its learning rates and the loss.
    """
    source = HEAD + WITH + indent(code, "    ") if IS_A_LOOP.search(code) else f"{HEAD}{code}\n\n{LOOP}"
    names = {"__name__": "__main__", "torch": torch, "model": model, "opt": opt, "loader": loader}
    steps = []

    def note(stepping, *_):
        steps.append((stepping, [group["lr"] for group in stepping.param_groups], names.get("loss")))

    # README's run writes its store below the folder that it is in.
    with TemporaryDirectory() as folder, chdir(folder):
        if after:
            exec(BLOCK, names)
        handle = register_optimizer_step_pre_hook(note)
        try:
            exec(compile(source, "pasted", "exec"), names)
        finally:
            handle.remove()
    assert names["run"].disabled == {}
    return names, steps
