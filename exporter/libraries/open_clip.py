"""open_clip's adapter: the image towers of CLIP, SigLIP and their kin, and texts as classes.

Without texts the output is the image's embedding. With texts it is what the model makes of an image and these texts
(`get_logits`): their cosine, times the model's own scale, plus its bias if it has one. The texts are embedded once,
here, and their embeddings lie in the graph, so that a model without a classifier has logits, classes and gradients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from ...errors import AttlasError, UsageError, first_line, one_line
from ..models.checkpoint import locate, read, refuse_quantised
from ..models.recipe import override, pair
from ..models.weights import refuse_not_finite
from ..spec import ClassName, Pooling, Recipe
from .hub import held, lacking, unreadable
from .protocol import Facts, Library, Model, Parts, Request, edges, indivisible
from .quiet import unheard
from .timm import facts as timms
from .timm import parts as timm_parts

__all__ = ["LIBRARY"]

_SCHEMES = ("hf-hub:", "local-dir:")
_MODES = {"shortest": "center", "squash": "squash"}


class _Attention(nn.Module):
    """`nn.MultiheadAttention` of the same weights, under the same names, whose probabilities pass `attn_drop`."""

    def __init__(self, own: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = own.num_heads
        self.in_proj_weight, self.in_proj_bias = own.in_proj_weight, own.in_proj_bias
        self.out_proj = own.out_proj
        self.attn_drop = nn.Identity()

    def forward(self, query: Tensor, *unused: Tensor, **options: Any) -> tuple[Tensor, None]:
        """Self-attention of (image, token, channel); the tower passes the same tokens three times, and no mask."""
        mixed = nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = mixed.view(*query.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        out = self.attn_drop(scores.softmax(dim=-1)) @ v
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


class _Tower(nn.Module):
    """The image tower alone, or with texts: (image, channel, y, x) to embeddings or to logits (image, text)."""

    texts: Tensor | None
    scale: Tensor
    bias: Tensor | None

    def __init__(self, model: Any, texts: Tensor | None) -> None:
        super().__init__()
        self.visual = model.visual
        self.register_buffer("texts", texts)
        # Buffers, so that they are hashed with the weights.
        self.register_buffer("scale", model.logit_scale.exp().detach().clone() if texts is not None else None)
        bias = getattr(model, "logit_bias", None)
        self.register_buffer("bias", bias.detach().clone() if texts is not None and bias is not None else None)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        given = self.visual(pixels)
        found: Tensor = given[0] if isinstance(given, tuple) else given  # `output_tokens`: the tokens come second
        if self.texts is None:
            return found
        logits = self.scale * nn.functional.normalize(found, dim=-1) @ self.texts.T
        return logits if self.bias is None else logits + self.bias


class _OpenClip:
    name = "open_clip"
    has_texts = True

    def versions(self) -> Mapping[str, str]:
        return {"open_clip": open_clip.__version__}

    def build(self, name: str, request: Request) -> Model:
        source = request.source
        if request.num_classes:
            raise UsageError(
                f"--num-classes {request.num_classes}: an image tower has no classifier; pass texts with --text"
            )
        known, tag = _known(name)
        own = open_clip.get_pretrained_cfg(known, tag) if tag else {}
        quick = bool(own.get("quick_gelu")) and not open_clip.get_model_config(known).get("quick_gelu")
        size = None if request.img_size is None else pair(request.img_size, "--img-size")
        if source == "pretrained":
            _reachable(known, tag)
        whole = _created(known, tag, source == "pretrained", size, quick, request)
        if source == "checkpoint":
            if size is not None and hasattr(whole.visual, "trunk"):
                # timm's trunks take a file at their own size, and are resized then.
                whole = _created(known, tag, False, None, quick, request)
                whole.visual.image_size = size
            _load(whole, known, request)
        if source == "pretrained" and known.startswith(_SCHEMES):
            for file in held(known.partition(":")[2], ["open_clip_model.safetensors", "model.safetensors"]):
                refuse_quantised(file)
        configured = dict(whole.visual.preprocess_cfg)
        if tag and source != "pretrained":
            configured |= {k: v for k, v in own.items() if k in configured}
        texts = _embedded(whole, known, request.texts)
        shown = known.rpartition(":")[2].rstrip("/").rpartition("/")[2]
        built = self._model(whole, texts, (shown, tag), source, configured, size, request)
        if not quick:
            return built
        note = f"{known}/{tag} was trained with QuickGELU, which is built in place of {known}'s GELU"
        return dataclasses.replace(built, notes=(*built.notes, note))

    def adopt(self, module: nn.Module, request: Request) -> Model:
        shown = type(module).__name__
        if not isinstance(getattr(module, "visual", None), nn.Module):
            raise UsageError(f"{shown}: has no image tower; pass the whole model that open_clip.create_model gives")
        if request.texts:
            raise UsageError(
                f"{shown}: a module does not say which tokenizer its texts need; pass its name, as open_clip:NAME/TAG, "
                "with the texts"
            )
        configured = dict(getattr(module.visual, "preprocess_cfg", {}))
        return self._model(module, None, (shown, ""), "checkpoint", configured, None, request)

    def _model(
        self, whole: Any, texts: Tensor | None, named: tuple[str, str], source: Any, configured: Mapping[str, Any],
        size: tuple[int, int] | None, request: Request,
    ) -> Model:  # fmt: skip
        full = ".".join(filter(None, named))
        visual, own_size = whole.visual, pair(whole.visual.image_size, "image size")
        _show_attention(self, visual, full)
        patch = _patch_size(visual)
        if own_size[0] % patch[0] or own_size[1] % patch[1]:
            raise indivisible(full, own_size, patch)
        recipe = _recipe(full, configured, own_size, request)
        classes = tuple(ClassName(str(i), text) for i, text in enumerate(request.texts))
        notes = [] if size is None else [f"position embeddings are resampled to {edges(size)} pixels by open_clip"]
        module = _Tower(whole, texts).eval().requires_grad_(False)
        said = "" if request.preprocess is not None else "open_clip's transform"
        return Model(
            module, self, *named, source, own_size, recipe, classes, "logits" if classes else "features",
            size is not None, "", tuple(notes), said,
        )  # fmt: skip

    def refusal(self, name: str, reason: str) -> UsageError:
        return UsageError(
            f"{name}: cannot be exported: {reason}; image towers that are plain Vision Transformers can, such as "
            "ViT-B-32 or ViT-B-16-SigLIP"
        )

    def parts(self, model: Model) -> Parts:
        visual: Any = model.module.visual
        if hasattr(visual, "trunk"):
            return timm_parts.find(_timms(model))
        blocks = list(visual.transformer.resblocks)
        # After the pool, the last norm sees the embedding alone.
        norms = [] if visual.final_ln_after_pool else [visual.ln_post]
        owners = {layer: [block.attn] for layer, block in enumerate(blocks)}
        return Parts(
            visual, blocks, owners, [blocks[-1], *norms], projection=lambda owner: owner.get_submodule("out_proj")
        )

    def facts(self, model: Model, parts: Parts) -> Facts:
        visual: Any = model.module.visual
        if hasattr(visual, "trunk"):
            return timms.describe(_timms(model), parts)
        patch = _patch_size(visual)
        grid = model.image_size[0] // patch[0], model.image_size[1] // patch[1]
        pooling: Pooling = {"tok": "class", "avg": "mean"}.get(visual.pool_type, "none")  # type: ignore[assignment]
        return Facts(("class",), grid, patch, pooling, "absolute", visual.positional_embedding.detach())


# Names and weights ---------------------------------------------------------------------------------------------------


def _known(name: str) -> tuple[str, str]:
    """The model's name, and the tag of its weights or ""."""
    if name.startswith(_SCHEMES):
        if name.startswith("local-dir:") and not Path(name.removeprefix("local-dir:")).expanduser().is_dir():
            raise UsageError(f"{name}: there is no such folder")
        return name, ""
    # Names may have a slash of their own.
    known = sorted(open_clip.list_models(), key=len, reverse=True)
    found = next((one for one in known if name == one or name.startswith(f"{one}/")), None)
    if found is None:
        near = difflib.get_close_matches(name.partition("/")[0], known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`open_clip.list_models()` lists them"
        raise UsageError(f"open_clip:{name}: open_clip {open_clip.__version__} has no model of that name; {hint}")
    tag = name.removeprefix(found).removeprefix("/")
    tags = open_clip.list_pretrained_tags_by_model(found)
    if tag and tag not in tags:
        hint = f"it has {_few(tags)}" if tags else "it has none"
        raise UsageError(f"open_clip:{name}: {found} has no weights called {tag!r}; {hint}")
    return found, tag


def _few(tags: Sequence[str]) -> str:
    return ", ".join(tags[:6]) + (f" and {len(tags) - 6} more" if len(tags) > 6 else "")


def _reachable(known: str, tag: str) -> None:
    """Fail at once if there are no weights to download, or the hub cannot be reached."""
    if known.startswith("local-dir:"):
        return
    if known.startswith("hf-hub:"):
        repository = known.removeprefix("hf-hub:")
    elif not tag:
        tags = open_clip.list_pretrained_tags_by_model(known)
        raise UsageError(
            f"open_clip:{known}: name the weights, as open_clip:{known}/TAG with one of {_few(tags) or 'none'}; "
            "or pass --checkpoint FILE or --random-init"
        )
    else:
        repository = str(open_clip.get_pretrained_cfg(known, tag).get("hf_hub", "")).rpartition("/")[0]
    if repository and (cause := lacking(repository, ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])):
        raise AttlasError(
            f"open_clip:{known}: its weights cannot be downloaded: {cause}; pass --checkpoint FILE with weights you "
            "have, or --random-init to do without"
        )


def _created(
    known: str, tag: str, pretrained: bool, size: tuple[int, int] | None, quick: bool, request: Request
) -> Any:
    """The whole model, both towers; `quick`: with the activation of the tag, of which open_clip only warns."""
    wanted: dict[str, Any] = {"load_weights": pretrained, "pretrained_text": False, "force_quick_gelu": quick}
    wanted |= request.model_args
    if pretrained and tag:
        wanted["pretrained"] = tag
    if size is not None:
        wanted["force_image_size"] = size
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        try:
            return open_clip.create_model(known, require_pretrained=pretrained, **wanted).eval()
        except (OSError, RuntimeError, ValueError) as error:
            if pretrained and not known.startswith("local-dir:"):
                raise unreadable(f"open_clip:{known}", error, "open_clip:local-dir:FOLDER") from error
            raise UsageError(f"open_clip:{known}: open_clip does not build it: {first_line(error)}") from error
        except TypeError as error:
            raise UsageError(f"open_clip:{known}: --model-args: {first_line(error)}") from error


def _load(model: Any, known: str, request: Request) -> None:
    """The weights of a file, by open_clip's own loader, which knows the names of other projects."""
    path, key = locate(request.checkpoint)
    if key:
        raise UsageError(f"{path}:{key}: open_clip takes a whole file; leave {key!r} out")
    refuse_quantised(path)
    try:
        with _quiet():
            open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:  # whatever a file may hold
        read(path)  # says what the file is, if it holds no weights
        raise AttlasError(
            f"{path}: these are not the weights of open_clip's {known}, both towers: {one_line(error, 200)}"
        ) from error
    refuse_not_finite(model.state_dict(), path)


def _embedded(model: Any, known: str, texts: Sequence[str]) -> Tensor | None:
    """Normalised embeddings of texts, (text, value)."""
    if not texts:
        return None
    if known.startswith("local-dir:"):
        known = f"local-dir:{Path(known.removeprefix('local-dir:')).expanduser()}"
    try:
        with _quiet():
            tokens = open_clip.get_tokenizer(known)(list(texts))
    except Exception as error:  # a tokenizer of the hub
        raise AttlasError(
            f"open_clip:{known}: its tokenizer cannot be had: {first_line(error)}; without --text the image's "
            "embedding is exported"
        ) from error
    with torch.no_grad():
        found: Tensor = model.encode_text(tokens, normalize=True)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log lines, bars and warnings of the library: errors are raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with unheard():
            yield
    finally:
        logging.disable(before)


# The tower -----------------------------------------------------------------------------------------------------------


def _show_attention(library: Library, visual: Any, name: str) -> None:
    """Let every block's probabilities pass `attn_drop`."""
    if (trunk := getattr(visual, "trunk", None)) is not None:
        for part in trunk.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = False
        size = pair(visual.image_size, "image size")
        own = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
        if own is not None and pair(own, "image size") != size and hasattr(trunk, "set_input_size"):
            # Once, by timm: the tower would resample its position embeddings for every image.
            trunk.set_input_size(img_size=size)
        return
    if not hasattr(visual, "transformer"):
        raise library.refusal(name, f"its image tower is a {type(visual).__name__}")
    if visual.attn_pool is not None:
        raise library.refusal(name, "it pools its tokens by an attention that shows no map (attentional_pool)")
    for block in visual.transformer.resblocks:
        own = getattr(block, "attn", None)
        if isinstance(own, _Attention):
            continue
        if not isinstance(own, nn.MultiheadAttention) or own.in_proj_weight is None or not own.batch_first:
            raise library.refusal(name, f"its blocks attend by {type(own).__name__}, which shows no map")
        block.attn = _Attention(own)


def _timms(model: Model) -> Model:
    """The trunk alone, as a model of timm's: what timm says of a model stands there."""
    visual: Any = model.module.visual
    return dataclasses.replace(model, module=visual.trunk)


def _patch_size(visual: Any) -> tuple[int, int]:
    embed = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    return pair(visual.patch_size if embed is None else embed.patch_size, "patch size")


def _recipe(name: str, configured: Mapping[str, Any], size: tuple[int, int], request: Request) -> Recipe:
    """The evaluation transform of open_clip for this model, or the one that is asked for."""
    asked = request.preprocess
    text = asked if isinstance(asked, str) else "".join(f"{key}=" for key in asked or {})
    mode = _MODES.get(str(configured.get("resize_mode", "")))
    if mode is None and "resize=" not in text:
        raise UsageError(
            f"{name}: its pictures are resized to the longest edge and padded with {configured.get('fill_color')}, "
            "which is not reproduced; pass --preprocess resize=squash:N or another"
        )
    if mode == "center" and size[0] != size[1] and "resize=" not in text:
        raise UsageError(f"{name}: {edges(size)} is no square, which open_clip resizes otherwise; pass --preprocess")
    mean, std = (tuple(float(v) for v in configured[key]) for key in ("mean", "std"))
    how: Any = configured.get("interpolation", "bicubic")
    recipe = Recipe(size, size, mode or "squash", how, mean, std, transparency="resized")  # type: ignore[arg-type]
    if asked is not None:
        recipe = override(recipe, asked)
    recipe.check(f"{name}: preprocess_cfg" if asked is None else "--preprocess")
    return recipe


LIBRARY: Library = _OpenClip()
