"""A tiny vision-language model that really sees: LLaVA's architecture, trained to name colours.

Built where it is needed, in seconds on one core, because no such model ships and none may be
downloaded. Both engines load it as they load any LLaVA.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 60, 220),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "orange": (245, 140, 20),
    "purple": (130, 40, 160),
}
NO_IMAGE = "no image"
"""What the model says when it is asked about nothing."""

SIDE = 32
PATCH = 8
IMAGE_TOKENS = (SIDE // PATCH) ** 2
STEPS = 400
BATCH = 24
_QUESTIONS = (
    "What colour is this?",
    "Name the colour.",
    "Which colours do you see?",
    "What is this?",
    "colour?",
)
_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<|system|>", "<|user|>", "<|assistant|>")


def build_tiny_vision(cache: Path) -> Path:
    """Returns the model's folder below `cache`, training it when this version is not there."""
    import transformers

    source = Path(__file__).read_bytes() + transformers.__version__.encode()
    place = cache / f"tiny-vision-{hashlib.sha256(source).hexdigest()[:12]}"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
        _train(fresh)
        try:
            fresh.rename(place)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
    return place


def square(colour: str, side: int = SIDE) -> Any:
    """Returns a plain square of a colour as a PIL image."""
    from PIL import Image

    return Image.new("RGB", (side, side), COLOURS[colour])


def _train(place: Path) -> None:
    import torch

    torch.manual_seed(7)
    random = np.random.default_rng(7)
    processor = _processor()
    model = _model(processor.tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    for step in range(STEPS):
        # Each batch has one number of images, so that it has one shape.
        batch = _batch(processor, random, images=(1, 1, 2, 0, 1, 2)[step % 6])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(place)
    processor.save_pretrained(place)
    _name_as_on_the_hub(place / "model.safetensors")
    _examine(place)


def _name_as_on_the_hub(weights: Path) -> None:
    """Gives the vision tower's weights the names that published LLaVAs have and vLLM knows."""
    from safetensors.torch import load_file, save_file

    tower = "vision_tower."
    named = {
        name.replace(tower, f"{tower}vision_model.", 1) if name.startswith(tower) else name: tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})


def _examine(place: Path) -> None:
    """Lets the model, as it was saved, name every colour."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(place)
    model: Any = AutoModelForImageTextToText.from_pretrained(place)
    for name in COLOURS:
        prompt = f"<|user|><image>{_QUESTIONS[0]}</s><|assistant|>"
        inputs = processor(text=prompt, images=[square(name, 50)], return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        said = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        if said != name:
            raise AssertionError(f"the tiny vision model calls {name} {said!r}")


def _processor() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*COLOURS, *(f" {name}," for name in COLOURS), *_QUESTIONS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(_SPECIAL[3:]),
        padding_side="left",
    )
    pictures = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )


def _model(tokenizer: Any) -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    # Two heads of 32: the smallest that vLLM's attention on a CPU takes.
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
    )
    return LlavaForConditionalGeneration(config)


def _batch(processor: Any, random: np.random.Generator, images: int) -> dict[str, Any]:
    import torch

    tokenizer, pictures = processor.tokenizer, processor.image_processor
    mean, std = np.array(pictures.image_mean), np.array(pictures.image_std)
    rows: list[tuple[list[int], list[int]]] = []
    pixels: list[np.ndarray] = []
    for _ in range(BATCH):
        names = [str(name) for name in random.choice(list(COLOURS), images)]
        for name in names:
            pixels.append((_picture(random, COLOURS[name]) / 255 - mean) / std)
        question = str(random.choice(_QUESTIONS))
        prompt = f"<|user|>{'<image>' * images * IMAGE_TOKENS}{question}</s><|assistant|>"
        answer = f"{', '.join(names) or NO_IMAGE}</s>"
        rows.append((tokenizer.encode(prompt), tokenizer.encode(answer)))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    pad = tokenizer.pad_token_id
    gaps = [width - len(prompt) - len(answer) for prompt, answer in rows]
    pairs = list(zip(gaps, rows, strict=True))
    batch = {
        "input_ids": torch.tensor([[pad] * gap + one + two for gap, (one, two) in pairs]),
        "attention_mask": torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps]),
        "labels": torch.tensor([[-100] * (gap + len(one)) + two for gap, (one, two) in pairs]),
    }
    if pixels:
        stacked = np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32)
        batch["pixel_values"] = torch.from_numpy(stacked)
    return batch


def _picture(random: np.random.Generator, colour: tuple[int, int, int]) -> np.ndarray:
    """A square of about this colour: plain, noisy, or with stripes of another brightness."""
    base = np.array(colour) + random.normal(0, 6, 3)
    picture = np.broadcast_to(base, (SIDE, SIDE, 3)).copy()
    kind = random.integers(3)
    if kind == 1:
        picture += random.normal(0, 15, picture.shape)
    if kind == 2:
        picture[:, :: random.integers(2, 5)] += random.normal(0, 10)
    return picture.clip(0, 255)
