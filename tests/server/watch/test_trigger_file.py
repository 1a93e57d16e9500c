"""The operator's file: what it means, and what it is told when it is wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from server.watch.trigger_file import (
    BadTriggers,
    CommandOptions,
    JobOptions,
    LogOptions,
    RetryOptions,
    WebhookOptions,
    read_triggers,
)
from server.watch.triggers import Aggregate, Rule

WHOLE = """
every = "5s"
source = "/kairos/eu-1"

[[rule]]
name = "digits-drift"
signal = "drift"
model = "digits"
alarm = true
for = 3
clear_for = 5
min_samples = 200
cooldown = "6h"
actions = ["hook", "train", "job"]

[[rule]]
name = "accuracy"
signal = "accuracy"
below = 0.9
clear = 0.95
window = "1.5h"
aggregate = "min"

[action.hook]
kind = "webhook"
url = "https://example.org/hook"
secret_file = "secret"
headers = { Authorization = "Bearer x" }
timeout = "500ms"
attempts = 4

[action.train]
kind = "command"
argv = ["python", "train.py"]

[action.job]
kind = "kubernetes-job"
template = "job.yaml"
output = "-"
"""
RULE = '[[rule]]\nname = "r"\nsignal = "drift"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "triggers.toml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    options = read_triggers(written(tmp_path, WHOLE))
    assert options.every_s == 5.0
    assert options.source == "/kairos/eu-1"
    drift = Rule(
        name="digits-drift", signal="drift", model="digits", alarm=True, raise_after=3, clear_after=5,
        min_samples=200, cooldown_s=21600.0, actions=("hook", "train", "job"),
    )  # fmt: skip
    assert asdict(options.rules[0]) == asdict(drift)  # a NaN is itself in a dict, but in no dataclass since Python 3.13
    accuracy = options.rules[1]
    assert (accuracy.below, accuracy.clear, accuracy.window_s) == (0.9, 0.95, 5400.0)
    assert accuracy.aggregate is Aggregate.MIN
    assert accuracy.actions == ("log",)
    assert options.actions == {
        "hook": WebhookOptions(
            url="https://example.org/hook", secret_file=tmp_path / "secret", headers={"Authorization": "Bearer x"},
            retry=RetryOptions(attempts=4, timeout_s=0.5),
        ),
        "train": CommandOptions(argv=("python", "train.py"), retry=RetryOptions(attempts=1, timeout_s=3600.0)),
        "job": JobOptions(
            template=tmp_path / "job.yaml", output=None, retry=RetryOptions(attempts=3, timeout_s=10.0)
        ),
        "log": LogOptions(retry=RetryOptions(attempts=1, timeout_s=10.0)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "rule: there is none"),
        ("x = 1\ny = = 2\n", "line 2"),
        ("rule = 3", r"rule: must be tables"),
        ('[[rule]]\nname = "r"', r"rule\[1\].signal: is missing"),
        ('[[rule]]\nname = "a b"\nsignal = "x"', r"rule\[1\].name: must be letters"),
        (RULE, r"rule\[1\].above: a rule has exactly one of"),
        (f"{RULE}above = 1\nalarm = true", "exactly one of"),
        (f"{RULE}above = 1\n{RULE}above = 1", r"rule\[2\].name: there is a rule 'r' already"),
        (f'{RULE}above = "1"', r"rule\[1\].above: must be a number, not '1'"),
        (f"{RULE}above = nan", "must be a number"),
        (f"{RULE}above = 1\nclear = 2", r"rule\[1\].clear: 2 is beyond the threshold 1"),
        (f"{RULE}below = 1\nclear = 0.5", "0.5 is beyond the threshold 1"),
        (f"{RULE}alarm = true\nclear = 2", "goes without clear"),
        (f"{RULE}above = 1\nfor = 0", r"rule\[1\].for: must be a whole number from 1"),
        (f"{RULE}above = 1\ncooldown = 5", r"rule\[1\].cooldown: must be a time like"),
        (f'{RULE}above = 1\nwindow = "0s"', "must be a time like"),
        (f'{RULE}above = 1\naggregate = "median"', "must be one of mean, min, max"),
        (f"{RULE}above = 1\ncool_down = 5", r"rule\[1\].cool_down: unknown key; did you mean 'cooldown'"),
        (f"{RULE}above = 1\nzzz = 5", "unknown key; known are above"),
        (f'{RULE}above = 1\nactions = ["x"]', r"rule\[1\].actions: there is no \[action.x\]; there are log"),
        (f"{RULE}above = 1\nactions = 5", "must be a list of texts"),
        (f"{RULE}alarm = 1", "must be true or false"),
        ("action = 1", "action: must be a table"),
        ("[action]\nx = 1", "action.x: must be a table"),
        ('[action.x]\nkind = "mail"', "action.x.kind: 'mail' is not one of webhook"),
        ('[action.x]\nkind = "webhook"\nurl = "file:///etc/passwd"', "action.x.url: must be an http"),
        ('[action.x]\nkind = "webhook"\nurl = "http://h"\nsecret_file = "a"\nsecret_env = "b"', "not from both"),
        ('[action.x]\nkind = "webhook"\nurl = "http://h"\nheaders = { a = 1 }', "action.x.headers: must be a text"),
        ('[action.x]\nkind = "command"\nargv = "rm -rf"', "action.x.argv: must be a list"),
        ('[action.x]\nkind = "command"\nargv = []', "needs at least the program"),
        ('[action.x]\nkind = "kubernetes-job"\noutput = "-"', "action.x.template: is missing"),
        (f"{RULE}above = 1\n[action.log]\nkind = 'log'\nlevel = 5", "action.log.level: unknown key"),
        (f"{RULE}above = 1\n[extra]\na = 5", "extra: unknown key"),
    ],
)
def test_what_is_wrong_is_named(text: str, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadTriggers, match=reason) as error:
        read_triggers(path)
    assert str(error.value).startswith(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadTriggers, match="No such file"):
        read_triggers(tmp_path / "none.toml")
