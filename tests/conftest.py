"""Tests interrupt programs as Ctrl-C does, also where the shell has told us to ignore that."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
