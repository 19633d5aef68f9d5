"""The commands: each parses its options and calls the library function of the same name."""
