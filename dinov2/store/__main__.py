"""Blobs between the store and a remote, and the store's upkeep; goes with `dvc push`, `dvc pull` and `dvc gc`.

  push     copy the blobs that outputs below data/ name to the remote, as far as they are missing there
  pull     copy them from the remote into the store, as far as they are missing here
  verify   look at the bytes of each of them in the store; damaged ones are put aside, so that `pull` brings them again
  gc       remove the blobs that no output names, below data/ or in DVC's cache, nor work that is not finished

Copied blobs are checked by their sha256 on arrival. What is interrupted goes on where it was when called again.
Exit codes: 0 done; 1 blobs are damaged or could not be copied; 2 a person's mistake, told in one sentence.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dinov2.params import InputError, load_section, without_credentials
from dinov2.store import Store, StoreParams
from dinov2.store.locking import alone, in_use
from dinov2.store.pins import Pin, check_outputs_are_known, pins_of_cache, pins_of_outputs
from dinov2.store.transfer import copy_missing
from dinov2.store.upkeep import damaged, garbage, remove, remove_damaged_copies, remove_leftovers
from dinov2.workspace import copies

DATA, WORK = Path("data"), Path("work")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    options = _parse(arguments)
    try:
        params = load_section(options.params, "store", StoreParams)
        return {"push": _push, "pull": _pull, "verify": _verify, "gc": _gc}[options.verb](params, options)
    except (InputError, OSError) as error:
        sys.stderr.write(f"store: {error}\n")
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("store: stopped; the same command goes on where it was\n")
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m dinov2.store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="push | pull | verify | gc")
    for name in ("push", "pull", "verify", "gc"):
        verb = verbs.add_parser(name)
        verb.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="or %(default)s")
        if name in ("push", "pull"):
            verb.add_argument("--remote", metavar="URL", help="in place of store.remote: any fsspec URL")
        if name in ("push", "pull", "verify"):
            help_text = "the blobs of outputs in DVC's cache too, e.g. of earlier params"
            verb.add_argument("--cached", action="store_true", help=help_text)
            verb.add_argument("--jobs", type=int, default=8, metavar="N", help="blobs at once; or %(default)s")
    verbs.choices["gc"].add_argument("--dry-run", action="store_true", help="only say what would be removed")
    verbs.choices["gc"].add_argument(
        "--projects", type=Path, nargs="+", default=[], metavar="FOLDER", help="other clones that use the same store"
    )
    return parser.parse_args(arguments)


def _push(params: StoreParams, options: argparse.Namespace) -> int:
    store, remote = Store(params), _remote(params, options)
    do = "`pull` them from another remote, or run `dvc repro -f` of"
    return _copy(store, remote, options, verb="push", absent_from="the store", do=do)


def _pull(params: StoreParams, options: argparse.Namespace) -> int:
    store, remote = Store(params), _remote(params, options)
    do = "`push` them where they were made, or run `dvc repro -f` of"
    return _copy(remote, store, options, verb="pull", absent_from=f"the remote {remote.params.url}", do=do)


def _remote(params: StoreParams, options: argparse.Namespace) -> Store:
    url = params.remote if options.remote is None else without_credentials(options.remote)
    if url is None:
        raise InputError("there is no remote: set store.remote in params.yaml, or give --remote URL")
    remote = Store(params.model_copy(update={"url": url}))
    store = Store(params)
    if (remote.filesystem, remote.root) == (store.filesystem, store.root):
        raise InputError(f"the remote {url} is the store itself; give another")
    return remote


def _pins(options: argparse.Namespace) -> dict[str, Pin]:
    if options.jobs < 1:
        raise InputError(f"--jobs is {options.jobs}; give 1 or more")
    pins = pins_of_outputs(DATA)
    if options.cached:
        pins = {**pins_of_cache(Path()), **pins}
    if not pins:
        raise InputError(f"no output below {DATA}/ names a blob; `dvc pull` or `dvc checkout` brings outputs")
    return pins


def _copy(
    source: Store, target: Store, options: argparse.Namespace, *, verb: str, absent_from: str, do: str
) -> int:
    pins = _pins(options)
    with in_use(WORK):
        remove_leftovers(target)
        done = copy_missing(source, target, pins, num_at_once=options.jobs)
    num_there = len(pins) - len(done.names) - len(done.absent) - len(done.failed)
    copied = f"{len(done.names)} of {len(pins)} blobs copied ({done.num_bytes / 1e6:.1f} MB)"
    sys.stdout.write(f"{verb}: {copied}, {num_there} were there\n")
    for name, why in sorted(done.failed.items()):
        sys.stderr.write(f"store: {name}: {why}\n")
    if done.absent:
        raise InputError(
            f"{len(done.absent)} blobs are not in {absent_from}, the first: {done.absent[0]}; "
            f"{do} {pins[done.absent[0]].by}"
        )
    if done.failed:
        sys.stderr.write(f"store: {len(done.failed)} blobs could not be copied; run it again, and it goes on\n")
    return int(bool(done.failed))


def _verify(params: StoreParams, options: argparse.Namespace) -> int:
    store, pins = Store(params), _pins(options)
    with in_use(WORK):
        found = damaged(store, pins, num_at_once=options.jobs)
        for name, why in sorted(found.items()):
            sys.stderr.write(f"store: {name} of {pins[name].by} is damaged: {why}; it is now {store.put_aside(name)}\n")
        for path in remove_damaged_copies(store, pins):
            sys.stderr.write(f"store: the copy {path} was damaged and is removed; it is fetched again when needed\n")
        there = store.sizes()
    absent = [name for name in pins if name not in there and name not in found]
    for name in absent:
        sys.stderr.write(f"store: {name} of {pins[name].by} is absent\n")
    sys.stdout.write(f"verify: {len(pins) - len(found) - len(absent)} of {len(pins)} blobs are whole\n")
    if found or absent:
        sys.stderr.write("store: `python -m dinov2.store pull` brings them again, or `dvc repro -f` of their stage\n")
    return int(bool(found or absent))


def _gc(params: StoreParams, options: argparse.Namespace) -> int:
    store = Store(params)
    roots = [Path(), *options.projects]
    for root in roots:
        if not root.is_dir():
            raise InputError(f"--projects {root} is no folder; give those of other clones")
    places = [place for root in roots for place in (root, *copies(root))]
    works = [place / WORK for place in places]
    with alone(works):
        pins: dict[str, Pin] = {}
        for root in roots:
            check_outputs_are_known(root)
            pins |= pins_of_cache(root)
        for place in places:
            pins |= pins_of_outputs(place / DATA)
        if not pins:
            raise InputError(f"no output names a blob, so all would go; if that is meant, remove {params.url} yourself")
        found = garbage(store, pins, works)
        if not options.dry_run:
            remove(store, found)
    for path in (*found.blobs, *found.leftovers, *found.copies, *found.work):
        sys.stdout.write(f"{path}\n")
    num_bytes = sum(sum(part.values()) for part in (found.blobs, found.leftovers, found.copies))
    word = "would remove" if options.dry_run else "removed"
    sys.stdout.write(
        f"gc: {word} {len(found.blobs)} blobs, {len(found.leftovers)} files of killed writers and {len(found.copies)} "
        f"local copies, {num_bytes / 1e6:.1f} MB, and {len(found.work)} folders of finished work\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
