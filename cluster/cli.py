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
    help="Sluice trains, compresses, tunes, deploys and load-tests a model on Ray, for the SLO that you name.",
    epilog="Example: sluice demo",
)

COMMANDS = {
    "recipes": "tune_spaces.training:show_recipes",
    "train": "tune_spaces.training:train",
    "jobs submit": "tune_spaces.jobs:submit",
    "jobs list": "tune_spaces.jobs:show",
    "jobs logs": "tune_spaces.jobs:logs",
    "jobs stop": "tune_spaces.jobs:stop",
    "passes": "tune_spaces.commands:passes",
    "compress": "tune_spaces.commands:compress",
    "variants list": "tune_spaces.lineage:show",
    "variants promote": "tune_spaces.lineage:promote",
    "variants rollback": "tune_spaces.lineage:rollback",
    "variants gc": "tune_spaces.lineage:gc",
    "profile": "tune_spaces.commands:profile",
    "tune": "tune_spaces.commands:tune",
    "report": "tune_spaces.commands:report",
    "serve": "tune_spaces.commands:serve_local",
    "deploy": "tune_spaces.commands:deploy",
    "load": "tune_spaces.commands:load",
    "status": "tune_spaces.commands:status",
    "stop": "tune_spaces.commands:stop",
    "hardware": "tune_spaces.hardware:show",
    "init": "tune_spaces.project:init",
    "demo": "tune_spaces.demo:main",
}

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]
RunsDir = Annotated[Path | None, typer.Option(help="Where runs are kept [default: $SLUICE_RUNS or the user's].")]
Model = Annotated[
    str | None, typer.Option(help="Your own model: pkg.module:factory, or a file model.onnx. Needs --data.")
]
Data = Annotated[
    str | None, typer.Option(help="Your own data: pkg.module:dataset, a folder of pictures, or a file data.npz.")
]
Recipe = Annotated[str, typer.Argument(help="A name from `sluice recipes`.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field: epochs=3, model.dropout=0.1. Repeatable.")
]
RunName = Annotated[str | None, typer.Option("--run", help="The same name resumes a run [default: the recipe's].")]
Dashboard = Annotated[str, typer.Option("--address", help="The Ray dashboard of the cluster.")]
JobId = Annotated[str, typer.Argument(help="An id from `sluice jobs list`.")]
ModelName = Annotated[str, typer.Option("--model", help="Name under which the model is served.")]
Address = Annotated[str | None, typer.Option(help="Dashboard of a cluster that serves it, to be told as well.")]
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
        endings = {"train": "its last checkpoint is kept, and the same command goes on from there",
                   "jobs logs": "the job goes on", "jobs submit": "the job goes on", "jobs stop": "the job may go on",
                   "deploy": "the cluster goes on deploying", "variants promote": "all is as it was",
                   "variants rollback": "all is as it was"}  # fmt: skip
        ending = endings.get(command, "everything it started is stopped")
        typer.echo(f"sluice {command}: interrupted; {ending}.", err=True)
        raise typer.Exit(130) from None


@app.command(epilog="Example: sluice recipes")
def recipes(json: Json = False) -> None:
    """List what can be trained by name, and on what."""
    _run("recipes", as_json=json)


@app.command(epilog="Example: sluice train cnn_fashion_mnist_quick --set epochs=2")
def train(
    recipe: Recipe,
    set_: Set = None,
    run: RunName = None,
    runs_dir: RunsDir = None,
    address: Annotated[
        str | None, typer.Option(help="Train on this running Ray, auto for the one here [default: one of its own].")
    ] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Train a recipe on Ray Train, data parallel; interrupted runs resume from their last checkpoint."""
    _run(
        "train", recipe=recipe, overrides=set_ or [], run=run, runs_dir=runs_dir, address=address, as_json=json,
        dry_run=dry_run,
    )  # fmt: skip


jobs = typer.Typer(name="jobs", add_completion=False, rich_markup_mode=None, no_args_is_help=True,
                   epilog="Example: sluice jobs list")  # fmt: skip
app.add_typer(jobs, help="Train on a cluster that runs already, as Ray jobs.")


@jobs.command("submit", epilog="Example: sluice jobs submit cnn_mnist --address http://127.0.0.1:8265 --follow")
def submit(
    recipe: Recipe,
    set_: Set = None,
    run: RunName = None,
    runs_dir: RunsDir = None,
    address: Dashboard = "http://127.0.0.1:8265",
    working_dir: Annotated[Path | None, typer.Option(help="A folder that travels with it: your own modules.")] = None,
    follow: Annotated[bool, typer.Option(help="Print what it says until it ends.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Train a recipe as a Ray job; every node needs Sluice and the same runs folder."""
    _run(
        "jobs submit", recipe=recipe, overrides=set_ or [], run=run, runs_dir=runs_dir, address=address,
        working_dir=working_dir, follow=follow, dry_run=dry_run,
    )  # fmt: skip


@jobs.command("list", epilog="Example: sluice jobs list --json")
def list_jobs(address: Dashboard = "http://127.0.0.1:8265", json: Json = False) -> None:
    """List the cluster's jobs, the newest first."""
    _run("jobs list", address=address, as_json=json)


@jobs.command("logs", epilog="Example: sluice jobs logs raysubmit_abc --follow")
def job_logs(
    job_id: JobId,
    address: Dashboard = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option(help="Go on until it ends.")] = False,
) -> None:
    """Print what a job has said."""
    _run("jobs logs", job_id=job_id, address=address, follow=follow)


@jobs.command("stop", epilog="Example: sluice jobs stop raysubmit_abc")
def stop_job(job_id: JobId, address: Dashboard = "http://127.0.0.1:8265") -> None:
    """Stop a job; a training run writes a checkpoint first, and the same run name goes on from it."""
    _run("jobs stop", job_id=job_id, address=address)


@app.command(epilog="Example: sluice passes")
def passes(json: Json = False) -> None:
    """List the compression passes, what each does, and its settings."""
    _run("passes", as_json=json)


@app.command(epilog="Example: sluice compress cnn_fashion_mnist_quick --variant small=prune,int8")
def compress(
    run: Annotated[str | None, typer.Argument(help="Name of a finished training run; or --model and --data.")] = None,
    model: Model = None,
    data: Data = None,
    name: Annotated[str | None, typer.Option(help="Name of your own model [default: its own].")] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML: variants, each a list of passes with settings.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PASS,PASS: a variant by its passes; or lean-int8, exit-int8. Repeatable."),
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="No variants of this pass. Repeatable.")] = None,
    runs_dir: RunsDir = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Make the variants of a model (by default int8, bf16, pruned), each measured on the full test set, in every
    runtime."""
    _run(
        "compress", run=run, model=model, data=data, name=name, spec=spec, variants=variant or [],
        without=without or [], runs_dir=runs_dir, store=store, as_json=json,
    )  # fmt: skip


variants = typer.Typer(name="variants", add_completion=False, rich_markup_mode=None)
app.add_typer(variants)


@variants.callback(invoke_without_command=True, epilog="Example: sluice variants")
def show(context: typer.Context) -> None:
    """Show every variant's lineage; with a sub-command, move the active version or clean up."""
    if context.invoked_subcommand is None:
        _run("variants list", name=None, store=None, as_json=False)


@variants.command("list", epilog="Example: sluice variants list cnn_fashion_mnist_quick")
def list_(
    name: Annotated[str | None, typer.Argument(help="A model's variants only [default: all].")] = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Show which variant came from which, how good each is, and which is active."""
    _run("variants list", name=name, store=store, as_json=json)


@variants.command(epilog="Example: sluice variants promote cnn_fashion_mnist_quick/int8")
def promote(
    variant: Annotated[str, typer.Argument(help="Variant id or name.")],
    model: ModelName = "classifier",
    expected: Annotated[str | None, typer.Option(help="Only if this id is the active one now.")] = None,
    address: Address = None,
    store: Store = None,
    dry_run: DryRun = False,
) -> None:
    """Make a variant the active version by compare-and-swap; with --address, on every replica that serves it."""
    _run(
        "variants promote", ref=variant, model=model, expected=expected, address=address, store=store, dry_run=dry_run
    )


@variants.command(epilog="Example: sluice variants rollback --dry-run")
def rollback(
    model: ModelName = "classifier", address: Address = None, store: Store = None, dry_run: DryRun = False
) -> None:
    """Go back to the version that was active before."""
    _run("variants rollback", model=model, address=address, store=store, dry_run=dry_run)


@variants.command(epilog="Example: sluice variants gc --dry-run")
def gc(
    keep: Annotated[int, typer.Option(help="Earlier active versions of each model that are kept.")] = 5,
    store: Store = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove what no name, no history and no kept variant's lineage needs."""
    _run("variants gc", keep=keep, store=store, dry_run=dry_run, as_json=json)


@app.command(epilog="Example: sluice profile cnn_fashion_mnist_quick/int8")
def profile(
    variants: Annotated[list[str], typer.Argument(help="Variant ids or names.")],
    fresh: Annotated[bool, typer.Option(help="Measure again what is known of this hardware.")] = False,
    runtime: Annotated[
        list[str] | None, typer.Option(help="One more way to run them: torch,compile=true,threads=2. Repeatable.")
    ] = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Time variants in every runtime that executes them, batch by batch, each in a process of its own."""
    _run("profile", refs=variants, fresh=fresh, also=runtime or [], store=store, as_json=json)


@app.command(epilog="Example: sluice tune cnn_fashion_mnist_quick --slo slo.yaml --trials 16")
def tune(
    name: Annotated[str | None, typer.Argument(help="A model with variants; or --model, --data.")] = None,
    slo: Annotated[Path | None, typer.Option(help="The SLO, a YAML file [default: p99 50 ms, 0.5 points].")] = None,
    model: Model = None,
    data: Data = None,
    study: Annotated[str | None, typer.Option(help="Name; that of an interrupted study resumes it.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the study's folder [default: runs].")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Configurations that are measured live.")] = 16,
    finalists: Annotated[int, typer.Option(min=1, help="How many of the best are measured again.")] = 3,
    time_s: Annotated[float | None, typer.Option("--time-s", help="Begin no trial after this.")] = None,
    protocol: Annotated[str, typer.Option(help="Length of a trial: quick, full, or smoke.")] = "quick",
    store: Store = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Search variant x runtime x threads x batch x queue for the SLO, and write plan, Serve config and report."""
    _run(
        "tune", name=name, slo_path=slo, model=model, data=data, study=study, output=output, trials=trials,
        finalists=finalists, time_s=time_s, protocol_name=protocol, store=store, as_json=json, dry_run=dry_run,
    )  # fmt: skip


@app.command(epilog="Example: sluice report runs/my-study")
def report(
    folder: Annotated[Path, typer.Argument(help="A study's folder, as `sluice tune` writes it.")],
    store: Store = None,
    json: Json = False,
) -> None:
    """Choose anew from what a study measured, also an unfinished one, and write plan and report again."""
    _run("report", folder=folder, store=store, as_json=json)


@app.command(epilog="Example: sluice serve cnn_fashion_mnist_quick/int8 --port 8000")
def serve(
    variant: Annotated[str | None, typer.Argument(help="Variant id or name; or --plan.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.json, as `sluice tune` writes it.")] = None,
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for another cluster's.")] = "127.0.0.1",
    also: Annotated[
        list[str] | None, typer.Option(help="A variant to step down to under pressure; may be given again.")
    ] = None,
    direct_port: Annotated[int | None, typer.Option(help="A port of the replicas' own, past HAProxy.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="A port for gRPC; without it there is none.")] = None,
    repository: Annotated[bool, typer.Option("--repository", help="Let clients load and unload the model.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Name under which it is served [default: the plan's, else classifier].")
    ] = None,
    store: Store = None,
    dry_run: DryRun = False,
) -> None:
    """Serve a variant or a plan on a local Ray cluster until Ctrl-C; with --dry-run, print the Serve config."""
    _run(
        "serve", ref=variant, plan_path=plan, port=port, host=host, also=also or [], direct_port=direct_port,
        grpc_port=grpc_port, repository=repository, model=model, store=store, dry_run=dry_run,
    )  # fmt: skip


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


@app.command(epilog="Example: sluice hardware --json")
def hardware(json: Json = False) -> None:
    """Print cores, caches, instruction sets, GPUs, memory, and which runtime computes which precision natively."""
    _run("hardware", as_json=json)


@app.command(epilog="Example: sluice init my-project")
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write the project.")],
    force: Annotated[bool, typer.Option(help="Overwrite files that are there.")] = False,
) -> None:
    """Write a commented example project: your own model, data and SLO, ready to tune."""
    _run("init", folder=folder, force=force)


@app.command(epilog="Example: sluice demo --output runs/demo")
def demo(
    output: Annotated[Path | None, typer.Option(help="Folder for the report's folder [default: runs].")] = None,
    run: Annotated[str | None, typer.Option(help="Name; an interrupted demo's name resumes it [default: new].")] = None,
    recipe: Annotated[str, typer.Option(help="What to train.")] = "cnn_fashion_mnist_quick",
    protocol: Annotated[str, typer.Option(help="quick (minutes), full (benchmarks/PROTOCOL.md), or smoke.")] = "quick",
    bound_ms: Annotated[list[float] | None, typer.Option(help="p99 bounds [default: the protocol's].")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Configurations that the search measures live.")] = 8,
    slo: Annotated[Path | None, typer.Option(help="The SLO, a YAML file [default: p99 50 ms, 0.5 points].")] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Train, compress, tune, plan, deploy, load and report: the main job end to end, before against after."""
    _run(
        "demo", output=output, run=run, recipe_name=recipe, protocol_name=protocol, bounds_ms=bound_ms, trials=trials,
        slo_path=slo, as_json=json, dry_run=dry_run,
    )  # fmt: skip


def main() -> None:
    """Entry point of the `sluice` script."""
    app()


if __name__ == "__main__":
    sys.exit(app())
