"""Weights from files: every common wrapper, the choice between several sets, and files that are no weights."""

from __future__ import annotations

import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from attlas.errors import AttlasError, UsageError  # noqa: E402
from attlas.exporter import GraphSpec  # noqa: E402
from attlas.exporter.libraries.build import build  # noqa: E402
from attlas.exporter.libraries.protocol import Model  # noqa: E402
from attlas.exporter.models.checkpoint import locate, refuse_quantised  # noqa: E402
from attlas.exporter.models.resembling import resembling  # noqa: E402
from attlas.exporter.trace.export import export_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
DEIT = "deit_tiny_patch16_224"


def make(name: str, **kwargs: Any) -> Model:
    """A small model with random weights."""
    return build(name, random_init=True, seed=3, model_args=SMALL | kwargs)


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


# How frameworks keep one set of weights, and the place in the file that is found.
FORMS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "bare": (lambda w: w, ""),
    "wrapped": (lambda w: {"model": w, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}, "model"),
    "parallel": (lambda w: prefixed(w, "module."), "module"),
    "compiled": (lambda w: {"state_dict": prefixed(w, "module._orig_mod.")}, "state_dict.module._orig_mod"),
    "lightning": (lambda w: {"state_dict": prefixed(w, "model."), "hyper_parameters": {"lr": 1}}, "state_dict.model"),
    "teacher alone": (lambda w: {"teacher": prefixed(w, "backbone.")}, "teacher.backbone"),
    "backbone": (lambda w: {**prefixed(w, "backbone."), "neck.weight": torch.ones(3)}, "backbone"),
    "I-JEPA": (lambda w: {"encoder": prefixed(w, "module."), "predictor": {"x": torch.ones(1)}}, "encoder.module"),
    "open_clip with timm's tower": (
        lambda w: {**prefixed(w, "visual.trunk."), "logit_scale": torch.ones(1)}, "visual.trunk",
    ),
    "transformers with timm's model": (lambda w: prefixed(w, "timm_model."), "timm_model"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["safetensors", *FORMS])
def test_checkpoint_of_every_common_form_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    """Wrappers and prefixes are found by what fits, and their place is kept."""
    made = make(DEIT)
    state, place = made.module.state_dict(), ""
    path = tmp_path / "weights.pth"
    if form == "safetensors":
        save_file(state, path)  # told by its content, whatever its name
    else:
        wrap, place = FORMS[form]
        torch.save(wrap(state), path)
    built = build(DEIT, checkpoint=path, model_args=SMALL)
    assert (built.source, built.key, built.notes) == ("checkpoint", place, ())
    assert built.weights().sha256 == made.weights().sha256
    assert built.weights().key == place


# Two sets of weights in one file: (raw, averaged) -> the file, the place of each.
PAIRS: dict[str, tuple[Callable[[Any, Any], Any], str, str]] = {
    "timm": (lambda r, a: {"state_dict": r, "state_dict_ema": prefixed(a, "module.")}, "state_dict", "state_dict_ema"),
    "deit": (lambda r, a: {"model": r, "model_ema": a}, "model", "model_ema"),
    "lightning": (lambda r, a: {"state_dict": prefixed(r, "model.") | prefixed(a, "ema_model.")},
                  "state_dict.model", "state_dict.ema_model"),
    "dino": (lambda r, a: {"student": prefixed(r, "module.backbone.") | {"module.head.mlp": torch.ones(3)},
                           "teacher": prefixed(a, "backbone.") | {"head.mlp": torch.ones(3)}},
             "student", "teacher"),
    "moco": (lambda r, a: {"state_dict": prefixed(r, "module.base_encoder.") | prefixed(a, "module.momentum_encoder.")},
             "state_dict.module.base_encoder", "state_dict.module.momentum_encoder"),
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_averaged_weights_are_taken_and_the_others_can_be(form: str, tmp_path: Path) -> None:
    """As timm and DINO evaluate; never silently, and a key takes what the user wants."""
    raw, averaged = (build(DEIT, random_init=True, seed=seed, model_args=SMALL) for seed in (1, 2))
    wrap, raw_key, averaged_key = PAIRS[form]
    path = tmp_path / "both.pth"
    torch.save(wrap(raw.module.state_dict(), averaged.module.state_dict()), path)
    found = build(DEIT, checkpoint=path, model_args=SMALL)
    assert found.weights().sha256 == averaged.weights().sha256
    assert found.key.startswith(averaged_key)
    (note,) = found.notes
    assert re.search(f"{re.escape(found.key)}, .*average.*, was taken", note)
    offered = re.search(r"--checkpoint both\.pth:(\S+) takes another", note)
    assert offered is not None
    for key, wanted in ((raw_key, raw), (offered[1], raw), (averaged_key, averaged)):
        chosen = build(DEIT, checkpoint=f"{path}:{key}", model_args=SMALL)
        assert chosen.weights().sha256 == wanted.weights().sha256
        assert chosen.key.startswith(key)
        assert chosen.notes == ()


def test_key_that_is_not_in_the_file_is_refused_with_what_is(tmp_path: Path) -> None:
    """And a wrapper that no table knows is named, so that it can be chosen."""
    path = tmp_path / "gan.pth"
    torch.save({"netG": make(DEIT).module.state_dict(), "netD": {"weight": torch.ones(2)}}, path)
    with pytest.raises(UsageError, match=r"gan\.pth: holds nothing called 'ema'; it holds netG \(32 tensors\), netD"):
        build(DEIT, checkpoint=f"{path}:ema", model_args=SMALL)
    with pytest.raises(
        AttlasError, match=r"their place in the file as FILE:KEY \(it holds netG \(32 tensors\), netD\)"
    ):
        build(DEIT, checkpoint=path, model_args=SMALL)
    assert build(DEIT, checkpoint=f"{path}:netG", model_args=SMALL).key == "netG"


def test_colons_of_drives_addresses_and_names_are_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FILE:KEY is cut at a colon only where the end can be a key and the whole is no file."""
    monkeypatch.chdir(tmp_path)
    for name in ("plain.pth", "with:colon.pth"):
        Path(name).write_bytes(b"x")
    assert locate("plain.pth") == (Path("plain.pth"), "")
    assert locate("plain.pth:teacher.backbone") == (Path("plain.pth"), "teacher.backbone")
    assert locate(Path("plain.pth:model_ema")) == (Path("plain.pth"), "model_ema")
    assert locate("with:colon.pth") == (Path("with:colon.pth"), "")
    assert locate("with:colon.pth:model") == (Path("with:colon.pth"), "model")
    for text, message in (
        (r"C:\absent.pth", r"^C:\\absent\.pth: there is no such file"),
        (r"C:\absent.pth:model", r"^C:\\absent\.pth: there is no such file"),
        ("C:absent.pth", r"^C:absent\.pth: there is no such file"),
        ("https://example.org:443/a.pth", "is an address; download"),
        (".", "is a folder; pass the file in it"),
    ):
        with pytest.raises(UsageError, match=message):
            locate(text)


def test_key_is_in_the_spec_and_older_specs_have_none(tmp_path: Path) -> None:
    """Which of a file's weights a graph has can be read from the graph; one without the key still loads."""
    path = tmp_path / "both.pth"
    state = make(DEIT).module.state_dict()
    torch.save({"model": state, "model_ema": {k: v * 2 for k, v in state.items()}}, path)
    result = export_model(build(DEIT, checkpoint=path, model_args=SMALL), tmp_path / "deit.onnx")
    assert result.spec.weights.key == "model_ema"
    assert "both.pth:model" in result.notes[0]
    assert GraphSpec.from_json(result.spec.to_json(), "spec") == result.spec
    old = result.spec.to_dict()
    del old["weights"]["key"]
    assert GraphSpec.from_dict(old, "old").weights.key == ""


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path


@pytest.mark.parametrize(
    ("make_file", "message"),
    [
        (lambda p: written(p / "w.pth", b""), "is empty"),
        (lambda p: written(p / "w.safetensors", b"<!DOCTYPE html>\n<html>"), "is a web page"),
        (lambda p: written(p / "w.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (lambda p: written(p / "w.json", b'{"weight_map": {}}'), "is JSON text"),
        (lambda p: written(p / "w.pth.gz", b"\x1f\x8b\x08\x00"), "compressed by gzip"),
        (lambda p: written(p / "w.h5", b"\x89HDF\r\n"), "is HDF5"),
        (lambda p: written(p / "w.pth", b"no weights"), "neither safetensors nor a torch file .*'no weights'"),
        (lambda p: written(p / "w.safetensors", b"no weights"), "neither safetensors nor a torch file"),
        (lambda p: zipped(p / "w.zip", "a.txt", "b.txt"), r"zip archive of 2 files, the first a\.txt"),
        (lambda p: zipped(p / "w.npz", "a.npy"), "NumPy archive"),
        (lambda p: zipped(p / "w.pt", "w/data.pkl", "w/constants.pkl"), "TorchScript"),
        (lambda p: zipped(p / "w.pt", "w/data.pkl"), "cannot be read"),
    ],
)  # fmt: skip
def test_file_that_is_no_weights_says_what_it_is(
    make_file: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    """By its content, in one line."""
    with pytest.raises(AttlasError, match=message) as caught:
        build(DEIT, checkpoint=make_file(tmp_path), model_args=SMALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: Any, tmp_path: Path) -> None:
    """Their scales are not read: int8 gave a graph of zeros that agreed with PyTorch, float8 a traceback."""
    state = {name: tensor.to(dtype) for name, tensor in make(DEIT).module.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(AttlasError, match=r"w\.safetensors: its weights are quantised .*float32, float16 or bfloat16"):
        build(DEIT, checkpoint=tmp_path / "w.safetensors", model_args=SMALL)
    with pytest.raises(AttlasError, match="its weights are quantised"):
        refuse_quantised(tmp_path / "w.safetensors")


def test_checkpoint_without_a_name_or_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(AttlasError, match="holds no named tensors"):
        build(DEIT, checkpoint=tmp_path / "w.safetensors", model_args=SMALL)
    with pytest.raises(UsageError, match="--checkpoint: is empty"):
        build(DEIT, checkpoint="", model_args=SMALL)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["vit.encoder.layer.0.attention.attention.query.weight"], "a model of transformers: .*timm's file"),
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight"], "a model of transformers"),
        (["visual.conv1.weight", "transformer.resblocks.0.ln_1.weight"], r"open_clip: .*vit\*clip\*"),
        (["encoder.layers.encoder_layer_0.ln_1.weight"], "a model of torchvision"),
        (["base_model.model.blocks.0.attn.qkv.lora_A.default.weight"], "LoRA adapters: merge them"),
    ],
)
def test_checkpoint_of_another_library_is_named(names: list[str], message: str, tmp_path: Path) -> None:
    """Where its names tell, a line says whose they are instead of listing them."""
    save_file({name: torch.ones(2) for name in names}, tmp_path / "foreign.safetensors")
    with pytest.raises(AttlasError, match=message) as caught:
        build(DEIT, checkpoint=tmp_path / "foreign.safetensors", model_args=SMALL)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 250


def test_lightning_checkpoint_with_objects_says_so(tmp_path: Path) -> None:
    """Its hyper-parameters are what cannot be read, and the remedy is to save the weights alone."""
    content = {"state_dict": {}, "pytorch-lightning_version": "2.4", "hyper_parameters": Path("x")}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(
        AttlasError, match=r"Lightning holds hyper-parameters \(.*Path.*\), .*save model\.state_dict\(\)"
    ):
        build(DEIT, checkpoint=tmp_path / "last.ckpt", model_args=SMALL)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    """With the tensor's name, before anything is traced."""
    state = make(DEIT).module.state_dict()
    state["blocks.1.mlp.fc1.weight"][3, 2] = value
    save_file(state, tmp_path / "diverged.safetensors")
    with pytest.raises(AttlasError, match=r"1 of its 32 tensors hold NaN or infinity \(blocks\.1\.mlp\.fc1\.weight\)"):
        build(DEIT, checkpoint=tmp_path / "diverged.safetensors", model_args=SMALL)


def test_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """A checkpoint is read as tensors only; what it would have run is not run."""
    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(flag),)

    for name, write in (("torch.pth", torch.save), ("plain.pkl", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        write({"head.weight": Evil()}, tmp_path / name)
        with pytest.raises(AttlasError, match=f"{name}: ") as caught:
            build(DEIT, checkpoint=tmp_path / name, model_args=SMALL)
        assert "\n" not in str(caught.value)
    assert not flag.exists()


def test_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    """A file cut short is named as such."""
    save_file(make(DEIT).module.state_dict(), tmp_path / "whole.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:500])
    with pytest.raises(AttlasError, match=r"cut.safetensors: cannot be read .* is the file complete\?") as caught:
        build(DEIT, checkpoint=cut, model_args=SMALL)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_model_says_which_keys_differ(tmp_path: Path) -> None:
    """Counts and the first three names of what is missing, unknown or of another shape."""
    path = tmp_path / "other.safetensors"
    save_file(make(DEIT, depth=3, embed_dim=24).module.state_dict(), path)
    with pytest.raises(AttlasError) as caught:
        build(DEIT, checkpoint=path, model_args=SMALL)
    message = str(caught.value)
    assert (
        "12 are unknown to it (blocks.2.attn.proj.bias, blocks.2.attn.proj.weight, blocks.2.attn.qkv.bias, ...)"
        in message
    )
    assert "have another shape (blocks.0.attn.proj.bias 24 instead of 48" in message


def test_checkpoint_with_another_head_hints_num_classes(tmp_path: Path) -> None:
    """Where only the head differs, the remedy is a number, and it works."""
    path = tmp_path / "ten.safetensors"
    save_file(make(DEIT, num_classes=10).module.state_dict(), path)
    with pytest.raises(AttlasError, match="only the head differs: pass --num-classes 10"):
        build(DEIT, checkpoint=path, model_args=SMALL)
    built = build(DEIT, checkpoint=path, num_classes=10, model_args=SMALL)
    assert (built.head, built.classes) == ("logits", ())


@pytest.mark.parametrize(
    ("other", "message"),
    [({"patch_size": 8}, "another patch size"), ({"img_size": 96}, "another image size")],
)
def test_weights_that_timm_would_resample_are_refused(other: dict[str, int], message: str, tmp_path: Path) -> None:
    """Another model's weights never load silently by being interpolated."""
    path = tmp_path / "other.safetensors"
    save_file(make(DEIT, **other).module.state_dict(), path)
    with pytest.raises(AttlasError, match=message):
        build(DEIT, checkpoint=path, model_args=SMALL)


def test_weights_of_another_model_name_those_that_they_fit(tmp_path: Path) -> None:
    """Several, because no shape tells the number of heads; and whatever the number of classes."""
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict().items()}
    torch.save({n: torch.zeros(1).expand(s) for n, s in shapes.items()}, tmp_path / "w.pth")
    message = r"name the model that they belong to; of their shapes are deit_tiny_patch16_224, vit_tiny_patch16_224$"
    with pytest.raises(AttlasError, match=message):
        build("vit_small_patch16_224", checkpoint=tmp_path / "w.pth", model_args={"depth": 2})
    assert resembling({"weight": (3, 3)}) == []


def test_weights_that_a_file_replaces_are_not_drawn(tmp_path: Path) -> None:
    """And everything that a model computes as it is built is there: rotary tables, and the file's weights."""
    name, small = "eva02_tiny_patch14_224", {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 56}
    one = build(name, random_init=True, seed=3, model_args=small)
    torch.save(one.module.state_dict(), tmp_path / "w.pth")
    other = build(name, checkpoint=tmp_path / "w.pth", model_args=small)
    buffers = dict(other.module.named_buffers())
    assert buffers
    assert all(torch.equal(value, buffers[path]) for path, value in one.module.named_buffers())
    assert one.weights().sha256 == other.weights().sha256
