"""The command line: `suture COMMAND`. Each room is a subject; `--help` shows commands in the order of the imports."""

# isort: skip_file
from flows.cli import run as run
from flows.cli import schedule as schedule
from flows.cli import look as look
from flows.cli import models as models
from flows.cli import files as files
from flows.cli import upkeep as upkeep
from flows.cli.app import main

__all__ = ["main"]
