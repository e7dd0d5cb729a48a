"""The hypernetworks of STEPH: from a bag to a weight and a mixing ratio for every source.

Equations 9 to 11 of docs/method.md:

    g      = mean_n relu(W_e x_n + b_e)
    w      = out(MLP_w(g)),  MLP = Linear relu dropout(0.25) Linear,  out = relu by default
    r      = relu(MLP_m(g)),  lambda = 1 / (1 + r),  or softplus(MLP_m(g)), which is ours

`Hypernetworks.embed` is the part that sees patches; its mean over the bag is taken by the caller,
who may hold the bag in chunks.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from steph_jax.models.layers import Linear, dropout

#: Functions of MLP_w's output, by their names in `steph.Options.weight_output`.
WEIGHT_OUTPUTS = {"relu": nn.relu, "softplus": nn.softplus, "sigmoid": nn.sigmoid}
MIXINGS = ("nn", "fnn", "param", "fix")
#: Functions of MLP_m's output; relu is the published one. Where it is 0, lambda is 1 and no
#: gradient moves it again, so that the source is a second copy of the target; softplus is never 0.
MIXING_OUTPUTS = {"relu": nn.relu, "softplus": nn.softplus}
#: Size of the projection and of the hidden layers.
HIDDEN_DIM = 512


class Mlp(nn.Module):
    """Linear, relu, dropout, Linear.

    Attributes:
        hidden_dim, num_outputs: sizes.
        rate: of dropout.
        site: of its dropout (`layers.dropout`).
    """

    hidden_dim: int
    num_outputs: int
    rate: float
    site: int

    def setup(self) -> None:
        self.hidden = Linear(self.hidden_dim)
        self.output = Linear(self.num_outputs)

    def __call__(
        self, x: Float[Array, "*bags H"], keys: Key[Array, "*bags"] | None
    ) -> Float[Array, "*bags S"]:
        return self.output(dropout(nn.relu(self.hidden(x)), keys, self.rate, self.site))


class Hypernetworks(nn.Module):
    """Weights w [B, S] and mixing ratios lambda [B, S] of bags.

    Attributes:
        num_sources: S.
        weight_output: name in `WEIGHT_OUTPUTS`.
        mixing: "nn" (a second MLP on the shared projection), "fnn" (a second MLP on a projection
            of its own), "param" (one learned r per source, used as it is, started at 0), "fix"
            (ratios given), or "" for weights alone.
        fixed_mixing: lambda [S] for "fix".
        hidden_dim: of the projection and of the MLPs.
        rate: dropout rate within the MLPs.
        compute_dtype: of the operands of the projection's product.
        mixing_output: name in `MIXING_OUTPUTS`, for "nn" and "fnn".
    """

    num_sources: int
    weight_output: str = "relu"
    mixing: str = "nn"
    fixed_mixing: tuple[float, ...] = ()
    hidden_dim: int = HIDDEN_DIM
    rate: float = 0.25
    compute_dtype: Any = None
    mixing_output: str = "relu"

    def setup(self) -> None:
        self.embedding = Linear(self.hidden_dim, self.compute_dtype)
        self.weights = Mlp(self.hidden_dim, self.num_sources, self.rate, 0)
        if self.mixing in ("nn", "fnn"):
            self.mixing_mlp = Mlp(self.hidden_dim, self.num_sources, self.rate, 1, name="mixing")
        if self.mixing == "fnn":
            self.mixing_embedding = Linear(self.hidden_dim, self.compute_dtype)

    def embed(self, features: Float[Array, "*patches D"]) -> dict[str, Float[Array, "*patches H"]]:
        """relu(W_e x_n + b_e) of patches [..., D]: "weights" and, for "fnn", "mixing"."""
        embedded = {"weights": nn.relu(self.embedding(features))}
        if self.mixing == "fnn":
            embedded["mixing"] = nn.relu(self.mixing_embedding(features))
        return embedded

    @nn.compact  # so that `embed` can be applied without the ratios of "param"
    def __call__(
        self, summary: dict[str, Float[Array, "*bags H"]], keys: Key[Array, "*bags"] | None = None
    ) -> tuple[Float[Array, "*bags S"], Float[Array, "*ratios S"] | None]:
        """From the means g of `embed` over bags ([B, 512] each) to w [B, S] and lambda.

        `keys` [B] switch dropout on. lambda is [B, S], or [S] where it is the same for every bag,
        and None where there is no mixing. With "param", lambda = 1 / (1 + r) with r of any
        sign, so it may leave (0, 1], as in the published program.
        """
        g = summary["weights"]
        w = WEIGHT_OUTPUTS[self.weight_output](self.weights(g, keys))
        if self.mixing == "":
            return w, None
        if self.mixing == "fix":
            return w, jnp.asarray(self.fixed_mixing, w.dtype)
        if self.mixing == "param":
            r = self.param("mixing_ratio", nn.initializers.zeros, (self.num_sources,), jnp.float32)
        else:
            output = MIXING_OUTPUTS[self.mixing_output]
            r = output(self.mixing_mlp(summary.get("mixing", g), keys))
        return w, 1 / (1 + r)

    def initial(self, features: Float[Array, "N D"]) -> Float[Array, " S"]:
        """Touches every layer once; what `init` runs to create the parameters."""
        summary = jax.tree.map(lambda x: jnp.mean(x, axis=0), self.embed(features))
        return self(summary)[0]


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))  # as `abmil.init`
def init(
    key: Key[Array, ""],
    feature_dim: int,
    num_sources: int,
    weight_output: str = "relu",
    mixing: str = "nn",
    fixed_mixing: tuple[float, ...] = (),
    initial_weight: float = 0.0,
) -> dict[str, Any]:
    """Random float32 parameters of the hypernetworks (torch's default start).

    Args:
        key: random key.
        feature_dim: D.
        num_sources: S.
        weight_output, mixing, fixed_mixing: as in `Hypernetworks`.
        initial_weight: added to the output biases of MLP_w.
    """
    module = Hypernetworks(num_sources, weight_output, mixing, fixed_mixing)
    features = jnp.zeros((1, feature_dim), jnp.float32)
    params = module.init(key, features, method="initial")["params"]
    output = params["weights"]["output"]
    output = output | {"bias": output["bias"] + initial_weight}
    return params | {"weights": params["weights"] | {"output": output}}
