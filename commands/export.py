"""`attlas export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attlas
import click

from ..engine import messages
from ..errors import Interrupted, UsageError
from .shared import note, path_argument, say, written


@click.command(short_help="A model becomes an ONNX graph with attention outputs.")
@click.argument("model")
@click.option("-o", "--output", required=True, type=path_argument, help="The graph, NAME.onnx.")
@click.option(
    "--checkpoint",
    metavar="FILE[:KEY]",
    help="Weights from this file (safetensors or torch), or from its part KEY, such as model_ema.",
)
@click.option("--pretrained", "pretrained", is_flag=True, help="The tag's own weights from the model hub (default).")
@click.option("--random-init", is_flag=True, help="Random weights.")
@click.option("--seed", default=0, help="Seed of --random-init.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="Precision of the computation; outputs are always float32.",
)
@click.option("--img-size", metavar="N or H,W", help="Input size, instead of the model's own.")
@click.option(
    "--preprocess",
    metavar="KEY=VALUE,...",
    help="Replace parts of the recipe: mean=0.5,std=0.5,resize=squash:256,crop=224.",
)
@click.option("--layers", metavar="0,3-5", help="Only these blocks' attention, counted from 0.")
@click.option("--num-classes", type=int, help="Number of classes of the checkpoint's head; 0 for no head.")
@click.option("--pool", metavar="KIND", help="What the head of timm's model reads: token, avg, map, and so on.")
@click.option(
    "--model-args",
    metavar="KEY=VALUE,...",
    help="Arguments of timm's model (init_values=1e-5,dynamic_img_size=true), or entries of transformers' config.json.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="TEXT or @FILE",
    help="A class of open_clip's model, as words (repeat it), or a file with one in each line.",
)
@click.option("--gradients", is_flag=True, help="Also output gradients of a class's logit by the attention.")
@click.option("--loss-gradients", is_flag=True, help="The same of the loss, -ln of the class's probability.")
@click.option("--norms", is_flag=True, help="Also output norms of values, attention branches and tokens.")
@click.option("--qkv", is_flag=True, help="Also output queries, keys and values, for `attlas show --walk`.")
@click.option("--ablate", is_flag=True, help="Also take inputs that silence heads, for `attlas judge --heads`.")
@click.option("--overwrite", is_flag=True, help="Replace an existing graph.")
def export(
    model: str,
    output: Path,
    pretrained: bool,
    random_init: bool,
    checkpoint: str | None,
    loss_gradients: bool,
    model_args: str | None,
    pool: str | None,
    **options: Any,
) -> None:
    """Export MODEL and check the file against PyTorch.

    MODEL is timm's name, with or without its pretrained tag, hf-hub:ORG/NAME or local-dir:FOLDER of timm's,
    transformers:ORG/NAME or transformers:FOLDER, or open_clip:NAME/TAG.
    """
    if sum([pretrained, random_init, checkpoint is not None]) > 1:
        raise UsageError("--checkpoint, --pretrained and --random-init: choose one")
    if written("seed") and not random_init:
        raise UsageError("--seed: draws the weights of --random-init; leave it out, or add --random-init")
    if loss_gradients and options["gradients"]:
        raise UsageError("--gradients, --loss-gradients: choose one")
    options["gradients"] = "loss" if loss_gradients else options["gradients"]
    options["img_size"] = messages.edges(options["img_size"])
    options["layers"] = messages.layers(options["layers"])
    options["texts"] = messages.texts(options["texts"])
    options["model_args"] = messages.arguments(model_args) | ({"global_pool": pool} if pool else {})
    try:
        result = attlas.export(model, output, checkpoint=checkpoint, random_init=random_init, progress=True, **options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    for line in result.notes:
        note(f"note: {line}")
    for line in messages.export_lines(result):
        note(line)
    say(result.path)
