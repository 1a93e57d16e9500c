"""Looks for known vulnerabilities and for licences that are not allowed in what the images install.

    python deploy/audit/audit.py FOLDER [ADVISORIES]

FOLDER has pip-audit and pip-licenses in an environment `tools` (`make audit` makes it), and gets another, `packages`,
with what the lock of the GPU image pins, which is all that either image has. Packages that `licences.txt` names are not
installed: nothing is asked of them, and TensorRT alone takes gigabytes. Vulnerabilities go by names and versions:
pip-audit asks PyPI for them, or they are read from ADVISORIES, see `advisories.py`. Exit status 1 for any finding that
`vulnerabilities.txt` or `licences.txt` does not explain, and for what could not be looked up: silence is no answer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.markers import Marker

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from deploy.audit.advisories import vulnerable

LOCK = HERE.parent / "docker" / "requirements-gpu.lock"
_PIN = re.compile(r"(?m)^([\w.-]+)==([^\s;]+)(?: *;([^\\\n]*[^\\\s]))?(?: *\\\n +--hash=\S+)*")


def entries(path: Path) -> dict[str, str]:
    """First words of all lines that are no comments, with what follows them after a colon."""
    lines = [line.partition(":") for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {name.strip(): why.strip() for name, _, why in lines}


def pins(lock: str) -> dict[str, tuple[str, str]]:
    """Version and whole entry, hashes included, of each package that the lock has for this interpreter."""
    return {
        found[1]: (found[2], found[0])
        for found in _PIN.finditer(lock)
        if not found[3] or Marker(found[3].strip()).evaluate()
    }


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


def refused(found: dict[str, str], asked: set[str], allowed: set[str]) -> list[str]:
    """What is wrong with the licences that were found of the packages that were asked for."""
    silent = [f"{name}: nothing is known of its licence" for name in sorted(asked - found.keys())]
    return silent + [
        f"{name}: {licence.splitlines()[0] if licence else 'no licence'}"
        for name, licence in sorted(found.items())
        if not is_allowed(licence, allowed)
    ]


def licences(folder: Path) -> list[str]:
    """Packages whose licence is not allowed."""
    allowed = entries(HERE / "licences.txt")
    wanted = {name: entry for name, (_, entry) in pins(LOCK.read_text()).items() if name not in allowed}
    (folder / "packages.lock").write_text("\n".join(wanted.values()))
    python = folder / "packages" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
        "--no-deps",
    ]
    subprocess.run([*install, "-r", folder / "packages.lock"], check=True)
    command = [folder / "tools" / "bin" / "pip-licenses", "--python", python, "--format=json", "--with-system"]
    told = subprocess.run([*command, "--packages", *wanted], capture_output=True, text=True, check=True)
    found = {re.sub(r"[-_.]+", "-", row["Name"]).lower(): row["License"] for row in json.loads(told.stdout)}
    print(f"licences of {len(found)} packages, and {len(pins(LOCK.read_text())) - len(wanted)} by name")
    return refused(found, set(wanted), set(allowed))


def ask_pypi(folder: Path) -> bool:
    """Whether pip-audit, which prints what it finds, could ask for all and found nothing."""
    ignored = [word for name in entries(HERE / "vulnerabilities.txt") for word in ("--ignore-vuln", name)]
    command = [folder / "tools" / "bin" / "pip-audit", "--strict", "--disable-pip", "--require-hashes"]
    command += ["--progress-spinner=off", "--requirement", LOCK]
    if not subprocess.run([*command, *ignored], check=False).returncode:
        return True
    print("vulnerable, or not to be looked up: see above. ADVISORIES=... reads a copy of the database instead")
    return False


def read_copy(advisories: Path) -> bool:
    """Whether the copy is one, and knows nothing that is not explained."""
    ignored = set(entries(HERE / "vulnerabilities.txt"))
    versions = {name: version for name, (version, _) in pins(LOCK.read_text()).items()}
    told = vulnerable(advisories, versions, ignored)
    print(
        f"{told.read} advisories for PyPI, the newest of {told.newest}" if told.read else "no advisories for PyPI there"
    )
    for line in told.findings:
        print(f"vulnerable: {line}")
    return bool(told.read) and not told.findings


def main() -> None:
    """Both audits."""
    folder, *copy = (Path(word).resolve() for word in sys.argv[1:])
    safe = read_copy(copy[0]) if copy else ask_pypi(folder)
    wrong = licences(folder)
    for line in wrong:
        print(f"not allowed: {line}")
    if wrong or not safe:
        sys.exit(1)


if __name__ == "__main__":
    main()
