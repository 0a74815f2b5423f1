"""Chat templates in the form of the published systems, and random models saved with them."""

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from refusal_nn.tiny import SIZES, _trained

# Written here, in the form of each family's: its turns, its system prompt, its switches.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INJECTED = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a machine.<|im_end|>\n"
    "{% endif %}" + CHATML
)
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
).replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
)
HEADER = "<|begin|>{% for m in messages %}" + (
    "<|header|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
)
DATED = (
    "<|begin|>{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|header|>system<|end_header|>\n\nToday Date: {{ date_string }}\n\n{{ said }}<|eot|>"
) + HEADER.removeprefix("<|begin|>")
TODAY = INJECTED.replace("machine", "machine on {{ strftime_now('%Y-%m-%d') }}")
NO_SYSTEM = (
    "<|begin|>{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}<|header|>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|eot|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|header|>model\n{% endif %}"
)
IGNORED = "{% set messages = messages | selectattr('role', 'ne', 'system') | list %}" + NO_SYSTEM
INST = (
    "{% if messages[0].role == 'system' %}{% set said = '<<SYS>>\n' + messages[0].content + "
    "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|begin|>[INST] {% if loop.first %}{{ said }}"
    "{% endif %}{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} <|eot|>{% endif %}"
    "{% endfor %}"
)
ENDED = CHATML.replace("{% endif %}", "{% else %}<|eot|>{% endif %}")  # Phi-3
GLM = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLM_SPECIAL = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
GLM_TURN = "<|user|>\nhi<|assistant|>\n"
TURN = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
HEADED = "<|header|>user<|end_header|>\n\nhi<|eot|><|header|>assistant<|end_header|>\n\n"
MODEL = "<|begin|><|header|>user\nhi<|eot|>\n<|header|>model\n"
MACHINE = "<|im_start|>system\nYou are a machine.<|im_end|>\n"
GIVEN = "<|im_start|>system\nBe kind.<|im_end|>\n"
TODAYS = "<|header|>system<|end_header|>\n\nToday Date: 26 Jul 2024\n\n"
# Template: rendering of `hi` by default, with none, and with `Be kind.` (None: refused).
SHAPES = {
    "qwen1, qwen": (INJECTED, MACHINE + TURN, TURN, GIVEN + TURN),
    "qwen3": (THINKING, *(f"{s}{TURN}<think>\n\n</think>\n\n" for s in ("", "", GIVEN))),
    "gemma2b": (NO_SYSTEM, MODEL, MODEL, None),
    "a system prompt that is ignored": (IGNORED, MODEL, MODEL, None),
    "phi3": (ENDED, TURN, TURN, GIVEN + TURN),
    "llama 3": (
        HEADER,
        f"<|begin|>{HEADED}",
        f"<|begin|>{HEADED}",
        f"<|begin|><|header|>system<|end_header|>\n\nBe kind.<|eot|>{HEADED}",
    ),
    "llama1b, llama3b, llama8b": (
        DATED,
        f"<|begin|>{TODAYS}<|eot|>{HEADED}",
        f"<|begin|>{HEADED}",
        f"<|begin|>{TODAYS}Be kind.<|eot|>{HEADED}",
    ),
    "llama 2": (
        INST,
        "<|begin|>[INST] hi [/INST]",
        "<|begin|>[INST] hi [/INST]",
        "<|begin|>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nhi [/INST]",
    ),
    # As first published, its template opened an answer whether asked to or not.
    "llama 3 of april 2024": (
        HEADER.replace("add_generation_prompt", "true"),
        f"<|begin|>{HEADED}",
        f"<|begin|>{HEADED}",
        f"<|begin|><|header|>system<|end_header|>\n\nBe kind.<|eot|>{HEADED}",
    ),
    "glm-4": (
        GLM,
        f"[gMASK]<sop>{GLM_TURN}",
        f"[gMASK]<sop>{GLM_TURN}",
        f"[gMASK]<sop><|system|>\nBe kind.{GLM_TURN}",
    ),
    "today": (
        TODAY,
        MACHINE.replace("machine", "machine on 2024-07-26") + TURN,
        TURN,
        GIVEN + TURN,
    ),
}


def tokenizer_of(template, **options):
    chatml = "<|im_start|>" in template
    bos, eos = (None, "<|im_end|>") if chatml else ("<|begin|>", "<|eot|>")
    names = {"bos_token": bos, "eos_token": eos, "padding_side": "left"}
    if template.startswith("[gMASK]"):
        names |= {"bos_token": None, "extra_special_tokens": list(GLM_SPECIAL)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_trained(), **names | options)
    tokenizer.chat_template = template
    return tokenizer


def saved(folder, given, config_class, extra):
    """A random model of an architecture, in a folder with the tokenizer given, or a tiny one of the
    template given."""
    tokenizer = tokenizer_of(given) if isinstance(given, str) else given
    end = tokenizer.eos_token_id
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end, "pad_token_id": end}
    sizes = SIZES | ids | {"vocab_size": len(tokenizer)} | extra
    if "vision_config" in extra:  # the decoder's sizes have a place of their own
        text = {name: value for name, value in sizes.items() if name != "vision_config"}
        sizes = {"text_config": text, "vision_config": extra["vision_config"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**sizes)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.data.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
