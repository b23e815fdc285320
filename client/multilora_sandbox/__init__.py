"""Code that somebody else wrote, run in a process of its own with little time and memory.

Law: this package knows processes and lines of JSON, and nothing of what is run there. `worker` is
the process, `pool` keeps such processes for those who ask.
"""
