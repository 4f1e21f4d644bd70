"""
The whole chain: index, retriever, checks, training, evaluation, and the table beside published numbers.

    python examples/paper/run.py --smoke                                        # a tiny model, files of the same schema, a minute
    python examples/paper/run.py --config examples/paper/one_gpu.yaml --data data

Every command is printed before it runs, so that each can be run by hand. Needs in --data: `wiki-18.jsonl`, `nq/train.jsonl`,
`hotpotqa/train.jsonl` and `test.jsonl` (README.md says where they are from). Options after `--` go to train.py.
"""

import argparse
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
MEM1 = [sys.executable, "-m", "mem1_trl"]
TINY = HERE.parent / "assets" / "tiny-mem1"


def announce(command):
    print("$", shlex.join(map(str, command)), flush=True)
    return [str(word) for word in command]


def run(*command):
    done = subprocess.run(announce(command), check=False)
    if done.returncode:
        sys.exit(f"run.py: ended, since the last command failed ({done.returncode}).")


@contextmanager
def retriever(index, port):
    """A retriever that answers, and ends with this program."""
    command = announce([*MEM1, "retriever", "--corpus", index, "--port", port])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if "/retrieve" not in line:
            sys.exit("run.py: ended, since the retriever did not start.")
        print(line, end="", flush=True)
        yield line.split(" passages at ")[1].split("/retrieve")[0]
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and made-up files, to see that it runs")
    parser.add_argument("--config", type=Path, help="one_gpu.yaml, several_gpus.yaml, published.yaml, or yours")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the files (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/paper/run"), help="(default: %(default)s)")
    parser.add_argument("--accelerate", type=Path, help="configuration of accelerate, for several GPUs")
    parser.add_argument("--port", type=int, default=8000, help="of the retriever (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=1000, help="for each number of objectives (default: %(default)s)")
    parser.add_argument("further", nargs="*", metavar="-- OPTIONS", help="options of train.py")
    args = parser.parse_args()
    if args.smoke == (args.config is not None):
        parser.error("give either --smoke or --config FILE")

    further, evaluation = args.further, ["--tasks", args.tasks]
    if args.smoke:
        from smoke_files import write_files

        args.data, args.config, args.port = args.output_dir / "data", HERE / "smoke.yaml", 0
        write_files(args.data)
        further = ["--model_name_or_path", TINY, *further]
        evaluation = ["--tasks", 4, "--objectives", 1, 2, "--top_k", 1, "--device", "cpu", "--batch_size", 8]
    launch = [sys.executable]
    if args.accelerate is not None:
        launch = ["accelerate", "launch", "--config_file", args.accelerate]

    index, model = args.data / "wiki-bm25", args.output_dir / "model"
    if not index.is_dir():
        run(*MEM1, "index", args.data / "wiki-18.jsonl", index)
    with retriever(index, args.port) as address:
        files = [args.data / name / "train.jsonl" for name in ("nq", "hotpotqa")]
        run(*launch, HERE / "train.py", "--config", args.config, "--train_files", *files, "--corpus", address,
            "--output_dir", model, *further)  # fmt: skip
        run(*MEM1, "eval", "--model_name_or_path", model, "--questions", args.data / "test.jsonl", "--corpus", address,
            "--label", "this run", "--output_dir", args.output_dir, *evaluation)  # fmt: skip
    run(sys.executable, HERE / "table.py", args.output_dir)


if __name__ == "__main__":
    main()
