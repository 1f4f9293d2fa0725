"""The command line: python -m data.pretext COMMAND [--source FOLDER] [--preset NAME].

export    write a data set that `datasets.load_dataset` reads
preview   write an HTML sheet with samples, prompts and truths
audit     print how far each cheating baseline gets
bench     print throughput
stats     print the mix: tasks, acceptance, reasons of refusal, sizes
eval      ask a model; accuracy, score above chance, confidence intervals
list      print tasks with their knobs, and presets

Without --source everything is drawn, nothing is downloaded. A source is a folder of any pictures and clips, .tar
shards, a .parquet file, a saved or hub data set. Bad files are skipped, counted and listed. `COMMAND --help` shows
examples.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.data.pretext.catalogue import TASKS, find
from mmrl.data.pretext.contract import Sample, Visual
from mmrl.data.pretext.difficulty import DefaultKnobs, FixedLevel
from mmrl.data.pretext.presets import PRESETS, preset
from mmrl.data.pretext.stream.open import open_source
from mmrl.data.pretext.stream.sources import Source, SplitSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.ground.outputs import refuse_file, refuse_report, write_report
from mmrl.ground.printable import show, tell
from mmrl.ground.progress import with_progress
from mmrl.ground.quarantine import Quarantine
from mmrl.ground.scratch import temporary_folder
from mmrl.ground.stopping import leaving

EXAMPLES = {
    "export": """examples:
  python -m data.pretext export --preset puzzlecraft-mix --count 10000 --output out/
  python -m data.pretext export --source ~/photos --split train --workers 8 --output out/
The rows do not depend on --workers. Columns: prompt, images, videos, video_times, solution, task, truth, ...; score
answers with mmrl.data.pretext.stream.scoring.trl_reward, which has the signature of a TRL reward function.""",
    "preview": """examples:
  python -m data.pretext preview --source ~/photos --count 50 --output sheet.html
  python -m data.pretext preview --preset jigsaw --level 1.0      one task, as hard as it gets""",
    "audit": """examples:
  python -m data.pretext audit --source ~/photos --preset jigsaw --gaps
  python -m data.pretext audit --all --count 100 > audit.md       every preset and task, with a random policy
In a cell stand accuracy/reward in percent: compare with the column "chance".""",
    "bench": """example:
  python -m data.pretext bench
Figures are CPU time, the best of three, so a busy machine disturbs little.""",
    "stats": """examples:
  python -m data.pretext stats --source ~/photos --count 500      which tasks fit these media, and why others do not
  python -m data.pretext stats --level 0.8""",
    "eval": """examples:
  python -m data.pretext eval --model Qwen/Qwen2.5-VL-3B-Instruct --preset viubench-like
  python -m data.pretext eval --model out/final --source ~/photos --count 500 --json report.json
Takes the held-out side of the media unless --split says otherwise.""",
    "list": """example:
  python -m data.pretext list""",
}


def main(arguments: list[str] | None = None, prog: str = "python -m data.pretext") -> int:
    """Run a command; errors of the user end with one line and status 2. `prog`: how the user called it."""
    args = _parser(prog).parse_args(arguments)
    try:
        with leaving():
            return args.run(args)
    except ValueError as error:
        tell(f"error: {error}")
        return 2


def stream_of(args: argparse.Namespace, quarantine: Path | None = None) -> SampleStream:
    """The stream that the arguments describe."""
    bad = Quarantine(quarantine)
    levels = DefaultKnobs() if args.level is None else FixedLevel(args.level)
    return SampleStream(
        source_of(args, bad), preset(args.preset), args.seed, levels=levels, quarantine=bad
    )


def source_of(args: argparse.Namespace, quarantine: Quarantine) -> Source:
    """The source, split if asked for."""
    source = open_source(args.source, quarantine)
    if args.split == "all":
        return source
    hashes = np.load(args.exclude) if args.exclude else None
    return SplitSource(source, args.split, args.heldout, hashes)


def run_export(args: argparse.Namespace) -> int:
    from mmrl.data.pretext.stream.export import export

    folder = Path(args.output)
    settings = ("source", "preset", "seed", "level", "heldout")
    with temporary_folder("export") as scratch:
        quarantine = scratch / "quarantine.jsonl"
        done = export(
            partial(stream_of, args, quarantine),
            folder,
            args.count,
            split="test" if args.split == "heldout" else "train",
            workers=args.workers,
            overwrite=args.overwrite,
            about={name: getattr(args, name) for name in settings},
            quarantine=quarantine,
        )
    if (folder / "quarantine.jsonl").is_file():
        show(f"skipped media are listed in {folder / 'quarantine.jsonl'}")
    show(
        f"wrote {done.rows} rows to {done.folder}; load them with datasets.load_dataset({str(done.folder)!r})"
    )
    return 0


def run_preview(args: argparse.Namespace) -> int:
    from mmrl.data.pretext.audit.preview import is_preview, write_preview

    path = Path(args.output)
    refuse_file(path, is_preview, "sheet of ours")
    stream = stream_of(args)
    samples = with_progress(stream.first(args.count), args.count, "samples made")
    number = write_preview(samples, path, f"{args.preset} on {stream.source.name}")
    show(f"wrote {number} samples to {path}; open it in a browser")
    return 0


def run_audit(args: argparse.Namespace) -> int:
    from mmrl.data.pretext.audit.audit import audit, gap_curve

    source = source_of(args, Quarantine())
    if args.all or args.markdown:
        return _audit_page(args, source)
    file = _report_file(args, "audit")
    report = audit(source, preset(args.preset), args.count, args.seed)
    show(report.table())
    if args.gaps:
        show("\nmatching borders on a 3×3 jigsaw, by gap:")
        for row in gap_curve(source):
            values = "  ".join(f"{name} {value:.2f}" for name, value in row.items())
            show(f"  {values}")
    if file is not None:
        write_report(file, "audit", report.json())
    return 1 if report.leaks else 0


def _audit_page(args: argparse.Namespace, source: Source) -> int:
    from mmrl.data.pretext.audit.audit_page import everything, page_sections

    presets = everything() if args.all else [preset(args.preset)]
    leaks = 0
    # Printed piece by piece: the whole page takes many minutes.
    for text, leaky in page_sections(source, presets, args.count, args.seed):
        show(text)
        leaks += leaky
    return 1 if leaks else 0


def run_bench(args: argparse.Namespace) -> int:
    from mmrl.data.pretext.audit.bench import throughput

    figures = throughput(args.seconds)
    for figure in figures:
        show(figure.line())
    return 0 if all(figure.half for figure in figures) else 1


def run_stats(args: argparse.Namespace) -> int:
    stream = stream_of(args)
    samples = list(with_progress(stream.first(args.count), args.count, "samples made"))
    tasks = Counter(sample.task for sample in samples)
    show(
        f"{'task':20s} {'share':>6s} {'accepted':>9s} {'chance':>7s} {'reward':>7s} {'visuals':>8s} "
        f"{'megapixels':>11s}"
    )
    for task, number in tasks.most_common():
        of_task = [sample for sample in samples if sample.task == task]
        show(
            _stats_row(task, of_task, number / len(samples), stream.acceptance().get(task, 1.0))
        )
    for key, number in sorted(stream.counts.items()):
        if not key.startswith("made/"):
            show(f"  {key}: {number}")
    return 0


def _stats_row(name: str, samples: list[Sample], share: float, accepted: float) -> str:
    task = find(name)
    chance = np.mean([task.chance(sample.knobs) for sample in samples])
    reward = np.mean([task.chance_reward(sample.knobs) for sample in samples])
    visuals = np.mean([len(sample.visuals) for sample in samples])
    sizes = [sum(_pixels(visual) for visual in sample.visuals) for sample in samples]
    warning = "  few media suit this task" if accepted < 0.2 else ""
    return (
        f"{name:20s} {share:6.1%} {accepted:9.0%} {chance:7.3f} {reward:7.3f} {visuals:8.1f}"
        f" {np.mean(sizes) / 1e6:8.2f}{warning}"
    )


def _pixels(visual: Visual) -> int:
    """All frames of a clip together."""
    height, width = visual.pixels.shape[-3:-1]
    return height * width * (len(visual.pixels) if visual.is_video else 1)


def run_eval(args: argparse.Namespace) -> int:
    from mmrl.data.pretext.evaluate import evaluate_model

    if args.model == "tiny":
        tell("no --model given: asking an untrained tiny model, whose answers are noise")
    file = _report_file(args, "pretext evaluation")
    report = evaluate_model(args.model, stream_of(args), args.count, args.max_tokens, args.seed)
    show(report.table())
    if file is not None:
        write_report(file, "pretext evaluation", report.json())
    return 0


def _report_file(args: argparse.Namespace, what: str) -> Path | None:
    """Where the report goes; refused now, not after the work, if something else is there."""
    file = Path(args.json) if args.json is not None else None
    refuse_report(file, what, "--json")
    return file


def run_list(args: argparse.Namespace) -> int:
    for entry in PRESETS:
        show(f"{entry.name}: {entry.note}")
    for task in TASKS:
        show(f"\n{task.name} (v{task.version}; {', '.join(task.kinds)})")
        for name, knob in task.knobs.items():
            show(f"  {name} = {knob.default!r}: {knob.help}")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str, count: int = 0) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, parents=[_shared()] if count else [], epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if count:
            command.add_argument(
                "--count",
                type=_positive,
                default=count,
                help=f"number of samples (default {count})",
            )
        command.set_defaults(run=run)
        return command

    export = add(
        "export", run_export, "write a data set that datasets.load_dataset reads", 1000
    )
    export.add_argument("--output", required=True, help="folder to write")
    export.add_argument(
        "--workers", type=_positive, default=1, help="processes; the rows do not depend on it"
    )
    export.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an exported data set; files of others in its folder stay",
    )
    preview = add(
        "preview", run_preview, "write an HTML sheet with samples, prompts and truths", 24
    )
    preview.add_argument(
        "--output", default="preview.html", help="file to write (default preview.html)"
    )
    audit = add(
        "audit",
        run_audit,
        "print how far each cheating baseline gets; status 1 if one is undeclared",
        200,
    )
    audit.add_argument(
        "--gaps", action="store_true", help="also show how a gap defeats border matching"
    )
    audit.add_argument(
        "--all",
        action="store_true",
        help="every preset, and the tasks in none, as a Markdown page",
    )
    audit.add_argument(
        "--markdown",
        action="store_true",
        help="the preset as a Markdown page with chance levels",
    )
    audit.add_argument("--json", help="write the findings to this file")
    bench = add(
        "bench", run_bench, "print throughput; status 1 if a figure is below half of its goal"
    )
    bench.add_argument(
        "--seconds", type=float, default=1.0, help="CPU seconds per figure and repetition"
    )
    add("stats", run_stats, "print the mix: tasks, acceptance, reasons of refusal, sizes", 200)
    evaluate = add(
        "eval", run_eval, "ask a model: accuracy, score above chance, confidence intervals", 200
    )
    evaluate.add_argument(
        "--model",
        default="tiny",
        help="model folder or hub name (default: an untrained tiny one)",
    )
    evaluate.add_argument("--max-tokens", type=_positive, default=512, help="longest answer")
    evaluate.add_argument("--json", help="write the report to this file")
    evaluate.set_defaults(split="heldout")
    add("list", run_list, "print presets and tasks with their knobs")
    return parser


def _shared() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--source",
        default="drawn",
        help="folder, .tar, .parquet, hub name, or 'drawn' (default)",
    )
    shared.add_argument(
        "--preset",
        default="mmrl-mix-v1",
        help="a preset or a task (see `list`; default mmrl-mix-v1)",
    )
    shared.add_argument("--seed", type=int, default=0, help="another seed gives other samples")
    shared.add_argument(
        "--level",
        type=float,
        default=None,
        help="difficulty in [0, 1] instead of the default knobs",
    )
    shared.add_argument(
        "--split",
        choices=("all", "train", "heldout"),
        default="all",
        help="side of the content split",
    )
    shared.add_argument(
        "--heldout", type=float, default=0.1, help="held-out share of the media (default 0.1)"
    )
    shared.add_argument(
        "--exclude",
        help="hashes.npy of an exported set: its near-duplicates stay out of training",
    )
    return shared


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


if __name__ == "__main__":
    sys.exit(main())
