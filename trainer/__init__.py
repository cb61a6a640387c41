"""The mathematics of PFedRec: numpy only, no files, sockets, clocks or threads."""
