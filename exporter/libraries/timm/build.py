"""Look up timm's names, and build a model with its weights. Of the package only this module uses timm."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.layers import set_fused_attn, use_fused_attn
from timm.models import get_pretrained_cfg, load_model_config_from_hf, model_entrypoint, split_model_name_tag
from timm.models._hub import load_model_config_from_path
from torch import nn

from ....errors import AttlasError, UsageError, first_line
from ...models.checkpoint import Choice, StateDict, choose, locate, read, refuse_quantised
from ...models.recipe import override, pair
from ...models.resembling import resembling
from ...models.weights import Undrawn, load_into
from ...spec import ClassName, Recipe
from ..hub import held, lacking, unreadable
from ..protocol import Library, Model, Request, Source, edges, indivisible, nearest
from ..quiet import unheard

__all__ = ["MODULES", "adopt", "build", "names", "refusal"]

# timm's modules whose models attend over all patches. Other models are refused by what their blocks do, not by name.
MODULES = (
    "vision_transformer",
    "deit",
    "eva",
    "beit",
    "vision_transformer_relpos",
    "vision_transformer_hybrid",
    "naflexvit",
    "deepseek_vit",
    "qwen3_vit",
    "gemma4_vit",
    "cait",
    "vitamin",
)

# Larger than any image-text projection in timm (1,280), smaller than any class set other than ImageNet-1k's.
_WIDEST_PROJECTION = 2048


def names() -> list[str]:
    """Every architecture of timm's modules in `MODULES`, without a tag and with each of its pretrained tags."""
    found: set[str] = set()
    for module in MODULES:
        with contextlib.suppress(RuntimeError):  # an older timm may lack the newest families
            found.update(timm.list_models(module=module))
    return sorted(found | {name for name in timm.list_pretrained() if split_model_name_tag(name)[0] in found})


def build(library: Library, model: str, request: Request) -> Model:
    """A timm model in eval mode with its weights, and without fused attention.

    Args:
        library: timm's adapter.
        model: timm's name, with or without a pretrained tag (`vit_base_patch16_224.dino`).
        request: what is asked for; for another picture size timm resamples position embeddings.

    Raises:
        UsageError: an unknown model or tag, contradicting options, a size the model does not accept, no such file.
        AttlasError: the weights cannot be loaded or do not fit.
    """
    source, elsewhere = request.source, _elsewhere(model)
    if elsewhere:
        cfg, architecture, name = _config(model)
        full = model
    else:
        name, tag = _known(model)
        config = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
        cfg, architecture = config.to_dict() if config is not None else {}, name
        full = f"{name}.{cfg.get('tag')}" if cfg.get("tag") else name
        if source == "pretrained":
            _reach(full, cfg)
    size = None if request.img_size is None else pair(request.img_size, "--img-size")
    kwargs = dict(request.model_args)
    if size is not None:
        kwargs["img_size"] = size
    if request.num_classes is not None:
        kwargs["num_classes"] = request.num_classes
    # Read the file first, so that a bad file is reported before the model is built.
    path, key = (None, "") if request.checkpoint is None else locate(request.checkpoint)
    flat = None if path is None else read(path)
    module = _create(full, source, request.seed, kwargs)
    notes: list[str] = []
    if path is not None and flat is not None:
        choice = choose(flat, key, module.state_dict(), lambda state: _convert(architecture, module, state), path)
        load_into(module, choice, path, classifier=_classifier(cfg), resample=size is not None, resembling=resembling)
        key, notes = choice.key, [*choice.notes(path), *_resampled(choice)]
    image_size = size or _input_size(module, cfg, kwargs)
    recipe = _recipe(cfg, image_size)
    if request.preprocess is not None:
        recipe = override(recipe, request.preprocess)
        _check_crop(module, recipe, image_size)
    elif elsewhere:
        lacks = [key for key in ("mean", "std", "interpolation", "crop_pct") if cfg.get(key) is None]
        assumed = f", which lacks {', '.join(lacks)}" if lacks else ""
        notes.append(f"the recipe is that of config.json{assumed}: {recipe}")
    classes, head = _classes(module, cfg, request.num_classes)
    resized, tag = size is not None, "" if elsewhere else cfg.get("tag") or ""
    return Model(module, library, name, tag, source, image_size, recipe, classes, head, resized, key, tuple(notes))


def adopt(library: Library, module: nn.Module, request: Request) -> Model:
    """A model that timm.create_model made; its tag gives the recipe and the classes."""
    cfg: dict[str, Any] = dict(getattr(module, "pretrained_cfg", None) or {})
    name = cfg.get("architecture") or type(module).__name__
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # type: ignore[assignment]
    size = _input_size(module, cfg, {})
    if request.img_size is not None and pair(request.img_size, "img_size") != size:
        raise UsageError(f"{name}: was built for {edges(size)}; build it with img_size={request.img_size} in timm")
    recipe = _recipe(cfg, size)
    if request.preprocess is not None:
        recipe = override(recipe, request.preprocess)
        _check_crop(module, recipe, size)
    classes, head = _classes(module, cfg, request.num_classes)
    return Model(module, library, name, cfg.get("tag") or "", "checkpoint", size, recipe, classes, head)


def refusal(model: str, reason: str) -> UsageError:
    """The error for a model without maps to export: the reason, and the most similar name that can be exported."""
    near = difflib.get_close_matches(split_model_name_tag(model)[0], [n for n in names() if "." not in n], n=1)
    return UsageError(
        f"{model}: cannot be exported: {reason}; models with global attention over patches can "
        f"({f'such as {near[0]}; ' if near else ''}`attlas models` lists them)"
    )


# Names and sources ---------------------------------------------------------------------------------------------------


def _elsewhere(model: str) -> bool:
    """Whether a name leads to a folder, or to a repository of the hub that is not timm's own."""
    scheme, colon, place = model.partition(":")
    return bool(colon) and (scheme == "local-dir" or not place.startswith("timm/"))


def _config(model: str) -> tuple[dict[str, Any], str, str]:
    """The tag's metadata, the architecture and the shown name of `hf-hub:ORG/NAME` or `local-dir:FOLDER`."""
    scheme, _, place = model.partition(":")
    shown = Path(place).name if scheme == "local-dir" else place
    if scheme == "local-dir":
        if not place or not Path(place).is_dir():
            raise UsageError(f"{model}: there is no such folder; pass one that timm's save_for_hf or the hub gave")
        if not (Path(place) / "config.json").is_file():
            raise UsageError(f"{place}: has no config.json; pass a folder that timm's save_for_hf or the hub gave")
    elif cause := lacking(place, ["config.json"]):
        raise AttlasError(f"{place}: cannot be downloaded: {cause}; pass a folder that has it (local-dir:FOLDER)")
    read = load_model_config_from_path if scheme == "local-dir" else load_model_config_from_hf
    try:
        with _quiet():
            cfg, architecture, _ = read(place)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{shown}: its config.json names no architecture of timm ({first_line(error)}); if it is a model of "
            f"transformers, pass transformers:{'FOLDER' if scheme == 'local-dir' else place}"
        ) from error
    except Exception as error:
        raise unreadable(shown, error, "local-dir:FOLDER") from error
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UsageError(f"{shown}: timm {timm.__version__} has no model {architecture!r}, which its config.json names")
    return dict(cfg), architecture, shown


def _resampled(choice: Choice) -> list[str]:
    """A line if position embeddings were resampled to another picture size."""
    for key, before in choice.state.items():
        after = choice.converted.get(key)
        if "pos_embed" in key and after is not None and after.numel() != before.numel():
            return [f"position embeddings of {before.shape[-2]} tokens were resampled to {after.shape[-2]} by timm"]
    return []


def _known(model: str) -> tuple[str, str]:
    """Architecture and tag of a model name; an error for names that timm does not have."""
    plain = model.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
    name, tag = split_model_name_tag(plain)
    if not timm.is_model(name):
        near = _near(name)
        hint = f"did you mean {', '.join(near)}?" if near else "`attlas models` lists what can be exported"
        raise UsageError(f"{model}: timm {timm.__version__} has no model of that name; {hint}")
    tags = [t.partition(".")[2] for t in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=3, cutoff=0.3) or tags[:3]
        hint = f"it has {', '.join(near)}" if near else "it has none"
        raise UsageError(f"{model}: {name} has no pretrained tag {tag!r}; {hint}")
    return name, tag


def _near(name: str) -> list[str]:
    """Names that may be meant, those that can be exported first: with this text at the start or in them, or alike."""
    known = [one for one in names() if "." not in one]
    holding = sorted((one for one in known if name in one), key=lambda one: (not one.startswith(name), len(one), one))
    if holding:
        return holding[:3]
    return difflib.get_close_matches(name, known, cutoff=0.55) or difflib.get_close_matches(
        name, timm.list_models(), cutoff=0.5
    )


def _reach(name: str, cfg: Mapping[str, Any]) -> None:
    """Fail at once if the hub's host name does not resolve: its own client would retry for 46 seconds."""
    if not (cfg.get("hf_hub_id") or cfg.get("url") or cfg.get("file")):
        raise UsageError(f"{name}: has no pretrained weights; pass --checkpoint FILE or --random-init")
    files = (cfg.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    if cfg.get("hf_hub_id") and (cause := lacking(cfg["hf_hub_id"], files)):
        raise _no_weights(name, cause)


def _no_weights(name: str, cause: str) -> AttlasError:
    return AttlasError(
        f"{name}: its pretrained weights cannot be downloaded: {cause}; pass --checkpoint FILE with weights you have, "
        "or --random-init to do without"
    )


def _create(name: str, source: Source, seed: int, kwargs: Mapping[str, Any]) -> nn.Module:
    pretrained = source == "pretrained"
    filling = contextlib.nullcontext() if source == "random" else Undrawn()
    with _plain_attention(), _quiet(), torch.random.fork_rng(devices=[]), filling:
        torch.manual_seed(seed)
        try:
            module = timm.create_model(name, pretrained=pretrained, **kwargs)
        except Exception as error:
            _refuse_size(name, kwargs)
            if pretrained:
                if name.startswith("local-dir:"):
                    place = Path(name.partition(":")[2]).name
                    raise AttlasError(f"{place}: timm cannot load its weights: {first_line(error)}") from error
                raise _no_weights(name, first_line(error)) from error
            raise UsageError(
                f"{name}: timm does not build it with {_options(kwargs)}: {first_line(error)}; leave these options out"
            ) from error
    if pretrained and _elsewhere(name):
        for file in held(name.partition(":")[2], ["model.safetensors"]):
            refuse_quantised(file)
    return module.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _options(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in kwargs.items()) or "its defaults"


def _refuse_size(name: str, kwargs: Mapping[str, Any]) -> None:
    """If the model fails because of the picture size, raise an error that names the nearest size that fits."""
    if (asked := kwargs.get("img_size")) is None:
        return
    try:
        with torch.device("meta"), _quiet():
            token = _token_size(timm.create_model(name, **{k: v for k, v in kwargs.items() if k != "img_size"}))
    except Exception:  # the size is not the problem, or not the only one
        return
    size = pair(asked, "--img-size")
    if token is not None and (size[0] % token[0] or size[1] % token[1]):
        raise indivisible(name, size, token) from None


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Build blocks without the fused kernel, which never exposes its probabilities; timm chooses it when it builds."""
    enabled, experimental = bool(use_fused_attn()), bool(use_fused_attn(experimental=True))
    set_fused_attn(False)
    try:
        yield
    finally:
        set_fused_attn(enabled, experimental)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and log lines of the libraries: errors are raised anyway."""
    logger, level = logging.getLogger("timm"), logging.getLogger("timm").level
    logger.setLevel(logging.ERROR)
    try:
        with unheard():
            yield
    finally:
        logger.setLevel(level)


def _classifier(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the head's modules."""
    named = cfg.get("classifier") or "head"
    return (named,) if isinstance(named, str) else tuple(named)


def _convert(name: str, module: nn.Module, state: StateDict) -> StateDict:
    """The model family's conversion of published checkpoints, which timm applies to its downloads."""
    family = importlib.import_module(model_entrypoint(name).__module__)
    kind = "classifier" if type(module).__name__.endswith("Classifier") else "encoder"
    for candidate in ("checkpoint_filter_fn", f"checkpoint_filter_fn_{kind}"):
        if (function := getattr(family, candidate, None)) is not None:
            with _quiet():
                converted: StateDict = dict(function(state, module))
            return converted
    return state


# What the tag says ---------------------------------------------------------------------------------------------------


def _input_size(module: nn.Module, cfg: Mapping[str, Any], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    own = kwargs.get("img_size") or getattr(getattr(module, "patch_embed", None), "img_size", None)
    size = own or tuple(cfg.get("input_size") or (3, 224, 224))[-2:]
    return pair(size, "input size")


def _recipe(cfg: Mapping[str, Any], image_size: tuple[int, int]) -> Recipe:
    """The evaluation transform of timm for this tag at this size: resize to floor(size / crop_pct), then crop."""
    data = resolve_data_config({"input_size": (3, *image_size)}, pretrained_cfg=dict(cfg))
    height, width = image_size
    return Recipe(
        resize=(math.floor(height / data["crop_pct"]), math.floor(width / data["crop_pct"])),
        crop=image_size,
        crop_mode=data["crop_mode"] or "center",
        interpolation=data["interpolation"],
        mean=tuple(float(v) for v in data["mean"]),  # type: ignore[arg-type]
        std=tuple(float(v) for v in data["std"]),  # type: ignore[arg-type]
    )


def _token_size(module: nn.Module) -> tuple[int, int] | None:
    """(height, width) in pixels of one token, stem and patch together; None if the model does not say."""
    for part in module.modules():
        embed = getattr(part, "patch_embed", None) or getattr(part, "embeds", None)
        if embed is None:
            continue
        ratio = getattr(embed, "feat_ratio", None)
        found = ratio(as_scalar=False) if ratio is not None else getattr(embed, "patch_size", None)
        if found is not None:
            return pair(found, "patch size")
    return None


def _check_crop(module: nn.Module, recipe: Recipe, image_size: tuple[int, int]) -> None:
    """Check that the crop equals the graph's input size and is a multiple of the token size."""
    if recipe.crop == image_size:
        return
    crop, token = recipe.crop, _token_size(module)
    if token is not None and (crop[0] % token[0] or crop[1] % token[1]):
        near = nearest(crop, token)
        raise UsageError(
            f"--preprocess: crop {edges(crop)} is no multiple of the model's tokens of {edges(token)} pixels; pass "
            f"crop={near.replace(',', 'x')} and --img-size {near}"
        )
    raise UsageError(
        f"--preprocess: crop {edges(crop)} is not the graph's input {edges(image_size)}; pass --img-size "
        f"{crop[0]},{crop[1]} as well"
    )


def _classes(
    module: nn.Module, cfg: Mapping[str, Any], asked: int | None
) -> tuple[tuple[ClassName, ...], Literal["logits", "features"]]:
    """The names of the classes, and whether the head gives classes (`logits`) or not (`features`)."""
    count = int(getattr(module, "num_classes", 0) or 0)
    if count <= 0:
        return (), "features"
    own = count == cfg.get("num_classes")
    if own and (labels := cfg.get("label_names")):
        words = cfg.get("label_descriptions") or {}
        return tuple(ClassName(str(one), str(words.get(one, one))) for one in labels), "logits"
    subset = infer_imagenet_subset({"num_classes": count}) if own else None
    if subset is None:
        # An image-text model's "classes" are the width of its projection.
        projection = own and asked is None and count < _WIDEST_PROJECTION
        return (), "features" if projection else "logits"
    info = ImageNetInfo(subset)
    names = zip(info.label_names(), info.label_descriptions(), strict=True)
    return tuple(ClassName(i, n) for i, n in names), "logits"
