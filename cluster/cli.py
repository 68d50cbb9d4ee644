"""`sluice`: argv -> one command's function, imported only when that command runs.

The bodies live in packages above this one, so they are named by string: `sluice --help` loads neither Ray nor torch
nor pydantic and answers in a blink.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="sluice",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Sluice trains, compresses, profiles, deploys and load-tests a model on Ray.",
    epilog="Example: sluice demo",
)

COMMANDS = {
    "train": "tune_spaces.commands:train",
    "compress": "tune_spaces.commands:compress",
    "profile": "tune_spaces.commands:profile",
    "serve": "tune_spaces.commands:serve_local",
    "deploy": "tune_spaces.commands:deploy",
    "load": "tune_spaces.commands:load",
    "status": "tune_spaces.commands:status",
    "stop": "tune_spaces.commands:stop",
    "demo": "tune_spaces.demo:main",
}

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]
RunsDir = Annotated[Path | None, typer.Option(help="Where runs are kept [default: $SLUICE_RUNS or the user's].")]
Store = Annotated[Path | None, typer.Option("--store", help="Artifact store [default: $SLUICE_STORE or the user's].")]


def _run(command: str, **kwargs: Any) -> None:
    """Import the command's function and call it; our own errors become one line and exit code 2, never a traceback."""
    from cluster.errors import SluiceError

    module, _, function = COMMANDS[command].partition(":")
    try:
        getattr(importlib.import_module(module), function)(**kwargs)
    except SluiceError as error:
        typer.echo(f"sluice {command}: {error}", err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        hint = "see that the path exists, may be written and has room"
        typer.echo(f"sluice {command}: {error}; {hint}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        ending = "the cluster goes on deploying" if command == "deploy" else "everything it started is stopped"
        typer.echo(f"sluice {command}: interrupted; {ending}.", err=True)
        raise typer.Exit(130) from None


@app.command(epilog="Example: sluice train cnn_fashion_mnist_quick --set epochs=2")
def train(
    recipe: Annotated[str, typer.Argument(help="cnn_fashion_mnist, cnn_mnist, cnn_digits or ..._quick.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: epochs=3. Repeatable.")] = None,
    run: Annotated[str | None, typer.Option(help="Run name; the same name resumes the run [default: recipe].")] = None,
    runs_dir: RunsDir = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Train a recipe on Ray Train, data parallel; interrupted runs resume from their last checkpoint."""
    _run("train", recipe=recipe, overrides=set_ or [], run=run, runs_dir=runs_dir, as_json=json, dry_run=dry_run)


@app.command(epilog="Example: sluice compress cnn_fashion_mnist_quick")
def compress(
    run: Annotated[str, typer.Argument(help="Name of a finished training run.")],
    runs_dir: RunsDir = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Make the fp32 and int8 variants of a trained run, each measured on the full test set."""
    _run("compress", run=run, runs_dir=runs_dir, store=store, as_json=json)


@app.command(epilog="Example: sluice profile cnn_fashion_mnist_quick/int8")
def profile(
    variants: Annotated[list[str], typer.Argument(help="Variant ids or names.")],
    store: Store = None,
    json: Json = False,
) -> None:
    """Time variants in their runtime, batch by batch, each in a process of its own."""
    _run("profile", refs=variants, store=store, as_json=json)


@app.command(epilog="Example: sluice serve cnn_fashion_mnist_quick/int8 --port 8000")
def serve(
    variant: Annotated[str, typer.Argument(help="Variant id or name.")],
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for another cluster's.")] = "127.0.0.1",
    store: Store = None,
    dry_run: DryRun = False,
) -> None:
    """Serve a variant on a local Ray cluster until Ctrl-C; with --dry-run, print the Serve config."""
    _run("serve", ref=variant, port=port, host=host, store=store, dry_run=dry_run)


@app.command(epilog="Example: sluice deploy serve-config.yaml --address http://127.0.0.1:8265")
def deploy(
    config: Annotated[Path, typer.Argument(help="A Serve config, as `sluice demo` writes one.")],
    address: Annotated[str, typer.Option(help="The Ray dashboard of the cluster.")] = "http://127.0.0.1:8265",
    dry_run: DryRun = False,
) -> None:
    """Deploy a Serve config to a running Ray cluster and wait until it answers."""
    _run("deploy", path=config, address=address, dry_run=dry_run)


@app.command(epilog="Example: sluice load http://127.0.0.1:8000 --rate 200 --duration-s 5")
def load(
    url: Annotated[str, typer.Argument(help="http://host:port of the deployment.")],
    model: Annotated[str, typer.Option(help="Model name.")] = "classifier",
    rate: Annotated[float, typer.Option(help="Mean arrivals per second; a trace is scaled to it.")] = 100.0,
    duration_s: Annotated[float, typer.Option("--duration-s", help="How long to send.")] = 10.0,
    arrivals: Annotated[str, typer.Option(help="poisson, constant, or a trace: CSV of time_s,rate_rps.")] = "poisson",
    connections: Annotated[int, typer.Option(help="Connections to keep open.")] = 64,
    bound_ms: Annotated[float, typer.Option("--bound-ms", help="The p99 bound of the SLO.")] = 50.0,
    seed: Annotated[int, typer.Option(help="Seed of the arrivals.")] = 0,
    json: Json = False,
) -> None:
    """Send open-loop load and print latency from the scheduled send time."""
    _run(
        "load", url=url, model=model, rate=rate, duration_s=duration_s, arrivals=arrivals, connections=connections,
        bound_s=bound_ms / 1e3, seed=seed, as_json=json,
    )


@app.command(epilog="Example: sluice status --json")
def status(json: Json = False) -> None:
    """List the local clusters that Sluice has started."""
    _run("status", as_json=json)


@app.command(epilog="Example: sluice stop --dry-run")
def stop(
    name: Annotated[str | None, typer.Argument(help="A name from `sluice status` [default: all of them].")] = None,
    dry_run: DryRun = False,
) -> None:
    """Stop exactly what Sluice started, and nothing else."""
    _run("stop", name=name, dry_run=dry_run)


@app.command(epilog="Example: sluice demo --output runs/demo")
def demo(
    output: Annotated[Path | None, typer.Option(help="Folder for the report's folder [default: runs].")] = None,
    run: Annotated[str | None, typer.Option(help="Name; an interrupted demo's name resumes it [default: new].")] = None,
    recipe: Annotated[str, typer.Option(help="What to train.")] = "cnn_fashion_mnist_quick",
    protocol: Annotated[str, typer.Option(help="quick (minutes), full (benchmarks/PROTOCOL.md), or smoke.")] = "quick",
    bound_ms: Annotated[list[float] | None, typer.Option(help="p99 bounds [default: the protocol's].")] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Train, compress, profile, deploy, load and report: the main job end to end, before against after."""
    _run(
        "demo", output=output, run=run, recipe_name=recipe, protocol_name=protocol, bounds_ms=bound_ms, as_json=json,
        dry_run=dry_run,
    )  # fmt: skip


def main() -> None:
    """Entry point of the `sluice` script."""
    app()


if __name__ == "__main__":
    sys.exit(app())
