"""Each action, against a real receiver, program or file."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.watch.cloudevents import cloud_event, signature_headers
from server.watch.trigger_actions import Action, NotDelivered, make_actions
from server.watch.trigger_file import (
    ActionOptions,
    BadTriggers,
    CommandOptions,
    JobOptions,
    LogOptions,
    RetryOptions,
    TriggerOptions,
    WebhookOptions,
)
from server.watch.triggers import Event
from tests.support.servers import wait_until
from tests.support.webhooks import receiver

EVENT = Event(
    id="ab12", rule="digits-drift", model="digits", version=2, episode=1, signal="drift", value=0.375,
    threshold=float("nan"), samples=500, p_value=0.001, at=1_700_000_000.25,
)  # fmt: skip
RETRY = RetryOptions(attempts=3, timeout_s=10.0)


def made(options: ActionOptions, threads: ThreadPoolExecutor | None = None) -> Action:
    pool = threads or ThreadPoolExecutor(1)
    return make_actions(TriggerOptions(rules=(), actions={"x": options}, source="/kairos/test"), pool)["x"]


def deliver(options: ActionOptions, event: Event = EVENT) -> None:
    with ThreadPoolExecutor(1) as threads:
        asyncio.run(made(options, threads).deliver(event))


def test_a_cloud_event() -> None:
    assert cloud_event(EVENT, "/kairos/test") == {
        "specversion": "1.0",
        "id": "ab12",
        "source": "/kairos/test",
        "type": "kairos.trigger.raised",
        "subject": "digits/2",
        "time": "2023-11-14T22:13:20.250000Z",
        "datacontenttype": "application/json",
        "data": {
            "rule": "digits-drift", "model": "digits", "version": "2", "episode": 1, "signal": "drift", "value": 0.375,
            "threshold": None, "samples": 500, "p_value": 0.001,
        },
    }  # fmt: skip


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's own reference libraries."""
    headers = signature_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_webhook_is_a_signed_post(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    with receiver() as hook:
        deliver(WebhookOptions(url=hook.url, secret_file=secret, headers={"X-Token": "t"}, retry=RETRY))
    ((headers, body),) = hook.requests
    assert json.loads(body) == cloud_event(EVENT, "/kairos/test")
    assert headers["content-type"] == "application/cloudevents+json; charset=UTF-8"
    assert headers["x-token"] == "t"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.new(b"s3cret", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-id"] == "ab12"
    assert headers["webhook-signature"] == f"v1,{digest}"


@pytest.mark.parametrize(("answer", "final"), [(500, False), (404, False), (429, False), (410, True), (302, False)])
def test_any_answer_but_success_is_a_failure(answer: int, final: bool) -> None:
    with receiver(answer) as hook:
        with pytest.raises(NotDelivered, match=f"HTTP {answer}") as error:
            deliver(WebhookOptions(url=hook.url, retry=RETRY))
        assert error.value.final is final
        assert len(hook.requests) == 1  # a redirect is not followed


def test_a_receiver_that_is_not_there_hangs_up_or_says_nothing() -> None:
    with receiver(0) as hook:
        with pytest.raises(NotDelivered, match="closed connection"):
            deliver(WebhookOptions(url=hook.url, retry=RETRY))
        hook.silent.set()
        with pytest.raises(NotDelivered, match="timed out"):
            deliver(WebhookOptions(url=hook.url, retry=RetryOptions(attempts=1, timeout_s=0.05)))
    with pytest.raises(NotDelivered, match="refused"):
        deliver(WebhookOptions(url=hook.url, retry=RETRY))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (WebhookOptions(url="http://h", secret_file=Path("/nonexistent"), retry=RETRY), "No such file"),
        (WebhookOptions(url="http://h", secret_env="KAIROS_NO_SUCH", retry=RETRY), "KAIROS_NO_SUCH is empty"),
        (JobOptions(template=Path("/nonexistent"), output=None, retry=RETRY), "No such file"),
    ],
)
def test_what_is_missing_is_said_at_the_start(options: ActionOptions, reason: str) -> None:
    with pytest.raises(BadTriggers, match=f"action.x: .*{reason}"):
        made(options)


def script(code: str, **retry: Any) -> CommandOptions:
    return CommandOptions(
        argv=(sys.executable, "-c", code), retry=RetryOptions(**{"attempts": 1, "timeout_s": 60.0} | retry)
    )


def test_a_program_gets_the_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out.json"))
    deliver(
        script(
            "import json, os, sys\n"
            "told = {k: v for k, v in os.environ.items() if k.startswith('KAIROS_')}\n"
            "json.dump([json.load(sys.stdin), told], open(os.environ['OUT'], 'w'))"
        )
    )
    event, told = json.loads((tmp_path / "out.json").read_text())
    assert event["id"] == "ab12"
    expected = {
        "KAIROS_EVENT_ID": "ab12", "KAIROS_RULE": "digits-drift", "KAIROS_MODEL": "digits", "KAIROS_VERSION": "2",
        "KAIROS_SIGNAL": "drift", "KAIROS_VALUE": "0.375", "KAIROS_EVENT_TYPE": "kairos.trigger.raised",
    }  # fmt: skip
    assert expected.items() <= told.items()


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(NotDelivered, match=r"ended with 3: x+\nlast words$"):
        deliver(script("import sys; print('x' * 100000); print('last words'); sys.exit(3)"))
    with pytest.raises(NotDelivered, match="No such file"):
        deliver(CommandOptions(argv=("/nonexistent/program",), retry=RETRY))


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "child.wait()"
    )
    with pytest.raises(NotDelivered, match="still ran after 2 s"):
        deliver(script(code, timeout_s=2.0))
    child = Path(f"/proc/{note.read_text()}/stat")
    wait_until(lambda: not child.exists() or child.read_text().split()[2] == "Z", "the end of the child")


TEMPLATE = """
apiVersion: batch/v1
kind: Job
metadata: { name: "${name}", labels: { rule: "${rule}", cost: "$$5" } }
spec: { template: { spec: { containers: [ { name: train, env: [
  { name: MODEL, value: "${model}" }, { name: VERSION, value: "${version}" }, { name: EVENT, value: ${event} }
] } ] } } }
"""


def test_a_job_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "job.yaml"
    template.write_text(TEMPLATE)
    folder = tmp_path / "jobs"
    options = JobOptions(template=template, output=folder, retry=RETRY)
    odd = Event(**{**{name: getattr(EVENT, name) for name in EVENT.__slots__}, "model": 'a"b: {c}'})
    for _ in range(2):  # a repeat changes nothing
        deliver(options, odd)
    assert [path.name for path in folder.iterdir()] == ["ab12.yaml"]
    job = yaml.safe_load((folder / "ab12.yaml").read_text())
    assert job["metadata"] == {"name": "digits-drift-a-b-c-ab12", "labels": {"rule": "digits-drift", "cost": "$5"}}
    env = {each["name"]: each["value"] for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["MODEL"] == "a_b___c_"
    assert json.loads(env["EVENT"])["data"]["model"] == 'a"b: {c}'
    deliver(JobOptions(template=template, output=None, retry=RETRY))
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "Job"
    template.write_text("${nonsense}")
    with pytest.raises(BadTriggers, match=r"unknown \${nonsense}; known are event, event_id"):
        made(options)
    template.write_text("costs $5")
    with pytest.raises(BadTriggers, match="write \\$\\$"):
        made(options)


def test_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        deliver(LogOptions(retry=RETRY))
    assert "trigger digits-drift: drift of digits:2 is 0.375 [event ab12]" in caplog.text
