"""The room itself: complete without a list, and light where only results are read."""

import subprocess
import sys
from pathlib import Path

import pytest

import thalweg.studies


def test_every_public_name_of_every_file_is_offered():
    names = set(dir(thalweg.studies))
    assert names >= {"Study", "Arm", "run_study", "load_evidence", "plot_evidence", "tuned", "at_least"}
    assert all(getattr(thalweg.studies, name) is not None for name in names)


def test_no_file_is_called_like_a_public_name():
    files = {file.stem for file in Path(thalweg.studies.__file__).parent.glob("*.py")}
    assert not files & set(dir(thalweg.studies))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="run_study"):
        _ = thalweg.studies.run_studi


def test_reading_evidence_and_listing_keys_load_no_torch():
    check = (
        "import sys\n"
        "from thalweg.studies.evidence import load_evidence\n"
        "from thalweg.studies.discovery import study_keys\n"
        "import thalweg.studies.cli\n"
        "study_keys()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
