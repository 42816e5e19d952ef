"""Other programs' answers."""

import subprocess

PATIENCE_S = 10.0


def said_by(command: list[str]) -> str:
    """What a command prints; nothing if it is absent, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
