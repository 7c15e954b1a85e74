"""`python -m streamlite.cli`: the command where no script is installed."""

from streamlite.cli import main

main()
