"""Many cells: which there are, which are done, what is chosen before they run."""
