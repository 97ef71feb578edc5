"""The options of the commands that translate deltas from and to other formats."""

from __future__ import annotations

import argparse
from pathlib import Path

from selective_peft.delta_options import DELTA, add_conflict, add_form, add_out, add_output
from selective_peft.options import COUNT

BASE = "the base's folder, as save_pretrained writes it"
EXPORT = """\
Makes a SHiRA adapter of a delta, which PEFT loads and merges into the tuned model, bit
for bit: PEFT itself does so before the folder appears. SHiRA holds single scalars of
linear maps; modules with other changes (embeddings, norms, biases) are stored whole.

example:
  selective-peft export --base MiniLM --delta reviews-tuned/delta --out adapter"""
IMPORT = """\
Makes a delta of a SHiRA adapter's folder, or of a file that `write_summary_to_disk` of
selective-optimizers 0.4 wrote. The latter is a pickle; it is read without running it.

example:
  selective-peft import adapter --base MiniLM --out delta --compact"""


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help=BASE)
    parser.add_argument(
        "--model-class",
        metavar="NAME",
        help="of transformers, such as BertForSequenceClassification (what the files say)",
    )


def export(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft export`."""
    _model(parser)
    parser.add_argument(
        "--delta", type=Path, required=True, nargs="+", metavar="D", help=f"{DELTA}; several are composed first"
    )
    add_out(parser, "folder for the adapter")
    add_conflict(parser)
    parser.add_argument(
        "--no-dense", dest="dense", action="store_false", help="refuse what would have to be stored whole"
    )
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not let PEFT merge it and compare the result"
    )
    add_output(parser)


def import_(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `selective-peft import`."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of an adapter, or file of a summary")
    _model(parser)
    parser.add_argument("--labels", type=COUNT, metavar="N", help="of the head (what the configuration says)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="the precision that the model was trained in, and is used in (that of the files)",
    )
    add_out(parser, "folder for the delta")
    parser.add_argument("--base-model", metavar="NAME", help="what the base is called (what the files say)")
    parser.add_argument("--base-revision", metavar="NAME", help="its commit or branch")
    add_form(parser)
    add_output(parser)


COMMANDS = {
    "export": (EXPORT, export, "a SHiRA adapter for PEFT of a delta"),
    "import": (IMPORT, import_, "a delta of a SHiRA adapter, or of selective-optimizers"),
}  # name -> its description, what adds its options, one line
