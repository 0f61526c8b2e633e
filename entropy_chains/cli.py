"""The commands, thin: read, call, print. Tables for people, ``--json`` for programs, progress on standard error.

Exit status: 0 done; 2 bad input or usage (the message names the value and the remedy, nothing is written); 1 anything else.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from entropy_chains.cli_backends import LOCAL, SERVED, TAGS, TIMEOUT, WHICH, bundled, client_of, load, options, served, settings_of
from entropy_chains.cli_files import AppendedTraces, Command, InputFile, OutputFile
from entropy_chains.core.policy import Policy
from entropy_chains.core.rules import certifiable
from entropy_chains.errors import EntropyChainsError, InputError, SettingsError
from entropy_chains.options import OPTIONS, Mode, OnMismatch, check_counts
from entropy_chains.progress import progress
from entropy_chains.show.printing import console, echo, echo_json, print_anything

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
traces_file = click.argument("traces", type=InputFile())


class Commands(click.Group):
    """Turns our errors into one line and the contract's exit status."""

    command_class = Command

    def main(self, *args: Any, **settings: Any) -> Any:
        """Read the command line and run what it says."""
        with print_anything():
            try:
                return super().main(*args, **settings)
            except Exception:  # noqa: BLE001
                echo(*traceback.format_exc().splitlines(), err=True)  # a fault of ours; its message may be a server's
                sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except EntropyChainsError as error:
            echo("; ".join([f"error: {error}", *getattr(error, "__notes__", [])]), err=True)
            ctx.exit(2 if isinstance(error, InputError) else 1)
        except OSError as error:
            echo(f"error: {error.filename or 'file'}: {error.strerror or error}", err=True)
            ctx.exit(2 if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError) else 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="entropy-chains")
def main() -> None:
    """Stop reasoning models when they are sure: record runs, calibrate a policy, see what it saves."""


@main.command()
@click.option("--questions", default=300, show_default=True, help="Held-out questions to run live.")
@click.option("--calibration", default=300, show_default=True, help="Questions to calibrate on; 45 is the floor for a certificate.")
@click.option("--seed", default=0, show_default=True, help="Of the questions and the runs.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True, help="Folder to write to."
)
@as_json
def demo(questions: int, calibration: int, seed: int, out: Path, as_json: bool) -> None:
    """Run the whole story offline with the bundled model: record, calibrate, stop early, compare."""
    from entropy_chains.demo.quickstarts import add_quickstarts, show_quickstarts
    from entropy_chains.demo.story import BATCH, prepare, print_story, run_story

    check_counts({"--questions": questions, "--calibration": calibration})
    prepare(out)
    with progress(as_json) as track:
        story = run_story(bundled(batch_size=BATCH), questions=questions, calibration=calibration, seed=seed, out=out, track=track)
        add_quickstarts(story, out, track)
    if as_json:
        echo_json(story)
    else:
        print_story(story, out)
        show_quickstarts(story["quickstarts"])


@main.command()
@click.option("--data", required=True, type=InputFile(), help='Questions, one {"id", "question", "gold"} a line.')
@click.option("--out", required=True, type=AppendedTraces(), help="Trace file; only ever appended to.")
@options(WHICH)
@click.option("--mode", default="thinking", show_default=True, type=click.Choice(["thinking", "refine"]))
@click.option("--steps", type=int, help="Calls in refine mode (default 4); most recorded boundaries in thinking mode.")
@click.option("--temperature", type=float, help="0 is greedy; the model's own by default.")
@click.option(
    "--top-logprobs", "k", type=int, default=20, show_default=True, help="Alternatives that the entropy is computed from."
)
@click.option("--full-vocabulary", is_flag=True, help="Exact entropy instead.")
@click.option("--max-tokens", type=int, default=4096, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--limit", type=int, help="Only the first questions.")
@click.option("--concurrency", type=int, default=64, show_default=True, help="Questions run together.")
@click.option("--boundary", type=click.Choice(["line", "blank_line"]), help="Where a step ends; the model's own by default.")
@click.option("--min-tokens", type=int, help="Shortest step; shorter ones are joined.")
@click.option("--system", help="A system prompt for every question.")
@click.option(
    "--grade", default="auto", show_default=True, metavar="GRADE",
    help="How answers are compared with gold: auto, exact, number, choice, math, regex:PATTERN or python:MODULE:FUNCTION.",
)  # fmt: skip
@options(TAGS, LOCAL, SERVED)
@click.option("--resume", is_flag=True, help="Go on with an existing file; nothing recorded is repeated.")
@click.option("--redo-cut", is_flag=True, help="With --resume: runs that were cut off are asked again, and replaced.")
@as_json
def record(
    data: Path, out: Path, model: str | None, base_url: str | None, k: int, full_vocabulary: bool, concurrency: int,
    limit: int | None, resume: bool, redo_cut: bool, boundary: str | None, min_tokens: int | None, system: str | None, mode: Mode,
    steps: int | None, temperature: float | None, max_tokens: int, seed: int, grade: str, as_json: bool, **backend_options: Any,
) -> None:  # fmt: skip
    """Run full reasoning on questions and write traces."""
    from dataclasses import replace
    from functools import partial

    from entropy_chains.backends import Sampling
    from entropy_chains.cli_record import check_same_recording, write_traces
    from entropy_chains.files import holds_data
    from entropy_chains.grading import check_gold, named_grader, told_of_gold
    from entropy_chains.questions import read_questions
    from entropy_chains.recording import record as run
    from entropy_chains.refine import PER_CALL

    if not model:
        raise SettingsError("give --model PATH_OR_ID (or 'demo'), or --base-url URL --model NAME for a server")
    if base_url and full_vocabulary:
        raise SettingsError("--full-vocabulary needs a local model: a server gives its likeliest tokens only; use --top-logprobs")
    check_counts(
        {"--top-logprobs": k, "--concurrency": concurrency, "--limit": limit, "--steps": steps, "--min-tokens": min_tokens}
    )
    if redo_cut and not resume:
        raise SettingsError("--redo-cut records runs of an existing file again; add --resume")
    chosen, grader = settings_of(base_url, backend_options), named_grader(grade)
    questions = read_questions(data, limit)
    check_gold(questions, grade)
    if holds_data(out) and not resume:
        raise SettingsError(f"{out} exists; go on with it (--resume) or name another file")
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    if base_url:
        backend: Any = served(base_url, model, k, concurrency, **chosen)
    else:
        backend = load(model, None if full_vocabulary else k, concurrency, **chosen)
    segmentation = backend.segmentation
    segmentation = replace(
        segmentation, boundary=boundary or segmentation.boundary, min_tokens=min_tokens or segmentation.min_tokens
    )
    if mode == "thinking":
        _ = backend.tags
    details = backend.details(sampling, segmentation)
    cut = PER_CALL.to_dict() if mode == "refine" else details["segmentation"]
    limit = steps if mode == "thinking" else None
    settings = {"mode": mode, "model": backend.model, "segmentation": cut, "max_steps": limit, "max_tokens": max_tokens}
    check_same_recording(out, {**details, **settings, "system": system, "grade": grade}, redo_cut=redo_cut)
    asking = partial(
        run, backend, questions, mode=mode, steps=steps, sampling=sampling, segmentation=segmentation, batch=concurrency,
        system=system, grade=grade, grader=grader,
    )  # fmt: skip
    result, lacking = write_traces(asking, questions, out, quiet=as_json, redo_cut=redo_cut)
    lines = ["{recorded} recorded, {cut} of them cut off, {skipped} skipped → {out}".format(**result), *told_of_gold(result)]
    show(result, as_json, lines)
    if lacking:
        echo(lacking, err=True)
        raise click.exceptions.Exit(1)


@main.command()
@traces_file
@click.option("--signal", help="Which statistic of a step; the trace's own by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@as_json
def diagnose(traces: Path, signal: str | None, seed: int, as_json: bool) -> None:
    """Is there a signal? Per step and stratified, with a verdict."""
    from entropy_chains.offline.diagnose import diagnose as run
    from entropy_chains.show.terminal import diagnosis_table

    diagnosis = run(traces, signal=signal, seed=seed)
    show(diagnosis.to_dict(), as_json, lambda: diagnosis_table(diagnosis.to_dict()))


@main.command()
@traces_file
@click.option("-o", "--out", required=True, type=OutputFile(), help="Policy file to write.")
@click.option("--method", default="certified", show_default=True, type=click.Choice(OPTIONS["method"]))
@click.option("--rule", default="auto", show_default=True, type=click.Choice(["auto", *certifiable()]))
@click.option("--signal", default="auto", show_default=True, help="auto, mean_entropy, sum_entropy, or another recorded one.")
@click.option("--max-loss", default=0.05, show_default=True, help="Largest share of questions that may lose a correct answer.")
@click.option("--confidence", default=0.9, show_default=True, help="Probability that the promise holds.")
@click.option("--per-step/--no-per-step", default=False, show_default=True, help="One threshold per step.")
@click.option("--min-steps", type=int, help="First step at which a stop is allowed.")
@click.option("--examples", type=int, help="Calibrate on this many questions, drawn with --seed.")
@click.option("--hold-out", "hold_out_share", type=float, help="Share of the questions kept back, to judge the policy on.")
@click.option(
    "--cut-runs", default="lost", show_default=True, type=click.Choice(OPTIONS["cut_runs"]),
    help="Take runs that were cut off for lost where stopped, or, where users have the same limit, for wrong full runs.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@as_json
def calibrate(traces: Path, out: Path, as_json: bool, **settings: Any) -> None:
    """Fit a policy, write it, and say what it saves, what it may lose and where it runs, or what to do next."""
    from entropy_chains.grading import nothing_right
    from entropy_chains.offline.hold_out import calibrate_and_judge as run
    from entropy_chains.offline.traces import iter_traces
    from entropy_chains.show.terminal import policy_table

    policy = run(traces, **settings)
    policy.save(out)
    show(policy.to_dict(), as_json, lambda: policy_table(policy, out))
    if policy.calibration.get("accuracy_full") == 0:
        echo(*nothing_right(iter_traces(traces)), err=True)


@main.command()
@traces_file
@click.option("--policy", "policy_file", required=True, type=InputFile(), help="Policy file.")
@click.option("--on-mismatch", default="error", show_default=True, type=click.Choice(["error", "warn"]))
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@as_json
def replay(traces: Path, policy_file: Path, on_mismatch: OnMismatch, seed: int, as_json: bool) -> None:
    """What a policy would have done on recorded runs."""
    from entropy_chains.offline.replay import replay as run
    from entropy_chains.show.terminal import replay_table

    policy = Policy.of(policy_file)
    result = run(traces, policy, seed=seed, on_mismatch=on_mismatch)
    show(result.to_dict(), as_json, lambda: replay_table(result.to_dict(), policy))


@main.command()
@traces_file
@click.option(
    "--folds", type=int, default=5, show_default=True, help="Parts of the questions, each judged with the others fitted on."
)
@click.option("--max-loss", default=0.05, show_default=True, help="Largest share of questions that may lose a correct answer.")
@click.option("--confidence", default=0.9, show_default=True, help="Probability that a certified rule keeps to it.")
@click.option("--transfer", "other", type=InputFile(), help="Judge on these traces instead; fit on all of the first.")
@click.option("--on-mismatch", default="error", show_default=True, type=click.Choice(["error", "warn"]), help="With --transfer.")
@click.option("--plot", type=OutputFile(), help="PNG or SVG file to draw to.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every draw.")
@as_json
def compare(
    traces: Path, folds: int, max_loss: float, confidence: float, other: Path | None, on_mismatch: OnMismatch, plot: Path | None,
    seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Every published rule side by side on recorded runs, fitted on one part and judged on the other."""
    from entropy_chains.offline.compare import compare as run
    from entropy_chains.offline.compare import transfer
    from entropy_chains.show.plots import figure_format, saved_against_change
    from entropy_chains.show.terminal import comparison_table

    form = figure_format(plot) if plot else ""
    terms: dict[str, Any] = {"max_loss": max_loss, "confidence": confidence, "seed": seed}
    if other is None:
        comparison = run(traces, folds=folds, **terms).to_dict()
    else:
        comparison = transfer(traces, other, on_mismatch=on_mismatch, **terms).to_dict()
    if plot:
        saved_against_change(plot, form, comparison)
    show(comparison, as_json, lambda: comparison_table(comparison))


@main.command()
@click.argument("traces", type=InputFile(), nargs=-1, required=True)
@click.option("--policy", "policy_file", type=InputFile(), help="Policy file.")
@click.option("--out", required=True, type=OutputFile(), help="Page to write.")
@click.option("--title", default="entropy-chains", show_default=True)
@as_json
def report(traces: tuple[Path, ...], policy_file: Path | None, out: Path, title: str, as_json: bool) -> None:
    """Write a self-contained page with plots."""
    from entropy_chains.show.report import write_report

    policy = Policy.of(policy_file)
    write_report(out, list(traces), policy, title=title)
    show({"out": str(out)}, as_json, [f"report → {out}"])


@main.command()
@options(WHICH, LOCAL, TIMEOUT)
@as_json
def doctor(base_url: str | None, model: str | None, as_json: bool, **backend_options: Any) -> None:
    """What can this backend do, and what does that mean for stopping? Asks a handful of small real requests."""
    from entropy_chains.show.terminal import doctor_table

    if not model:
        raise SettingsError("give --base-url URL --model NAME for a server, or --model PATH_OR_ID (or 'demo') for a local model")
    chosen = settings_of(base_url, backend_options)
    if base_url:
        client = client_of(base_url, chosen.get("timeout"))
        from entropy_chains.doctor.examine import examine

        examination = examine(client, model).to_dict()
    else:
        backend = load(model, **chosen)
        from entropy_chains.doctor.local import examine_local

        examination = examine_local(backend).to_dict()
    show(examination, as_json, lambda: doctor_table(examination))


@main.command()
@click.argument("project")
@click.option("--since", type=click.DateTime(), help="Only runs from then on, UTC.")
@click.option("--traces", type=AppendedTraces(), help="Append the runs whose steps were recorded to it.")
@as_json
def langsmith(project: str, since: datetime | None, traces: Path | None, as_json: bool) -> None:
    """What stopping saved in a LangSmith project, measured by the holdout."""
    from entropy_chains.offline.traces import append_traces
    from entropy_chains.savings.holdout import holdout_saving

    try:
        from langchain_entropy_chains.langsmith_runs import read_runs, recorded_traces, saving_table, savings_runs
    except ImportError as error:
        raise SettingsError("this needs: pip install langchain-entropy-chains") from error
    runs = read_runs(project, since=since.replace(tzinfo=UTC) if since else None)
    saving = holdout_saving(savings_runs(runs))
    recorded = recorded_traces(runs) if traces else []
    if traces and recorded:
        append_traces(traces, recorded)
    result = {"project": project, "runs": len(runs), "traces": len(recorded), **saving.to_dict()}
    show(result, as_json, lambda: saving_table(project, saving))


def show(result: dict[str, Any], as_json: bool, human: Sequence[str] | Callable[[], Any]) -> None:
    """Print a result in the form asked for."""
    if as_json:
        echo_json(result)
    elif callable(human):
        console().print(human())
    else:
        echo(*human)


if __name__ == "__main__":
    main()
