"""A script on a Windows console without a window, and a simulated person who reads the screen and presses keys.

Run as a program, this file is the person: it has its own console, and the script is its child. It reads a request per
line on standard input and answers each in one line. It is a separate program because a process has only one console,
which the tests may need themselves, or may not have.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PROCESSED_INPUT, ECHO_INPUT = 1, 4  # bits of a console's mode: Ctrl-C is a signal, not a key; keys are shown
WIDTH, HEIGHT = 200, 150  # a buffer smaller than the window would be rejected
RESET = "\x1b[0m"  # colorama's last output, which Wine's console shows and that of Windows obeys
VIRTUAL_KEYS = {"\r": 0x0D, "\x03": 0x43}
NO_WINDOW = 0x08000000  # subprocess.CREATE_NO_WINDOW, which exists only on Windows


class Console:
    """A script on a console, until the `with` ends; its streams may be files: `stdout=Path("out.csv")`."""

    def __init__(self, path: Path, environment: dict[str, str], **files: Path) -> None:
        streams = {name: str(file) for name, file in files.items()}
        command = [sys.executable, __file__, json.dumps([sys.executable, str(path)]), json.dumps(streams)]
        self._person = subprocess.Popen(
            command,
            cwd=path.parent,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            creationflags=NO_WINDOW,
        )

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._person.communicate()  # the end of its input ends it and the script

    def screen(self) -> str:
        """What the screen shows, without trailing blanks."""
        return str(self._ask("screen"))

    def echoes(self) -> bool:
        """Whether keys would be shown."""
        return bool(self._ask("echoes"))

    def press(self, keys: str) -> None:
        self._ask("press", keys)

    def exit_code(self, limit: float) -> int | None:
        """The script's exit code, or None if it did not end within this number of seconds."""
        code = self._ask("wait", limit)
        return None if code is None else int(code)

    def _ask(self, *request: object) -> Any:
        assert self._person.stdin
        assert self._person.stdout
        self._person.stdin.write(json.dumps(request) + "\n")
        self._person.stdin.flush()
        return json.loads(self._person.stdout.readline())


class Key(ctypes.Structure):
    """An INPUT_RECORD that contains a KEY_EVENT_RECORD."""

    _fields_ = (
        ("type", ctypes.c_uint16),
        ("down", ctypes.c_int32),
        ("repeat", ctypes.c_uint16),
        ("virtual_key", ctypes.c_uint16),
        ("scan_code", ctypes.c_uint16),
        ("character", ctypes.c_wchar),
        ("control_keys", ctypes.c_uint32),
    )


class Person:
    """The person at the console of this process."""

    def __init__(self, command: list[str], streams: dict[str, str]) -> None:
        import msvcrt

        self._windows = ctypes.WinDLL("kernel32", use_last_error=True)
        keyboard, picture = (os.open(name, os.O_RDWR) for name in ("CONIN$", "CONOUT$"))
        self._keyboard, self._picture = (ctypes.c_void_p(msvcrt.get_osfhandle(file)) for file in (keyboard, picture))
        self._windows.SetConsoleScreenBufferSize(self._picture, ctypes.c_uint32(HEIGHT << 16 | WIDTH))
        self._windows.SetConsoleCtrlHandler(None, 0)  # an ignored Ctrl-C would be inherited by the child
        files = {name: os.open(file, os.O_CREAT | os.O_RDWR) for name, file in streams.items()}
        self._script = subprocess.Popen(command, **{"stdin": keyboard, "stdout": picture, "stderr": picture, **files})
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is only for the script

    def answer(self, request: str, *details: Any) -> object:
        answers = {"press": self._press, "screen": self._screen, "echoes": self._echoes, "wait": self._wait}
        return answers[request](*details)

    def leave(self) -> None:
        self._script.kill()

    def _press(self, keys: str) -> None:
        for key in keys:
            if key == "\x03" and self._mode() & PROCESSED_INPUT:
                self._windows.GenerateConsoleCtrlEvent(0, 0)
            else:
                self._move(key, down=True)
                self._move(key, down=False)

    def _move(self, key: str, *, down: bool) -> None:
        record, written = Key(1, down, 1, VIRTUAL_KEYS.get(key, 0), 0, key, 0), ctypes.c_uint32()
        self._windows.WriteConsoleInputW(self._keyboard, ctypes.byref(record), 1, ctypes.byref(written))

    def _echoes(self) -> bool:
        return bool(self._mode() & ECHO_INPUT)

    def _mode(self) -> int:
        mode = ctypes.c_uint32()
        self._windows.GetConsoleMode(self._keyboard, ctypes.byref(mode))
        return mode.value

    def _screen(self) -> str:
        size, origin = WIDTH * HEIGHT, ctypes.c_uint32(0)
        characters, read = ctypes.create_unicode_buffer(size + 1), ctypes.c_uint32()
        self._windows.ReadConsoleOutputCharacterW(self._picture, characters, size, origin, ctypes.byref(read))
        rows = (characters[start : start + WIDTH] for start in range(0, size, WIDTH))
        return "\n".join(row.replace(RESET, "").rstrip() for row in rows).rstrip()

    def _wait(self, limit: float) -> int | None:
        try:
            return self._script.wait(limit)
        except subprocess.TimeoutExpired:
            return None


def main() -> None:
    person = Person(*map(json.loads, sys.argv[1:3]))
    try:
        for line in sys.stdin:
            print(json.dumps(person.answer(*json.loads(line))), flush=True)
    finally:
        person.leave()


if __name__ == "__main__":
    main()
