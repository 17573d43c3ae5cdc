"""The command line: `main` parses and runs; every other file is one command."""
