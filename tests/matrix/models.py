"""Rows of the matrix that differ in the model: layers, precision, and what a forward may do besides compute."""

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matrix.nets import (
    CLASSES,
    GPT,
    VOCABULARY,
    WIDTH,
    Act,
    Adaptive,
    Attention,
    Carrying,
    Codebook,
    Contrast,
    Counted,
    Encoder,
    Ensemble,
    Experts,
    Fourier,
    FrozenInside,
    Generated,
    Graph,
    Grid,
    InnerStep,
    Keeping,
    LayerDrop,
    LoRA,
    NumpyNoise,
    Outside,
    Packed,
    Pooled,
    Recurrent,
    Residual,
    Reversal,
    Sampled,
    Siamese,
    Square,
    SquareWithJvp,
    SwiGLU,
    Translator,
    UNet,
    audio,
    cnn,
    deep,
    mlp,
    resnet,
)
from matrix.task import Case, Task, like
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

G = torch.Generator().manual_seed(7)
X, Y = torch.randn(16, 12, generator=G), torch.randint(0, CLASSES, (16,), generator=G)
OTHER = torch.randn(16, 12, generator=G)
IMAGES = torch.randn(8, 3, 8, 8, generator=G)
PIXELS = torch.randint(0, CLASSES, (8, 8, 8), generator=G)
SOUND = torch.randn(8, 1, 64, generator=G)
SERIES = torch.randn(8, 7, 6, generator=G)
LENGTHS = torch.tensor([7, 3, 5, 7, 2, 6, 4, 1])
TOKENS = torch.randint(1, VOCABULARY, (8, 10), generator=G)
PADDED = TOKENS.masked_fill(torch.arange(10) >= LENGTHS[:, None] + 3, 0)
EDGES = (torch.rand(16, 16, generator=G) < 0.3).float().div(5).to_sparse()
Y8 = Y[:8]


# Training steps, as people write them.


def classify(model: nn.Module, x: Tensor = X, y: Tensor = Y, **more: Any) -> Task:
    return Task(model, lambda: F.cross_entropy(model(x), y), lambda m: [m(like(x, m))], **more)


def images(model: nn.Module, **more: Any) -> Task:
    return classify(model, IMAGES, Y8, **more)


def series(model: nn.Module, **more: Any) -> Task:
    return classify(model, SERIES, Y8, **more)


def tokens(model: nn.Module, x: Tensor = TOKENS, **more: Any) -> Task:
    return classify(model, x, Y8, **more)


def language(model: nn.Module, **more: Any) -> Task:
    x, y = TOKENS[:, :-1], TOKENS[:, 1:].flatten()
    return Task(model, lambda: F.cross_entropy(model(x).flatten(0, 1), y), lambda m: [m(x).flatten(0, 1)], **more)


def pixels(model: nn.Module, **more: Any) -> Task:
    loss = lambda: F.cross_entropy(model(IMAGES), PIXELS)  # noqa: E731
    return Task(model, loss, lambda m: [m(like(IMAGES, m)).movedim(1, -1)], **more)


def drawing(model: nn.Module, state: Callable[[], Any], restore: Callable[[Any], None]) -> Task:
    """The model draws from a generator that is not torch's; the reference draws the same numbers again."""
    kept: list[Any] = []

    def loss() -> Tensor:
        kept[:] = [state()]
        return F.cross_entropy(model(X), Y)

    def logits(m: nn.Module) -> list[Tensor]:
        restore(kept[0])
        return [m(like(X, m))]

    return Task(model, loss, logits)


def packed() -> Task:
    model = Packed()
    return Task(model, lambda: F.cross_entropy(model(SERIES, LENGTHS), Y8), lambda m: [m(like(SERIES, m), LENGTHS)])


def siamese_inside() -> Task:
    model, same = Siamese(), (Y8.repeat(2) == Y).long()
    return Task(model, lambda: F.cross_entropy(model(X, OTHER), same), lambda m: [m(like(X, m), like(OTHER, m))])


def siamese_outside() -> Task:
    model, own = mlp(), torch.arange(len(X))
    return Task(
        model,
        lambda: F.cross_entropy(model(X) @ model(OTHER).T, own),
        lambda m: [m(like(X, m)) @ m(like(OTHER, m)).T],
    )


def inner_step() -> Task:
    task = classify(InnerStep())
    return task._replace(logits=torch.enable_grad()(task.logits))


def keeping() -> Task:
    model = mlp(Keeping())
    loss = lambda: F.cross_entropy(model(X), Y) + 0.01 * model[2].kept.square().mean()  # noqa: E731
    return classify(model, plain=twin_of(model))._replace(loss=loss)


def adaptive() -> Task:
    """The softmax over the frequent classes and the clusters of the others, and one in each cluster."""
    model, x, y = Adaptive(), TOKENS[:, :-1].flatten(), TOKENS[:, 1:].flatten()

    def logits(m: nn.Module) -> list[Tensor]:
        h, inside = m.embed(x), zip(m.softmax.tail, m.softmax.cutoffs, m.softmax.cutoffs[1:], strict=False)
        return [m.softmax.head(h), *(tail(h[(low <= y) & (y < high)]) for tail, low, high in inside)]

    return Task(model, lambda: model(x, y), logits)


def log_softmax() -> Task:
    model = mlp().append(nn.LogSoftmax(-1))
    return Task(model, lambda: F.nll_loss(model(X), Y), lambda m: [m[:-1](like(X, m))])


def channels_last(model: nn.Module) -> Task:
    model.to(memory_format=torch.channels_last)
    return classify(model, IMAGES.to(memory_format=torch.channels_last), Y8)


def python_random() -> Task:
    random.seed(0)
    return drawing(mlp(LayerDrop()), random.getstate, random.setstate)


def numpy_random() -> Task:
    np.random.seed(0)
    return drawing(mlp(NumpyNoise()), np.random.get_state, np.random.set_state)


# Where the module that trains cannot be copied, its eager twin holds the same parameters and buffers.


def quietly(make: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **keywords)


def twin_of(model: nn.Module) -> nn.Module:
    """A copy that owns the very dictionaries of parameters and buffers, so that it follows the model."""
    twin = copy.deepcopy(model)
    for name, module in twin.named_modules():
        own = model.get_submodule(name)
        module._parameters, module._buffers = own._parameters, own._buffers
    return twin


def hooked(normed: Callable[[nn.Module], nn.Module]) -> Task:
    """A hook sets the weight, a tensor with a graph that cannot be copied after a forward."""
    with torch.no_grad():
        model = quietly(parametrized, normed)
    return classify(model, plain=twin_of(model))


def compiled(model: nn.Module, backend: str, x: Tensor = X, y: Tensor = Y) -> Task:
    return classify(torch.compile(model, backend=backend), x, y, plain=model)


def compiled_in_place() -> Task:
    model = GPT()
    model.compile(backend="eager")
    return language(model)


def compiled_part() -> Task:
    body, head = nn.Sequential(nn.Linear(12, WIDTH), nn.GELU()), nn.Linear(WIDTH, CLASSES)
    return classify(nn.Sequential(torch.compile(body, backend="eager"), head), plain=nn.Sequential(body, head))


def scripted() -> Task:
    plain = mlp()
    return classify(quietly(torch.jit.script, plain), plain=plain)


def scripted_part() -> Task:
    body, head = nn.Sequential(nn.Linear(12, WIDTH), nn.GELU()), nn.Linear(WIDTH, CLASSES)
    return classify(nn.Sequential(quietly(torch.jit.script, body), head), plain=nn.Sequential(body, head))


# Small variations.


def bidirectional() -> nn.Module:
    return Recurrent(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.2)


def embedding(**more: Any) -> nn.Module:
    return Pooled(nn.Embedding(VOCABULARY, WIDTH, **more))


def group(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def instance(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def still(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def dropped() -> list[nn.Module]:
    return [Residual(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()), drop=0.3) for _ in range(3)]


def frozen() -> nn.Module:
    return nn.Sequential(cnn()[:-1].requires_grad_(False), nn.Linear(32, CLASSES))


def quantizer(trained: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(12, WIDTH).requires_grad_(trained), Codebook(), nn.Linear(WIDTH, CLASSES))


def parametrized(around: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    return nn.Sequential(around(nn.Linear(12, WIDTH)), nn.ReLU(), around(nn.Linear(WIDTH, CLASSES)))


def rounded(linear: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(linear, "weight", Grid(16))


def pruned(linear: nn.Module) -> nn.Module:
    return prune.random_unstructured(linear, "weight", 0.5)


def tripled() -> nn.Module:
    model = mlp()
    model[0].register_forward_hook(lambda module, args, out: 3 * out)
    return model


def watched() -> nn.Module:
    model = mlp()
    model[-1].register_full_backward_hook(lambda module, inward, outward: None)
    return model


def last(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return mlp().append(Act(function))


# The cases.

BF16 = torch.bfloat16
NO_RULE, UNSEEN = "torch has no forward-mode rule for it", "forward mode runs but misses a part of the motion"


def rough(name: str, build: Callable[[], Task], **more: Any) -> Case:
    """Forward mode in float32 of what the model computes in bf16."""
    return Case(name, build, tolerance=0.05, **more)


def difference(name: str, build: Callable[[], Task], note: str = NO_RULE) -> Case:
    return Case(name, build, "difference", 0.05, note=note)


def normed(around: Callable[[nn.Linear], nn.Module]) -> Callable[[], Task]:
    return lambda: classify(parametrized(around))


ORDINARY = [
    Case("MLP", lambda: classify(mlp())),
    Case("MLP in float64", lambda: classify(mlp().double(), X.double())),
    rough("MLP under bf16 autocast", lambda: classify(mlp(), autocast=BF16)),
    rough("MLP in bf16", lambda: classify(mlp().bfloat16(), X.bfloat16())),
    Case("deep MLP with GELU and dropout", lambda: classify(deep())),
    Case("MLP with log_softmax as its last layer", log_softmax),
    Case("LayerNorm and SwiGLU blocks", lambda: classify(mlp(SwiGLU(), SwiGLU()))),
    Case("one block used three times", lambda: classify(mlp(*[SwiGLU()] * 3))),
    Case("CNN with BatchNorm", lambda: images(cnn())),
    Case("CNN with BatchNorm, trained in eval mode", lambda: images(cnn().eval())),
    Case("CNN with only its BatchNorm in eval mode", lambda: images(still(cnn()))),
    rough("CNN with BatchNorm under bf16 autocast", lambda: images(cnn(), autocast=BF16)),
    Case("CNN with BatchNorm, channels last", lambda: channels_last(cnn())),
    Case("CNN with GroupNorm", lambda: images(cnn(group))),
    difference("CNN with GroupNorm, channels last", lambda: channels_last(cnn(group)), "torch's rule for it raises"),
    Case("CNN with InstanceNorm", lambda: images(cnn(instance))),
    Case("residual net with BatchNorm", lambda: images(resnet())),
    Case("1-d convolutions over sound", lambda: classify(audio(), SOUND, Y8)),
    Case("U-Net, a softmax at every pixel", lambda: pixels(UNet())),
    Case("RNN", lambda: series(Recurrent(nn.RNN))),
    Case("LSTM", lambda: series(Recurrent(nn.LSTM))),
    Case("GRU", lambda: series(Recurrent(nn.GRU))),
    Case("bidirectional LSTM, 2 layers, dropout", lambda: series(bidirectional())),
    Case("LSTM over a PackedSequence", packed),
    Case("MultiheadAttention", lambda: tokens(Attention())),
    Case("MultiheadAttention in eval mode", lambda: tokens(Attention().eval())),
    Case("TransformerEncoder with padding mask and dropout", lambda: tokens(Encoder(), PADDED)),
    Case("TransformerEncoder with padding mask in eval mode", lambda: tokens(Encoder().eval(), PADDED)),
    Case("nn.Transformer, encoder and decoder", lambda: language(Translator())),
    Case("small GPT with causal scaled_dot_product_attention", lambda: language(GPT())),
    Case("small GPT with tied embedding and head, dropout", lambda: language(GPT(tied=True, dropout=0.1))),
    rough("small GPT under bf16 autocast", lambda: language(GPT(), autocast=BF16)),
    rough("small GPT in bf16", lambda: language(GPT().bfloat16())),
    Case("Embedding with padding_idx", lambda: tokens(embedding(padding_idx=0), PADDED)),
    Case("Embedding with sparse gradients", lambda: tokens(embedding(sparse=True))),
    difference("EmbeddingBag", lambda: tokens(Pooled(nn.EmbeddingBag(VOCABULARY, WIDTH)))),
    Case("AdaptiveLogSoftmaxWithLoss", adaptive),
    difference("graph network with a sparse matrix", lambda: classify(Graph(EDGES))),
    Case("Fourier layer with complex weights", lambda: classify(Fourier())),
    Case("mixture of experts, all weighted by a softmax", lambda: classify(mlp(Experts()))),
    Case("mixture of experts, top-1", lambda: classify(mlp(Experts(1)))),
    Case("mixture of experts, top-2 with index dispatch", lambda: classify(mlp(Experts(2)))),
    Case("siamese, encoder called twice in the forward", siamese_inside),
    Case("siamese, model called twice by the step", siamese_outside),
]

PARTLY_FROZEN = [
    Case("frozen backbone and a head", lambda: images(frozen())),
    rough("frozen backbone and a head under bf16 autocast", lambda: images(frozen(), autocast=BF16)),
    Case("frozen backbone under inference_mode", lambda: classify(FrozenInside())),
    Case("LoRA on a frozen base", normed(LoRA)),
    Case("vector quantizer with EMA codebook, frozen encoder", lambda: classify(quantizer(trained=False))),
]

REPARAMETRIZED = [
    difference("weight_norm", normed(parametrizations.weight_norm)),
    difference("weight_norm, hook-based", lambda: hooked(weight_norm)),
    difference("spectral_norm", normed(parametrizations.spectral_norm)),
    difference("spectral_norm, hook-based", lambda: hooked(spectral_norm)),
    Case("spectral_norm in eval mode", lambda: classify(parametrized(parametrizations.spectral_norm).eval())),
    Case("orthogonal parametrization", normed(parametrizations.orthogonal)),
    Case("pruned weights", lambda: hooked(pruned)),
    Case("weights rounded straight-through", normed(rounded), refused="jumps"),
]

WRAPPED = [
    Case("checkpointed blocks", lambda: language(GPT(dropout=0.1, reentrant=False))),
    difference("checkpointed blocks, reentrant", lambda: language(GPT(dropout=0.1, reentrant=True))),
    Case("torch.compile", lambda: compiled(mlp(), "aot_eager")),
    Case("torch.compile with BatchNorm", lambda: compiled(cnn(), "eager", IMAGES, Y8)),
    Case("torch.compile of a part", compiled_part),
    Case("module.compile() in place", compiled_in_place),
    difference("torch.jit.script", scripted, "its parameters cannot be replaced"),
    difference("torch.jit.script of a part", scripted_part, "its parameters cannot be replaced"),
    Case("torch.vmap over an ensemble's weights", lambda: classify(mlp()[:2].append(Ensemble()))),
    Case("forward hook that changes an output", lambda: classify(tripled())),
    Case("full backward hook", lambda: classify(watched())),
]

UNUSUAL = [
    Case("autograd.Function with jvp", lambda: classify(mlp(Act(SquareWithJvp.apply)))),
    difference("autograd.Function without jvp", lambda: classify(mlp(Act(Square.apply)))),
    difference("gradient reversal", lambda: classify(mlp(Act(Reversal.apply)))),
    difference("detached path", lambda: classify(last(lambda z: z.tanh() + 2 * z.detach())), UNSEEN),
    difference(".item() in the forward", lambda: classify(last(lambda z: z * z.abs().max().item())), UNSEEN),
    difference(".data in the forward", lambda: classify(last(lambda z: z * z.data.abs())), UNSEEN),
    Case("parameter reached through a list", lambda: classify(mlp(Outside()))),
    difference("inference_mode in the forward", lambda: classify(mlp(Contrast(torch.inference_mode))), UNSEEN),
    Case("no_grad in the forward", lambda: classify(mlp(Contrast(torch.no_grad)))),
    difference("gradient step inside the forward", inner_step, "runs with gradients on only"),
    Case("activations rounded straight-through", lambda: classify(mlp(Grid(32))), refused="jumps"),
    difference("vector quantizer with EMA codebook", lambda: classify(quantizer(trained=True)), "between its jumps"),
    Case("forward that counts its calls", lambda: classify(mlp(Counted()))),
    Case("forward that warms up with its calls", lambda: classify(mlp(Counted(warmup=8)))),
    Case("LSTM that carries its state to the next batch", lambda: series(Carrying())),
    Case("forward that keeps an activation for the loss", keeping),
    Case("stochastic depth with torch.rand", lambda: classify(mlp(*dropped()))),
    Case("hidden state sampled with torch.randn", lambda: classify(mlp(Sampled()))),
    Case("noise from a torch.Generator of the model", lambda: classify(mlp(Generated()))),
    Case("noise from numpy.random", numpy_random),
    Case("layers dropped with random.random", python_random),
]

MODELS: list[Case] = [*ORDINARY, *PARTLY_FROZEN, *REPARAMETRIZED, *WRAPPED, *UNUSUAL]
