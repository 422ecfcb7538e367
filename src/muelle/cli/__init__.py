"""The command `muelle`: one file per command, imported when it is used. Not the work itself."""
