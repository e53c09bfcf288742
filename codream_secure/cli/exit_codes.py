"""The program's exit codes; 0 is done, ``codream-secure --help`` lists them all."""

EXIT_CLAIM_FAILED = 1  # an audit found something, and nothing else
EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3  # done but not all: a round without dreams, or a method that failed
EXIT_FAULT = 70  # of the program itself, as EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # as a shell reports a process that SIGINT ended
