"""Tables of the paper, from the folders of runs."""
