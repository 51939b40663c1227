"""open_clip's names of weights as transformers has them: the two are the same network."""

from torch import Tensor

BLOCKS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's CLIP under the names of transformers' CLIPModel."""
    renamed = {"logit_scale": state["logit_scale"]}
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
    }
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if name in names or stem in names:
            renamed[names.get(name) or f"{names[stem]}.{kind}"] = tensor
        elif "resblocks" in name:
            half = "vision_model" if name.startswith("visual.") else "text_model"
            renamed |= block_names(f"{half}.encoder.layers", name.split("resblocks.")[1], tensor)
    renamed["visual_projection.weight"] = state["visual.proj"].T
    renamed["text_projection.weight"] = state["text_projection"].T
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def block_names(layers: str, rest: str, tensor: Tensor) -> dict[str, Tensor]:
    """A weight of open_clip's residual block under the names of a layer of transformers."""
    index, part = rest.split(".", 1)
    layer, kind = f"{layers}.{index}", part.rpartition(".")[2]
    if "in_proj" in part:
        rows = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.self_attn.{name}_proj.{part.rpartition('_')[2]}": value for name, value in rows}
    if "out_proj" in part:
        return {f"{layer}.self_attn.out_proj.{kind}": tensor}
    return {f"{layer}.{BLOCKS[part.rpartition('.')[0]]}.{kind}": tensor}
