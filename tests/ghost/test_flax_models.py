"""Models written with Flax Linen and Flax NNX, whose authors never heard of us."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from agreement import explained_after_checking, factored, materialised, matrices
from flax import nnx
from networks import normal, tokens

VOCAB, WIDTH, N, T = 11, 8, 3, 5


def cross_entropy(logits, targets):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()


def drawn(shapes):
    """Numbers for the shapes of a model: its own initialiser would be compiled."""
    leaves, structure = jax.tree.flatten(shapes)
    return structure.unflatten([normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def text():
    return {"input": tokens(0, N, T, below=VOCAB), "target": tokens(1, N, T, below=VOCAB)}


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        u = nn.LayerNorm()(h)
        u = nn.MultiHeadDotProductAttention(num_heads=2)(u, mask=nn.make_causal_mask(jnp.ones(u.shape[:-1])))
        return h + nn.Dense(WIDTH, use_bias=False)(nn.gelu(nn.Dense(6)(h + u))), None


class LinenDecoder(nn.Module):
    """A tied table, scanned layers that are computed again, kernels with head axes."""

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(VOCAB, WIDTH, name="embed")
        layers = nn.scan(
            nn.remat(Block, prevent_cse=False), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        h, _ = layers(name="layers")(embed(ids), None)
        h = nn.DenseGeneral((2, 3), name="split")(h)
        h = nn.DenseGeneral(WIDTH, axis=(-2, -1), name="merge")(jnp.tanh(h))
        return embed.attend(nn.RMSNorm()(h))


def test_a_linen_decoder_is_factored_throughout():
    model, batch = LinenDecoder(), text()
    params = drawn(jax.eval_shape(model.init, jax.random.key(0), batch["input"][0]))

    def loss(params, example):
        return cross_entropy(model.apply(params, example["input"][None]), example["target"][None])

    explanation = explained_after_checking(loss, params, batch)
    assert materialised(explanation) == {}
    # A bias that a scan stacks is a matrix, [layers, d], and is kept as a sum over tokens.
    assert {path for path in matrices(explanation) if "kernel" in path or "embed" in path} <= factored(explanation)


class LinenConvolutions(nn.Module):
    """Convolutions of every sort, on [height, width, channels]."""

    @nn.compact
    def __call__(self, image):
        h = nn.relu(nn.Conv(4, (3, 3), name="plane")(image))
        h = nn.Conv(4, (2, 2), feature_group_count=4, name="depthwise")(nn.avg_pool(h, (2, 2), (2, 2)))
        h = nn.ConvTranspose(3, (2, 2), strides=(2, 2), name="transposed")(nn.GroupNorm(2)(h))
        h = nn.Conv(5, (3,), name="line")(h.reshape(-1, 3))
        return nn.Dense(3, name="head")(nn.relu(h).mean(0))


def test_linen_convolutions_are_materialised_alone():
    model, images = LinenConvolutions(), normal(0, N, 4, 4, 2, scale=1)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0), images[0]))["params"]

    def loss(params, example):
        image, label = example
        return cross_entropy(model.apply({"params": params}, image), label)

    explanation = explained_after_checking(loss, params, (images, tokens(1, N, below=3)))
    kernels = {f"['{name}']['kernel']" for name in ("plane", "depthwise", "transposed", "line")}
    assert materialised(explanation) == dict.fromkeys(kernels, "conv_general_dilated")
    assert factored(explanation) >= {"['head']['kernel']"}


class NnxDecoder(nnx.Module):
    """Every layer of NNX that holds a matrix, with a table that is tied through another layer."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.split = nnx.LinearGeneral(WIDTH, (2, 3), rngs=rngs)
        self.merge = nnx.LinearGeneral((2, 3), WIDTH, axis=(-2, -1), rngs=rngs)
        self.heads = nnx.Einsum("td,dhe->the", (WIDTH, 2, 3), (2, 3), rngs=rngs)
        self.per_head = nnx.Einsum("the,hef->thf", (2, 3, 4), rngs=rngs)
        self.adapted = nnx.LoRA(WIDTH, 2, WIDTH, base_module=nnx.Linear(WIDTH, WIDTH, rngs=rngs), rngs=rngs)
        self.mixer = nnx.Conv(WIDTH, WIDTH, (3,), padding="CAUSAL", feature_group_count=WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)

    def __call__(self, ids, key):
        h = self.embed(ids)
        u = self.norm(h)
        h = h + self.attend(u, mask=nnx.make_causal_mask(jnp.ones(u.shape[:-1])))
        h = h + self.merge(jnp.tanh(self.split(h))) + self.mixer(h)
        h = h + self.dropout(self.adapted(h), rngs=key)
        return self.embed.attend(self.per_head(self.heads(h)).reshape(-1, WIDTH))


@pytest.mark.parametrize("trained", [nnx.Param, nnx.LoRAParam])
def test_an_nnx_decoder_is_factored_but_for_its_convolution(trained):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: NnxDecoder(nnx.Rngs(0))))
    params, frozen = nnx.split_state(drawn(shapes), trained, ...)
    batch = text() | {"key": jax.random.split(jax.random.key(0), N)}

    def loss(params, frozen, example):
        model = nnx.merge(graph, params, frozen, copy=True)
        return cross_entropy(model(example["input"], example["key"]), example["target"])

    explanation = explained_after_checking(loss, params, frozen, batch)
    convolutions = {row.path for row in explanation if row.path.startswith("['mixer']['kernel']")}
    assert materialised(explanation) == dict.fromkeys(convolutions, "conv_general_dilated")
    assert len(convolutions) == (trained is nnx.Param)
    whole = {path for path in matrices(explanation) if "bias" in path}
    assert matrices(explanation) - convolutions - whole <= factored(explanation)
