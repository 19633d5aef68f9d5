"""Find a model of transformers, on the hub or in a folder, and build it with its weights. Remote code is never run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from timm.data import ImageNetInfo
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from ....errors import AttlasError, UsageError, first_line
from ....files import from_json
from ...models.checkpoint import choose, locate, read, refuse_quantised
from ...models.recipe import override, pair
from ...models.weights import refuse_not_finite
from ...spec import ClassName, Recipe
from ..hub import held, lacking, unreadable
from ..protocol import Library, Model, Request, Source, edges, indivisible
from .kinds import BACKBONES, KINDS, Kind
from .recipe import EXAMPLE, of_processor, resized
from .towers import ATTENTION, quiet, tower

__all__ = ["adopt", "build", "vision_config"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def build(library: Library, name: str, request: Request) -> Model:
    """The model of `ORG/NAME` on the hub, or of a folder with config.json; errors as in `Library.build`."""
    source, place, local = request.source, *_place(name)
    shown = Path(place).name if local else place
    kind, config = _config(place, shown, local, request)
    cls = _class(kind, config, request)
    own_config = _vision_alone(cls, config)
    size = None if request.img_size is None else pair(request.img_size, "--img-size")
    recipe, processor = _recipe(place, shown, local, config, size, request)
    notes: list[str] = []
    key = ""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        if source == "pretrained":
            model, missing = _pretrained(cls, kind, place, shown, own_config)
        elif source == "random":
            model, missing = _plainly(cls, kind, shown, own_config), []
        else:
            model, missing, key, notes = _checkpoint(cls, kind, shown, own_config, request)
    named = (getattr(config, "architectures", None) or [cls.__name__])[0]
    if not hasattr(transformers, named):
        notes.append(f"transformers has no class {named}, which config.json names: {cls.__name__} is exported")
    _refuse_missing(shown if request.checkpoint is None else str(locate(request.checkpoint)[0]), missing)
    return _model(library, _part(model, shown).eval().requires_grad_(False), shown, source, kind, (recipe, processor),
                  size, key, notes)  # fmt: skip


def adopt(library: Library, module: Any, request: Request) -> Model:
    """A model that somebody else built with transformers; the recipe is the request's."""
    shown = type(module).__name__
    config = getattr(module, "config", None)
    kind = KINDS.get(getattr(config, "model_type", ""))
    if kind is None:
        raise _unknown(shown, {"model_type": getattr(config, "model_type", "")})
    names = {kind.tower, *kind.heads} - {"CLIPModel"}
    if shown not in names:
        raise UsageError(f"{shown}: pass one of {', '.join(sorted(names))}, or the name with transformers: before it")
    asked = request.preprocess
    text = asked if isinstance(asked, str) else "".join(f"{key}=" for key in asked or {})
    if not all(f"{key}=" in text for key in ("mean", "std", "resize")):
        raise UsageError(f"{shown}: a module has no recipe of its own; pass its own as preprocess, as in {EXAMPLE}")
    module.set_attn_implementation(ATTENTION)
    size = None if request.img_size is None else pair(request.img_size, "img_size")
    recipe = override(_plain(config, size), asked or "")
    return _model(library, _part(module, shown), shown, "checkpoint", kind, (recipe, ""), size, "", [])


def _model(
    library: Library, model: Any, shown: str, source: Source, kind: Kind, prepared: tuple[Recipe, str],
    size: tuple[int, int] | None, key: str, notes: list[str],
) -> Model:  # fmt: skip
    """The model of a built module of transformers."""
    recipe, processor = prepared
    if not any(p.is_meta for p in model.parameters()):
        refuse_not_finite(model.state_dict(), shown)
    vision = vision_config(model)
    image_size = recipe.crop
    own_size = pair(vision.image_size, "image_size") if getattr(vision, "image_size", None) else image_size
    token = pair(vision.patch_size, "patch_size")
    if size is not None and (size[0] % token[0] or size[1] % token[1]):
        raise indivisible(shown, size, token)
    if image_size != own_size and _has_positions(model):
        notes.append(
            f"position embeddings of {edges(own_size)} pixels are resampled to {edges(image_size)} by its own code"
        )
    cls = type(model).__name__
    classified = cls.endswith(("ForImageClassification", "WithTeacher"))
    read_from = "logits" if classified else "image_embeds" if "Projection" in cls else kind.read
    grid = image_size[0] // token[0], image_size[1] // token[1]
    module = tower(model, read_from, grid, kind.resampled and image_size != own_size)
    return Model(
        module, library, shown, "", source, image_size, recipe, _classes(model.config) if classified else (),
        "logits" if classified else "features", size is not None, key, tuple(notes), processor,
    )  # fmt: skip


def vision_config(model: nn.Module) -> PreTrainedConfig:
    """The configuration of the image tower."""
    config: Any = model.config
    return getattr(config, "vision_config", None) or config


# Places and configurations -------------------------------------------------------------------------------------------


def _place(name: str) -> tuple[str, bool]:
    """The folder or the hub's name, and whether it is a folder."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{path}: has no config.json; pass the folder that save_pretrained() wrote")
        return str(path), True
    if path.is_file():
        raise UsageError(f"{path}: is a file; pass the folder that has it with config.json, or --checkpoint {path}")
    if name.count("/") > 1 or name.startswith((".", "~", "/")) or not name:
        raise UsageError(f"{name or 'transformers:'}: there is no such folder; pass ORG/NAME of the hub, or a folder")
    return name, False


def _config(place: str, shown: str, local: bool, request: Request) -> tuple[Kind, PreTrainedConfig]:
    if not local and (cause := lacking(place, ["config.json"])):
        what = "cannot be downloaded" if "/" in place else "is no folder here, and cannot be downloaded"
        raise AttlasError(f"{shown}: {what}: {cause}; pass a folder that has the files (transformers:FOLDER)")
    try:
        with quiet():
            raw, _ = PreTrainedConfig.get_config_dict(place, local_files_only=local)
    except (OSError, ValueError, RecursionError) as error:
        if local:
            raise UsageError(f"{shown}: its config.json is not valid JSON; fetch it again") from error
        raise unreadable(shown, error, "transformers:FOLDER") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{shown}: its config.json is no JSON object; fetch it again")
    if raw.get("quantization_config"):
        raise UsageError(f"{shown}: its weights are quantised (quantization_config); pass those in floating point")
    kind = KINDS.get(raw.get("model_type", ""))
    if kind is None:
        raise _unknown(shown, raw)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(place, local_files_only=local, trust_remote_code=False)
    except Exception as error:
        raise UsageError(f"{shown}: transformers cannot read its config.json: {first_line(error)}") from error
    for key, value in request.model_args.items():
        part = config if hasattr(config, key) else getattr(config, "vision_config", config)
        if not hasattr(part, key):
            raise UsageError(f"--model-args {key}: {type(config).__name__} has no such entry; see config.json")
        setattr(part, key, value)
    if request.num_classes:
        config.num_labels = request.num_classes
    return kind, config


def _unknown(shown: str, raw: Mapping[str, Any]) -> UsageError:
    """The error for a model type that is not exported."""
    kind = raw.get("model_type", "")
    if "auto_map" in raw:
        return UsageError(
            f"{shown}: its code lies in its own repository (trust_remote_code), and such code is never run here; build "
            "the model yourself and pass the module to attlas.export(module, ...)"
        )
    what = f"a model of type {kind!r}" if kind else "without a model_type in its config.json"
    return UsageError(
        f"{shown}: is {what}, and no Vision Transformer that is exported; these are: {', '.join(sorted(KINDS))}"
    )


# Classes and weights -------------------------------------------------------------------------------------------------


def _class(kind: Kind, config: Any, request: Request) -> Any:
    """The class to build: that of the file if its output is read, else the tower's."""
    named = (getattr(config, "architectures", None) or [""])[0]
    chosen = named if named in kind.heads and request.num_classes != 0 else kind.tower
    if request.num_classes and not chosen.endswith(("ForImageClassification", "WithTeacher")):
        chosen = next((h for h in kind.heads if h.endswith("ForImageClassification")), "")
        if not chosen:
            raise UsageError(f"--num-classes {request.num_classes}: {kind.tower} has no classifier in transformers")
    if chosen == "CLIPModel":
        chosen = "CLIPVisionModelWithProjection"
    if getattr(config, "is_hybrid", False):
        raise UsageError("a DPT with a convolutional stem (hybrid) is not exported; those without one are")
    if kind.tower == "DPTModel" and getattr(config, "backbone_config", None) is not None:
        chosen = "DPTForDepthEstimation"
    return getattr(transformers, chosen)


def _own(cls: Any, kind: Kind) -> dict[str, Any]:
    """The arguments of the tower's class; classes with a head take none."""
    return dict(kind.arguments) if cls.__name__ == kind.tower else {}


def _vision_alone(cls: Any, config: Any) -> Any:
    """The configuration that a class takes: that of the image tower for a tower of an image-text model."""
    inner = getattr(config, "vision_config", None)
    if inner is None or not isinstance(inner, cls.config_class):
        return config
    return inner


def _plainly(cls: Any, kind: Kind, shown: str, config: Any) -> Any:
    """The model without weights of its own."""
    try:
        return cls._from_config(config, attn_implementation=ATTENTION, **_own(cls, kind))
    except Exception as error:  # a class of transformers may raise any
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"{shown}: transformers builds no {cls.__name__} from its config.json ({what})") from error


def _files(place: str, shown: str) -> list[Path]:
    """The files with the weights of a folder, or of a repository as far as it has been downloaded.

    Raises:
        AttlasError: the folder has none, or lacks one that its index names.
    """
    folder = Path(place)

    first = next(iter(held(place, _WEIGHTS)), None)
    if first is None and folder.is_dir():
        raise UsageError(f"{shown}: the folder has no {_WEIGHTS[0]}; pass --checkpoint FILE or --random-init")
    if first is None or first.suffix != ".json":
        return [first] if first is not None else []
    try:
        names = sorted(set(from_json(first.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AttlasError(f"{shown}: {first.name} names no files of weights; fetch it again") from None
    absent = [name for name in names if not held(place, [name])]
    if absent and folder.is_dir():
        raise AttlasError(f"{shown}: lacks {absent[0]}, which {first.name} names; fetch it again")
    return held(place, names)


def _pretrained(cls: Any, kind: Kind, place: str, shown: str, config: Any) -> tuple[Any, list[str]]:
    folder = Path(place)
    files = _files(place, shown)
    try:
        model, info = cls.from_pretrained(
            place, config=config, attn_implementation=ATTENTION, dtype=torch.float32, output_loading_info=True,
            local_files_only=folder.is_dir(), trust_remote_code=False, ignore_mismatched_sizes=True, **_own(cls, kind),
        )  # fmt: skip
    except OSError as error:
        raise unreadable(shown, error, "transformers:FOLDER") from error
    except Exception as error:
        for file in files:
            read(file)  # says what the file is, if it holds no weights
        raise AttlasError(
            f"{shown}: transformers cannot load its weights ({type(error).__name__}: {first_line(error)})"
        ) from error
    for file in files or _files(place, shown):
        refuse_quantised(file)
    _refuse_other_shapes(shown, info["mismatched_keys"])
    return model, sorted(info["missing_keys"])


def _refuse_other_shapes(where: object, differ: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse weights of other shapes than config.json says: (name, shape in the file, shape of the model)."""
    wrong = sorted((name, *("x".join(map(str, shape)) for shape in shapes)) for name, *shapes in differ)
    if wrong:
        name, found, wanted = wrong[0]
        raise AttlasError(
            f"{where}: {len(wrong)} of its weights have another shape than config.json says ({name} {found} instead of "
            f"{wanted}); pass the config.json that belongs to them"
        )


def _checkpoint(
    cls: Any, kind: Kind, shown: str, config: Any, request: Request
) -> tuple[Any, list[str], str, list[str]]:
    """The model with the weights of a file, under the names of the hub or those of the class."""
    path, key = locate(request.checkpoint)
    flat = read(path)
    model = _plainly(cls, kind, shown, config)
    own = revert_weight_conversion(model, model.state_dict())
    choice = choose(flat, key, own, lambda state: state, path)
    shapes = [n for n, t in own.items() if n in choice.state and choice.state[n].shape != t.shape]
    if heads := [n for n in shapes if n.startswith("classifier.")]:
        count = choice.state[heads[0]].shape[0]
        raise AttlasError(
            f"{path}: its head has {count} classes, config.json {config.num_labels}: pass --num-classes {count}"
        )
    _refuse_other_shapes(path, ((n, choice.state[n].shape, own[n].shape) for n in shapes))
    state = {n: t.to(torch.float32) if t.is_floating_point() else t for n, t in choice.state.items()}
    model, info = cls.from_pretrained(
        None, config=config, state_dict=state, attn_implementation=ATTENTION, dtype=torch.float32,
        output_loading_info=True, **_own(cls, kind),
    )  # fmt: skip
    return model, sorted(info["missing_keys"]), choice.key, choice.notes(path)


def _refuse_missing(shown: str, missing: list[str]) -> None:
    if not missing:
        return
    if all(name.startswith("classifier") for name in missing):
        raise AttlasError(f"{shown}: the weights have no classifier; pass --num-classes 0 to export without one")
    some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    raise AttlasError(
        f"{shown}: {len(missing)} weights of the model are missing ({some}); pass those that belong to config.json"
    )


def _part(model: Any, shown: str) -> Any:
    """The image tower of a model with a decoder."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return model
    if type(backbone).__name__ not in BACKBONES:
        raise UsageError(f"{shown}: its backbone, {type(backbone).__name__}, is not exported; those of DINOv2 are")
    return backbone


def _has_positions(model: nn.Module) -> bool:
    return any("position_embedding" in name for name, _ in model.named_parameters())


# Recipe and classes --------------------------------------------------------------------------------------------------


def _recipe(
    place: str, shown: str, local: bool, config: Any, size: tuple[int, int] | None, request: Request
) -> tuple[Recipe, str]:
    """The recipe of the model's image processor, or the one that is asked for; and what it reproduces."""
    asked = request.preprocess
    whole = (isinstance(asked, Mapping) and "resize" in asked) or (isinstance(asked, str) and "resize=" in asked)
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                place, backend="pil", local_files_only=local, trust_remote_code=False
            )
        recipe, said = of_processor(processor, shown)
    except UsageError:
        if not whole:
            raise
        recipe, said = _plain(config, size), ""
    except Exception as error:
        if not whole:
            there = not local or (Path(place) / "preprocessor_config.json").is_file()
            what = f"that transformers reads ({first_line(error)})" if there else "in the folder"
            raise UsageError(
                f"{shown}: has no preprocessor_config.json {what}; copy that of the model it was trained from, or pass "
                f"{EXAMPLE}"
            ) from error
        recipe, said = _plain(config, size), ""
    if size is not None:
        recipe = resized(recipe, size)
    if asked is not None:
        recipe, said = override(recipe, asked), ""
    recipe.check(f"{shown}: preprocessor_config.json" if asked is None else "--preprocess")
    return recipe, said


def _plain(config: Any, size: tuple[int, int] | None) -> Recipe:
    """A recipe to start from where the user gives one."""
    own = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    edge = size or pair(own, "image_size")
    return Recipe(edge, edge, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, "down")


def _classes(config: Any) -> tuple[ClassName, ...]:
    """The names of `id2label`, with WordNet's ids if they are ImageNet's; none if nobody named the classes."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        return ()
    ids = [str(i) for i in range(len(names))]
    if len(names) == 1000:
        known = ImageNetInfo("imagenet-1k")
        words = [text.partition(",")[0].lower() for text in known.label_descriptions()]
        same = sum(name.partition(",")[0].lower() == word for name, word in zip(names, words, strict=True))
        ids = known.label_names() if same >= 950 else ids
    return tuple(ClassName(i, n) for i, n in zip(ids, names, strict=True))
