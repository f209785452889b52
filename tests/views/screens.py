"""A terminal without a screen, and what a live view last showed in it."""

import io

from rich.console import Console


def terminal(width=80, height=24):
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="standard")


def last_picture(view, console):
    plain = Console(file=io.StringIO(), width=console.width, height=console.height, no_color=True, color_system=None)
    plain.print(view._render())
    return plain.file.getvalue()
