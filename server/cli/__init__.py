"""The command line. Each setting is declared once, and can be given as a flag, in the environment or in a file."""

from __future__ import annotations

import rich_click as click

from server.cli.baseline import baseline
from server.cli.build import build
from server.cli.cache import cache
from server.cli.compare import compare
from server.cli.demo import demo
from server.cli.feedback import feedback
from server.cli.health import health
from server.cli.label import label
from server.cli.models import models
from server.cli.plan import plan
from server.cli.profile import profile
from server.cli.record import record
from server.cli.rollout import rollout
from server.cli.serve import serve
from server.cli.simulate import simulate
from server.cli.token import token
from server.cli.top import top
from server.cli.triggers import triggers
from server.cli.watch import watch

click.rich_click.TEXT_MARKUP = "markdown"
click.rich_click.SHOW_ARGUMENTS = True
click.rich_click.STYLE_OPTIONS_TABLE_LEADING = 0
click.rich_click.MAX_WIDTH = 110


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(package_name="kairos", prog_name="kairos")
def cli() -> None:
    """Serve ONNX models over gRPC (KServe v2), batched by each call's own deadline.

    Try `kairos demo` first. Completion for your shell: `eval "$(_KAIROS_COMPLETE=bash_source kairos)"` (or zsh, fish).
    """


for command in (
    serve,
    demo,
    models,
    top,
    simulate,
    record,
    build,
    plan,
    compare,
    profile,
    cache,
    health,
    rollout,
    label,
    token,
    baseline,
    watch,
    feedback,
    triggers,
):
    cli.add_command(command)
