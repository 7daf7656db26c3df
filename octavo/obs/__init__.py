"""What can be known about a running system: the log, and the recorder of scheduler decisions."""
