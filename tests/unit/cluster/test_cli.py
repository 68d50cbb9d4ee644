"""The command line: every command is documented by a real example, bad input is one clear line."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from cluster.cli import COMMANDS, app

RUNNER = CliRunner()


def test_the_table_and_the_commands_are_the_same() -> None:
    assert {command.callback.__name__ for command in app.registered_commands if command.callback} == set(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_ends_with_an_example_of_that_command(command: str) -> None:
    help_text = RUNNER.invoke(app, [command, "--help"]).output
    example = re.fullmatch(r" *Example: (sluice .*)", help_text.strip().splitlines()[-1])
    assert example, help_text
    assert example.group(1).split()[1] == command


@pytest.mark.parametrize("command", ["train", "serve", "deploy", "stop", "demo"])
def test_commands_that_change_a_cluster_have_a_dry_run(command: str) -> None:
    assert "--dry-run" in RUNNER.invoke(app, [command, "--help"]).output


@pytest.mark.parametrize("command", ["train", "compress", "profile", "load", "status", "demo"])
def test_commands_that_print_a_table_have_json(command: str) -> None:
    assert "--json" in RUNNER.invoke(app, [command, "--help"]).output


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["train", "no_such_recipe"], "no_such_recipe"),
        (["deploy", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
        (["load", "ftp://x"], "ftp://x"),
        (["demo", "--protocol", "sloppy"], "sloppy"),
        (["demo", "--recipe", "no_such_recipe", "--dry-run"], "no_such_recipe"),
        (["demo", "--bound-ms", "0", "--dry-run"], "bound_ms=[0.0]"),
        (["load", "http://localhost:port"], "port"),
        (["load", "http://localhost:1", "--rate", "nan"], "nan"),
        (["stop", "no-such-cluster"], "no-such-cluster"),
    ],
)
def test_bad_input_is_one_clear_line_that_names_the_value(argv: list[str], what: str) -> None:
    result = RUNNER.invoke(app, argv)
    assert result.exit_code == 2
    assert what in result.output
    assert "Traceback" not in result.output
