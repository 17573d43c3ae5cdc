"""Export a run as one file that runs without PyTorch, and evaluate the file before it gets its name."""
