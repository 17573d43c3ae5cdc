"""Training: the recipe (`config`), what this machine makes of it (`plan`), and the loop that follows it (`trainer`)."""
