"""The ``stepguard`` command: argument parsing and one file a command."""
