"""`python -m cotjax.cli` is the `cotjax` command."""

from cotjax.cli.main import entry_point

entry_point()
