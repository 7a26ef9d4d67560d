"""``python -m srd`` is the command line."""

from srd.cli import main

main()
