"""``python -m thalweg`` is the ``thalweg`` command."""

from thalweg.cli import main

main()
