"""Rows of the matrix with models of transformers at toy size, most with the loss inside the model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from matrix.models import quietly
from matrix.task import Case, Task, binary, like
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

G = torch.Generator().manual_seed(11)
VOCABULARY, CLASSES = 40, 3
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.randint(3, VOCABULARY, (4, 8), generator=G)
REAL = torch.arange(8) < torch.tensor([8, 5, 3, 7])[:, None]
PADDED = IDS.masked_fill(~REAL, 0)
LABELS = torch.randint(0, CLASSES, (4,), generator=G)
TAGS = torch.randint(0, CLASSES, (4, 8), generator=G).masked_fill(~REAL, -100)
SEVERAL = torch.randint(0, 2, (4, CLASSES), generator=G).float()
NEXT = IDS.masked_fill(~REAL, -100)
IMAGES = torch.randn(4, 3, 8, 8, generator=G)


class Double(TorchFunctionMode):
    """Float64 throughout, in models that name float32 themselves (norms, rotary embeddings)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        wide = [torch.float64 if a is torch.float32 else a for a in args]
        named = {n: torch.float64 if a is torch.float32 else a for n, a in (kwargs or {}).items()}
        return torch.Tensor.double(*wide) if function is torch.Tensor.float else function(*wide, **named)


def inside(model: nn.Module, pick: Callable[[Any], list[Tensor]], x: dict[str, Tensor], **labels: Tensor) -> Task:
    """The model computes its own loss; ``pick`` takes the logits that count from an output made without labels."""

    def logits(m: nn.Module) -> list[Tensor]:
        with Double():
            return pick(m(**{name: like(value, m) for name, value in x.items()}))

    return Task(model.train(), lambda: model(**x, **labels).loss, logits)


def shifted(out: Any) -> list[Tensor]:
    return [out.logits[:, :-1][NEXT[:, 1:] != -100]]


def every(out: Any) -> list[Tensor]:
    return [out.logits]


def language(model: nn.Module) -> Task:
    return inside(model, shifted, {"input_ids": IDS, "attention_mask": REAL.long()}, labels=NEXT)


def padded(model: nn.Module, pick: Callable[[Any], list[Tensor]], labels: Tensor) -> Task:
    return inside(model, pick, {"input_ids": PADDED, "attention_mask": REAL.long()}, labels=labels)


def gpt2(**more: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**TOKENS, n_positions=16, n_embd=16, n_layer=2, n_head=2, **more)
    return GPT2LMHeadModel(config)


def checkpointed(reentrant: bool) -> nn.Module:
    model = gpt2(use_cache=False)
    quietly(model.gradient_checkpointing_enable, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    return model


def outside() -> Task:
    model = gpt2()
    kept = NEXT[:, 1:].flatten()

    def loss() -> Tensor:
        return F.cross_entropy(model(IDS, attention_mask=REAL.long()).logits[:, :-1].flatten(0, 1), kept)

    return language(model)._replace(loss=loss)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TOKENS, **SIZES, num_key_value_heads=1))


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**TOKENS, **SIZES, num_key_value_heads=1, num_local_experts=4))


def experts() -> Task:
    task = language(mixtral())

    def logits(m: nn.Module) -> Sequence[Tensor]:
        m.set_experts_implementation("eager")  # torch has no float64 for the default, grouped_mm
        return task.logits(m)

    return task._replace(logits=logits)


def bert(kind: str) -> nn.Module:
    import transformers

    return getattr(transformers, kind)(transformers.BertConfig(**TOKENS, **SIZES, num_labels=CLASSES))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=CLASSES))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**TOKENS, **sizes, decoder_start_token_id=0))


def translation() -> Task:
    # The decoder reads the labels moved right by one place; the model does that by itself only with labels.
    x = {"input_ids": PADDED, "attention_mask": REAL.long()}
    model = t5()
    decoded = model._shift_right(NEXT)
    task = inside(model, lambda out: [out.logits[NEXT != -100]], {**x, "decoder_input_ids": decoded})
    return task._replace(loss=lambda: model(**x, labels=NEXT).loss)


def clip() -> Task:
    from transformers import CLIPConfig, CLIPModel

    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    config = CLIPConfig(
        text_config={**TOKENS, **SIZES}, vision_config=vision, projection_dim=8, logit_scale_init_value=0.0
    )
    model = CLIPModel(config)
    x = {"input_ids": IDS, "pixel_values": IMAGES}
    task = inside(model, lambda out: [out.logits_per_text, out.logits_per_image], x)
    return task._replace(loss=lambda: model(**x, return_loss=True).loss)


SEQUENCE, TOKEN = "BertForSequenceClassification", "BertForTokenClassification"

HUGGING_FACE: list[Case] = [
    Case("GPT-2 with labels", lambda: language(gpt2())),
    Case("GPT-2 with labels, eager attention", lambda: language(gpt2(attn_implementation="eager"))),
    Case("GPT-2 with the loss in the step", outside),
    Case(
        "GPT-2 with labels under bf16 autocast",
        lambda: language(gpt2())._replace(autocast=torch.bfloat16),
        tolerance=0.05,
    ),
    Case("GPT-2 with labels in bf16", lambda: language(gpt2().bfloat16()), tolerance=0.05),
    Case("GPT-2 with gradient checkpointing", lambda: language(checkpointed(reentrant=False))),
    Case("GPT-2 with gradient checkpointing, reentrant", lambda: language(checkpointed(True)), "difference", 0.05),
    Case("Llama with labels", lambda: language(llama())),
    Case("Mixtral with labels", experts, "difference", 0.05),
    Case("BERT sequence classification", lambda: padded(bert(SEQUENCE), every, LABELS)),
    Case("BERT multi-label classification", lambda: padded(bert(SEQUENCE), lambda out: [binary(out.logits)], SEVERAL)),
    Case("BERT token classification", lambda: padded(bert(TOKEN), lambda out: [out.logits[REAL]], TAGS)),
    Case("ViT image classification", lambda: inside(vit(), every, {"pixel_values": IMAGES}, labels=LABELS)),
    Case("T5 with labels", translation),
    Case("CLIP with its own contrastive loss", clip),
]
