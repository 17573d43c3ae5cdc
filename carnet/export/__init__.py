"""From a run to one file that runs anywhere, judged on the way out."""
