"""The command line: one module per command. It parses, prints and draws; the library decides."""
