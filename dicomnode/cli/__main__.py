"""``python -m dicomnode.cli`` is ``dicomnode``."""

from dicomnode.cli import main

main()
