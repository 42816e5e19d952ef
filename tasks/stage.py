"""What every stage has in common: its command line, fingerprint, job, record, gate and published output.

`python -m tasks.<stage>` calls `main(run)`, which
  1. reads and checks the stage's section of params.yaml and its inputs,
  2. takes the fingerprint of params, inputs and VERSION: the name of its folder below work/,
  3. submits `run` (or follows the job that still runs it) and shows its log,
  4. writes record.json and metrics.json, checks the gate, and publishes the output by renaming it.
With `--plan` it only prints what the stage would do and need (tasks/plan.py).
Exit codes: 0 done; 2 a person's mistake, told in one sentence; 3 a gate was missed; 1 the job failed.
"""

import argparse
import errno
import fcntl
import inspect
import json
import os
import shutil
import socket
import sys
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dinov2.params import InputError, load_section, masked
from dinov2.records import DISK_FULL, Summary, write_json
from dinov2.store import StoreParams
from dinov2.store.locking import UNSUPPORTED
from tasks.call import WORK, Outcome, StageCall, StageJob, disk_full
from tasks.damage import damage_forgotten
from tasks.fan_out import Phase, Share, missing_parts, phases
from tasks.follow import JobFailedError
from tasks.gates import GateMissedError, check_gate
from tasks.hashing import hash_inputs
from tasks.launch import cancel_remembered, run_jobs
from tasks.options import filled_in
from tasks.plan import print_plan
from tasks.resources import LaunchParams
from tasks.server import TrackingParams
from tasks.tracked import Tracked, ship_from_copy

PARAMS_FILE = Path("params.yaml")
FULL_BYTES = 1_000_000
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
SUPPLIED = ("params", "work", "store")  # arguments of `run` that are not options of the command line


def main(run: Callable[..., Summary]) -> int:
    """The command line of a stage; returns its exit code."""
    stage = Path(run.__code__.co_filename).stem
    module = sys.modules[run.__module__]
    if "--plan" in sys.argv[1:]:
        return print_plan(stage, module, PARAMS_FILE)
    code = _main(stage, module.VERSION, run)
    ship_from_copy()
    return code


def _main(stage: str, version: int, run: Callable[..., Summary]) -> int:
    options = _parse(stage, run)
    params_file = Path(options.pop("params"))
    instance, failure = stage, WORK / stage / "failure.json"
    try:
        options = filled_in(stage, options, _kinds(run), params_file)
        instance = "@".join([stage, *(value for name, value in options.items() if _kinds(run)[name] is str)])
        failure = WORK / instance / "failure.json"
        failure.unlink(missing_ok=True)
        _execute(stage, version, run, options, params_file)
    except InputError as error:
        return _fail(failure, instance, "mistake", str(error), 2)
    except GateMissedError as error:
        return _fail(failure, instance, "gate", str(error), 3)
    except JobFailedError as error:
        sys.stderr.write(masked(error.trace.rstrip()) + "\n")
        if (full := _fullness(WORK)) is not None:  # the job could not even leave a word
            kind, sentence, code = "mistake", disk_full(full, WORK.absolute()), 2
        else:
            kind, sentence, code = "cancelled" if error.is_final else "crash", str(error), 1
        return _fail(failure, instance, kind, sentence, code)
    except KeyboardInterrupt as error:
        return _fail(failure, instance, "stopped", str(error) or "stopped", 130)
    except OSError as error:
        if error.errno not in (*DISK_FULL, *FORBIDDEN):
            raise
        sentence = disk_full(error, WORK) if error.errno in DISK_FULL else _forbidden(error)
        return _fail(failure, instance, "mistake", sentence, 2)
    return 0


def _fullness(folder: Path) -> OSError | None:
    """What a file that is written there meets, if it is that the disk, its inodes or a quota is used up."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(FULL_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return OSError(error.errno, error.strerror) if error.errno in DISK_FULL else None
    return None


def _forbidden(error: OSError) -> str:
    what = f"you may not use {error.filename or WORK} ({error.strerror})"
    return f"{what}; ask its owner, or work in a copy of the repository of your own"


def _fail(path: Path, instance: str, kind: str, sentence: str, code: int) -> int:
    """Tell the person in one last line and the flow by a file (a mistake or a gate is not to be tried again)."""
    sentence = masked(sentence)
    try:
        write_json(path, {"kind": kind, "sentence": sentence})
    except OSError as error:
        sys.stderr.write(f"{instance}: can't write {path} ({error.strerror})\n")
    sys.stderr.write(f"{instance}: {sentence}\n")
    return code


def _kinds(run: Callable[..., Summary]) -> dict[str, type]:
    hints = typing.get_type_hints(run)
    return {name: hints[name] for name in inspect.signature(run).parameters if name not in SUPPLIED}


def _parse(stage: str, run: Callable[..., Summary]) -> dict[str, str]:
    about = sys.modules[run.__module__].__doc__ or ""
    parser = argparse.ArgumentParser(
        f"python -m tasks.{stage}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, kind in _kinds(run).items():
        parser.add_argument(f"--{name}", required=True, metavar="NAME" if kind is str else "FOLDER")
    parser.add_argument("--params", default=str(PARAMS_FILE), metavar="FILE", help="in place of %(default)s")
    parser.add_argument("--plan", action="store_true", help="only say what it would do and need; needs no other option")
    options = vars(parser.parse_args())
    del options["plan"]  # else main would not have come here
    return options


def _execute(stage: str, version: int, run: Callable[..., Summary], options: dict[str, str], params_file: Path) -> None:
    params = load_section(params_file, stage, typing.get_type_hints(run)["params"])
    store = load_section(params_file, "store", StoreParams)
    launch = load_section(params_file, "launch", LaunchParams)
    tracking = load_section(params_file, "tracking", TrackingParams)
    tracking.absolute_uri()
    if (trouble := tracking.trouble()) is not None:
        _show(trouble)
    kinds = _kinds(run)
    paths = {name: value for name, value in options.items() if kinds[name] is Path and name != "out"}
    names = {name: value for name, value in options.items() if kinds[name] is str}
    call = StageCall(stage, paths, names, options["out"], params, version, hash_inputs(paths, WORK / "hashes"))
    with _only_one(WORK / call.instance):
        _cancel_others((WORK / call.instance).glob("*/job*"), but_below=call.work)
        call.work.mkdir(parents=True, exist_ok=True)
        metrics = None
        with Tracked(call, sys.modules[run.__module__], warn=_show) as tracked:
            try:
                metrics = _finished(call)
                if metrics is None:
                    metrics = _work(call, phases(sys.modules[run.__module__]), store, launch, tracked.tags)
                check_gate(params_file, stage, call.instance, metrics, call.work / "out")
                out = _publish(call)
            except (InputError, GateMissedError, JobFailedError) as error:
                tracked.finish("FAILED", call.work / "out", metrics or {}, str(error))
                raise
            tracked.finish("FINISHED", out, metrics)


def _show(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the stage's lock; the kernel frees it when this process ends, however it ends. Raises InputError if held."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise InputError(f"{folder.name} is already being run by {holder}; wait for it or stop it") from error
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            _show(f"{lock.name} can't be locked ({error.strerror}): see to it that nobody else runs {folder.name} now")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def _work(
    call: StageCall, fans: tuple[Phase, ...], store: StoreParams, launch: LaunchParams, tags: dict[str, str]
) -> dict[str, float]:
    """Run the stage's jobs, write its records, and return its metrics. Raises InputError for a person's mistake."""
    (call.work / "run.json").unlink(missing_ok=True)  # the mark of finished work, which `dinov2.store gc` goes by
    num_workers = launch.resources(call.stage).workers
    for phase in fans if num_workers > 1 else ():  # a single worker is the stage's own job, which makes them in order
        _fan_out(phase, call, store, launch, num_workers)
    [outcomes] = _run_jobs(call, launch, [_job(call, store, launch)], "job", (call.work / "out").exists)
    first = outcomes[0]
    assert first.summary is not None
    write_record(call, first.summary, call.work / "out")
    write_json(call.work / "run.json", {**tags, "seconds": first.seconds, "job": first.job})
    metrics = _finished(call)
    assert metrics is not None
    return metrics


def _cancel_others(folders: Iterable[Path], *, but_below: Path) -> None:
    """Cancel jobs that are remembered in `folders`, which may still write what this start will write."""
    for folder in sorted(folders):
        if not folder.is_relative_to(but_below):
            cancel_remembered(folder, _show)


def _fan_out(phase: Phase, call: StageCall, store: StoreParams, launch: LaunchParams, num_workers: int) -> None:
    """Let workers make the missing parts of a phase."""
    values = call.values(store)
    with damage_forgotten(call.work):
        missing = missing_parts(phase, values)
    if not missing:
        return
    num_workers = min(num_workers, len(missing))
    _show(f"{phase.name}: {len(missing)} parts for {num_workers} workers")
    jobs = [_job(call, store, launch, Share(phase.name, tuple(missing[n::num_workers]))) for n in range(num_workers)]
    _run_jobs(call, launch, jobs, f"job-{phase.name}", lambda: not missing_parts(phase, values))


def _job(call: StageCall, store: StoreParams, launch: LaunchParams, share: Share | None = None) -> StageJob:
    return StageJob(call, store, launch.resources(call.stage).cpus_per_task, share)


def _run_jobs(
    call: StageCall, launch: LaunchParams, jobs: list[StageJob], folder: str, is_there: Callable[[], bool]
) -> list[list[Outcome]]:
    """Outcomes of all ranks of all jobs. Raises InputError for the first mistake; `is_there`: their work still is.

    Jobs of other phases, left behind by a submitter with another number of workers, are cancelled first.
    """
    _cancel_others(call.work.glob("job*"), but_below=call.work / folder)
    results = run_jobs(
        jobs,
        stage=call.stage,
        name=call.instance,
        folder=call.work / folder,
        accept=lambda ended: is_there() and all(outcome.mistake is None for outcome in ended),
        params=launch,
        show=_show,
        gave_up=lambda outcome: outcome.mistake is not None,
    )
    for outcomes in results:
        for outcome in outcomes:
            if outcome.mistake is not None:
                raise InputError(outcome.mistake)
    return results


def _finished(call: StageCall) -> dict[str, float] | None:
    """Metrics of an output that is whole but not yet published, e.g. because its gate was missed; else None."""
    out = call.work / "out"
    return json.loads((out / "metrics.json").read_text()) if (out / "record.json").exists() else None


def write_record(call: StageCall, summary: Summary, out: Path) -> None:
    """metrics.json, then record.json: the mark that `out` is whole. Nothing in them differs from run to run."""
    counts = summary.model_dump(exclude={"metrics"})
    assert summary.num_in == summary.num_kept + sum(summary.dropped.values()), (call.instance, counts)
    kept_share = summary.num_kept / summary.num_in if summary.num_in else 0.0
    write_json(out / "metrics.json", {**summary.metrics, "kept_share": kept_share})
    record = {
        "stage": call.stage,
        "version": call.version,
        "arguments": call.names,
        "params": call.params.model_dump(mode="json"),
        "inputs": call.inputs,
        "counts": counts,
    }
    write_json(out / "record.json", record)


def _publish(call: StageCall) -> Path:
    """Rename the finished output to where dvc.yaml wants it; what was there goes only when the new one is in place."""
    out = Path(call.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    previous = call.work / "previous"
    shutil.rmtree(previous, ignore_errors=True)
    if out.exists():
        out.rename(previous)
    (call.work / "out").rename(out)
    shutil.rmtree(previous, ignore_errors=True)
    return out
