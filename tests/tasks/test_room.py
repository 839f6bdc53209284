"""The room itself: cheap to import, and complete without a list."""

import subprocess
import sys

import pytest

import thalweg.tasks


def test_importing_the_room_loads_neither_torch_nor_scikit_learn():
    check = "import sys, thalweg.tasks; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_using_the_room_loads_no_scikit_learn_before_the_digits():
    check = "import sys, thalweg.tasks as t; t.noisy_clusters(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_every_public_name_of_every_file_is_offered():
    from thalweg.tasks import gpt, modular, train

    names = set(dir(thalweg.tasks))
    assert names >= {*gpt.__all__, *modular.__all__, *train.__all__}
    assert all(getattr(thalweg.tasks, name) is not None for name in names)
    assert not {"torch", "Tensor", "check_count"} & names


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="modular_arithmetics"):
        _ = thalweg.tasks.modular_arithmetics
