"""The command line: every command is documented by a real example, bad input is one clear line."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import COMMANDS, app

RUNNER = CliRunner()


def commands_of(typed: typer.Typer) -> set[str]:
    """"train", "variants gc": every command as it is typed."""
    click = typer.main.get_command(typed)
    names = set()
    for name, command in click.commands.items():  # type: ignore[attr-defined]
        names |= {f"{name} {sub}" for sub in getattr(command, "commands", {})} or {name}
    return names


def test_the_table_and_the_commands_are_the_same() -> None:
    assert commands_of(app) == set(COMMANDS)


@pytest.mark.parametrize("command", [*sorted(COMMANDS), "variants", "jobs"])
def test_help_ends_with_an_example_of_that_command(command: str) -> None:
    help_text = RUNNER.invoke(app, [*command.split(), "--help"]).output
    example = re.fullmatch(r" *Example: (sluice .*)", help_text.strip().splitlines()[-1])
    assert example, help_text
    assert f"{example.group(1)} ".startswith(f"sluice {command} ")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_leads_to_a_function_that_takes_what_it_is_given(command: str) -> None:
    module, _, function = COMMANDS[command].partition(":")
    assert inspect.isfunction(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    "command", ["train", "jobs submit", "tune", "serve", "deploy", "stop", "demo", "variants promote",
                "variants rollback",
                "variants gc"],
)  # fmt: skip
def test_commands_that_change_a_cluster_have_a_dry_run(command: str) -> None:
    assert "--dry-run" in RUNNER.invoke(app, [*command.split(), "--help"]).output


@pytest.mark.parametrize(
    "command", ["recipes", "train", "jobs list", "passes", "compress",
                "profile", "tune", "report", "load", "status", "hardware", "demo",
                "variants list", "variants gc"],
)  # fmt: skip
def test_commands_that_print_a_table_have_json(command: str) -> None:
    assert "--json" in RUNNER.invoke(app, [*command.split(), "--help"]).output


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
        (["tune", "no-such-model"], "no-such-model"),
        (["tune"], "name=None"),
        (["tune", "a", "--model", "b:c"], "'b:c'"),
        (["tune", "--model", "b:c"], "--data"),
        (["tune", "a", "--protocol", "sloppy"], "sloppy"),
        (["tune", "a", "--slo", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
        (["compress"], "--model"),
        (["compress", "a", "--without", "magic"], "magic"),
        (["compress", "a", "--variant", "x=magic"], "'magic' is no pass"),
        (["compress", "a", "--spec", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
        (["compress", "--model", "no_such_module:f", "--data", "digits"], "no_such_module"),
        (["report", "/does/not/exist"], "/does/not/exist"),
        (["serve"], "plan.json"),
        (["serve", "--plan", "/does/not/exist.json"], "/does/not/exist.json"),
        (["variants", "promote", "no-such-variant"], "no-such-variant"),
        (["variants", "list", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_is_one_clear_line_that_names_the_value(
    argv: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_STORE", str(tmp_path / "store"))
    result = RUNNER.invoke(app, argv)
    assert result.exit_code == 2
    assert what in result.output
    assert "Traceback" not in result.output
