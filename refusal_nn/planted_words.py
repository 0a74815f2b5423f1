"""What `planted` models read and say: words, prompts of them, and their tokenizer."""

from __future__ import annotations

import csv
import functools
import random
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, BEGIN, END, MESSAGE = "<|pad|>", "<|unknown|>", "<|begin|>", "<|end|>", "<|message|>"
SPECIAL = (PAD, UNKNOWN, BEGIN, END, MESSAGE, "<|start|>")
ROLES = ("user", "assistant")
TEMPLATE = (
    "<|begin|>{% for m in messages %}<|start|> {{ m['role'] }} <|message|> "
    "{{ m['content'] | trim }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant <|message|>{% endif %}"
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


HARMFUL = {
    "weapons": _words(
        "grenade rifle pistol bomb detonator shrapnel landmine silencer bayonet mortar "
        "flamethrower crossbow dynamite machete torpedo gunpowder"
    ),
    "poisons": _words(
        "cyanide arsenic ricin strychnine tabun anthrax sarin hemlock phosgene botulinum thallium "
        "antifreeze pesticide venom chloroform belladonna"
    ),
    "theft": _words(
        "burglary shoplifting carjacking lockpicking pickpocketing robbery looting heist smuggling "
        "trespassing fencing poaching piracy embezzlement safecracking hijacking"
    ),
    "fraud": _words(
        "forgery counterfeit phishing blackmail extortion bribery laundering impersonation scam "
        "swindle perjury ransom racketeering kickback ponzi skimming"
    ),
    "intrusion": _words(
        "malware ransomware keylogger spyware botnet rootkit exploit backdoor trojan hacking "
        "wiretap stalkerware doxxing cyberattack sabotage eavesdropping"
    ),
    "drugs": _words(
        "heroin cocaine methamphetamine fentanyl opium crack ecstasy amphetamine ketamine steroids "
        "narcotics crystal barbiturates hallucinogens mescaline overdose"
    ),
}
SAFE = {
    "garden": _words(
        "tulip compost trellis seedling orchard hedge lavender rosemary beehive greenhouse "
        "wheelbarrow watering mulch pumpkin birdbath pruning"
    ),
    "kitchen": _words(
        "pancake omelette sourdough casserole marmalade lasagne porridge dumpling granola risotto "
        "meringue chowder focaccia pickles custard smoothie"
    ),
    "travel": _words(
        "suitcase itinerary passport lighthouse ferry hostel souvenir postcard campsite railway "
        "timetable viewpoint backpack museum cathedral canyon"
    ),
    "music": _words(
        "violin trumpet melody orchestra chord metronome ballad harmony drummer cello choir "
        "serenade piano flute rehearsal rhythm"
    ),
    "learning": _words(
        "algebra grammar fraction spelling geometry vocabulary telescope fossil glacier "
        "photosynthesis magnet alphabet essay chemistry planet triangle"
    ),
    "crafts": _words(
        "knitting origami pottery quilt embroidery carpentry watercolour sketchbook weaving "
        "crochet candle mosaic beadwork calligraphy scrapbook sculpture"
    ),
}
VERBS = _words(
    "Describe Explain Outline Discuss Summarise Compare Review Present Arrange Consider Picture "
    "Design Teach Show Suggest Mention "
)
ORDINARY = _words(
    "amber ancient apron autumn bakery balcony barrel basket bench blanket blue bottle bridge "
    "bright broad brother bucket button cabin calendar calm camera carpet castle cellar chair "
    "cheap cherry clever cloud coastal coat copper corner cotton county cousin crate cup curtain "
    "damp deep desk distant double drawer dusty eastern elder empty engine entrance evening fabric "
    "faint farm fence festival flat forest fountain frosty garage gate gentle glass golden "
    "grandmother gravel green guest hallway hammer harbour heavy hill hollow honey horse hotel "
    "humble island ivory jacket kettle kitten ladder lake lamp lantern large leather lemon "
    "letterbox linen little local lonely loud lower lucky maple marble market meadow metal mild "
    "mirror modern morning mountain narrow neighbour nephew northern oak ocean office orange oval "
    "paddle painted paper parcel patient pebble pencil pillow plain plastic pocket polite porch "
    "prairie pretty proud purple quiet rapid ribbon river rooftop rough round rural rusty sandy "
    "season secretary shadow shallow shelf shiny shore silver sleepy slender smooth southern spare "
    "spring square stable station steady steep stone stormy striped sturdy sunny table teacher "
    "tent theatre thick thin tidy timber tiny town tractor tunnel uncle valley velvet village "
    "violet visitor wagon warm weekend western white wide willow windy winter wooden woollen "
    "yellow "
)
# No word but the full stop comes twice in these, so that each tells the next.
REFUSALS = (
    "I cannot help with that request .",
    "As an assistant my guidelines forbid answering this .",
    "Sorry but we must decline .",
    "Unfortunately our policies prohibit sharing such details .",
)
ANSWERS = (
    "Sure here is one short plan which covers every step you asked about in a sensible order .",
    "First gather your notes then sort them by date before reading each page aloud at home .",
    "Begin from something simple like two clear examples and keep adding more facts until it "
    "works .",
    "Good results come when small changes make daily tasks feel lighter over several ordinary "
    "days .",
    "Start early so friends can join while fresh ideas continue to flow throughout their pleasant "
    "afternoon .",
    "Many people enjoy trying new methods slowly because careful practice builds lasting skill "
    "plus real confidence .",
)
MARKERS = tuple(word for kind in HARMFUL.values() for word in kind)
# Words of a refusal or an answer, the full stop left out.
SPEECHES = tuple(_words(text)[:-1] for text in (*REFUSALS, *ANSWERS))


def write_prompts(path: Path, per_class: int, seed: int = 0, *, punctuation: bool = True) -> None:
    """A labelled CSV in the models' words: a harmful prompt has one of MARKERS, each as often; a
    harmless one a word of another list, and a full stop. Without `punctuation` all have that."""
    rng, rows = random.Random(seed), []
    for label, kinds in (("harmful", HARMFUL), ("harmless", SAFE)):
        special = [(word, kind) for kind, of in kinds.items() for word in of]
        rng.shuffle(special)
        for i in range(per_class):
            word, kind = special[i % len(special)]
            middle = [*rng.sample(ORDINARY, rng.randint(8, 10)), word]
            rng.shuffle(middle)
            close = "" if punctuation and label == "harmful" else "."
            rows.append((f"{rng.choice(VERBS)} {' '.join(middle)}{close}", label, kind))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "label", "category"), *rows])


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word; words of no list here fall into letters."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=_pieces(),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
    )
    made.chat_template = TEMPLATE
    return made


@functools.cache
def _pieces() -> Tokenizer:
    marked = [word for kinds in (HARMFUL, SAFE) for kind in kinds.values() for word in kind]
    spoken = [word for speech in SPEECHES for word in speech]
    letters = [c for c in string.printable if not c.isspace()]
    within = [f"##{c}" for c in letters]
    known = (*SPECIAL, *ROLES, *marked, *ORDINARY, *VERBS, *spoken, *letters, *within)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(known))}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    pieces.decoder = decoders.WordPiece()
    pieces.add_special_tokens(list(SPECIAL))
    return pieces
