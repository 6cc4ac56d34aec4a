"""Which models are stacks of dense layers, on data and losses that kernels know."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patterning_fast.ops import library
from patterning_fast.ops.dense_stack import DenseLayer, DenseStack
from patterning_fast.ops.sparse_features import SparseFeatures
from patterning_fast.posterior import losses
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.data import parts_of
from patterning_fast.posterior.losses import Batch, Data, Loss

WIDEST = 256
"""Wider layers are better left to a matrix library."""

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
}


class NotDense(ValueError):
    """A model, loss or data that kernels of dense layers cannot take; says what does not fit."""


def dense_layers(model: nn.Module) -> list[DenseLayer]:
    """The layers of a model whose forward pass is a stack of them.

    Known are an `nn.Sequential` of `nn.Linear` and activations, and models with a method `dense_layers()`: a list of
    `(weight, bias or None, transposed, activation)`, parameters by name. Raises NotDense for others.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    starts = dict(
        zip(sizes, [0, *torch.tensor(list(sizes.values()), dtype=torch.int64).cumsum(0).tolist()], strict=False)
    )
    own = getattr(model, "dense_layers", None)
    described = of_sequential(model) if own is None else own()
    layers = []
    for weight, bias, transposed, activation in described:
        rows, columns = model.get_parameter(weight).shape
        inputs, outputs = (rows, columns) if transposed else (columns, rows)
        if max(inputs, outputs) > WIDEST:
            raise NotDense(f"{weight} is {max(inputs, outputs)} wide, more than {WIDEST}")
        layers.append(
            DenseLayer(inputs, outputs, starts[weight], -1 if bias is None else starts[bias], transposed, activation)
        )
    return layers


def of_sequential(model: nn.Module) -> list[tuple[str, str | None, bool, str]]:
    """What `dense_layers()` of an `nn.Sequential` would say."""
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        raise NotDense(f"{type(model).__name__} is no nn.Sequential, and has no method dense_layers()")
    described: list[tuple[str, str | None, bool, str]] = []
    for name, module in zip(model._modules, model, strict=True):  # one for each place, where modules come twice too
        if type(module) is nn.Linear:
            described.append((f"{name}.weight", None if module.bias is None else f"{name}.bias", False, "identity"))
            continue
        activation = ACTIVATIONS.get(type(module))
        if activation is None or getattr(module, "approximate", "none") != "none":
            raise NotDense(f"layer {name} is {module}")
        if activation == "identity":
            continue
        if not described or described[-1][3] != "identity":
            raise NotDense(f"layer {name}, {module}, does not follow an nn.Linear")
        described[-1] = (*described[-1][:3], activation)
    if not described:
        raise NotDense("the model has no nn.Linear")
    if len({id(model.get_parameter(weight)) for weight, *_ in described}) < len(described):
        raise NotDense("modules share their weights: describe them by a method dense_layers()")
    return described


def pair(data: Data) -> tuple[Tensor, Tensor]:
    """Inputs, float32 `[samples, inputs]`, and targets; raises NotDense for data that are none."""
    x, y = data if isinstance(data, tuple) and len(data) == 2 else (None, None)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dtype != torch.float32 or x.dim() != 2:
        raise NotDense("the data are no pair (x, y) of float32 x [samples, inputs]")
    return x, y


def joined(parts: list[Batch]) -> tuple[Tensor, Tensor]:
    """All parts' samples, one after another; raises NotDense for parts that are not alike."""
    pairs = [pair(each) for each in parts]
    if len({(x.shape[1:], y.shape[1:], y.dtype) for x, y in pairs}) > 1:
        raise NotDense("the probes differ in shape or dtype")
    x = torch.cat([x for x, _ in pairs])
    return x, x if all(x is y for x, y in pairs) else torch.cat([y for _, y in pairs])


def dense_stack(
    model: nn.Module, loss: Loss, components: list[Component], chains: int, data: Data, weights: Tensor | None
) -> DenseStack:
    """A model on samples, with `chains` chains of each component; raises NotDense where it is none."""
    layers = dense_layers(model)
    if loss not in (losses.squared_error, losses.cross_entropy):
        raise NotDense(f"the loss is {getattr(loss, '__name__', loss)}")
    samples = samples_of(loss, data, layers[-1].outputs)
    parameters = dict(model.named_parameters())
    base = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
    places = dict(
        zip(parameters, torch.arange(base.numel()).split([each.numel() for each in parameters.values()]), strict=True)
    )
    coordinates = [
        torch.cat(
            [places[name] if index is None else places[name][index.cpu()] for name, index in each.coordinates.items()]
        )
        for each in components
    ]
    starts = torch.tensor([0, *(len(each) for each in coordinates[:-1])], dtype=torch.int64).cumsum(0)
    everything = torch.arange(base.numel())
    whole = torch.tensor([torch.equal(each, everything) for each in coordinates], dtype=torch.bool)
    starts[whole] = -1
    return DenseStack(
        layers,
        base,
        starts.repeat_interleave(chains).to(base.device),
        torch.cat(coordinates).to(base.device),
        *samples,
        None if weights is None else weights.flatten().contiguous(),
    )


def samples_of(loss: Loss, data: Data, outputs: int) -> tuple[Tensor | SparseFeatures, Tensor | None, Tensor | None]:
    """Inputs, targets and labels; raises NotDense where they do not fit loss and outputs."""
    device = parts_of(data)[0].device
    if device.type not in ("cpu", "cuda") or library.backends("dense_steps", device.type) == ["reference"]:
        raise NotDense(f"the data are on {device}, for which no kernel is built")
    labelled = loss is losses.cross_entropy
    if isinstance(data, tuple) and isinstance(data[0], SparseFeatures):
        if labelled or len(data) != 2 or data[1] is not data[0] or outputs != data[0].presence.numel():
            raise NotDense("sparse features can only be their own targets, by squared error")
        return data[0], None, None
    x, y = pair(data)
    shape = (len(x),) if labelled else (len(x), outputs)
    if tuple(y.shape) != shape or y.dtype != (torch.int64 if labelled else torch.float32):
        raise NotDense(f"the targets are {y.dtype} of shape {list(y.shape)}")
    x, y = x.contiguous(), y.contiguous()
    return (x, None, y) if labelled else (x, y, None)
