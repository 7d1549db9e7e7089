"""The processes of a run, how they find each other, signals, memory of a process."""
