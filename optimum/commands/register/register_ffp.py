"""Found by `optimum-cli` at every start: names our command and imports nothing heavy."""

from optimum_ffp.commands import FFPCommand


REGISTER_COMMANDS = [FFPCommand]
