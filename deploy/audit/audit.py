"""Looks for known vulnerabilities and for licences that are not allowed in what the images install.

    python deploy/audit/audit.py ENVIRONMENT

ENVIRONMENT has pip-audit, pip-licenses and all packages of the lock of the GPU image, which are those of both images:
`make audit` makes it. Exit status 1 for any finding that `vulnerabilities.txt` or `licences.txt` does not explain, and
for packages whose vulnerabilities could not be looked up: silence is no answer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE.parent / "docker" / "requirements-gpu.lock"


def entries(path: Path) -> dict[str, str]:
    """First words of all lines that are no comments, with what follows them after a colon."""
    lines = [line.partition(":") for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {name.strip(): why.strip() for name, _, why in lines}


def is_allowed(licence: str, allowed: set[str]) -> bool:
    """Whether a package's licence is: of A OR B one must be, of A AND B (and lists of classifiers) all."""
    name = licence.strip().split("\n")[0]  # some packages give the whole text
    if {name, name.strip("() ")} & allowed:
        return True
    for word, decide in ((r";| AND ", all), (r" OR ", any)):
        parts = re.split(word, name)
        if len(parts) > 1:
            return decide(is_allowed(part, allowed) for part in parts)
    return False


def licences(tools: Path) -> list[str]:
    """Packages whose licence is not allowed."""
    allowed = entries(HERE / "licences.txt")
    packages = re.findall(r"(?m)^([\w.-]+)==", LOCK.read_text())
    told = subprocess.run(
        [tools / "pip-licenses", "--python", tools / "python", "--format=json", "--packages", *packages],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(told.stdout)
    print(f"licences of {len(found)} packages")
    return [
        f"{row['Name']}: {row['License'].splitlines()[0]}"
        for row in found
        if row["Name"] not in allowed and not is_allowed(row["License"], set(allowed))
    ]


def vulnerabilities(tools: Path) -> int:
    """Exit status of pip-audit, which prints what it finds."""
    ignored = [word for name in entries(HERE / "vulnerabilities.txt") for word in ("--ignore-vuln", name)]
    command = [tools / "pip-audit", "--strict", "--disable-pip", "--require-hashes", "--progress-spinner=off"]
    return subprocess.run([*command, "--requirement", LOCK, *ignored], check=False).returncode


def main() -> None:
    """Both audits."""
    tools = Path(sys.argv[1]).resolve() / "bin"
    refused = licences(tools)
    for line in refused:
        print(f"not allowed: {line}")
    if vulnerabilities(tools) or refused:
        sys.exit(1)


if __name__ == "__main__":
    main()
