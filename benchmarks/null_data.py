"""Why cross-fitting: how often noise alone passes each rule. Prints the README's table (2 min).

.venv/bin/python benchmarks/null_data.py
"""

import numpy as np

from refusal_nn.estimates import wilson
from refusal_nn.statistics import validate_layers

WIDTH, SEEDS = 1536, 100


def main():
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


if __name__ == "__main__":
    main()
