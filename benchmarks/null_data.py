"""Why cross-fitting: how often noise alone passes each rule. Prints the README's table (2 min), and
how often any of 28 layers of noise passes (10 min).

.venv/bin/python benchmarks/null_data.py
"""

import numpy as np

from refusal_nn.estimates import wilson
from refusal_nn.statistics import validate_layers

WIDTH, SEEDS, LAYERS = 1536, 100, 28
FAMILIES = ("independent layers", "each layer adds to the last", "so, and matched pairs")


def one_layer():
    print("| prompts a class | covariance | d in-sample | d held out | passes in-sample | valid |")
    print("|---|---|---|---|---|---|")
    for n in (64, 160, 256):
        for name, decay in (("isotropic", None), ("decaying, r = 100", 50.0)):
            # Variances exp(-i / decay) have participation ratio 2 · decay.
            variance = np.ones(WIDTH) if decay is None else np.exp(-np.arange(WIDTH) / decay)
            rows = []
            for seed in range(SEEDS):
                noise = np.random.default_rng(seed).standard_normal((2, 1, n, WIDTH))
                rows += validate_layers(*(noise * np.sqrt(variance)), seed=seed)
            naive, valid = (sum(r[k] for r in rows) for k in ("valid_in_sample", "valid"))
            d, held_out = (np.mean([r[k] for r in rows]) for k in ("cohens_d", "cohens_d_crossfit"))
            rates = [wilson(k, SEEDS).percent() for k in (naive, valid)]
            print(f"| {n} | {name} | {d:.2f} | {held_out:.2f} | {rates[0]} | {rates[1]} |")


def families():
    print(
        "| prompts a class | noise | any of 28 layers valid | p (family) < .01 | p (family) < .05 |"
    )
    print("|---|---|---|---|---|")
    for n in (64, 160):
        for kind in FAMILIES:
            found = np.zeros(3, int)
            for seed in range(SEEDS):
                rng = np.random.default_rng(seed)
                noise = rng.standard_normal((2, LAYERS, n, WIDTH), np.float32)
                pairs = None
                if kind == FAMILIES[2]:  # what a prompt has in common with its twin
                    noise += rng.standard_normal((1, LAYERS, n, WIDTH), np.float32)
                    pairs = np.tile(np.arange(n), 2)
                if kind != FAMILIES[0]:
                    noise = noise.cumsum(1)
                rows = validate_layers(*noise, clusters=pairs, permutations=1000, seed=seed)
                p = min(row["p_familywise"] for row in rows)
                found += any(row["valid"] for row in rows), p < 0.01, p < 0.05
            rates = " | ".join(wilson(int(k), SEEDS).percent() for k in found)
            print(f"| {n} | {kind} | {rates} |", flush=True)


if __name__ == "__main__":
    one_layer()
    families()
