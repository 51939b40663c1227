"""One transformer block for all libraries: what theirs give, computed one way.

`unify` puts a Block in the place of every block it knows, so that equal weights run equally fast through every scheme,
and that what a block is spared is written once. Blocks it does not know stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.runtime.attention import by_products, pays_by_products
from encoders.runtime.hooks import has_hooks
from encoders.runtime.packed_linear import PackedLinear
from encoders.runtime.ragged import gathered, spread

_PRE_NORM = {
    "open_clip.transformer.ResidualAttentionBlock",
    "timm.models.vision_transformer.Block",
    *(
        f"transformers.models.{model}.modeling_{model}.{block}"
        for model, block in (
            ("altclip", "AltCLIPEncoderLayer"),
            ("blip", "BlipEncoderLayer"),
            ("chinese_clip", "ChineseCLIPVisionLayer"),
            ("clip", "CLIPEncoderLayer"),
            ("clipseg", "CLIPSegEncoderLayer"),
            ("deit", "DeiTLayer"),
            ("dinov2", "Dinov2Layer"),
            ("dinov2_with_registers", "Dinov2WithRegistersLayer"),
            ("ijepa", "IJepaLayer"),
            ("metaclip_2", "MetaClip2EncoderLayer"),
            ("siglip", "SiglipEncoderLayer"),
            ("siglip2", "Siglip2EncoderLayer"),
            ("vit", "ViTLayer"),
            ("vit_mae", "ViTMAELayer"),
        )
    ),
}
"""Blocks that are x + attention(norm(x)), then x + mlp(norm(x)). Which of their parts is which, their names say:"""
_NAMES = {
    "norm_1": ("ln_1", "norm1", "layer_norm1", "layernorm_before"),
    "attention": ("attn", "self_attn", "attention"),
    "scale_1": ("ls_1", "ls1", "layer_scale1"),
    "norm_2": ("ln_2", "norm2", "layer_norm2", "layernorm_after"),
    "mlp": ("mlp",),
    "scale_2": ("ls_2", "ls2", "layer_scale2"),
}
_MLP_NAMES = {"first": ("c_fc", "fc1"), "activation": ("gelu", "act", "activation_fn"), "second": ("c_proj", "fc2")}
_ATTENTION_NAMES = {
    "qkv": ("qkv",),
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "out": ("proj", "out_proj", "o_proj", "projection"),
}
_IDLE = ("Identity", "Dropout", "DropPath")
"""Modules that do nothing at inference."""

_FEW = 1500
"""Tokens times heads of texts: fewer take less time in torch's attention than by products."""

QUICK = 1.702
"""Of OpenAI's GELU."""

_first: ContextVar[tuple["Block", int | Tensor] | None] = ContextVar("_first", default=None)
"""Of the forward that runs in this context: several threads may run one model at once."""


class Block(nn.Module):
    """A pre-norm block: multi-head attention and an MLP, each behind a layer norm and, in some models, scaled."""

    heads: int
    adds_masks: bool
    """Whether masks of whatever dtype are added to the logits, and may have a batch of heads, as open_clip's do."""
    norm_1: nn.Module
    queries: nn.Module
    keys_values: nn.Module
    out: nn.Module
    scale_1: nn.Module
    norm_2: nn.Module
    mlp_in: nn.Module
    mlp_out: nn.Module
    scale_2: nn.Module
    activate: Callable[[Tensor], Tensor]
    """May write to what it is given."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        is_causal: bool = False,
        **_: object,
    ) -> Tensor:
        """[B, N, C] -> [B, N, C], or of the first tokens alone where `only_first` says so.

        mask: as scaled_dot_product_attention's; libraries have different names for it. is_causal: where there is none.
        Further options are those that a library hands on to whatever block it has.
        """
        mask = next((each for each in (attn_mask, attention_mask, mask) if each is not None), None)
        if mask is not None and (self.adds_masks or mask.dtype != torch.bool):
            mask = mask.to(x.dtype)
        if mask is not None and mask.ndim == 3 and self.adds_masks:
            mask = mask.reshape(-1, self.heads, *mask.shape[1:])  # [B * heads, N, N] of nn.MultiheadAttention
        wanted = _first.get()
        read = gathered(x)
        rows = read if wanted is None or wanted[0] is not self else read[:, : wanted[1]]
        seen: Tensor = rows + self.scale_1(self._attended(read, rows, mask, is_causal=is_causal and mask is None))
        out: Tensor = seen + self.scale_2(self._mlp(seen))
        return spread(out)

    def alone(self, x: Tensor) -> Tensor:
        """What attention gives each token of [B, N, C] if it attends to itself alone: no residual, no MLP."""
        values = self.keys_values(self.norm_1(x)).chunk(2, dim=-1)[1]
        out: Tensor = self.out(values)
        return out

    def get_weight_dtype(self) -> torch.dtype:
        """open_clip asks its blocks for it."""
        return next(self.norm_1.parameters()).dtype

    def pack(self) -> None:
        """Lay the first product's weights out for CPUs with the activation in it, where oneDNN does both faster."""
        if self.activate is gelu_tanh_ and isinstance(self.mlp_in, nn.Linear) and not has_hooks(self.mlp_in):
            self.mlp_in = PackedLinear(self.mlp_in.weight, self.mlp_in.bias, gelu="tanh")
            self.activate = nothing

    def fold(self) -> None:
        """Turn OpenAI's GELU into one operation: x * sigmoid(1.702 x) is silu(1.702 x) / 1.702.

        Its factors go into the weights of the products around it, which are changed in place.
        """
        if self.activate is quick_gelu_ and isinstance(self.mlp_in, nn.Linear) and isinstance(self.mlp_out, nn.Linear):
            self.mlp_in.weight.mul_(QUICK)
            if self.mlp_in.bias is not None:
                self.mlp_in.bias.mul_(QUICK)
            self.mlp_out.weight.div_(QUICK)
            self.activate = silu_

    def _attended(self, x: Tensor, rows: Tensor, mask: Tensor | None, *, is_causal: bool) -> Tensor:
        """What attention gives the tokens `rows` of x, [B, N, C]; where texts are gathered, of [1, T, C]."""
        mixed = gathered(self._mixed(x, rows, mask, is_causal=is_causal).transpose(1, 2).flatten(2))
        out: Tensor = self.out(mixed)
        return out

    def _mixed(self, x: Tensor, rows: Tensor, mask: Tensor | None, *, is_causal: bool) -> Tensor:
        """[B, heads, N, C / heads]. Queries, keys and values are let go of with it: the rest needs their memory."""
        is_text = is_causal or mask is not None
        multiplies = pays_by_products(x, least=_FEW // self.heads if is_text else 0)
        multiplies = multiplies and (mask is None or mask.ndim == 2)
        normed = self.norm_1(x)
        queries = spread(self.queries(normed if rows is x else normed[:, : rows.shape[1]]))
        queries = self._by_head(queries, copies=multiplies)
        keys_values = self.keys_values(normed)
        del normed
        keys, values = (self._by_head(each, copies=multiplies) for each in spread(keys_values).chunk(2, dim=-1))
        del keys_values
        if not multiplies:
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=is_causal)
        if is_causal:
            mask = _causal(queries, keys)
        elif mask is not None and mask.dtype == torch.bool:
            mask = queries.new_zeros(mask.shape).masked_fill_(mask.logical_not(), -torch.inf)
        return by_products(queries, keys, values, mask)

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp_out(self.activate(self.mlp_in(self.norm_2(x))))
        return out

    def _by_head(self, rows: Tensor, *, copies: bool) -> Tensor:
        """[B, N, C] -> [B, heads, N, C / heads]; copied for `by_products`, which multiplies several heads at once."""
        batch, tokens, width = rows.shape
        heads = rows.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
        return heads.contiguous() if copies else heads


@contextmanager
def only_first(block: nn.Module | None, count: int | Tensor) -> Iterator[None]:
    """In here the block, if it is a Block, gives its first `count` tokens alone.

    Behind the last block a token meets no other: where only the class token is read, the others need their keys and
    values and nothing else. That is a fifteenth less work for a ViT of twelve blocks.
    """
    token = _first.set((block, count) if isinstance(block, Block) else None)
    try:
        yield
    finally:
        _first.reset(token)


def unify(model: nn.Module) -> None:
    """Turns every known block in the model into a Block, in its place, where hooks on it stay.

    Before weights are cast and moved: each block's projections are copied.
    """
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    for module in list(model.modules()):
        kind = type(module)
        if _is_pre_norm(module) and (parts := _parts(module)) is not None:
            module.__class__ = classes[kind] = classes.get(kind) or _also(kind)
            module._modules.clear()
            for name, part in parts.items():
                setattr(module, name, part)


def is_known(module: nn.Module) -> bool:
    """Whether `unify` turns it into a Block."""
    return _is_pre_norm(module) and _parts(module) is not None


def _is_pre_norm(module: nn.Module) -> bool:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}" in _PRE_NORM


def _also(kind: type[nn.Module]) -> type[nn.Module]:
    """A Block that is one of the library's too: transformers finds by their class what records hidden states."""
    return type("Block", (Block, kind), {"__module__": __name__})


def _parts(block: Any) -> dict[str, Any] | None:
    """The attributes of the Block that gives what this one gives; None if it has parts that a Block has not."""
    found = _named(block, _NAMES)
    if found is None or not {"norm_1", "attention", "norm_2", "mlp"} <= found.keys():
        return None
    attention, mlp = _projections(found["attention"]), _named(found["mlp"], _MLP_NAMES)
    if attention is None or mlp is None or mlp.keys() != _MLP_NAMES.keys():
        return None
    return {
        "norm_1": found["norm_1"],
        **attention,
        "scale_1": found.get("scale_1", nn.Identity()),
        "norm_2": found["norm_2"],
        "mlp_in": mlp["first"],
        "activate": _activation(mlp["activation"]),
        "mlp_out": mlp["second"],
        "scale_2": found.get("scale_2", nn.Identity()),
    }


def _named(module: nn.Module, names: dict[str, tuple[str, ...]]) -> dict[str, Any] | None:
    """The module's children by what they are; None if it has others, or weights of its own."""
    if module._parameters:
        return None
    kinds = {name: kind for kind, choice in names.items() for name in choice}
    found = {}
    for name, child in module.named_children():
        if name in kinds:
            found[kinds[name]] = child
        elif not type(child).__name__.endswith(_IDLE):
            return None
    return found


def _projections(attention: Any) -> dict[str, Any] | None:
    """Heads, what masks mean, and the projections of queries, of keys and values in one, and of what is attended."""
    adds_masks = type(attention) is nn.MultiheadAttention
    if adds_masks:
        if attention.bias_k is not None or attention.add_zero_attn or attention.in_proj_weight is None:
            return None
        if not attention.batch_first:
            return None
        heads, out = attention.num_heads, _linear(attention.out_proj.weight, attention.out_proj.bias)
        weight: Tensor = attention.in_proj_weight
        bias: Tensor | None = attention.in_proj_bias
    else:
        found = _named(attention, _ATTENTION_NAMES)
        if found is None or found.keys() not in ({"qkv", "out"}, {"q", "k", "v", "out"}):
            return None
        heads, out = getattr(attention, "num_heads", None) or attention.num_attention_heads, found["out"]
        apart = [found[name] for name in ("qkv", "q", "k", "v") if name in found]
        weight = torch.cat([each.weight for each in apart])
        biases = [each.bias for each in apart]
        if len({each is None for each in biases}) == 2:  # some models give keys none
            return None
        bias = None if biases[0] is None else torch.cat(biases)
    width = weight.shape[0] // 3
    scale = getattr(attention, "scale", None) or getattr(attention, "scaling", None)
    if scale is not None and abs(scale - (width // heads) ** -0.5) > 1e-6:
        return None
    queries, keys_values = (
        _linear(weight[rows].clone(), None if bias is None else bias[rows].clone())
        for rows in (slice(width), slice(width, None))
    )
    return {"heads": heads, "adds_masks": adds_masks, "queries": queries, "keys_values": keys_values, "out": out}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _causal(queries: Tensor, keys: Tensor) -> Tensor:
    """The mask, added, by which a token attends to no later one."""
    return queries.new_full((queries.shape[2], keys.shape[2]), -torch.inf).triu_(1)


def gelu_(x: Tensor) -> Tensor:
    """GELU, x * Phi(x), in place; Phi of the normal distribution."""
    out: Tensor = torch.ops.aten.gelu_(x)
    return out


def gelu_tanh_(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh, in place."""
    out: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return out


def quick_gelu_(x: Tensor) -> Tensor:
    """OpenAI's x * sigmoid(1.702 x), each step rounded as theirs."""
    return x.mul_((QUICK * x).sigmoid_())


def silu_(x: Tensor) -> Tensor:
    """SiLU, x * sigmoid(x), in place."""
    out: Tensor = torch.ops.aten.silu_(x)
    return out


def nothing(x: Tensor) -> Tensor:
    """The activation where the product before it has one of its own."""
    return x


def _activation(activation: nn.Module) -> Callable[[Tensor], Tensor]:
    """The activation in place, where it is one of the usual four; an MLP's widest tensor is then not held twice."""
    if list(activation.parameters()):  # learnt, so none of them; a blueprint's has no values to ask
        return activation
    near, far = torch.linspace(-6, 6, 97, device="cpu"), torch.tensor([8.0, 20.0, 100.0, 1e4], device="cpu")
    probe = torch.cat([near, far, -far])  # far too: some are clipped there
    wanted = activation(probe.clone())
    for known in (gelu_, gelu_tanh_, quick_gelu_, silu_):
        if torch.allclose(known(probe.clone()), wanted, rtol=1e-6, atol=1e-5):
            return known
    return activation
