"""`python -m optprune.cli`: the command line where the script is not on the path."""

from optprune.cli import app

app(prog_name="optprune")
