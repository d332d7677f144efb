"""One file a verb: `run(...)` does the work and returns its result; the command line only parses and prints."""
