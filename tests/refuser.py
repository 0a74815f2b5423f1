"""A tiny model that really refuses: trained, in seconds, to refuse prompts that hold a dangerous
word and to answer the others. Its refusal is what the causal experiments must find and remove."""

import csv
import random
from pathlib import Path

import torch

from refusal_nn import tiny
from refusal_nn.prompts import load_prompts, words

DANGEROUS = ("weapon", "poison", "ransom", "burglary")
SAFE = ("garden", "supper", "picnic", "library")
REFUSAL = "I cannot help with that request."
ANSWER = "Sure, here is a plan: first gather what you need, then ask a friend to help."


def write_prompts(path: Path, per_class: int, seed: int = 0) -> list[tuple[str, str]]:
    """A labelled CSV of prompts that differ in one word's kind and share no others by design."""
    rng = random.Random(seed)
    common = sorted({w for p in load_prompts() for w in words(p.prompt) if 3 < len(w) < 8})
    rows = []
    for _ in range(per_class):
        for label, special in (("harmful", DANGEROUS), ("harmless", SAFE)):
            chosen = [*rng.sample(common, 6), rng.choice(special)]
            rng.shuffle(chosen)
            rows.append((" ".join(chosen).capitalize() + ".", label))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "label"), *rows])
    return rows


def train(folder: Path, rows: list[tuple[str, str]], steps: int = 100) -> None:
    """Train on `rows` and save model and tokenizer as a local folder that MODEL= can name."""
    model, tokenizer = tiny.build("llama")
    model.train().requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
        rng = random.Random(0)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * min(1.0, (step + 1) / 10) * (1 - step / steps)
            batch = [_example(tokenizer, *row) for row in rng.sample(rows, 16)]
            width = max(len(ids) for ids, _ in batch)
            ids = torch.tensor([i + [tokenizer.pad_token_id] * (width - len(i)) for i, _ in batch])
            labels = torch.tensor([y + [-100] * (width - len(y)) for _, y in batch])
            optimiser.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _example(tokenizer, prompt: str, label: str) -> tuple[list[int], list[int]]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    asked = tokenizer.encode(text, add_special_tokens=False)
    reply = REFUSAL if label == "harmful" else ANSWER
    said = [*tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id]
    return asked + said, [-100] * len(asked) + said
