"""The command line: `main` finds the command, one file each holds its flags and what it does."""
