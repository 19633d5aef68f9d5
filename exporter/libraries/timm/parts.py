"""Where attention passes in timm's models: blocks pass it through `attn_drop`, heads may pool with one of their own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..protocol import Model, Parts

__all__ = ["find"]

# Attention modules in which only the class token has a query; it does not take part in the blocks before.
_CLASS_ATTENTION = frozenset({"ClassAttn", "ClassAttention"})

Show = Callable[[Tensor], None]


def find(model: Model) -> Parts:
    """The places in a model whose modules keep timm's conventions.

    Raises:
        UsageError: no module passes attention through `attn_drop`, or they are not in one list of blocks.
    """
    module = model.module
    owners: dict[int, list[nn.Module]] = {}
    class_owners: list[nn.Module] = []
    lists: dict[str, str] = {}
    for path, part in module.named_modules():
        names = path.split(".")
        numbers = [i for i, name in enumerate(names) if name.isdigit()]
        if not (numbers and isinstance(getattr(part, "attn_drop", None), nn.Module)):
            continue
        if names[-1] == "attn_in":  # TNT
            reason = "each block has a second attention, among the pixels inside a patch (attn_in)"
            raise model.library.refusal(model.full_name, reason)
        if type(part).__name__ in _CLASS_ATTENTION:
            class_owners.append(part)
        else:
            lists[".".join(names[: numbers[0]])] = type(part).__name__
            owners.setdefault(int(names[numbers[0]]), []).append(part)
    refuse = model.library.refusal
    if not owners:
        raise refuse(model.full_name, _without(module))
    if len(lists) > 1:
        kinds = ", ".join(f"{path} of {kind}" for path, kind in sorted(lists.items()))
        raise refuse(model.full_name, f"its attention is of several kinds or stages ({kinds})")
    path = next(iter(lists))
    trunk = module.get_submodule(path.rpartition(".")[0])
    blocks = list(module.get_submodule(path).children())
    if without := sorted(set(range(len(blocks))) - set(owners)):
        reason = f"{path}.{without[0]} has no attention over patches (convolutional or local, or in stages)"
        raise refuse(model.full_name, reason)
    # A final norm, if there is one, runs last.
    ends = [m for m in (blocks[-1], getattr(trunk, "norm", None)) if isinstance(m, nn.Module)]
    pool = next((m for m in module.modules() if _is_pool(m)), None)
    hooks = None if pool is None else lambda show: _pool_hooks(pool, show)
    return Parts(trunk, blocks, owners, ends, class_owners, hooks, differential=_differential)


def _without(model: nn.Module) -> str:
    """Why a model has no attention to read: it has none, or a kind that never forms a map over all patches."""
    names = {type(m).__name__ for m in model.modules()}
    kinds = ", ".join(sorted(n for n in names if "Attention" in n or "Attn" in n)[:2])
    if not kinds:
        return "it has no attention blocks"
    return f"its attention ({kinds}) is pooled, windowed, linear or fused, and shows no map over all patches"


def _differential(owner: nn.Module) -> Tensor | None:
    compute_lambda = getattr(owner, "_compute_lambda", None)
    return None if compute_lambda is None else compute_lambda()


def _is_pool(module: nn.Module) -> bool:
    """Whether a module is a head's attention pool: with a learned query (`latent`), or parameter-free."""
    own = hasattr(module, "kv") and hasattr(module, "latent")
    return own or type(module).__name__ == "AttentionPoolPrr"


def _pool_hooks(pool: nn.Module, show: Show) -> list[RemovableHandle]:
    """Hooks for a pool. It has no `attn_drop`: its map is computed again from its queries and keys, a row per head."""
    if not hasattr(pool, "latent"):
        return [pool.get_submodule("pre_norm").register_forward_hook(_prr_hook(pool, show))]
    queries: list[Tensor] = []

    def on_query(module: nn.Module, inputs: object, output: Tensor) -> None:
        queries[:] = [output]

    def on_key(module: nn.Module, inputs: object, output: Tensor) -> None:
        scaled = queries[0] * float(pool.scale)  # type: ignore[arg-type]
        show((scaled @ output.transpose(-2, -1)).softmax(dim=-1))

    return [
        pool.get_submodule("q_norm").register_forward_hook(on_query),
        pool.get_submodule("k_norm").register_forward_hook(on_key),
    ]


def _prr_hook(pool: nn.Module, show: Show) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        heads = output.view(*output.shape[:2], int(pool.num_heads), -1).transpose(1, 2)  # type: ignore[arg-type]
        a = ((heads * float(pool.scale)) @ heads.transpose(-2, -1)).softmax(dim=-1)  # type: ignore[arg-type]
        # The pool then reads the row of the class token, or the mean of all rows.
        show(a[:, :, :1] if pool.pool == "token" else a.mean(dim=2, keepdim=True))

    return hook
