"""A terminal to run programs in: what a person would see on its screen, line by line, scrolled-off lines included."""

import codecs
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b[=>()][\dB]?|([\r\n\b])|([^\x1b\r\n\b]+)")


class Screen:
    """Takes what a program writes, as far as rich and tqdm write it."""

    def __init__(self, width, height):
        self.width, self.height = width, height
        self.lines, self.row, self.column, self.modes = [""], 0, 0, []
        self._rest, self._before = "", None

    def feed(self, text):
        text = self._rest + text
        end = 0
        for token in TOKEN.finditer(text):
            if token.start() != end:
                break
            end = token.end()
            numbers, letter, control, plain = token.groups()
            if control:
                self._control(control)
            elif plain:
                self._write(plain)
            elif letter:
                self._escape(numbers, letter)
        self._rest = text[end:]
        assert len(self._rest) < 40, f"not understood: {self._rest[:40]!r}"

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.lines)

    def _top(self):
        return max(len(self.lines) - self.height, 0)

    def _control(self, control):
        if control == "\r":
            self.column = 0
        elif control == "\b":
            self.column = max(self.column - 1, 0)
        else:
            self._down()
            self.column = 0  # as the line discipline makes of a newline

    def _down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _write(self, text):
        for letter in text:
            if self.column == self.width:
                self._down()
                self.column = 0
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1

    def _escape(self, numbers, letter):
        count = int(numbers) if numbers.isdigit() else 1
        if letter == "A":
            self.row = max(self.row - count, self._top())
        elif letter == "B":
            self.row = min(self.row + count, len(self.lines) - 1)
        elif letter == "H":
            self.row, self.column = self._top(), 0
        elif letter == "K":
            line = self.lines[self.row]
            self.lines[self.row] = "" if numbers == "2" else line[: self.column]
        elif letter == "J":
            self.lines = [] if numbers == "2" else self.lines[: self.row + 1]
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif letter in "hl":
            self.modes.append(numbers + letter)
            if numbers == "?1049":
                self._other_screen(letter == "h")
        else:
            assert letter == "m", f"not understood: {numbers}{letter}"

    def _other_screen(self, enter):
        here = (self.lines, self.row, self.column)
        (self.lines, self.row, self.column) = ([""], 0, 0) if enter else self._before
        self._before = here


class Written(io.StringIO):
    """A terminal within this process, for what needs no process of its own."""

    def isatty(self):
        return True

    def screen(self, width, height):
        screen = Screen(width, height)
        screen.feed(self.getvalue())
        return screen


class Program:
    """A program in a terminal of its own; its keyboard is ours."""

    def __init__(self, argv, width=80, height=24, **environment):
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONWARNINGS": "ignore", **environment}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            argv,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(follower)
        self._leader, self.screen = leader, Screen(width, height)
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._leader)

    def until(self, seen, seconds=60):
        """Read on until this text, or what this says, is on the screen; returns whether it came."""
        return self._read(lambda: seen(self.screen) if callable(seen) else seen in self.screen.text, seconds)

    def end(self, seconds=60):
        """Read on until it ends; returns its exit code."""
        self._read(lambda: False, seconds)
        return self._process.wait(seconds)

    def type(self, keys):
        os.write(self._leader, keys)

    def _read(self, done, seconds):
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            if select.select([self._leader], [], [], 0.1)[0]:
                try:
                    self.screen.feed(self._decode(os.read(self._leader, 65536)))
                except OSError:  # the other end was closed
                    return done()
        return done()
